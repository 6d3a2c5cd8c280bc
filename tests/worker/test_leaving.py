"""Workers that have nothing to do, or no time for it: when they look again, and when they go."""

import math
import os
import random
import signal
import threading
import time
from dataclasses import replace
from itertools import islice, pairwise

import pytest
import sqlalchemy as sa

from budgettune.cli.live import TerminalProgress
from budgettune.errors import StorageAway, StorageBusy, StorageError, UsageError
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import writing
from budgettune.storage.patience import POLL_SPREAD, idle_pauses
from budgettune.storage.schema import trials, utc_in
from budgettune.storage.slots import has_kept_epochs
from budgettune.study.durations import Outlook
from budgettune.study.handle import create_study
from budgettune.worker import loop
from budgettune.worker.loop import run_worker
from budgettune.worker.options import Listener, WorkerOptions
from budgettune.worker.own_code import OwnCode
from budgettune.worker.processes import OUT_OF_TIME_STATUS
from budgettune.worker.signals import StopFlag
from budgettune.worker.spool import Spool
from tests.support.processes import command, wait_until
from tests.support.studies import let_lease_run_out, result

OPTIONS = WorkerOptions(device="cpu", allow_import=frozenset(["tests"]))
LEAVING = replace(OPTIONS, leave=True)
SPEC = {
    "name": "own",
    "train": {"loop": "tests.support.own_training:train", "epochs": 1},
    "params": {"x": 1.0},
    "search": {"params.x": [1.0, 2.0, 4.0]},
    "objective": {"name": "distance", "direction": "minimize"},
}


@pytest.fixture
def not_new(monkeypatch):
    """Let workers be there for longer than a lease when they begin to look."""
    may_go, began = loop._Worker._may_go, time.monotonic() - 3_600.0

    def of_an_old_one(worker, studies):
        with monkeypatch.context() as patch:
            patch.setattr(worker, "_began", began)
            return may_go(worker, studies)

    monkeypatch.setattr(loop._Worker, "_may_go", of_an_old_one)


def make(url, **tables):
    return create_study(StudySpec.from_document({**SPEC, **tables}), url)


class Waits(StopFlag):
    """A clock that runs only while a worker waits, and stops it after so many seconds."""

    def __init__(self, seconds):
        super().__init__()
        self.waited, self._seconds = [], seconds

    def wait(self, seconds=None):
        self.waited.append(seconds)
        if sum(self.waited) >= self._seconds:
            self.request()
        return self.is_set


@pytest.mark.usefixtures("not_new")
def test_an_idle_worker_leaves_though_others_still_train(storage_url):
    study = make(storage_url)
    elsewhere = study.claim()
    summary = run_worker(storage_url, study.name, LEAVING)
    assert (summary.completed, summary.failed) == (2, 0)
    assert summary.note == "nothing is open; 1 trial runs elsewhere"
    assert study.heartbeat(elsewhere.trial_id)
    study.claim()
    assert not study.is_finished()


def test_without_being_told_so_it_stays(sqlite_url):
    study = make(sqlite_url)
    study.claim()
    stop = Waits(seconds=100)
    assert run_worker(sqlite_url, study.name, OPTIONS, stop=stop).completed == 2
    assert sum(stop.waited) >= 100


def test_a_new_worker_stays_until_the_lease_of_one_that_it_may_replace_has_run_out(sqlite_url):
    study = make(sqlite_url)
    study.claim()  # by a worker that gives no sign of life, and that an engine has replaced
    summary = run_worker(sqlite_url, study.name, replace(LEAVING, lease_seconds=1.5, poll_seconds=0.1))
    assert (summary.completed, summary.note) == (3, "")
    assert study.verify().whole


def test_who_leaves_looks_for_lost_trials_once_more(sqlite_url):
    study = make(sqlite_url)
    study.claim()
    let_lease_run_out(study)
    summary = run_worker(sqlite_url, study.name, LEAVING)
    assert (summary.completed, summary.note) == (3, "")
    assert study.verify().whole


def test_who_leaves_delivers_first_what_the_box_still_holds(sqlite_url):
    study = make(sqlite_url, search={"params.x": [1.0]})
    claim = study.claim()
    box = OwnCode(LEAVING, None).machine(study.spec)
    Spool().keep(study, claim, replace(result(), machine=box))
    assert run_worker(sqlite_url, study.name, LEAVING).note == ""
    assert study.verify().whole


