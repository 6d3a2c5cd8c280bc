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
GPU_SENTINEL_LIMIT = 1.15
"""The same of a GPU's, which its own clock times. Not yet measured on a GPU."""
RUNS = 7


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


def median_seconds(work: Callable[[], object] | None = None, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the median of several runs of a fixed computation: by default one of about two milliseconds."""
    work = work or _fixed_work
    work()  # caches and clock speed settle
    return statistics.median(timeit.repeat(work, timer=clock, repeat=RUNS, number=1))


class Sentinel:
    """A fixed computation, timed again and again in one process.

    A reading is the median of several runs. A slow one is taken again after a pause, and the fastest counts: our own
    threads spin for a moment after training and share a physical core, and only a slowness that stays is the box's.

    Args:
        measure: takes a reading, in seconds; NaN where there is none.
        limit: slow-down that counts.
    """

    TRIES = 4
    PAUSE_SECONDS = 0.1

    def __init__(
        self,
        measure: Callable[[], float] = median_seconds,
        limit: float = SENTINEL_LIMIT,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._measure = measure
        self.limit = limit
        self._sleep = sleep
        self.best_seconds = math.inf

    def read(self) -> float:
        """Return how long the computation takes now, in seconds; NaN where nobody can tell."""
        reading = self._measure()
        for _ in range(self.TRIES - 1):
            # The first reading of all has nothing to be held against, and the ones after it will be held against it.
            is_believed = math.isfinite(self.best_seconds) and reading <= self.limit * self.best_seconds
            if is_believed or math.isnan(reading):
                break
            self._sleep(self.PAUSE_SECONDS)
            reading = min(reading, self._measure())
        self.best_seconds = min(self.best_seconds, reading)
        return reading


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
