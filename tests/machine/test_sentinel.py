"""The fixed computation, on made-up durations and on this box."""

import pytest

from budgettune.machine.sentinel import Sentinel, median_seconds


class FakeWork:
    """A computation on a clock of its own: each run takes the next of the given durations, then the last for ever."""

    def __init__(self, *durations):
        self.durations = list(durations)
        self.now = 0.0
        self.slept = 0.0

    def __call__(self):
        self.now += self.durations.pop(0) if len(self.durations) > 1 else self.durations[0]

    def sleep(self, seconds):
        self.slept += seconds

    def sentinel(self):
        return Sentinel(lambda: median_seconds(self, lambda: self.now), sleep=self.sleep)


def test_a_single_slow_run_does_not_move_the_sentinel():
    work = FakeWork(1.0)
    sentinel = work.sentinel()
    sentinel.read()
    work.durations = [1.0, 1.0, 9.0, 1.0]
    assert sentinel.read() == pytest.approx(1.0)


def test_a_moment_of_slowness_is_waited_out():
    work = FakeWork(1.0)
    sentinel = work.sentinel()
    sentinel.read()
    work.slept = 0.0
    work.durations = [2.0] * 8 + [1.0]
    assert sentinel.read() == pytest.approx(1.0)
    assert work.slept == pytest.approx(Sentinel.PAUSE_SECONDS)


def test_a_slowness_that_stays_is_believed_and_the_best_is_kept():
    work = FakeWork(1.0)
    sentinel = work.sentinel()
    sentinel.read()
    work.durations = [2.0]
    assert sentinel.read() == pytest.approx(2.0)
    assert sentinel.best_seconds == pytest.approx(1.0)


def test_the_first_reading_looks_several_times_because_all_others_are_held_against_it():
    work = FakeWork(*[3.0] * 8, 1.0)
    assert work.sentinel().read() == pytest.approx(1.0)


def test_the_real_sentinel_takes_milliseconds():
    sentinel = Sentinel()
    assert 1e-4 < sentinel.read() < 0.1
