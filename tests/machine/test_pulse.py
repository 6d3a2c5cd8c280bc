"""A process that stands still while the clock goes on."""

import threading

import pytest

from budgettune.machine.pulse import LEAST_SECONDS, Pulse
from budgettune.machine.witness import take_snapshot


class Process:
    """A clock, and what the process has computed."""

    def __init__(self):
        self.now = self.computed = 0.0
        self.pulse = Pulse(lambda: self.now, lambda: self.computed)
        self.pulse.beat()

    def passes(self, seconds, computed=0.0):
        self.now += seconds
        self.computed += computed
        return self.pulse.beat()


@pytest.mark.parametrize("computed", [0.0, 0.2, 2.0])
def test_a_process_that_beats_or_computes_does_not_stand_still(computed):
    process = Process()
    for _ in range(20):
        assert process.passes(LEAST_SECONDS / 4, computed / 4) == 0
    # A library that computes without letting go of the interpreter keeps the beat waiting.
    assert process.passes(10.0, computed=9.5) == 0


def test_a_process_that_is_suspended_counts_the_seconds():
    process = Process()
    assert process.passes(15.0, computed=0.1) == pytest.approx(14.9)
    assert process.passes(0.2, computed=0.2) == pytest.approx(14.9)
    assert process.passes(5.0) == pytest.approx(19.9)


def test_a_snapshot_has_a_beat_and_one_thread_beats_for_all():
    assert take_snapshot().still_seconds is not None
    take_snapshot()
    assert sum(thread.name == "pulse" for thread in threading.enumerate()) == 1
