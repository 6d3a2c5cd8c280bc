"""Studies whose trials are trained by programs, on the workers, leases and clock that all studies have."""

import json
import shlex
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from budgettune import api
from budgettune.errors import BudgetTuneError, UsageError
from budgettune.machine import procfs
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from budgettune.trial.checkpoint import Checkpoint
from budgettune.worker.loop import run_worker
from budgettune.worker.options import Listener, WorkerOptions
from budgettune.worker.own_code import SECRETS, OwnCode
from budgettune.worker.spool import default_folder
from tests.support.processes import command, wait_until
from tests.support.studies import let_lease_run_out

HERE = Path(__file__).parents[1] / "support"
DESCENT = f"sh {HERE / 'descent.sh'}"
PROGRAM = f"python {HERE / 'own_program.py'}"
OPTIONS = WorkerOptions(
    device="cpu",
    threads=1,
    poll_seconds=0.05,
    checkpoint_every_seconds=0.0,
    allow_command=frozenset([DESCENT, PROGRAM]),
)
SHELL = {
    "name": "descent",
    "train": {"command": [*DESCENT.split(), "{lr}", "{epochs}"], "epochs": 3},
    "search": {"params.lr": [0.1, 0.4]},
    "objective": {"name": "squared error", "direction": "minimize"},
}
PYTHON = {
    "name": "own",
    "train": {"command": [*PROGRAM.split(), "--how", "{how}"], "epochs": 3},
    "params": {"how": ""},
    "search": {"params.x": [1.0, 2.0]},
    "objective": {"name": "distance", "direction": "minimize"},
}


@pytest.fixture(autouse=True)
def path_of_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE.parents[1]))


def make(url, document, **tables):
    return create_study(StudySpec.from_document({**document, **tables}), url)


def records(study):
    return trial_records(study.engine, study.study_id)


def test_a_program_of_the_shell_fills_a_study(storage_url):
    study = make(storage_url, SHELL)
    summary = run_worker(storage_url, study.name, OPTIONS)
    assert (summary.completed, summary.failed) == (2, 0)
    assert study.verify().whole
    slow, fast = sorted(records(study), key=lambda record: record.params["params.lr"])
    assert fast.value < slow.value < 1
    assert (fast.epochs, fast.steps, len(fast.curve)) == (3, 60, 3)
    assert fast.parameters is None and fast.train_seconds == pytest.approx(fast.phases.on_clock)


@pytest.mark.slow
def test_a_python_program_fills_a_study(storage_url):
    study = make(storage_url, PYTHON)
    summary = run_worker(storage_url, study.name, OPTIONS)
    assert (summary.completed, summary.failed) == (2, 0)
    for record in records(study):
        assert record.value == pytest.approx(record.params["params.x"] * 0.9**15)
        assert (record.epochs, record.steps, record.curve[0].samples) == (3, 15, 40)


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raise", "program-failed", "python ended with exit status 1: ValueError: no such optimizer"),
        ("memory", "out-of-memory", "the program ended for want of memory: MemoryError"),
        ("nan", "non-finite-loss", "the code reports distance = nan"),
        ("misuse", "misuse", "trial.step() outside of trial.clock(): steps are what the clock counts"),
        ("exit", "program-failed", "python ended with exit status 3: it printed no error"),
        ("kill", "program-failed", "python was killed by SIGKILL: it printed no error"),
        ("hang", "timeout", "took longer than 3.0s: allow more with --trial-timeout, or less work"),
    ],
)
@pytest.mark.slow
def test_what_became_of_a_program_stands_in_its_row(sqlite_url, tmp_path, monkeypatch, how, kind, message):
    monkeypatch.setenv("MARKER", str(tmp_path / "hangs"))
    study = make(sqlite_url, PYTHON, params={"how": how}, search={"params.x": [1.0]}, sampler={"max_attempts": 1})
    options = WorkerOptions(**{**vars(OPTIONS), "trial_timeout_seconds": 3.0 if how == "hang" else None})
    summary = run_worker(sqlite_url, study.name, options)
    assert (summary.completed, summary.failed) == (0, 1)
    (record,) = records(study)
    assert record.failure == f"{kind}: {message}"


def test_a_program_does_not_get_the_passwords_of_its_worker(sqlite_url, tmp_path, monkeypatch):
    for name in SECRETS:
        monkeypatch.setenv(name, "hidden")
    monkeypatch.setenv("WANTED", "seen")
    command = ["sh", "-c", f"env >{tmp_path / 'environment'}"]
    train, search = {"command": command, "epochs": 1}, {"params.lr": [0.1]}
    study = make(sqlite_url, SHELL, train=train, search=search, sampler={"max_attempts": 1})
    run_worker(sqlite_url, study.name, replace(OPTIONS, allow_command=frozenset([shlex.join(command)])))
    told = (tmp_path / "environment").read_text()
    assert "WANTED=seen" in told and "hidden" not in told


def test_a_command_that_is_not_allowed_runs_nowhere(sqlite_url):
    study = make(sqlite_url, PYTHON)
    with pytest.raises(UsageError, match="--allow-command"):
        run_worker(sqlite_url, study.name, WorkerOptions(device="cpu"))
    assert [record.state for record in records(study)].count("WAITING") == 2  # one was claimed, and handed back


