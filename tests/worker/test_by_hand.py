"""`for trial in bt.trials(study)`: claimed, recorded, failed with the reason, handed back."""

import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest

import budgettune as bt
from budgettune.errors import StorageBusy, TrialMisused, UsageError
from budgettune.spec.study_spec import StudySpec
from budgettune.worker.by_hand import trials
from budgettune.worker.options import WorkerOptions
from tests.support.processes import wait_until

SPEC = {"name": "hand", "train": {"loop": "nobody:calls", "epochs": 2}, "search": {"params.x": [1, 2, 3]}}


@pytest.fixture(autouse=True)
def spool(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "spool"))


@pytest.fixture
def study(storage_url):
    return bt.create_study(StudySpec.from_document(SPEC), storage=storage_url)


def train(trial, accuracy=0.5):
    for _ in trial.epochs():
        with trial.clock():
            trial.step(1)
        trial.report(accuracy=accuracy)


def states(study):
    return [(record.state, (record.failure or "").partition(":")[0]) for record in bt.trial_records(study)]


def test_a_loop_records_each_trial(study):
    for trial in bt.trials(study, device="cpu"):
        assert trial.params == {"x": trial.number + 1}
        train(trial, trial.params["x"] / 10)
    assert study.verify().whole
    assert [record.test_accuracy for record in bt.trial_records(study)] == [0.1, 0.2, 0.3]
    assert all(record.status in ("clean", "disturbed", "unverified") for record in bt.trial_records(study))


def test_an_exception_fails_the_trial_and_says_where(study):
    def broken(trial):
        raise ValueError("no such optimizer")

    with pytest.raises(ValueError, match="no such optimizer"):
        for trial in bt.trials(study, device="cpu"):
            broken(trial)
    failed = bt.trial_records(study)[0]
    assert failed.state == "FAIL"
    assert "no such optimizer" in failed.failure
    assert states(study).count(("WAITING", "")) == 3  # its cell was queued again


def test_what_was_saved_of_a_trial_that_fails_is_forgotten(storage_url, tmp_path):
    study = bt.create_study(StudySpec.from_document({**SPEC, "search": {}}), storage=storage_url)
    options = WorkerOptions(device="cpu", checkpoints=str(tmp_path / "half"), checkpoint_every_seconds=0)
    for trial in trials(study, options):
        epochs = trial.epochs()
        next(epochs)
        with trial.clock():
            trial.step(1)
        trial.report(accuracy=0.5)
        trial.save("half")
        next(epochs)
        break  # handed back
    assert len(list((tmp_path / "half").iterdir())) == 1
    with pytest.raises(ValueError, match="wrong"):
        for _ in trials(study, options):
            raise ValueError("wrong")
    assert not list((tmp_path / "half").iterdir())


def test_what_the_trial_itself_raised_is_the_reason_though_code_caught_it(study):
    for trial in bt.trials(study, device="cpu"):
        try:
            train(trial, float("nan") if trial.number == 0 else 0.5)
        except bt.BudgetTuneError:
            continue
    assert states(study)[0] == ("FAIL", "non-finite-loss")
    assert study.verify().complete == 3


def test_a_break_hands_back_a_trial_that_is_not_whole_and_records_one_that_is(study):
    for trial in bt.trials(study, device="cpu"):
        train(trial)
        break
    assert states(study)[0] == ("COMPLETE", "")
    for trial in bt.trials(study, device="cpu"):
        next(trial.epochs())
        break
    assert states(study)[1] == ("FAIL", "interrupted")
    for trial in bt.trials(study, device="cpu"):
        train(trial)
    assert study.verify().whole
    assert [record.attempt for record in bt.trial_records(study)] == [1, 1, 1, 1]


def test_a_trial_that_was_not_trained_is_said(study):
    with pytest.raises(TrialMisused, match="without an epoch"):
        for _ in bt.trials(study, device="cpu"):
            pass
    assert states(study)[0] == ("FAIL", "misuse")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"epochs": 1}, "study 'hand' trains with the built-in trainer: `budgettune worker` does that"),
        ({"command": ["true"], "epochs": 1}, "study 'hand' trains with a program: `budgettune worker` starts it"),
    ],
)
def test_a_study_that_trains_otherwise_is_refused(storage_url, train, message):
    study = bt.create_study(StudySpec.from_document({"name": "hand", "train": train}), storage=storage_url)
    with pytest.raises(UsageError) as caught:
        next(iter(bt.trials(study)))
    assert str(caught.value) == message


SCRIPT = """
import sys, time
import budgettune as bt
for trial in bt.trials("hand", device="cpu"):
    for epoch in trial.epochs():
        with trial.clock():
            print("training", flush=True)
            time.sleep(60)
            trial.step()
        trial.report(accuracy=0.5)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.slow
def test_ctrl_c_hands_back_and_a_kill_is_lost_after_the_lease(study, storage_url, number, tmp_path):
    environment = {**os.environ, "BUDGETTUNE_STORAGE": storage_url}
    with subprocess.Popen([sys.executable, "-c", SCRIPT], env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout.readline() == "training\n"
        child.send_signal(number)
    if number == signal.SIGINT:
        assert states(study)[0] == ("FAIL", "interrupted")
    else:
        assert states(study)[0] == ("RUNNING", "")
        wait_until(lambda: study.reconcile(lease_seconds=1.0).lost == 1)
    for trial in bt.trials(study, device="cpu"):
        train(trial)
    assert study.verify().whole


def test_a_server_without_a_connection_left_is_asked_again(study, monkeypatch):
    claim, answers = type(study).claim, iter([StorageBusy("no connection left")])

    def refused_once(self, **options):
        for error in answers:
            raise error
        return claim(self, **options)

    monkeypatch.setattr(type(study), "claim", refused_once)
    monkeypatch.setattr("budgettune.storage.patience.time", SimpleNamespace(sleep=lambda seconds: None))
    for trial in trials(study, WorkerOptions(device="cpu", trials=None)):
        train(trial)
    assert study.verify().whole
