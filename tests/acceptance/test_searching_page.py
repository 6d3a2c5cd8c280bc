"""What docs/searching.md shows is run: its study file and its commands, on a real worker."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from budgettune import api, cli

PAGE = (Path(__file__).parents[2] / "docs" / "searching.md").read_text(encoding="utf-8")


def block(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_its_commands_search_and_answer(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDGETTUNE_STORAGE", f"sqlite:///{tmp_path / 'studies.db'}")
    (study_file,) = block("toml")
    Path("search.toml").write_text(study_file, encoding="utf-8")
    commands = [line.removeprefix("$ ") for text in block("console") for line in text.splitlines()]
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        assert not leaving.value.code, (command, capsys.readouterr().err)
    assert "trials were stopped early" in " ".join(capsys.readouterr().out.split())
    with api.load_study("search") as study:
        assert study.is_finished()
        assert study.verify().whole
        assert len(api.pareto_front(study)) >= 1
    with api.load_study("longer") as longer:
        assert (longer.spec.sampler.total, longer.spec.sampler.trials) == (14_400.0, 500)