def test_a_study_whose_program_always_fails_ends_the_worker(sqlite_url):
    study = make(sqlite_url, PYTHON, params={"how": "raise"}, search={"params.x": [1.0 + x for x in range(9)]})
    with pytest.raises(BudgetTuneError, match="5 trials in a row failed in code of the study"):
        run_worker(sqlite_url, study.name, OPTIONS)


def programs(folder):
    return procfs.processes_with("BT_MARK", str(folder))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_a_worker_that_is_stopped_leaves_nothing_running_and_another_goes_on(
    storage_url, number, tmp_path, monkeypatch
):
    study = make(storage_url, PYTHON, params={"how": "hang"}, search={"params.x": [1.0]})
    words = ("--device", "cpu", "--allow-command", PROGRAM, "--checkpoint-every", "0s")
    with command(storage_url, *words, BT_MARK=str(tmp_path), MARKER=str(tmp_path / "hangs")) as worker:
        wait_until((tmp_path / "hangs").exists)
        wait_until(lambda: list((default_folder() / "half-trained").glob("*.half")))  # the worker may be writing yet
        assert len(programs(tmp_path)) > 1
        worker.send_signal(number)
        _, said = worker.communicate(timeout=60)
    wait_until(lambda: not programs(tmp_path), 20)
    states = [record.state for record in records(study)]
    if number == signal.SIGKILL:
        assert states == ["RUNNING"]
        let_lease_run_out(study)
        study.reconcile()
    else:
        assert worker.returncode == 128 + number, said
        assert states.count("WAITING") == 1
    monkeypatch.setenv("MARKER", str(tmp_path / "hangs"))
    seen, listener = [], Listener()
    listener.epoch = lambda claim, spec, record: seen.append(record.epoch)
    assert run_worker(storage_url, study.name, OPTIONS, listener=listener).completed == 1
    assert seen == [1, 2]
    assert study.verify().whole
    (record,) = (record for record in records(study) if record.state == "COMPLETE")
    assert record.value == pytest.approx(0.9**15, rel=1e-12)


def test_what_a_program_computes_is_not_taken_for_the_work_of_others():
    spec = StudySpec.from_document({**PYTHON, "params": {"how": "compute", "x": 1.0}, "search": {}})
    evidence = api.train(spec, {}, allow_command=[PROGRAM], device="cpu").result.evidence
    assert evidence["own_cores"] * evidence["seconds"] > 0.7


def test_a_program_that_still_runs_is_not_taken_for_the_work_of_others(tmp_path):
    spec = StudySpec.from_document({**PYTHON, "params": {"how": "compute", "x": 1.0}, "search": {}})
    place = Checkpoint(tmp_path / "half", "mine", every_seconds=0)
    OwnCode(OPTIONS, Trust(commands=[PROGRAM])).trained(spec, {}, 0, checkpoint=place)
    kept = place.load()
    assert kept.status == "unverified"
    assert kept.evidence["reasons"] == ["the program still ran: who used the cores is not known"]


@pytest.mark.slow
@pytest.mark.parametrize("length", [{"epochs": 2}, {"budget": "500ms"}])
def test_processes_of_torchrun_get_one_trial_and_end_together(sqlite_url, tmp_path, length):
    torchrun = ["torchrun", "--standalone", "--nproc-per-node"]
    document = {
        **PYTHON,
        "train": {
            "command": [*torchrun, "{processes}", str(HERE / "ranks_program.py"), str(tmp_path)],
            "processes": 2,
            **length,
        },
        "params": {"x": 3.0},
        "search": {},
    }
    study = make(sqlite_url, document)
    summary = run_worker(sqlite_url, study.name, replace(OPTIONS, allow_command=frozenset([shlex.join(torchrun)])))
    assert (summary.completed, summary.failed) == (1, 0)
    (record,) = records(study)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert (first["params"], first["seed"], record.machine.processes) == ({"x": 3.0}, record.seed, 2)
    assert record.value == 1 / first["steps"] == 1 / record.steps
    if "epochs" in length:
        assert record.epochs == 2
    else:
        assert record.train_seconds == pytest.approx(0.5, abs=0.2)


@pytest.mark.slow
def test_a_process_of_torchrun_that_fails_is_named_by_its_error(sqlite_url, tmp_path):
    """All that torchrun prints after it is no reason."""
    torchrun = ["torchrun", "--standalone", "--nproc-per-node", "2"]
    program = "import os; raise ValueError('no such optimizer')"
    (tmp_path / "fails.py").write_text(program)
    document = {**PYTHON, "train": {"command": [*torchrun, str(tmp_path / "fails.py")], "epochs": 1}, "search": {}}
    study = make(sqlite_url, document, sampler={"max_attempts": 1})
    run_worker(sqlite_url, study.name, replace(OPTIONS, allow_command=frozenset([shlex.join(torchrun)])))
    (record,) = records(study)
    assert record.failure == "program-failed: torchrun ended with exit status 1: ValueError: no such optimizer"