@pytest.mark.usefixtures("not_new")
@pytest.mark.parametrize("end", [{"trials": 2}, {"trials": 9, "total": "1h"}, {"trials": 2, "repeats": "auto"}])
def test_it_leaves_a_sampled_study_that_may_yet_ask_for_more(sqlite_url, end):
    ranges = {"params.x": {"low": 1.0, "high": 2.0}}
    study = make(sqlite_url, search=ranges, sampler={"name": "random", **end})
    for _ in range(study.spec.sampler.trials - 1):
        study.claim()
    summary = run_worker(sqlite_url, study.name, LEAVING)
    assert summary.completed >= 1
    assert summary.note.startswith("nothing is open; ")


@pytest.mark.usefixtures("not_new")
def test_the_command_says_why_it_ends_and_ends_well(run, sqlite_url):
    study = make(sqlite_url)
    study.claim()
    study.claim()
    status, _, said = run("worker", "--leave", "--device", "cpu", "--allow-import", "tests")
    assert status == 0
    assert "nothing is open; 2 trials run elsewhere\n1 trials completed, 0 failed." in said


class Starts(StopFlag):
    """Brings a server up, by the link to its socket, as soon as a worker waits for it."""

    def __init__(self, link, target):
        super().__init__()
        self.link, self.target = link, target

    def wait(self, seconds=None):
        if not self.link.is_symlink():
            self.link.symlink_to(self.target)
        return super().wait(0)


def test_a_server_that_is_away_when_it_starts_is_waited_for_by_who_leaves_and_by_nobody_else(postgresql_url, tmp_path):
    make(postgresql_url).close()
    link, folder = tmp_path / "link", sa.make_url(postgresql_url).query["host"]
    url = postgresql_url.replace(folder, str(link))
    with pytest.raises(StorageAway, match="the server does not answer"):
        run_worker(url, "own", replace(OPTIONS, trials=1), stop=Starts(link, folder))
    assert run_worker(url, "own", replace(LEAVING, trials=1), stop=Starts(link, folder)).completed == 1
    with pytest.raises(StorageError, match="no such database"):
        run_worker(postgresql_url.replace("?", "x?"), "own", LEAVING)


def test_to_stay_and_to_leave_are_not_both_asked_for(run):
    with pytest.raises(UsageError, match="--wait stays where nothing is open, and --leave goes"):
        WorkerOptions(wait=True, leave=True)
    status, _, said = run("worker", "--wait", "--leave")
    assert status == 1
    assert "give one of them" in said


def test_the_command_takes_a_time_limit_of_nothing(run, sqlite_url):
    study = make(sqlite_url)
    assert run("worker", "--timeout", "0s", "--allow-import", "tests")[0] == 0
    assert study.counts()["WAITING"] == 3


def test_a_database_that_was_busy_until_the_time_was_over_is_not_nothing_open(sqlite_url, monkeypatch):
    study = make(sqlite_url)

    def busy(*_):
        raise StorageBusy("too many clients")

    monkeypatch.setattr(loop, "find_study", busy)
    monkeypatch.setattr(StopFlag, "wait", lambda *_: time.sleep(0.06))
    with pytest.raises(StorageBusy, match="too many clients"):
        run_worker(sqlite_url, study.name, replace(OPTIONS, leave=True, timeout_seconds=0.05))


# --- how often an idle worker looks -----------------------------------------------------------------------------------


def test_pauses_double_to_the_longest_and_are_spread():
    middle = list(islice(idle_pauses(2.0, 30.0, lambda: 0.5), 7))
    assert middle == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    ends = [next(idle_pauses(2.0, 30.0, lambda end=end: end)) for end in (0.0, 1.0)]
    assert ends == pytest.approx([2.0 * (1 - POLL_SPREAD), 2.0 * (1 + POLL_SPREAD)])
    chance = random.Random(0)
    fleet = [list(islice(idle_pauses(2.0, 30.0, chance.random), 9)) for _ in range(20)]
    assert len({sum(pauses) for pauses in fleet}) == 20


def test_no_pause_is_much_longer_than_the_wait_so_far():
    pauses = list(islice(idle_pauses(2.0, math.inf, lambda: 0.5), 12))
    waited = 0.0
    for before, pause in pairwise(pauses):
        waited += before
        assert pause <= waited + 2.0


def test_idle_workers_ask_a_server_a_tenth_as_often(postgresql_url):
    study, seconds = make(postgresql_url, search={"params.x": [1.0]}), 1_800
    study.claim()
    stop = Waits(seconds)
    run_worker(postgresql_url, study.name, OPTIONS, stop=stop)
    assert len(stop.waited) <= seconds / OPTIONS.poll_seconds / 10


