import pytest

from budgettune.trial.schedule import BudgetProgress, EpochProgress, learning_rate
from budgettune.trial.stopwatch import Stopwatch


class Time:
    """A clock that moves only when told to, and a device that owes work until it is waited for."""

    def __init__(self):
        self.now = 100.0
        self.queued = 0.0
        self.waits = 0

    def __call__(self):
        return self.now

    def work(self, seconds):
        self.now += seconds

    def synchronize(self):
        self.waits += 1
        self.now += self.queued
        self.queued = 0.0


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def watch(time):
    return Stopwatch(clock=time, synchronize=time.synchronize)


def test_only_running_segments_count_and_phases_add_up_to_them(time, watch):
    with watch.aside("build"):
        time.work(50)
    for _ in range(3):
        with watch.running():
            with watch.phase("plan"):
                time.work(1)
            with watch.phase("step"):
                time.work(4)
        with watch.aside("evaluate"):
            time.work(20)
    assert watch.elapsed() == 15
    assert watch.seconds == {"build": 50, "plan": 3, "step": 12, "evaluate": 60}


def test_work_queued_on_the_device_is_charged_to_the_side_that_queued_it(time, watch):
    time.queued = 7  # from before
    with watch.running(), watch.phase("step"):
        time.work(1)
        time.queued = 5
    time.queued = 3
    with watch.aside("evaluate"):
        time.queued = 2
    assert watch.elapsed() == 6
    assert watch.seconds["step"] == 6
    assert watch.seconds["evaluate"] == 2


class Event:
    """Passed, and stamped, when the device has done what was queued before it."""

    def __init__(self, time):
        self.time, self.at = time, time.now + time.queued

    def query(self):
        return self.time.now >= self.at

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


@pytest.mark.parametrize("steps", [1, 10, 3_000])  # more than it keeps unread
def test_phases_of_a_device_that_works_by_itself_are_its_own_time(time, steps):
    watch = Stopwatch(time, time.synchronize, lambda: Event(time))

    def launch(seconds):
        time.queued += seconds
        time.now += 0.125  # of the host, in which the device works too
        time.queued = max(0.0, time.queued - 0.125)

    with watch.aside("build"):
        time.work(50)
    with watch.running():
        for _ in range(steps):
            with watch.phase("step"):
                launch(4)
            with watch.phase("select"):
                launch(1)
                time.synchronize()  # the host looks at values, and waits for the step before
    assert watch.elapsed() == 5 * steps
    assert watch.seconds == {"build": 50, "step": 4 * steps, "select": steps}


def test_the_device_is_waited_for_at_borders_only(time, watch):
    with watch.running():
        for _ in range(100):
            with watch.phase("step"):
                time.work(1)
    assert time.waits == 2


def test_an_open_segment_counts_and_an_error_closes_it(time, watch):
    with pytest.raises(KeyError), watch.running():
        time.work(2)
        assert watch.elapsed() == 2
        raise KeyError
    time.work(10)
    assert watch.elapsed() == 2


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_schedules_fall_from_the_base_rate_to_zero(name):
    rates = [learning_rate(name, 0.1, progress / 10) for progress in range(11)]
    assert rates[0] == 0.1
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(name, 0.1, 1.7) == pytest.approx(0, abs=1e-12)


def test_the_papers_rate_is_constant():
    assert {learning_rate("constant", 0.1, progress) for progress in (0, 0.5, 1)} == {0.1}


def test_progress_by_epochs_counts_shares_of_an_epoch():
    progress = EpochProgress(4)
    assert [progress.at(1, 0.5), progress.at(4, 0.0)] == [0.375, 1.0]
    assert not progress.is_over(3)
    assert progress.is_over(4)


@pytest.mark.parametrize("step", [0.3, 1.0, 7.0])
def test_a_budget_ends_within_half_a_step_and_its_last_step_has_no_learning_rate_left(time, watch, step):
    progress = BudgetProgress(60.0, watch.elapsed)
    seen = []
    with watch.running():
        while not progress.is_over(0):
            seen.append(progress.at(0, 0.0))
            time.work(step)
            progress.learn(step)
    assert abs(watch.elapsed() - 60) <= step / 2 + 1e-9
    assert seen == sorted(seen)
    assert seen[-1] >= 1 - 0.51 * step / (60 - step)
    assert progress.at(0, 0.0) == 1.0


def test_a_clock_goes_on_from_where_another_process_left_it(time, watch):
    watch.go_on(100, {"step": 90, "evaluate": 7})
    with watch.running(), watch.phase("step"):
        time.work(3)
        assert watch.elapsed() == 103
    assert watch.elapsed() == 103
    assert watch.seconds == {"step": 93, "evaluate": 7}
