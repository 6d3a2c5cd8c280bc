"""Which workers a fleet on Ray starts, brings back and gives up: a real study, and tasks that are pretended."""

import itertools
from types import SimpleNamespace

import pytest

from budgettune.fleet import ray_tasks
from budgettune.fleet.plan import FleetPlan
from budgettune.study.handle import create_study
from budgettune.worker.processes import OUT_OF_TIME_STATUS
from tests.support.studies import grid, let_lease_run_out, work_off

STEP_SECONDS = ray_tasks.LOOK_SECONDS


class TaskCancelled(Exception):
    pass


class PretendRay:
    """Ray's tasks: `endings` says of each, in order, what it does; None for one that runs until it is cancelled."""

    def __init__(self, *endings):
        self.endings, self.started, self.cancelled, self.options_given = iter(endings), [], [], {}
        self.exceptions = SimpleNamespace(TaskCancelledError=TaskCancelled, RayError=RuntimeError)

    def remote(self, **options):
        return lambda work: self

    def options(self, **options):
        self.options_given = options
        return SimpleNamespace(remote=self._begin)

    def _begin(self, *arguments):
        self.started.append(arguments)
        return len(self.started), next(self.endings)

    def wait(self, references, num_returns, timeout):
        ready = [one for one in references if one[1] is not None or one in self.cancelled]
        return ready[:1], []

    def get(self, reference):
        if reference in self.cancelled:
            raise TaskCancelled
        status = reference[1]() if callable(reference[1]) else reference[1]
        if isinstance(status, Exception):
            raise status
        return status

    def cancel(self, reference, *, force, recursive):
        assert not force
        self.cancelled.append(reference)


class Stop:
    is_set, signal_number = False, None

    def wait(self, seconds):
        return self.is_set


@pytest.fixture
def study(sqlite_url):
    with create_study(grid(), sqlite_url) as study:
        yield study


@pytest.fixture
def fleet(monkeypatch, study):
    monkeypatch.setattr(ray_tasks, "LAST_LINES_SECONDS", 0.0)
    said = []

    def run(*endings, workers=2, stop=None, **asked):
        ray = PretendRay(*endings)
        plan = FleetPlan(study=study.name, url=study.url, workers=workers, **asked)
        clock = itertools.count(0, STEP_SECONDS).__next__
        status = ray_tasks._Fleet(ray, plan, study, stop or Stop(), said.append, clock).run()
        return status, ray

    run.said = said
    return run


def works_off(study):
    """Return what a worker does that trains all that is open."""

    def ending():
        work_off(study)
        return 0

    return ending


def test_tasks_ask_for_what_a_worker_gets_and_are_repeated_for_lost_nodes_alone(fleet, study):
    status, ray = fleet(works_off(study), 0, gpus=1, cpus=4, time_seconds=60.0)
    assert status == 0
    assert ray.options_given == {
        "num_cpus": 4,
        "num_gpus": 1,
        "max_retries": -1,
        "retry_exceptions": False,
        "name": "budgettune worker study",
        "runtime_env": {"env_vars": {"RAY_kill_child_processes_on_worker_exit": "false"}},
    }
    assert ray.started[1] == ("worker 1", ["--leave"], "study", study.url, 60.0)


def test_a_worker_comes_back_for_a_lost_trial_with_the_time_that_is_left(fleet, study):
    def leaves_one_lost():
        claim = study.claim()
        work_off(study)
        let_lease_run_out(study)
        assert study.holds(claim)
        return 0

    status, ray = fleet(leaves_one_lost, works_off(study), workers=1, time_seconds=600.0)
    assert status == 0
    assert len(ray.started) == 2
    assert 0 < ray.started[1][-1] < 600.0
    assert study.verify().whole


@pytest.mark.parametrize("left", [0, OUT_OF_TIME_STATUS])
def test_who_came_back_and_did_nothing_does_not_come_again(left, fleet, study):
    status, ray = fleet(left, left, left, left)
    assert status == 0
    assert len(ray.started) == 4  # four cells wait: both come back once
    assert study.counts()["WAITING"] == 4


@pytest.mark.parametrize("asked", [{"worker_words": ("--trials", "1")}, {"time_seconds": 1.0}])
def test_nobody_comes_back_for_what_workers_were_told_to_leave(fleet, asked):
    status, ray = fleet(0, 0, **asked)
    assert (status, len(ray.started)) == (0, 2)


def test_workers_that_are_given_up_are_not_replaced_and_a_fleet_of_them_has_failed(fleet):
    status, ray = fleet(3, RuntimeError("its node has no room"))
    assert (status, len(ray.started)) == (1, 2)
    assert any("its node has no room" in line for line in fleet.said)


def test_a_worker_that_was_told_to_stop_with_its_node_is_replaced(fleet, study):
    status, ray = fleet(143, works_off(study), workers=1)
    assert (status, len(ray.started)) == (0, 2)


def test_workers_that_wait_for_room_are_cancelled_when_nothing_is_left(fleet, study):
    status, ray = fleet(works_off(study), None, None, workers=3)
    assert status == 0
    assert [number for number, _ in ray.cancelled] == [2, 3]


def test_a_stop_cancels_every_worker_once(fleet):
    stop = Stop()
    stop.is_set, stop.signal_number = True, 2
    status, ray = fleet(None, None, stop=stop)
    assert (status, len(ray.cancelled)) == (130, 2)
