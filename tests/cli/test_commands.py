"""The command line as a user meets it: what it prints, and the status it leaves with."""

import csv
import io
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from budgettune import api
from budgettune.cli import main, study
from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import create_study
from tests.support.documents import parse

SMALL = [
    *("--set", "train.epochs=1"),
    *("--set", "pruning.strategy=random"),
    *("--set", "train.batch_size=256"),
    *("--set", "search={scale = [1.0, 2.0], prune_rate = [0.0, 0.5]}"),
]


@pytest.fixture
def trained(run):
    assert run("study", "create", "digits", *SMALL)[0] == 0
    assert run("worker", "--device", "cpu")[0] == 0
    return run


def words_of(group):
    import typer.main

    return typer.main.get_command(group).commands


@pytest.mark.parametrize("group", [main.app, study.app])
def test_every_command_and_every_option_has_a_help_text(group):
    for name, command in words_of(group).items():
        assert command.help, name
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"


COMMANDS = [
    *([name] for name in words_of(main.app) if name != "study"),
    *(["study", name] for name in words_of(study.app)),
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_fits_80_columns_and_ends_in_examples_that_work(run, monkeypatch, words):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = run(*words, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= 80
    _, _, shown = out.partition("Examples:")
    examples = [shlex.split(line) for line in shown.splitlines() if line.strip()]
    assert [parse(example[2:]) for example in examples] == [" ".join(words)] * len(examples)
    assert {" ".join(example[:2]) for example in examples} == {"$ budgettune"}


def test_a_study_goes_from_creation_to_an_answer(trained):
    run = trained
    status, out, _ = run("study", "verify")
    assert (status, out.strip()) == (0, "4 of 4 cells × repeats have exactly one complete trial")
    rows = list(csv.DictReader(io.StringIO(run("study", "export")[1])))
    assert len(rows) == 4
    best = json.loads(run("best", "--budget", "1h", "--format", "json")[1])
    assert best[0]["validation_accuracy"] == max(float(row["validation_accuracy"]) for row in rows)
    front = json.loads(run("front", "--format", "json")[1])
    times = [member["train_seconds"] for member in front["front"]]
    assert times == sorted(times)
    assert front["hypervolume"] > 0
    assert front["reference"][0] == pytest.approx(1.1 * max(float(row["train_seconds"]) for row in rows))
    assert "hypervolume" in run("front")[1]
    assert [row["trial"] for row in _table(run("best", "--budget", "1h", "--top", 3)[1])] == [
        str(record["number"]) for record in json.loads(run("best", "--budget", "1h", "--top", 3, "--format", "json")[1])
    ]


def _table(text):
    header, *lines, _ = [line.split() for line in text.strip().splitlines()]  # the last one says which images judged
    return [dict(zip(header, line, strict=False)) for line in lines]


def test_best_equals_a_brute_force_pass_over_the_export(trained):
    rows = list(csv.DictReader(io.StringIO(trained("study", "export")[1])))
    points = [(float(row["train_seconds"]), float(row["validation_accuracy"]), int(row["number"])) for row in rows]
    for budget_seconds in [seconds * factor for seconds, _, _ in points for factor in (1.0001, 1.2)]:
        answer = json.loads(trained("best", "--budget", budget_seconds, "--format", "json")[1])[0]
        fitting = [point for point in points if point[0] <= budget_seconds]
        assert answer["number"] == min(fitting, key=lambda point: (-point[1], point[0], point[2]))[2]


def test_a_budget_below_the_fastest_trial_says_so_and_leaves_with_1(trained):
    status, out, err = trained("best", "--budget", "0.001s")
    assert (status, out) == (1, "")
    assert "no finished trial trains within 0.001s; the fastest takes" in err


def test_a_second_worker_finds_nothing_to_do_and_repeats_nothing(trained):
    status, _, err = trained("worker", "--device", "cpu")
    assert status == 0
    assert "0 trials completed" in err


def test_a_configuration_is_trained_again_to_the_same_weights_and_kept(trained, tmp_path):
    import torch

    status, out, _ = trained("train", "--trial", 3, "--out", tmp_path / "model.pt", "--device", "cpu")
    assert status == 0
    assert "accuracy" in out
    kept = torch.load(tmp_path / "model.pt", weights_only=True)
    row = next(r for r in api.trial_records() if r.number == 3)
    assert kept["params"] == dict(row.params)
    assert kept["result"]["test_accuracy"] == row.test_accuracy
    assert "head.weight" in kept["state_dict"]


def test_train_takes_settings_in_place_of_a_trial(trained, tmp_path):
    status, out, _ = trained("train", "--set", "scale=1.5", "--set", "train.budget=0.5s", "--out", tmp_path / "m.pt")
    assert status == 0
    seconds = float(re.search(r"after ([\d.]+)s", out)[1])
    assert seconds > 0  # how near the budget is for the simulated clock, and for benchmarks/deadline.py, to say
    assert trained("train")[0] == 2
    assert trained("train", "--trial", 99)[0] == 1


def test_listing_showing_and_deleting(trained):
    assert json.loads(trained("study", "list", "--format", "json")[1])[0]["states"]["COMPLETE"] == 4
    assert "digits" in trained("study", "list")[1]
    assert json.loads(trained("study", "show", "--format", "json")[1])["spec"]["train"]["epochs"] == 1
    status, _, err = trained("study", "delete", "digits")
    assert status == 1
    assert "repeat with --yes" in err
    assert trained("study", "delete", "digits", "--yes")[0] == 0
    assert trained("study", "show")[0] == 1


def test_mixed_machines_are_pointed_out_and_can_be_told_apart(run, monkeypatch):
    from budgettune.training.device import Device

    assert run("study", "create", "digits", *SMALL)[0] == 0
    assert run("worker", "--trials", 2)[0] == 0
    real = Device.machine
    monkeypatch.setattr(Device, "machine", lambda self: _renamed(real(self)))
    status, _, err = run("worker", "digits")
    assert status == 1
    assert "--allow-mixed" in err
    assert run("worker", "--allow-mixed")[0] == 0
    out, err = run("best", "--budget", "1h", "--top", 9, "--format", "json")[1:]
    assert {row["number"] for row in json.loads(out)} == {0, 1}
    assert "the study also holds Abacus x1" in err
    out, err = run("front", "--device-name", "any", "--format", "json")[1:]
    assert len(json.loads(out)["front"]) >= 1
    assert "different kinds of machine" in err
    named = json.loads(run("best", "--budget", "1h", "--top", 9, "--device-name", "Abacus x1", "--format", "json")[1])
    assert [row["number"] for row in named if row["number"] < 2] == []
    assert len(named) == 2


def test_disturbed_times_are_marked_and_can_be_left_out(run, monkeypatch):
    from budgettune.machine.witness import Witness

    verdicts = itertools.cycle(["clean", "disturbed"])
    monkeypatch.setattr(Witness, "stop", lambda self: (next(verdicts), {}))
    assert run("study", "create", "digits", *SMALL)[0] == 0
    assert run("worker", "--device", "cpu")[0] == 0
    assert {row["status"] for row in json.loads(run("best", "--budget", "1h", "--top", 9, "--format", "json")[1])} == {
        "clean",
        "disturbed",
    }
    clean = json.loads(run("best", "--budget", "1h", "--top", 9, "--clean-only", "--format", "json")[1])
    assert [row["number"] % 2 for row in clean] == [0, 0]
    front = json.loads(run("front", "--clean-only", "--format", "json")[1])["front"]
    assert {row["status"] for row in front} == {"clean"}


def _renamed(machine):
    from dataclasses import replace

    return replace(machine, device_name="Abacus", threads=1)


def test_cells_that_were_given_up_are_shown_and_can_be_queued_again(run):
    words = ["--set", "sampler.max_attempts=1", "--set", "train.lr=1e30", "--set", "train.optimizer=sgd"]
    assert run("study", "create", "digits", *SMALL, *words)[0] == 0
    assert run("worker", "--device", "cpu")[0] == 1
    status, out, _ = run("study", "verify")
    assert status == 1
    assert "non-finite-loss" in out
    assert "non-finite-loss" in run("study", "show")[2]
    assert run("study", "retry", "--cell", 1)[1].startswith("1 trials queued again")
    assert run("study", "retry")[1].startswith("3 trials queued again")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["study", "create", "nowhere.toml"], 1, "study file nowhere.toml: No such file"),
        (["study", "create", "digits", "--set", "train.lr=-1"], 1, "train.lr: -1 must be a number above 0"),
        (
            ["study", "create", "digits", "--set", "search.scale=[1.0,", "2.0]"],
            2,
            "[1.0, is cut off: put single quotes",
        ),
        (["study", "create", "digits", "--grid", "--sampler", "tpe"], 2, "exclude each other"),
        (["best", "--budget", "1m"], 1, "study create"),
        (["best", "--budget", "soon"], 2, "not a duration"),
        (["worker", "--trial-timeout", "0"], 2, "not above zero"),
        (["worker", "--device", "tpu"], 1, "use auto, cpu, cuda"),
        (["worker"], 1, "study create"),
        (["nonsense"], 2, "No such command"),
        (["front", "--storage", "oracle://x"], 1, "error:"),
    ],
)
def test_what_cannot_work_is_said_in_a_line_with_its_status(run, words, status, message):
    got, out, err = run(*words)
    assert got == status
    assert message in " ".join(err.replace("│", " ").split())
    assert out == ""
    assert "Traceback" not in err


