"""A worker that trained nothing does not say that all is well, and leads to the reason."""

import sys

import pytest
import sqlalchemy as sa
from torch import nn

from budgettune.errors import StorageError, StorageReadOnly
from budgettune.spec.study_spec import load_spec
from budgettune.storage.connection import writing
from budgettune.storage.schema import TABLES_OF_A_TRIAL, trials
from budgettune.study.handle import create_study, delete_study, load_study
from budgettune.worker import processes
from budgettune.worker.loop import run_worker
from budgettune.worker.options import Listener, WorkerOptions
from budgettune.worker.processes import FRUITLESS_STATUS, after_end, run_members
from budgettune.worker.signals import ORDERS_VARIABLE, StopFlag
from tests.support.permissions import read_only
from tests.support.studies import result

TINY = ["train.epochs=1", "train.batch_size=256", "pruning.strategy=random", "clock.warmup_steps=1"]


class Broken(nn.Module):
    def __init__(self, **_):
        super().__init__()
        raise ZeroDivisionError("a mistake of the user's")


@pytest.fixture
def broken(sqlite_url):
    """Return a study of one cell whose model cannot be built."""
    overrides = [*TINY, f"model.name={__name__}:Broken", "search={scale = [1.0]}", "name=broken"]
    return create_study(load_spec("digits").with_overrides(overrides), sqlite_url)


WORKER = ("worker", "--device", "cpu", "--threads", "1", "--allow-import", "tests")


def test_a_worker_whose_trials_all_fail_exits_1_and_leads_to_the_reason(broken, run):
    status, _, err = run(*WORKER)
    assert status == 1
    assert "error: nothing was trained, every trial failed: `budgettune study show broken` says why" in err
    status, out, _ = run("study", "show", "broken")
    assert (status, out.splitlines()[0]) == (
        0, "no trial has finished; the latest failed: error: ZeroDivisionError: a mistake of the user's"
    )  # fmt: skip


def test_so_does_one_that_finds_every_cell_given_up(broken, run):
    run(*WORKER)
    status, _, err = run(*WORKER, "broken")
    assert status == 1
    assert "nothing was trained, every trial failed: `budgettune study show broken`" in err


def test_one_try_that_failed_is_no_success_either(broken, run):
    status, _, err = run(*WORKER, "--trials", "1")
    assert status == 1
    assert "`budgettune study show broken` says why" in err


def test_a_worker_that_trains_some_says_why_others_failed(sqlite_url, run):
    fine = create_study(load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}", "name=fine"]), sqlite_url)
    create_study(
        load_spec("digits").with_overrides(
            [*TINY, f"model.name={__name__}:Broken", "search={scale = [1.0]}", "name=bad one"]
        ),
        sqlite_url,
    )
    status, _, err = run(*WORKER)
    assert status == 0
    assert (
        "1 trials completed, 3 failed. Next: budgettune front; why some failed: budgettune study show 'bad one'" in err
    )
    assert fine.verify().whole


def test_a_worker_that_finds_everything_done_exits_0(sqlite_url, run):
    study = create_study(load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}"]), sqlite_url)
    study.complete(study.claim(), result())
    status, _, err = run(*WORKER, "--allow-mixed")
    assert (status, err) == (0, "0 trials completed, 0 failed. Next: budgettune front\n")


def test_the_child_of_a_fleet_is_not_started_again_where_that_changes_nothing(broken, run, monkeypatch):
    monkeypatch.setenv(ORDERS_VARIABLE, "1")
    monkeypatch.setattr(StopFlag, "_read_orders", lambda self, descriptor: None)
    status, _, err = run(*WORKER)
    assert status == FRUITLESS_STATUS
    assert "says why" in err
    assert after_end(FRUITLESS_STATUS, 100.0, 0).action == "give-up"


def test_the_child_of_a_fleet_is_not_started_again_for_a_study_that_is_not_there(broken, run, monkeypatch):
    monkeypatch.setenv(ORDERS_VARIABLE, "1")
    monkeypatch.setattr(StopFlag, "_read_orders", lambda self, descriptor: None)
    status, _, err = run(*WORKER, "nope")
    assert status == FRUITLESS_STATUS
    assert "study 'nope' is not in the storage" in err