def test_on_a_file_no_worker_waits_longer_than_some_seconds(sqlite_url):
    study = make(sqlite_url, search={"params.x": [1.0]})
    study.claim()
    stop = Waits(600)
    run_worker(sqlite_url, study.name, OPTIONS, stop=stop)
    assert max(stop.waited) <= 3 * OPTIONS.poll_seconds * (1 + POLL_SPREAD)


def test_an_idle_worker_waits_no_longer_than_its_time_limit(sqlite_url):
    study = make(sqlite_url, search={"params.x": [1.0]})
    study.claim()
    stop = Waits(600)
    run_worker(sqlite_url, study.name, replace(OPTIONS, timeout_seconds=0.1), stop=stop)
    assert max(stop.waited) <= 0.1


def test_a_trial_begins_the_count_of_pauses_anew(sqlite_url):
    study = make(sqlite_url, search={"params.x": [1.0]})
    claim = study.claim()

    class HandsBack(Waits):
        def wait(self, seconds=None):
            over = super().wait(seconds)
            if len(self.waited) == 4:
                study.hand_back(claim)
                other = make(sqlite_url, name="other", search={"params.x": [1.0]})
                other.claim()
            return over

    stop = HandsBack(60)
    assert run_worker(sqlite_url, None, OPTIONS, stop=stop).completed == 1
    assert stop.waited[4] < stop.waited[3]


# --- without the time for what is open --------------------------------------------------------------------------------


class Slow(Listener):
    """Uses up a worker's time with each of its trials."""

    def claimed(self, study, claim):
        time.sleep(1.1)


@pytest.mark.slow
def test_who_leaves_says_whether_something_is_open_that_it_had_no_time_for(storage_url, monkeypatch):
    monkeypatch.setattr(Outlook, "fits", lambda *_: True)  # as if nobody knew that trials take so long here
    study = make(storage_url)
    in_time = run_worker(storage_url, study.name, replace(LEAVING, timeout_seconds=600.0, trials=1))
    assert (in_time.completed, in_time.is_out_of_time) == (1, False)  # it was asked for one
    summary = run_worker(storage_url, study.name, replace(LEAVING, timeout_seconds=1.0), listener=Slow())
    assert (summary.completed, summary.is_out_of_time) == (1, True)
    assert not run_worker(storage_url, study.name, replace(OPTIONS, timeout_seconds=1e-6)).is_out_of_time
    summary = run_worker(storage_url, study.name, replace(LEAVING, timeout_seconds=1.0), listener=Slow())
    assert (summary.completed, summary.is_out_of_time) == (1, False)  # it was the last


@pytest.mark.usefixtures("not_new")
@pytest.mark.slow
def test_the_command_tells_an_engine_to_begin_again_only_after_it_has_done_something(run, sqlite_url, monkeypatch):
    study = make(sqlite_url)
    words = ("worker", "--leave", "--device", "cpu", "--allow-import", "tests")
    with monkeypatch.context() as patch:
        patch.setattr(loop._Worker, "_claim", lambda *_: None)  # nothing that is open fits
        status, _, said = run(*words, "--timeout", "1m")
    assert status == 1
    assert "nothing was trained: what is open takes longer than 1m00s: give workers more time" in said
    monkeypatch.setattr(TerminalProgress, "claimed", Slow.claimed)
    assert run(*words, "--timeout", "3s")[0] == OUT_OF_TIME_STATUS
    assert study.counts()["COMPLETE"] == 1
    assert run(*words, "--timeout", "1h")[0] == 0


