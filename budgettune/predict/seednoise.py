"""How far runs of one configuration lie apart when only their seed differs.

    variance of the logit = scale · (base² + half of the test set's own) · (length / middle) ** -2·fall

Short runs scatter more than long ones; how much more is one of three exponents, the one that repeats make likeliest.
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
FALLS = {0.0: 0.25, 0.5: 0.5, 1.0: 0.25}
"""Exponents that are tried, and how much each is believed before."""
LENGTH_RANGE = (1 / 16, 16.0)


@dataclass(frozen=True)
class SeedNoise:
    """A fitted law.

    Attributes:
        repeats: trials beyond the first of their configuration and length: what the scale was estimated from.
    """

    scale: float
    fall: float
    middle: float
    repeats: int

    def variance(self, length: float, accuracy: float, test_images: int) -> float:
        """Return the variance of the logit of one run."""
        return self.scale * _unit(length / self.middle, accuracy, test_images, self.fall)


def _unit(length: float, accuracy: float, test_images: int, fall: float) -> float:
    low, high = LENGTH_RANGE
    inside = min(1 - 0.5 / test_images, max(0.5 / test_images, accuracy))
    binomial = 1 / (test_images * inside * (1 - inside))
    return float((BASE**2 + TEST_SHARE * binomial) * min(high, max(low, length)) ** (-2 * fall))


def length_of(point: Point, critical_batch: float) -> float:
    """Return how far a run is, in steps of a small batch.

    Beyond a critical batch larger batches save no steps: steps · batch / (batch + critical) counts both regimes
    (McCandlish et al. 2018, *An Empirical Model of Large-Batch Training*, equation 2.11).
    """
    return point.samples / (point.workload.batch + critical_batch)


def fit_seed_noise(finals: Sequence[Point], critical_batch: float) -> SeedNoise:
    """Return the law that repeats among final points make likeliest.

    Args:
        finals: of all trials, at least one.
        critical_batch: for the lengths.
    """
    lengths = sorted(length_of(point, critical_batch) for point in finals)
    middle = lengths[len(lengths) // 2]
    groups = [group for group in _repeats(finals) if len(group) > 1]
    laws = [_law(groups, critical_batch, middle, fall, belief) for fall, belief in FALLS.items()]
    return max(laws, key=lambda law: law[0])[1]


def _repeats(finals: Sequence[Point]) -> list[list[Point]]:
    """Return trials of equal configuration and (but for a strategy's chance) equal length."""
    groups: defaultdict[tuple[int, int], list[Point]] = defaultdict(list)
    for point in finals:
        groups[point.workload.number, round(20 * math.log(point.samples))].append(point)
    return list(groups.values())


def _law(
    groups: Sequence[Sequence[Point]], critical_batch: float, middle: float, fall: float, belief: float
) -> tuple[float, SeedNoise]:
    """Return how likely an exponent is with the scale that fits it best, and the law of the two."""
    squares, logs, freedom = 0.0, 0.0, 0
    for group in groups:
        mean = sum(point.accuracy for point in group) / len(group)
        length = sum(length_of(point, critical_batch) for point in group) / len(group)
        unit = _unit(length / middle, mean, group[0].test_images, fall)
        centre = sum(point.logit for point in group) / len(group)
        squares += sum((point.logit - centre) ** 2 for point in group) / unit
        logs += (len(group) - 1) * math.log(unit)
        freedom += len(group) - 1
    scale = (PRIOR_WEIGHT + squares) / (PRIOR_WEIGHT + freedom)
    score = math.log(belief) - 0.5 * (logs + (freedom + PRIOR_WEIGHT) * math.log(scale))
    return score, SeedNoise(scale=scale, fall=fall, middle=middle, repeats=freedom)
