"""What a user gets from the wheel, away from any checkout."""

import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    build = pytest.importorskip("hatchling.build", reason="install the `test` extra: it brings hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        name = build.build_wheel(str(folder))
    with zipfile.ZipFile(folder / name) as file:
        yield file


def test_the_bundled_studies_travel_in_the_wheel(wheel):
    studies = {path.name for path in (ROOT / "studies").glob("*.toml")}
    inside = {Path(name).name for name in wheel.namelist() if name.startswith("budgettune/studies/")}
    assert inside == studies


def test_the_wheel_holds_the_package_and_its_command_and_no_more(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"budgettune"}
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "budgettune = budgettune.cli.main:main" in wheel.read(entry).decode()
