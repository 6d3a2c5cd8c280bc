"""What the README shows is run: its study file, its Python, its strategy, its commands."""

import re
import textwrap
from pathlib import Path

import pytest
import torch

from budgettune import cli
from budgettune.cli_study import app as study_app
from budgettune.spec import PruningSpec, StudySpec
from budgettune.training.pruning import EpochPlan, Strategy

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def blocks(language):
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", README, re.DOTALL | re.MULTILINE)
    return [textwrap.dedent(text) for _, text in found]


def test_the_study_file_is_one(monkeypatch):
    (text,) = blocks("toml")
    spec = StudySpec.from_toml(text, "README")
    assert len(spec.cells()) == 64  # of 80: scales 1.2 and 1.3 build the same network
    assert spec == StudySpec.from_json(spec.to_json())


def test_the_python_calls_answer(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    calls, _ = blocks("python")
    scope = {}
    exec(calls, scope)
    assert scope["answer"].train_seconds <= 2
    assert scope["trained"].result.test_accuracy == pytest.approx(scope["answer"].test_accuracy, abs=0.05)
    assert "test_accuracy" not in capsys.readouterr().err


def test_the_strategy_of_ones_own_is_one():
    _, text = blocks("python")
    scope = {"torch": torch, "Strategy": Strategy, "EpochPlan": EpochPlan}
    exec(text, scope)
    strategy = scope["Hardest"](4, PruningSpec(prune_rate=0.5))
    strategy.observe(torch.arange(4), torch.tensor([3.0, 1.0, 2.0, 4.0]))
    assert sorted(strategy.plan(1, 0.5).indices.tolist()) == [0, 3]


def test_every_command_that_is_named_exists():
    import typer.main

    top = typer.main.get_command(cli.app).commands
    below = typer.main.get_command(study_app).commands
    named = re.findall(r"(?:`|\$ |& )budgettune ((?:study )?[a-z]+)\b", README)
    assert len(named) > 10
    for words in named:
        group, _, name = words.rpartition(" ")
        assert name in (below if group else top), words
