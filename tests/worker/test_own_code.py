"""Studies whose trials train a function of one's own, on the workers, leases and clock that all studies have."""

import signal
import subprocess
import sys

import pytest

from budgettune import api
from budgettune.errors import BudgetTuneError, OutOfMemory, SpecError, UsageError
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.own_code import memory_named
from tests.support.processes import command, wait_until

OPTIONS = WorkerOptions(device="cpu", poll_seconds=0.05, allow_import=frozenset(["tests"]))
SPEC = {
    "name": "own",
    "train": {"loop": "tests.support.own_training:train", "epochs": 3},
    "params": {"x": 1.0},
    "search": {"params.x": [1.0, 2.0, 4.0]},
    "objective": {"name": "distance", "direction": "minimize"},
}


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "spool"))


def make(url, **tables):
    document = {**SPEC, **tables}
    return create_study(StudySpec.from_document(document), url)


def records(study):
    return trial_records(study.engine, study.study_id)


def test_a_worker_fills_a_study_with_whole_records(storage_url):
    study = make(storage_url)
    summary = run_worker(storage_url, study.name, OPTIONS)
    assert (summary.completed, summary.failed) == (3, 0)
    assert study.verify().whole
    for record in records(study):
        assert record.value == pytest.approx(record.params["params.x"] * 0.9**15)
        assert (record.epochs, record.steps, record.parameters) == (3, 15, None)
        assert record.measures == {"moves": 15}
        assert len(record.curve) == 3
        assert record.train_seconds == pytest.approx(record.phases.on_clock)
        assert record.device_name == record.machine.key


def test_code_gets_the_default_of_a_param_that_its_trial_lacks(tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    search = {"params.start": ["usual", "own"], "params.x": {"values": [2, 4], "when": {"params.start": "own"}}}
    study = make(url, search=search)
    assert run_worker(url, study.name, OPTIONS).completed == 3
    assert {record.params.get("params.x", 1): record.value for record in records(study)} == {
        x: pytest.approx(x * 0.9**15) for x in (1, 2, 4)
    }


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("raise", "error", "ValueError: no such optimizer"),
        ("memory", "out-of-memory", "MemoryError: no memory is left"),
        ("nan", "non-finite-loss", "the code reports distance = nan"),
        ("misuse", "misuse", "trial.step() outside of trial.clock(): steps are what the clock counts"),
        ("exit", "error", "RuntimeError: it called sys.exit(3)"),
    ],
)
def test_what_goes_wrong_is_told_apart_and_uses_up_attempts(tmp_path, how, kind, message):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    study = make(url, params={"x": 1.0, "misbehave": how}, search={}, sampler={"max_attempts": 2})
    assert run_worker(url, study.name, OPTIONS).failed == 2
    assert [record.failure for record in records(study)] == [f"{kind}: {message}"] * 2
    assert len(study.verify().given_up) == 1


def test_full_memory_has_one_name_whoever_finds_it():
    for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes")):
        with pytest.raises(OutOfMemory, match=type(error).__name__), memory_named():
            raise error
    with pytest.raises(RuntimeError), memory_named():
        raise RuntimeError("no RESOURCE_EXHAUSTED")


def test_what_code_changes_of_the_process_is_gone_before_the_next_trial(tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    study = make(url, train={"loop": "tests.support.own_training:untidy", "epochs": 1})
    assert run_worker(url, study.name, OPTIONS).completed == 3
    assert [record.value for record in records(study)] == [0, 0, 0]


def test_a_box_without_the_code_spoils_no_cell(tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    study = make(url, train={"loop": "tests.support.nowhere:train", "epochs": 1})
    for _ in range(study.spec.sampler.max_attempts + 1):
        with pytest.raises(UsageError, match=r"cannot import tests\.support\.nowhere .*: install it on this machine"):
            run_worker(url, "own", OPTIONS)
    waiting = [record for record in records(study) if record.state == "WAITING"]
    assert [record.attempt for record in waiting] == [1, 1, 1]


def test_a_worker_does_not_go_on_for_ever_with_code_that_is_misused(tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    make(url, train={"loop": "tests.support.own_training:nothing", "epochs": 1})
    with pytest.raises(BudgetTuneError, match="5 trials in a row failed in code of the study"):
        run_worker(url, "own", OPTIONS)


@pytest.mark.parametrize(
    ("loop", "allowed", "error", "message"),
    [
        ("tests.support.own_training:train", "other", UsageError, "does not allow the package tests"),
        ("tests.support.own_training:absent", "tests", SpecError, "has no absent: correct the name"),
        (
            "tests.support.own_training:not_a_function",
            "tests",
            SpecError,
            "is a int: name a function that takes",
        ),
    ],
)
def test_code_that_cannot_be_called_is_said(tmp_path, loop, allowed, error, message):
    spec = StudySpec.from_document({**SPEC, "train": {"loop": loop, "epochs": 1}})
    with pytest.raises(error, match=message):
        api.train(spec, {}, allow_import=[allowed], device="cpu")


def test_a_configuration_is_trained_to_its_deadline(tmp_path):
    spec = StudySpec.from_document({**SPEC, "params": {"x": 1.0, "step_seconds": 0.01}})
    trained = api.train(spec, {"train.budget": 0.3}, allow_import=["tests"], device="cpu")
    assert abs(trained.result.train_seconds - 0.3) <= max(trained.result.step_ms_median / 1e3, 0.02)
    assert len(trained.model["moves"]) == trained.result.steps


def test_workers_load_no_torch_for_it(tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    study = make(url)
    script = (
        "import sys; from budgettune.worker.loop import run_worker;"
        "from budgettune.worker.options import WorkerOptions;"
        f"run_worker({url!r}, 'own', WorkerOptions(device='cpu', allow_import=frozenset(['tests'])));"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    assert study.verify().whole


def test_a_stop_in_a_step_hands_the_trial_back(storage_url, tmp_path):
    study = make(storage_url, params={"x": 1.0, "step_seconds": 1.0}, search={})
    worker = command(storage_url, "own", "--allow-import", "tests", "--device", "cpu")
    with worker:
        wait_until(lambda: study.counts()["RUNNING"] == 1)
        worker.send_signal(signal.SIGTERM)
        worker.wait(timeout=60)
    assert [(one.state, one.attempt) for one in records(study)] == [("FAIL", 1), ("WAITING", 1)]


def test_sleeps_are_on_the_clock_where_they_are_inside_it_and_nowhere_else(tmp_path):
    url = f"sqlite:///{tmp_path / 'own.db'}"
    train = {"loop": "tests.support.own_training:sleepy", "epochs": 2}
    study = make(url, train=train, params={}, search={"params.where": ["nowhere", "setup", "evaluation", "step"]})
    run_worker(url, study.name, OPTIONS)
    for record in records(study):
        inside, outside = record.measures["inside_seconds"], record.measures["outside_seconds"]
        assert inside <= record.train_seconds <= record.measures["around_seconds"]  # whatever else the machine does
        assert (inside > 0.4, outside > 0.4) == {
            "nowhere": (False, False),
            "setup": (False, True),
            "evaluation": (False, True),
            "step": (True, False),
        }[record.params["params.where"]]