@pytest.mark.parametrize(("saves", "gets_nowhere"), [("train", False), ("unsaved", True)])
@pytest.mark.slow
def test_a_trial_that_is_cut_off_with_nothing_kept_of_it_is_no_progress(saves, gets_nowhere, run, sqlite_url):
    """Else a job that begins again at its time limit would begin the same trial for ever."""
    train = {"loop": f"tests.support.own_training:{saves}", "epochs": 100}
    study = make(sqlite_url, train=train, params={"step_seconds": 0.02}, search={"params.x": [1.0]})
    threading.Timer(3.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    words = ("worker", "--leave", "--device", "cpu", "--allow-import", "tests", "--checkpoint-every", "0s")
    status, _, said = run(*words, "--timeout", "4s")
    assert status == (1 if gets_nowhere else 143), said
    assert ("nothing of it can be kept" in said) == gets_nowhere
    assert study.counts()["WAITING"] == 1


# --- a time limit -----------------------------------------------------------------------------------------------------


def took(study, wall_seconds):
    """Make all trials that have finished look as if they had begun so long before they ended."""
    with writing(study.engine) as connection:
        times = {"datetime_start": utc_in(-wall_seconds), "datetime_complete": utc_in()}
        connection.execute(sa.update(trials).where(trials.c.state == "COMPLETE").values(**times))


@pytest.mark.slow
def test_no_trial_begins_that_would_outlast_the_time_limit(storage_url):
    study = make(storage_url, sampler={"repeats": 2})
    assert run_worker(storage_url, study.name, replace(OPTIONS, trials=3)).completed == 3
    took(study, 1_000)
    stop = Waits(60)
    options = replace(OPTIONS, timeout_seconds=300.0, checkpoint_every_seconds=None)
    summary = run_worker(storage_url, study.name, options, stop=stop)
    assert summary.completed == 0
    assert summary.note.startswith("nothing that is open is likely to end within the ")
    assert summary.note.endswith(" left; the shortest takes 16m40s")
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 3, "PRUNED": 0, "FAIL": 0, "WAITING": 3}
    assert stop.waited == []
    assert run_worker(storage_url, study.name, replace(options, timeout_seconds=3_000.0)).completed == 3


def test_a_worker_with_a_limit_that_waits_for_more_ends_all_the_same(sqlite_url):
    study = make(sqlite_url)
    assert run_worker(sqlite_url, study.name, replace(OPTIONS, trials=1)).completed == 1
    took(study, 1_000)
    options = replace(OPTIONS, wait=True, timeout_seconds=300.0, checkpoint_every_seconds=None)
    assert run_worker(sqlite_url, None, options, stop=Waits(60)).note


@pytest.mark.slow
def test_what_can_be_resumed_begins_all_the_same(sqlite_url):
    slow = {"x": 1.0, "step_seconds": 0.003}
    study = make(sqlite_url, train={**SPEC["train"], "epochs": 30}, params=slow)
    options = replace(OPTIONS, timeout_seconds=900.0, checkpoint_every_seconds=0.0)
    assert run_worker(sqlite_url, study.name, replace(options, trials=1, heartbeat_seconds=0.01)).completed == 1
    took(study, 1_000)
    assert run_worker(sqlite_url, study.name, options).completed == 2  # the first one was seen to save


@pytest.mark.slow
def test_a_drawn_point_that_would_outlast_it_is_left_to_others(sqlite_url):
    ranges = {"params.x": {"low": 1.0, "high": 2.0}}
    study = make(sqlite_url, search=ranges, sampler={"name": "random", "trials": 4})
    options = replace(OPTIONS, timeout_seconds=300.0, checkpoint_every_seconds=None)
    assert run_worker(sqlite_url, study.name, replace(OPTIONS, trials=1)).completed == 1
    took(study, 1_000)
    for _ in range(2):
        assert run_worker(sqlite_url, study.name, options).note
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 1, "PRUNED": 0, "FAIL": 0, "WAITING": 1}
    assert run_worker(sqlite_url, study.name, OPTIONS).completed == 3


def test_before_anything_has_finished_trials_begin(sqlite_url):
    study = make(sqlite_url, search={"params.x": [1.0]})
    assert run_worker(sqlite_url, study.name, replace(OPTIONS, timeout_seconds=100.0)).completed == 1


# --- real processes ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_workers_the_idle_one_leaves_and_the_killed_ones_trial_uses_up_no_attempt(postgresql_url):
    slow = {"x": 1.0, "step_seconds": 0.05}
    train = {**SPEC["train"], "epochs": 10_000}
    study = make(postgresql_url, train=train, params=slow, search={"params.x": [1.0]})
    words = ("--allow-import", "tests", "--checkpoint-every", "0s")
    trains = command(postgresql_url, *words)
    try:
        wait_until(lambda: study.counts()["RUNNING"] == 1)
        idle = command(postgresql_url, *words, "--leave")
        said = idle.communicate(timeout=180)[1]  # it is new, and stays for a lease
        assert idle.returncode == 0
        assert "nothing is open; 1 trial runs elsewhere" in said
        wait_until(lambda: has_kept_epochs(study.engine, study.study_id))  # told with a sign of life
    finally:
        trains.kill()
        trains.communicate()
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    assert study.claim().attempt == 1
