"""A fixed computation, timed: the only witness of what no counter shows.

A hot or throttled processor and a neighbour on the same physical core slow it down as they slow training.
"""

from __future__ import annotations

import functools
import math
import statistics
import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

SENTINEL_LIMIT = 1.25
"""Slow-down of the sentinel that counts. Its own noise is below 1.1 on an idle virtual machine."""


@dataclass(frozen=True, kw_only=True)
class SentinelSeconds:
    """What the fixed computation took before and after, and the best that this process has seen."""

    before: float
    after: float
    best: float

    @property
    def slowdown(self) -> float:
        """Of the mean of both readings against the best: an estimate for the time between them; 1 is none."""
        return (self.before + self.after) / 2 / self.best


class Sentinel:
    """A fixed computation of about two milliseconds, timed again and again in one process.

    A reading is the median of several runs. A slow one is taken again after a pause, and the fastest counts: our own
    threads spin for a moment after training and share a physical core, and only a slowness that stays is the box's.
    """

    RUNS = 7
    TRIES = 4
    PAUSE_SECONDS = 0.1

    def __init__(
        self,
        work: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._work = work or _fixed_work
        self._clock = clock
        self._sleep = sleep
        self.best_seconds = math.inf

    def read(self) -> float:
        """Return how long the computation takes now, in seconds."""
        reading = self._median()
        for _ in range(self.TRIES - 1):
            # The first reading of all has nothing to be held against, and the ones after it will be held against it.
            if math.isfinite(self.best_seconds) and reading <= SENTINEL_LIMIT * self.best_seconds:
                break
            self._sleep(self.PAUSE_SECONDS)
            reading = min(reading, self._median())
        self.best_seconds = min(self.best_seconds, reading)
        return reading

    def _median(self) -> float:
        self._work()  # caches and clock speed settle
        return statistics.median(timeit.repeat(self._work, timer=self._clock, repeat=self.RUNS, number=1))


def _fixed_work() -> None:
    """Plain Python for the core's speed, passes over a megabyte for its caches; one thread, always the same."""
    state = 1
    for _ in range(10_000):
        state = state * 48_271 % 2_147_483_647
    source, target = _sentinel_arrays()
    for _ in range(8):
        np.multiply(source, source, out=target)
        np.sqrt(target, out=target)


@functools.cache
def _sentinel_arrays() -> tuple[np.ndarray, np.ndarray]:
    source = np.linspace(1, 2, 2**18, dtype=np.float32)
    return source, np.empty_like(source)


SENTINEL = Sentinel()  # one per process, so that a trial is held against the best of all trials before it
