"""Statistics of a handful of seeds: means, intervals, paired tests, and how large a difference they would show.

Pure functions of numbers. Seeds are paired: run k of two strategies starts from the same weights and order, so their
difference is a number of its own, freed of what the seed alone does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

ALPHA = 0.05
POWER = 0.8
EXACT_UP_TO = 14
"""Pairs up to which all 2^n sign flips are counted; beyond, ten thousand random ones."""
NO_SPREAD = 1e-9
"""Below it a standard deviation of accuracies is rounding: the smallest real step is 1 / held-out images."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over seeds; the other values are None where fewer than two seeds leave them unknown."""

    count: int
    mean: float
    low: float | None = None  # ends of the 95% interval by Student's t
    high: float | None = None
    deviation: float | None = None  # sample standard deviation over seeds


@dataclass(frozen=True, kw_only=True)
class PairedTest:
    """A difference over paired seeds, and how likely chance alone would make one as large, on either side."""

    difference: Estimate
    t_p: float  # of the paired t-test (Student 1908)
    exact_p: float  # of the sign-flip permutation test (Fisher 1935), which assumes symmetry and no normality


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of one or more values, with its interval where there are two."""
    count, mean = len(values), math.fsum(values) / len(values)
    if count < 2:
        return Estimate(count=count, mean=mean)
    deviation = float(np.std(values, ddof=1))
    half = float(special.stdtrit(count - 1, 1 - ALPHA / 2)) * deviation / math.sqrt(count)
    return Estimate(count=count, mean=mean, low=mean - half, high=mean + half, deviation=deviation)


def paired_test(differences: Sequence[float]) -> PairedTest | None:
    """Return the tests of paired differences against zero; None for fewer than two pairs.

    Where all differences are equal, the t-test would take chance for impossible: the exact test then stands in.
    """
    difference = estimate(differences)
    if difference.deviation is None:
        return None
    exact_p = sign_flip_p(differences)
    if difference.deviation < NO_SPREAD:
        return PairedTest(difference=difference, t_p=exact_p, exact_p=exact_p)
    t = difference.mean * math.sqrt(difference.count) / difference.deviation
    t_p = float(2 * special.stdtr(difference.count - 1, -abs(t)))
    return PairedTest(difference=difference, t_p=t_p, exact_p=exact_p)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the share of sign flips of paired differences whose mean is at least as far from zero.

    Exact up to EXACT_UP_TO pairs: never below 2 / 2^n, so five seeds cannot reach 0.05.
    """
    exact = len(differences) <= EXACT_UP_TO
    found = stats.permutation_test(
        (np.asarray(differences),),
        lambda flipped, axis: flipped.mean(axis=axis),
        permutation_type="samples",
        n_resamples=2 ** len(differences) if exact else 9_999,
        vectorized=True,
        rng=0,
    )
    return float(found.pvalue)


def smallest_exact_p(count: int) -> float:
    """Return the smallest p that the exact test can give for a number of pairs."""
    return 2.0 ** (1 - count)


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """Return p-values corrected for being several (Holm 1979), in the order they came."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected, floor = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = floor
    return tuple(corrected)


def smallest_detectable(deviation: float, count: int, *, comparisons: int = 1) -> float:
    """Return the true difference that a paired t-test over seeds would call significant four times in five.

    Args:
        deviation: standard deviation of the paired differences.
        count: seeds, at least two.
        comparisons: made at once; the level is that of Holm's first and hardest step.
    """
    freedom = count - 1
    critical = special.stdtrit(freedom, 1 - ALPHA / comparisons / 2)
    return float(special.nctdtrinc(freedom, 1 - POWER, critical)) * deviation / math.sqrt(count)


def pooled_deviation(deviations: Sequence[float]) -> float:
    """Return one standard deviation for groups of equal size."""
    return math.sqrt(math.fsum(deviation**2 for deviation in deviations) / len(deviations))
