import sys

import pytest

from budgettune.errors import SpecError, UsageError
from budgettune.spec.imports import import_code


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Write a package of the given modules and make it importable."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write(name, **modules):
        (tmp_path / name).mkdir()
        for module, text in {"__init__": "", **modules}.items():
            (tmp_path / name / f"{module}.py").write_text(text)

    yield write
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_allowed_name_is_imported(package):
    package("bt_own", models="def build():\n    return 42\n")
    assert import_code("bt_own.models:build", ["bt_own"])() == 42


@pytest.mark.parametrize("allowed", [[], ["bt_other"], ["bt_secret.models"]])
def test_a_package_that_is_not_allowed_is_never_run(package, allowed):
    package("bt_secret", models="raise SystemExit('ran')")
    with pytest.raises(UsageError, match="--allow-import bt_secret"):
        import_code("bt_secret.models:build", allowed)
    assert "bt_secret" not in sys.modules


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bt_a.models:missing", "has no missing"),
        ("bt_a.nowhere:build", "PYTHONPATH"),
        ("bt_a.broken:build", "ZeroDivisionError"),
        ("bt_a.models", "package.module:name"),
    ],
)
def test_a_name_that_cannot_work_says_why(package, name, message):
    package("bt_a", models="def build(): ...", broken="1 / 0")
    with pytest.raises(SpecError, match=message):
        import_code(name, ["bt_a"])
