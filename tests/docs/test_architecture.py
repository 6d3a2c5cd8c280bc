"""docs/architecture.md says what is there: the tree, the floors, the files on a trial's way."""

import re
import tomllib

from tests.support.documents import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "budgettune"
ROWS = re.findall(r"^\| (\d) \| (.+?) \| .+? \| (.*?) ?\|$", PAGE, re.MULTILINE)


def test_the_tree_lists_every_module_and_no_other():
    listed = {}
    for _, place, modules in ROWS:
        (folder,) = re.findall(r"`(.+?)/?`", place) if place.startswith("`") else [""]
        listed[folder] = set(re.findall(r"`(\w+)`", modules))
    files = listed.pop("") | {folder.removesuffix(".py") for folder in listed if folder.endswith(".py")}
    assert {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "__main__"} == files
    folders = {path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE}
    found = {
        str(folder.relative_to(PACKAGE)): {path.stem for path in folder.glob("*.py")} - {"__init__"}
        for folder in folders
    }
    assert found == {folder: modules for folder, modules in listed.items() if not folder.endswith(".py")}


def test_its_floors_are_the_linters():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    floor_of = {name: len(layers) - place for place, layer in enumerate(layers) for name in re.split(r" [|:] ", layer)}
    for floor, place, modules in ROWS:
        names = re.findall(r"`(\w+)", place) or re.findall(r"`(\w+)`", modules)
        assert {floor_of[name] for name in names} == {int(floor)}


def test_every_file_and_function_that_it_names_is_there():
    for path in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert (PACKAGE / path).exists(), path
    for path, names in re.findall(r"`((?:\w+/)+\w+\.py)` \((`.+?`)\)", PAGE):
        for name in re.findall(r"`(\w+)`", names):
            assert f"def {name}(" in (PACKAGE / path).read_text(encoding="utf-8"), f"{path}: {name}"


def test_folders_are_small_and_files_are_one_thing():
    for folder in {path.parent for path in PACKAGE.rglob("*.py")}:
        assert len([path for path in folder.glob("*.py") if path.stem != "__init__"]) <= 12, folder
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
