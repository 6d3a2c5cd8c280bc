"""The judge of running trials: finished trials as they come, a worker that stops one."""

from dataclasses import replace

import pytest

from budgettune.errors import StorageError
from budgettune.records import Slot, StoppingNote
from budgettune.spec.study_spec import load_spec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from budgettune.worker.early_stop_judge import FinishedTrials
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from tests.support.studies import curve, grid, result, work_off


@pytest.fixture
def study(storage_url):
    """Return a grid of four cells."""
    with create_study(grid(), storage_url) as handle:
        yield handle


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds


def test_finished_trials_are_read_once_as_they_come_and_an_absent_database_ends_no_trial(study, monkeypatch):
    clock = Clock()
    rivals = FinishedTrials(study, "cpu x2", clock)
    work_off(study)
    assert len(rivals.known().rivals) == 4
    asked = []

    def away(*arguments, **options):
        asked.append(options["leave_out"])
        raise StorageError("away")

    monkeypatch.setattr("budgettune.worker.early_stop_judge.trial_records", away)
    assert len(rivals.known().rivals) == 4
    assert asked == []
    clock.seconds = 60.0
    assert len(rivals.known().rivals) == 4
    assert asked == [{0, 1, 2, 3}]


def test_rivals_come_from_the_same_kind_of_machine(study):
    study.complete(study.claim(), result(device_name="cpu"))
    study.complete(study.claim(), result(device_name="gpu"))
    assert [rival.number for rival in FinishedTrials(study, "cpu x2").known().rivals] == [0]
    assert [rival.number for rival in FinishedTrials(study, None).known().rivals] == [0]  # the other one is an extra


def test_controls_stand_for_the_trials_that_were_stopped(study):
    note = StoppingNote(stopped=False, wrong=False, train_seconds=1.0, expected_seconds=2.0)
    study.complete(study.claim(), result())
    study.complete(study.claim(), replace(result(), stopping=note))
    study.complete(study.claim(), replace(result(), stopping=replace(note, stopped=True)))
    assert [(rival.number, rival.weight) for rival in FinishedTrials(study, None).known().rivals] == [
        (0, 1.0),
        (1, 10.0),
    ]


OPTIONS = WorkerOptions(device="cpu", threads=1, allow_mixed=True)


def made_up(number):
    """Return a result far better and faster than real training, whose curve halves the error towards its end."""
    epochs = curve(1e-4, 0.02 * (1 + number), epochs=30, start=0.04 * (1 + number))
    return replace(result(1e-4, epochs[-1].accuracy), curve=epochs)


@pytest.mark.parametrize("control", [0.0, 1.0])
def test_a_worker_stops_a_dominated_trial_and_runs_a_control_to_its_end(sqlite_url, control):
    rates = ", ".join(str(k / 20) for k in range(10))
    overrides = [f"search={{prune_rate = [{rates}]}}", "pruning.strategy=random", "train.epochs=30"]
    overrides += ["stopping.rule=dominance", "stopping.confidence=0.8"]  # which nine finished trials can bear out
    overrides += ["model.widths=[8, 8, 8]", "model.blocks=1", "data.train_size=600", "train.batch_size=200"]
    study = create_study(
        load_spec("digits").with_overrides([*overrides, f"stopping.control={control}"]),
        sqlite_url,
    )
    for number in range(9):
        study.complete(study.claim(), made_up(number))
    assert run_worker(sqlite_url, None, OPTIONS).completed == 1
    last = trial_records(study.engine, study.study_id)[-1]
    assert study.verify().whole
    assert study.is_finished()
    summary = study.early_stops()
    if control:
        assert (last.state, len(last.curve)) == ("COMPLETE", 30)
        assert (summary.stopped, summary.controls, summary.wrong) == (0, 1, 0)
    else:
        assert (last.state, len(last.curve)) == ("PRUNED", 1)
        assert last.stopped.startswith("after epoch 1")
        assert (summary.stopped, summary.controls) == (1, 0)
        assert study.verify().stopped == 1
    assert Slot(9, 0) not in study.verify().missing
