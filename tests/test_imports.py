"""Imports: what may know what (the rules stand in pyproject.toml), and what stays light."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.support.synthetic import make_study


def test_imports_follow_the_rules(request):
    # In a process of its own: it switches off every logger that is there.
    words = [Path(sys.executable).with_name("lint-imports"), "--config", request.config.rootpath / "pyproject.toml"]
    finished = subprocess.run(words, capture_output=True, text=True, check=False, cwd=request.config.rootpath)
    assert finished.returncode == 0, finished.stdout


LIGHT = {
    "budgettune": "torch optuna sqlalchemy numpy",
    "budgettune.api": "torch optuna",
    "budgettune.cli.live": "torch",
    "budgettune.cli.main": "torch optuna plotly",
    "budgettune.machine.doctor": "torch optuna",
    "budgettune.machine.fingerprint": "torch optuna",
    "budgettune.predict.recommend": "torch optuna sqlalchemy",
    "budgettune.report.build": "torch",
    "budgettune.spec": "torch optuna sqlalchemy",
    "budgettune.storage.answers": "torch optuna",
    "budgettune.study.front": "torch optuna",
    "budgettune.training.trainer": "optuna sqlalchemy PIL torchvision sklearn scipy rich",
    "budgettune.worker.processes": "torch optuna",
}
"""Modules, and the packages that importing them does not load."""


@pytest.mark.parametrize(("module", "heavy"), LIGHT.items(), ids=LIGHT)
def test_importing_does_not_load(module, heavy):
    script = f"import sys, {module}; print(*sorted({set(heavy.split())!r} & set(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == ""


ANSWERS = [
    "--help",
    "study list",
    "study show",
    "best --budget 1h",
    "front",
    "recommend --budget 1h",
    "report --out page.html",
]
COMMAND = """
import atexit, runpy, sys
atexit.register(lambda: print("loaded", *sorted({"torch", "optuna", "alembic"} & set(sys.modules)), file=sys.stderr))
runpy.run_module("budgettune", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def recorded_url(tmp_path_factory):
    """Return the URL of a study that has answers."""
    url = f"sqlite:///{tmp_path_factory.mktemp('recorded')}/study.db"
    make_study(url, 12).close()
    return url


@pytest.mark.parametrize("words", ANSWERS)
def test_answers_come_without_torch_and_optuna(words, recorded_url, tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_STORAGE", recorded_url)
    monkeypatch.chdir(tmp_path)
    words = [sys.executable, "-c", COMMAND, *words.split()]
    finished = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stderr.splitlines()[-1]) == (0, "loaded"), finished.stderr
