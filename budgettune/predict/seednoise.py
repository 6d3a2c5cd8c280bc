"""How far runs of one configuration lie apart when only their seed differs.

    variance of the logit = scale · (base² · (length / middle) ** -2·fall + half of the test set's own)

Short runs scatter more than long ones. The scale is estimated from repeats, held near 1 by as much as PRIOR_WEIGHT of
them, so that it is 1 without any.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from budgettune.predict.curves import Point
from budgettune.predict.workload import Workload

BASE = 0.05
"""Deviation of the logit before anything is observed: 0.8 points at an accuracy of 80%, 0.25 at 95%."""
FALL = 0.5
"""Exponent of length, as its deviation falls."""
LENGTH_RANGE = (1 / 16, 16.0)
TEST_SHARE = 0.5
"""Part of a test set's binomial variance that differs between seeds: they see the same images."""
PRIOR_WEIGHT = 4.0


@dataclass(frozen=True)
class SeedNoise:
    """A fitted law.

    Attributes:
        scale: of the variance.
        middle: length of a middling run, in steps of a small batch.
        critical_batch: from which larger batches save no steps, in that length.
        repeats: trials beyond the first of their configuration and length: what the scale was estimated from.
    """

    scale: float
    middle: float
    critical_batch: float
    repeats: int

    def variance(self, workload: Workload, samples: float, accuracy: float, test_images: int) -> float:
        """Return the variance of the logit of one run that visits so many samples."""
        low, high = LENGTH_RANGE
        length = samples / (workload.batch + self.critical_batch) / self.middle
        edge = 0.5 / test_images
        inside = min(1 - edge, max(edge, accuracy))
        own = BASE**2 * min(high, max(low, length)) ** (-2 * FALL)
        return float(self.scale * (own + TEST_SHARE / (test_images * inside * (1 - inside))))

    def of(self, point: Point) -> float:
        """Return the variance of the logit of a run like this one."""
        return self.variance(point.workload, point.samples, point.accuracy, point.test_images)


def fit_seed_noise(finals: Sequence[Point]) -> SeedNoise:
    """Return the law that repeats among the final points of all trials suggest."""
    batch = median(float(point.workload.batch) for point in finals)
    middle = median(point.samples / (point.workload.batch + batch) for point in finals)
    unit = SeedNoise(scale=1.0, middle=middle, critical_batch=batch, repeats=0)
    squares, freedom = 0.0, 0
    for group in _repeats(finals):
        centre = sum(point.logit for point in group) / len(group)
        squares += sum((point.logit - centre) ** 2 / unit.of(point) for point in group)
        freedom += len(group) - 1
    return replace(unit, scale=(PRIOR_WEIGHT + squares) / (PRIOR_WEIGHT + freedom), repeats=freedom)


def _repeats(finals: Sequence[Point]) -> list[list[Point]]:
    """Return trials of equal configuration and (but for a strategy's chance) equal length."""
    groups: defaultdict[tuple[int, int], list[Point]] = defaultdict(list)
    for point in finals:
        groups[point.workload.number, round(20 * math.log(point.samples))].append(point)
    return list(groups.values())
