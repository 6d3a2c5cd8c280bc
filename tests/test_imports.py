"""Imports: what may know what (the rules stand in pyproject.toml), and what stays light."""

import subprocess
import sys

import pytest
from importlinter.cli import lint_imports


def test_imports_follow_the_rules(capsys, request):
    assert lint_imports(str(request.config.rootpath / "pyproject.toml")) == 0, capsys.readouterr().out


LIGHT = {
    "budgettune": "torch optuna sqlalchemy numpy",
    "budgettune.api": "torch optuna",
    "budgettune.cli.main": "torch optuna plotly",
    "budgettune.machine.fingerprint": "torch optuna",
    "budgettune.predict.recommend": "torch optuna sqlalchemy",
    "budgettune.report.build": "torch",
    "budgettune.spec": "torch optuna sqlalchemy",
    "budgettune.storage.answers": "torch optuna",
    "budgettune.study.front": "torch optuna",
    "budgettune.worker.fleet": "torch optuna",
}
"""Modules, and the packages that importing them does not load."""


@pytest.mark.parametrize(("module", "heavy"), LIGHT.items(), ids=LIGHT)
def test_importing_does_not_load(module, heavy):
    script = f"import sys, {module}; print(*sorted({set(heavy.split())!r} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == ""