def test_the_version_is_told_without_torch(tmp_path):
    script = "import sys; sys.argv[1:] = ['--version']\nfrom budgettune.cli.main import app\n"
    script += "try: app()\nfinally: assert not {'torch', 'optuna'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"budgettune \S+\n", done.stdout)


def test_a_study_that_is_there_is_refused_or_left_alone(run):
    assert run("study", "create", "digits")[0] == 0
    assert "--skip-if-exists" in run("study", "create", "digits")[2]
    assert run("study", "create", "digits", "--skip-if-exists")[0] == 0
    assert run("study", "create", "digits", "--name", "it's «other»", "--sampler", "tpe", "--seed", 3)[0] == 0
    listed = json.loads(run("study", "list", "--format", "json")[1])
    assert [row["name"] for row in listed] == ["digits", "it's «other»"]


def test_debug_shows_the_traceback(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["budgettune", "best", "--budget", "1m", "--debug"])
    with pytest.raises(Exception, match="study create"):
        main.main()


def test_the_processes_of_a_fleet_are_debugged_where_their_parent_is(run, monkeypatch):
    from budgettune.worker import processes

    monkeypatch.setattr(
        processes, "run_members", lambda members, command, *_, **__: print(command(members[0], 0.0)) or 0
    )
    assert "'--debug'" in run("worker", "--processes", 2, "--wait", "--debug")[1]
    assert "'--debug'" not in run("worker", "--processes", 2, "--wait")[1]


