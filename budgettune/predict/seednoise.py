"""How far runs of one configuration lie apart when only their seed differs.

    variance of the logit = scale · (base² + half of the test set's own)

The scale is estimated from repeats, held near 1 by as much as PRIOR_WEIGHT of them, so that it is 1 without any.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from budgettune.predict.curves import Point

BASE = 0.05
"""Deviation of the logit before anything is observed: 0.8 points at an accuracy of 80%, 0.25 at 95%."""
TEST_SHARE = 0.5
"""Part of a test set's binomial variance that differs between seeds: they see the same images."""
PRIOR_WEIGHT = 4.0


@dataclass(frozen=True)
class SeedNoise:
    """A fitted law.

    Attributes:
        repeats: trials beyond the first of their configuration and length: what the scale was estimated from.
    """

    scale: float
    repeats: int

    def variance(self, accuracy: float, test_images: int) -> float:
        """Return the variance of the logit of one run."""
        return self.scale * _unit(accuracy, test_images)


def _unit(accuracy: float, test_images: int) -> float:
    edge = 0.5 / test_images
    inside = min(1 - edge, max(edge, accuracy))
    return float(BASE**2 + TEST_SHARE / (test_images * inside * (1 - inside)))


def fit_seed_noise(finals: Sequence[Point]) -> SeedNoise:
    """Return the law that repeats among the final points of all trials suggest."""
    squares, freedom = 0.0, 0
    for group in _repeats(finals):
        centre = sum(point.logit for point in group) / len(group)
        squares += sum((point.logit - centre) ** 2 / _unit(point.accuracy, point.test_images) for point in group)
        freedom += len(group) - 1
    return SeedNoise(scale=(PRIOR_WEIGHT + squares) / (PRIOR_WEIGHT + freedom), repeats=freedom)


def _repeats(finals: Sequence[Point]) -> list[list[Point]]:
    """Return trials of equal configuration and (but for a strategy's chance) equal length."""
    groups: defaultdict[tuple[int, int], list[Point]] = defaultdict(list)
    for point in finals:
        groups[point.workload.number, round(20 * math.log(point.samples))].append(point)
    return list(groups.values())
