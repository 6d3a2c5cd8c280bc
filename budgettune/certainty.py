"""How sure a front is: what seeds make of one configuration, and the chance that no other beats it.

A *cell* is one configuration; its repeats differ by their seeds. Seconds count by their logarithm. What seeds do is
taken as normal, and as large in every cell, so that cells with one repeat borrow it from those with several. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

Floats = NDArray[np.float64]

DRAWS = 2_000
DRAWS_AT_ONCE = 4_000_000  # numbers in memory
SEED = 0  # of the draws: equal studies get equal answers
DOUBTFUL = (0.05, 0.95)  # chances between which a further repeat is worth its seconds
TIMES = 0.005  # share of seconds that repeats of one configuration differ by at least
POINTS = 0.001  # the same of accuracies


@dataclass(frozen=True, kw_only=True)
class SeedNoise:
    """Standard deviations over seeds.

    Attributes:
        log_seconds: of the logarithm of seconds.
        accuracy: as a share.
        freedom: degrees of freedom of both estimates.
    """

    log_seconds: float
    accuracy: float
    freedom: int


@dataclass(frozen=True, kw_only=True)
class CellMean:
    """One configuration over its repeats.

    Attributes:
        count: repeats.
        log_seconds: mean of the logarithms.
        accuracy: mean.
    """

    count: int
    log_seconds: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How sure a study's answers are, by cell.

    Attributes:
        front_chances: of no other cell being both faster and more accurate, in the mean over all seeds.
        accuracy_intervals: 95% intervals of the mean accuracy over all seeds.
    """

    front_chances: Mapping[int, float]
    accuracy_intervals: Mapping[int, tuple[float, float]]


Results = Mapping[int, Sequence[tuple[float, float]]]
"""Seconds and accuracy of each repeat, by cell."""


def certainty_of(results: Results) -> Certainty | None:
    """Return how sure results are; None where no cell has two repeats, so that nothing tells what seeds do."""
    noise = seed_noise(results)
    if noise is None:
        return None
    means = cell_means(results)
    intervals = {cell: accuracy_interval(mean, noise) for cell, mean in means.items()}
    return Certainty(front_chances=front_chances(means, noise), accuracy_intervals=intervals)


def cell_means(results: Results) -> dict[int, CellMean]:
    """Return each cell's means."""
    return {
        cell: CellMean(
            count=len(repeats),
            log_seconds=float(np.mean(np.log([max(seconds, 1e-9) for seconds, _ in repeats]))),
            accuracy=float(np.mean([accuracy for _, accuracy in repeats])),
        )
        for cell, repeats in results.items()
    }


def seed_noise(results: Results) -> SeedNoise | None:
    """Return the pooled deviation within cells; None where no cell has two repeats."""
    repeated = [repeats for repeats in results.values() if len(repeats) > 1]
    freedom = sum(len(repeats) - 1 for repeats in repeated)
    if not freedom:
        return None
    squares = np.zeros(2)
    for repeats in repeated:
        values = np.array([(math.log(max(seconds, 1e-9)), accuracy) for seconds, accuracy in repeats])
        squares += ((values - values.mean(axis=0)) ** 2).sum(axis=0)
    log_seconds, accuracy = np.maximum(np.sqrt(squares / freedom), (TIMES, POINTS))
    return SeedNoise(log_seconds=float(log_seconds), accuracy=float(accuracy), freedom=freedom)


def accuracy_interval(mean: CellMean, noise: SeedNoise, confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of a configuration's mean accuracy over all seeds, by Student's t."""
    width = float(stdtrit(noise.freedom, 0.5 + confidence / 2)) * noise.accuracy / math.sqrt(mean.count)
    return max(0.0, mean.accuracy - width), min(1.0, mean.accuracy + width)


def front_chances(means: Mapping[int, CellMean], noise: SeedNoise) -> dict[int, float]:
    """Return the chance of each cell that no other is both faster and more accurate in the mean over all seeds.

    By draws of all means together: each is its cell's mean and an error that Student's t has, because the noise is an
    estimate too. One factor per draw stands for that estimate, for it is the same in all cells.
    """
    if not means:
        return {}
    counts = np.sqrt([mean.count for mean in means.values()])
    log_seconds = np.array([mean.log_seconds for mean in means.values()])
    accuracy = np.array([mean.accuracy for mean in means.values()])
    rng = np.random.default_rng(SEED)
    members, left = np.zeros(len(means)), DRAWS
    while left:
        size = min(left, max(1, DRAWS_AT_ONCE // len(means)))
        spread = np.sqrt(noise.freedom / rng.chisquare(noise.freedom, (size, 1))) / counts
        shape = (size, len(means))
        members += _is_on_front(
            log_seconds + noise.log_seconds * spread * rng.standard_normal(shape),
            accuracy + noise.accuracy * spread * rng.standard_normal(shape),
        ).sum(axis=0)
        left -= size
    return dict(zip(means, (members / DRAWS).tolist(), strict=True))


def _is_on_front(seconds: Floats, accuracy: Floats) -> NDArray[np.bool_]:
    """Return bool[draws, cells]: whether none that is faster is as accurate."""
    order = np.argsort(seconds, axis=1)
    sorted_accuracy = np.take_along_axis(accuracy, order, axis=1)
    best_before = np.maximum.accumulate(sorted_accuracy, axis=1)
    is_better = np.ones(seconds.shape, dtype=bool)  # the fastest always is
    is_better[:, 1:] = sorted_accuracy[:, 1:] > best_before[:, :-1]
    members = np.empty_like(is_better)
    np.put_along_axis(members, order, is_better, axis=1)
    return members


def cells_to_repeat(results: Results, most_repeats: int) -> list[int]:
    """Return the cells that a further seed is worth most for, most doubtful first; none where the front is settled.

    Until some cell has a second repeat nothing tells what seeds do: those on the front as observed get one.
    """
    means, noise = cell_means(results), seed_noise(results)
    open_cells = {cell for cell, mean in means.items() if mean.count < most_repeats}
    if noise is None:
        return [cell for cell in _observed_front(means) if cell in open_cells]
    chances = front_chances(means, noise)
    low, high = DOUBTFUL
    doubtful = [cell for cell in open_cells if low <= chances[cell] <= high]
    return sorted(doubtful, key=lambda cell: (abs(chances[cell] - 0.5), cell))


def _observed_front(means: Mapping[int, CellMean]) -> list[int]:
    seconds = np.array([[mean.log_seconds for mean in means.values()]])
    accuracy = np.array([[mean.accuracy for mean in means.values()]])
    return [cell for cell, member in zip(means, _is_on_front(seconds, accuracy)[0], strict=True) if member]
