"""Trials that another program puts into a study of ours: run where they can be, else not counted, and said."""

from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState, create_trial

from budgettune.storage.connection import writing
from budgettune.storage.schema import TABLES_OF_A_TRIAL, trials
from budgettune.study.handle import create_study
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from tests.support.studies import let_lease_run_out, records, result, sampled, work_off


def theirs(study):
    return optuna.load_study(study_name=study.name, storage=study.storage)


@pytest.fixture
def wide(storage_url):
    """Return a sampled study of three points."""
    with create_study(
        sampled("tpe", search={"scale": [1.0, 1.2], "batch_size": {"low": 16, "high": 64}}, trials=3), storage_url
    ) as study:
        yield study


def test_enqueued_points_of_a_sampled_study_are_run_before_it_draws(wide):
    theirs(wide).enqueue_trial({"scale": 1.2, "batch_size": 33})
    theirs(wide).enqueue_trial({"scale": 1.2, "batch_size": 33})  # whoever asks twice gets it twice
    work_off(wide)
    rows = records(wide)
    assert [row.state for row in rows] == ["COMPLETE"] * 3
    assert [row.params for row in rows[:2]] == [{"scale": 1.2, "batch_size": 33}] * 2
    assert [row.cell for row in rows] == [0, 1, 2]
    assert wide.verify().whole
    assert wide.foreign_note() is None


def test_what_an_enqueued_point_leaves_open_is_drawn(wide):
    theirs(wide).enqueue_trial({"batch_size": 33})
    assert wide.claim().params["batch_size"] == 33


def test_an_enqueued_point_gets_its_repeats(storage_url):
    with create_study(sampled("random", trials=2, repeats=2), storage_url) as study:
        theirs(study).enqueue_trial({"scale": 1.2, "train.lr": 0.01, "batch_size": 32})
        work_off(study)
        assert [row.params["train.lr"] for row in records(study)].count(0.01) == 2
        assert study.verify().whole


@pytest.mark.parametrize("asked", [{"scale": 9.0}, {"batch_size": 1}, {"scale": "large"}, {"lr": 0.1}, {"scale": None}])
def test_an_enqueued_point_that_is_not_searched_is_refused_and_the_study_goes_on(wide, asked, caplog):
    theirs(wide).enqueue_trial(asked)
    work_off(wide)
    assert [row.state for row in records(wide)].count("COMPLETE") == 3
    [failed] = [row for row in records(wide) if row.state == "FAIL"]
    assert failed.failure.startswith("not-searched: it asks for ")
    assert "which another program queued, is not run: it asks for" in caplog.text


def test_enqueued_points_beyond_the_wanted_number_wait_uncounted(wide):
    work_off(wide)
    theirs(wide).enqueue_trial({"scale": 1.2, "batch_size": 33})
    assert wide.claim() is None
    assert wide.is_finished()
    assert wide.counts()["WAITING"] == 0
    assert "not counted are trials of another program (1 waiting)" in wide.foreign_note()


def test_rows_of_others_in_a_grid_are_not_counted_and_said_everywhere(study, run):
    other = theirs(study)
    other.enqueue_trial({"scale": 1.0, "prune_rate": 0.3})
    other.enqueue_trial({"scale": 9.0}, user_attrs={"cell": "prison"})
    study.storage.create_new_trial(study.study_id)  # as by `ask` where no row waits
    other.add_trial(create_trial(state=TrialState.FAIL))
    work_off(study)
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 4, "PRUNED": 0, "FAIL": 0, "WAITING": 0}
    assert study.summary().seconds_left == 0.0
    for words in (["list"], ["show"]):
        status, out, err = run("study", *words, "--storage", study.url)
        assert status == 0
        assert "not counted are trials of another program (1 running, 1 fail, 2 waiting)" in err
        assert "waiting" not in out
    assert run("report", "--out", "report.html", "--storage", study.url)[0] == 0
    page = Path("report.html").read_text(encoding="utf-8")
    assert "5 trials: 4 finished, 1 failed. Not counted: 3 that another program queued or runs." in page
    status, out, err = run("study", "list", "--format", "csv", "--storage", study.url)
    assert out.splitlines()[1].split(",")[out.splitlines()[0].split(",").index("foreign")] == "4"


def test_a_worker_says_what_it_leaves(study, caplog):
    theirs(study).enqueue_trial({"scale": 1.0, "prune_rate": 0.3})
    work_off(study)
    run_worker(study.url, study.name, WorkerOptions(device="cpu", allow_mixed=True))
    assert "(1 waiting)" in caplog.text
    assert "a grid runs its own cells only" in caplog.text


def test_a_trial_that_another_program_runs_is_its_own_to_end(study):
    work_off(study)
    trial = theirs(study).ask()
    study.storage.record_heartbeat(trial._trial_id)
    let_lease_run_out(study)
    assert study.reconcile().lost == 0
    theirs(study).tell(trial, [1.0, 0.5])
    assert study.verify().whole


def test_a_cell_that_another_program_asked_for_and_forgot_comes_back(study):
    theirs(study).ask()  # takes the oldest row that waits
    assert study.reconcile().lost == 0  # its lease begins now
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    work_off(study)
    assert study.verify().whole


def test_attributes_and_notes_that_a_dashboard_adds_change_nothing(study):
    claim = study.claim()
    storage = study.storage
    storage.set_trial_user_attr(claim.trial_id, "remark", "looks fine")
    storage.set_trial_system_attr(claim.trial_id, "dashboard:note_str:0", "a note")
    storage.set_study_user_attr(study.study_id, "owner", "ann")
    assert study.complete(claim, result())
    work_off(study)
    assert study.verify().whole


@pytest.mark.parametrize("gone", [1, 2, 4])
def test_numbers_stay_unique_after_rows_were_deleted(study, gone):
    claims = [study.claim() for _ in range(4)]
    with writing(study.engine) as connection:
        for table in (*TABLES_OF_A_TRIAL, trials):
            connection.execute(sa.delete(table).where(table.c.trial_id == claims[gone - 1].trial_id))
    study.reconcile()
    work_off(study)
    numbers = [row.number for row in records(study)]
    assert len(set(numbers)) == len(numbers)