@pytest.mark.parametrize("url", ["sqlite:////nowhere/none.db", "mysql://anna:secret@host/db", "postgresql://a:b@h:x/d"])
def test_a_fleet_whose_database_cannot_be_starts_no_child(url, run, monkeypatch):
    monkeypatch.setattr(processes, "run_members", lambda *_, **__: pytest.fail("children were started"))
    status, out, err = run("worker", "--device", "cpu", "--processes", "2", "--storage", url)
    assert (status, out) == (1, "")
    assert err.startswith("error: ") and "secret" not in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(("statuses", "whole"), [([3, 3], 1), ([3, 0], 0), ([0, 0], 0), ([2, 3], 1)])
def test_a_fleet_fails_where_no_child_trained_anything(statuses, whole):
    members = [processes.Member(str(status), WorkerOptions()) for status in statuses]

    def command(member, _):
        return [sys.executable, "-S", "-c", f"raise SystemExit({member.name})"]

    assert run_members(members, command, "sqlite:///none.db", StopFlag(), say=lambda line: None) == whole


def test_studies_of_other_machines_alone_are_no_success(sqlite_url, run):
    study = create_study(load_spec("digits").with_overrides([*TINY, "machine.device_name=H100"]), sqlite_url)
    status, _, err = run(*WORKER)
    assert status == 1
    assert "error: nothing was trained: every open study takes its times on another kind of machine" in err
    while (claim := study.claim()) is not None:
        study.complete(claim, result(device_name="H100"), allow_mixed=True)
    assert run(*WORKER)[0] == 0


def test_a_front_of_nothing_says_where_to_look(sqlite_url, run):
    create_study(load_spec("digits"), sqlite_url)
    status, out, err = run("front")
    assert (status, out.strip()) == (0, "")
    assert "no trial to show has finished: `budgettune study show` says how the study stands" in err
    status, out, _ = run("front", "--format", "json")
    assert (status, '"front": []' in out) == (0, True)


class Meddling(Listener):
    """Does something to the database as soon as a trial runs."""

    def __init__(self, deed):
        self.deed, self.said = deed, []

    def claimed(self, study, claim):
        if self.deed:
            self.deed(study, claim)
            self.deed = None

    def failed(self, claim, reason):
        self.said.append(reason)


def test_a_study_that_is_deleted_while_its_trial_runs_ends_its_worker_and_no_other(sqlite_url):
    spec = load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}"])
    create_study(spec, sqlite_url)
    create_study(spec.with_overrides(["name=other"]), sqlite_url)
    listener = Meddling(lambda study, claim: delete_study(sqlite_url, study.name))
    summary = run_worker(sqlite_url, None, WorkerOptions(device="cpu"), listener=listener)
    assert (summary.completed, summary.failed) == (1, 0)
    assert listener.said == ["its result is lost: it was deleted while it ran"]
    assert load_study(sqlite_url).name == "other"


def test_a_study_that_was_made_anew_under_its_name_is_worked_on(sqlite_url):
    spec = load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}"])
    create_study(spec, sqlite_url)

    def renew(study, claim):
        delete_study(sqlite_url, study.name)
        create_study(spec.with_overrides(["train.batch_size=128"]), sqlite_url)

    summary = run_worker(sqlite_url, "digits", WorkerOptions(device="cpu"), listener=Meddling(renew))
    assert summary.completed == 1
    assert load_study(sqlite_url).verify().whole


def test_a_trial_whose_row_is_deleted_runs_again(sqlite_url):
    create_study(load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}"]), sqlite_url)

    def delete(study, claim):
        with writing(study.engine) as connection:
            for table in (*TABLES_OF_A_TRIAL, trials):
                connection.execute(sa.delete(table).where(table.c.trial_id == claim.trial_id))

    listener = Meddling(delete)
    assert run_worker(sqlite_url, None, WorkerOptions(device="cpu"), listener=listener).completed == 1
    assert listener.said == ["its result is lost: it was deleted while it ran"]


def test_a_worker_on_a_file_that_it_may_only_read_ends_at_once(broken, sqlite_url, tmp_path):
    broken.close()
    with read_only(tmp_path), pytest.raises(StorageReadOnly, match="give this user write permission"):
        run_worker(sqlite_url, "broken", WorkerOptions(device="cpu", patience_seconds=0.5))


def test_a_waiting_worker_says_what_it_waits_for_and_waits_for_no_url_that_cannot_be(tmp_path, caplog):
    options = WorkerOptions(device="cpu", wait=True, poll_seconds=0.01, timeout_seconds=0.05)
    with pytest.raises(StorageError, match="not a database that works here"):
        run_worker("mysql://anna:secret@host/db", options=options)
    run_worker(f"sqlite:///{tmp_path / 'later.db'}", options=options)
    assert "waiting: sqlite:///" in caplog.text and "no such file" in caplog.text