def test_scales_that_build_the_same_network_are_named_at_creation(run):
    err = run("study", "create", "paper", "--set", "model.width_multiple=8", "--set", "model.depth_rounding=nearest")[2]
    assert "scale 1.3 as scale 1.2" in err


PROGRAM = Path(sys.executable).with_name("budgettune")
in_bash = pytest.mark.skipif(shutil.which("bash") is None or not PROGRAM.exists(), reason="needs bash and a command")


def bash(script, tmp_path, **environment):
    """Run lines of bash beside a budgettune on the path; return what they print."""
    path = f"{PROGRAM.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HOME": str(tmp_path), "TERM": "dumb", **environment}
    run = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return run.stdout


@in_bash
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["stu"], ["study"]),
        (["study", "show", "--wa"], ["--watch"]),
        (["best", "digi"], ["digits"]),
        (["best", "--format", ""], ["table", "json", "csv"]),
    ],
)
@pytest.mark.slow
def test_a_shell_completes_commands_options_choices_and_studies(tmp_path, sqlite_url, words, expected):
    create_study(load_spec("digits"), sqlite_url)
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        'eval "$(_BUDGETTUNE_COMPLETE=source_bash budgettune)"\n'
        f"COMP_WORDS=(budgettune {quoted}) COMP_CWORD={len(words)}\n"
        "_budgettune_completion budgettune\n"
        "echo ${COMPREPLY[@]}"
    )
    assert bash(script, tmp_path, BUDGETTUNE_STORAGE=sqlite_url).split() == expected


@in_bash
def test_completion_is_shown_and_installed_for_the_shell_that_asks(tmp_path):
    shown = bash("budgettune --show-completion; true", tmp_path)  # true: else bash becomes the command
    assert "complete -o default -F _budgettune_completion budgettune" in shown
    bash("budgettune --install-completion; true", tmp_path)
    assert "budgettune" in (tmp_path / ".bashrc").read_text()
