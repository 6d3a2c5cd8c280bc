"""The certainty of a front: what seeds make of one configuration, and the chance that no other beats it.

A *cell* is one configuration; its repeats differ by their seeds. Seconds count by their logarithm. What seeds do is
taken as normal. To times they do the same in every cell; accuracies differ the more, the less a network has learnt, so
that a cell borrows its noise from those that are about as accurate. Pure.

Another objective stands in for the accuracy by its score, the more the better. It has no bounds, and what small
differences are counted in, for accuracies all of [0, 1], is then UNIT times the distance between the cells' quartiles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from budgettune.study.pareto import undominated

Floats = NDArray[np.float64]

DRAWS = 2_000
DRAWS_AT_ONCE = 4_000_000  # numbers in memory
SEED = 0  # of the draws: equal studies get equal answers
AT_STAKE = 0.0005  # accuracy that a further repeat is worth its seconds for
TIMES = 0.005  # share of seconds that repeats of one configuration differ by at least
POINTS = 0.001  # the same of accuracies
ALIKE = 0.5  # of the deviation between cells: accuracies that near have like noise
LEVELS = 200  # of accuracy at most, at which noise is estimated; between them by a line
UNIT = 10.0  # distances between quartiles that stand in for all of [0, 1]
SHARE, OPEN = (0.0, 1.0), (-math.inf, math.inf)  # what accuracies and other scores lie in
BORROWED = 4.0  # degrees of freedom that all cells together count for in the noise of each


@dataclass(frozen=True, kw_only=True)
class EstimatedDeviation:
    """An estimated standard deviation, and the degrees of freedom behind it."""

    deviation: float
    freedom: float


@dataclass(frozen=True, kw_only=True)
class FrontNoise:
    """What seeds do: to the logarithm of seconds in all cells, to the accuracy by cell."""

    log_seconds: EstimatedDeviation
    accuracy: Mapping[int, EstimatedDeviation]


@dataclass(frozen=True, kw_only=True)
class CellMean:
    """One configuration over its repeats."""

    count: int  # repeats
    log_seconds: float  # mean of the logarithms
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class FrontChance:
    """A cell against those that are faster, in the mean over all seeds."""

    chance: float  # of none of them being as accurate, that is of being on the front
    gain: float  # in accuracy over the best of them, expected; 0 where it is behind
    loss: float  # the same behind the best of them; 0 where it is ahead


@dataclass(frozen=True, kw_only=True)
class Certainty:
    """How sure a study's answers are, by cell, in the mean over all seeds."""

    front_chances: Mapping[int, float]  # of no other cell being both faster and more accurate
    intervals: Mapping[int, tuple[float, float]]  # of 95%, of accuracy or another score over all seeds


Results = Mapping[int, Sequence[tuple[float, float]]]  # seconds and accuracy, or score, of each repeat, by cell


def certainty_of(results: Results, *, is_share: bool = True) -> Certainty | None:
    """Return how sure results are; None where no cell has two repeats, so that nothing tells what seeds do.

    `is_share` says that they hold accuracies in [0, 1], and not another score.
    """
    results, unit = _in_units(results, is_share)
    noise = seed_noise(results)
    if noise is None:
        return None
    means, bounds = cell_means(results), SHARE if is_share else OPEN
    each = {cell: accuracy_interval(mean, noise.accuracy[cell], bounds=bounds) for cell, mean in means.items()}
    intervals = {cell: (unit * low, unit * high) for cell, (low, high) in each.items()}
    chances = {cell: chance.chance for cell, chance in estimate_front_chances(means, noise, bounds).items()}
    return Certainty(front_chances=chances, intervals=intervals)


def _in_units(results: Results, is_share: bool) -> tuple[Results, float]:
    """Return results with their scores in the unit of small differences, and that unit."""
    if is_share or not results:
        return results, 1.0
    scores = np.array([np.mean([score for _, score in repeats]) for repeats in results.values()])
    low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75]).tolist()
    unit = UNIT * (high - low or abs(middle) or 1.0)
    return {cell: [(taken, score / unit) for taken, score in repeats] for cell, repeats in results.items()}, unit


def cell_means(results: Results) -> dict[int, CellMean]:
    return {
        cell: CellMean(
            count=len(repeats),
            log_seconds=float(np.mean(np.log([max(seconds, 1e-9) for seconds, _ in repeats]))),
            accuracy=float(np.mean([accuracy for _, accuracy in repeats])),
        )
        for cell, repeats in results.items()
    }


def seed_noise(results: Results) -> FrontNoise | None:
    """Return what seeds do; None where no cell has two repeats."""
    repeated = [np.array(each) for each in results.values() if len(each) > 1]
    if not repeated:
        return None
    freedoms = np.array([len(each) - 1.0 for each in repeated])
    log_squares = [_squares(np.log(np.maximum(each[:, 0], 1e-9))) for each in repeated]
    log_seconds = math.sqrt(sum(log_squares) / freedoms.sum())
    squares = np.array([_squares(each[:, 1]) for each in repeated])
    known = np.array([each[:, 1].mean() for each in repeated])
    accuracies = np.array([np.mean([accuracy for _, accuracy in each]) for each in results.values()])
    return FrontNoise(
        log_seconds=EstimatedDeviation(deviation=max(log_seconds, TIMES), freedom=float(freedoms.sum())),
        accuracy=dict(zip(results, _noise_at(accuracies, known, squares, freedoms), strict=True)),
    )


def _squares(values: Floats) -> float:
    return float(((values - values.mean()) ** 2).sum())


def _noise_at(accuracies: Floats, known: Floats, squares: Floats, freedoms: Floats) -> list[EstimatedDeviation]:
    """Return the noise of cells: that of cells about as accurate (a Gaussian window), moderated by that of all.

    Their squares count together, by degrees of freedom (Smyth, 2004, section 3).

    Args:
        accuracies: of all cells, float64[cells].
        known: of those with repeats, float64[repeated].
        squares: of their repeats about their means, summed: float64[repeated].
        freedoms: of the same, float64[repeated].
    """
    pooled = squares.sum() / freedoms.sum()
    width = max(ALIKE * float(accuracies.std()), POINTS)
    levels = np.unique(np.quantile(accuracies, np.linspace(0, 1, min(len(accuracies), LEVELS))))
    nearness = np.exp(-0.5 * ((levels[:, None] - known) / width) ** 2)
    near = nearness @ freedoms
    borrowed = np.minimum(BORROWED, freedoms.sum() - near)
    variances = (nearness @ squares + borrowed * pooled) / (near + borrowed)
    deviations = np.interp(accuracies, levels, np.maximum(np.sqrt(variances), POINTS)).tolist()
    behind = np.interp(accuracies, levels, near + borrowed).tolist()
    return [EstimatedDeviation(deviation=own, freedom=freedom) for own, freedom in zip(deviations, behind, strict=True)]


def accuracy_interval(
    mean: CellMean, noise: EstimatedDeviation, confidence: float = 0.95, *, bounds: tuple[float, float] = SHARE
) -> tuple[float, float]:
    """Return the interval of a configuration's mean accuracy over all seeds, by Student's t."""
    width = float(stdtrit(noise.freedom, 0.5 + confidence / 2)) * noise.deviation / math.sqrt(mean.count)
    return max(bounds[0], mean.accuracy - width), min(bounds[1], mean.accuracy + width)


def estimate_front_chances(
    means: Mapping[int, CellMean], noise: FrontNoise, bounds: tuple[float, float] = SHARE
) -> dict[int, FrontChance]:
    """Return how each cell stands against those that are faster, in the mean over all seeds.

    By draws of all means together: each is its cell's mean and an error that Student's t has, because the noise is an
    estimate too.
    """
    if not means:
        return {}
    rng = np.random.default_rng(SEED)
    counts = np.sqrt([mean.count for mean in means.values()])
    spreads = [noise.accuracy[cell] for cell in means]
    sums, left = np.zeros((3, len(means))), DRAWS
    while left:
        shape = (min(left, max(1, DRAWS_AT_ONCE // len(means))), len(means))
        # Noise of times is one estimate for all cells: so is its error.
        time_errors = _errors([noise.log_seconds], (shape[0], 1), rng) / counts * rng.standard_normal(shape)
        errors = _errors(spreads, shape, rng) / counts * rng.standard_normal(shape)
        lead = _lead(
            np.array([mean.log_seconds for mean in means.values()]) + time_errors,
            np.clip(np.array([mean.accuracy for mean in means.values()]) + errors, *bounds),
        )
        ends = np.isinf(lead)  # the fastest has nothing to be compared with
        sums += [(lead > 0).sum(0), np.where(ends, 0.0, lead).clip(min=0).sum(0), (-lead).clip(min=0).sum(0)]
        left -= shape[0]
    rows = (sums / DRAWS).T.tolist()
    return {cell: FrontChance(chance=row[0], gain=row[1], loss=row[2]) for cell, row in zip(means, rows, strict=True)}


def _errors(spreads: Sequence[EstimatedDeviation], shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Return draws of what deviations truly are: float64[shape]."""
    freedoms = np.array([spread.freedom for spread in spreads])
    deviations = np.array([spread.deviation for spread in spreads])
    errors: Floats = deviations * np.sqrt(freedoms / rng.chisquare(freedoms, shape))
    return errors


def _lead(seconds: Floats, accuracy: Floats) -> Floats:
    """Return by how much each cell beats all faster ones, infinite for the fastest: float64[draws, cells]."""
    order = np.argsort(seconds, axis=1)
    sorted_accuracy = np.take_along_axis(accuracy, order, axis=1)
    sorted_lead = np.full(seconds.shape, np.inf)
    sorted_lead[:, 1:] = sorted_accuracy[:, 1:] - np.maximum.accumulate(sorted_accuracy, axis=1)[:, :-1]
    lead = np.empty_like(sorted_lead)
    np.put_along_axis(lead, order, sorted_lead, axis=1)
    return lead


def cells_to_repeat(results: Results, most_repeats: int, *, is_share: bool = True) -> list[int]:
    """Return the cells that a further seed is worth most for, most at stake first; none where the front is certain.

    At stake is the accuracy that one expects to lose at a cell's time by trusting the front as observed (the expected
    opportunity cost of Chick and Inoue, 2001): what a member may lie behind faster cells, what another may lie ahead.
    Two cells that are equal stay in doubt for ever, but little is at stake.

    Until some cell has a second repeat nothing tells what seeds do: those on the front as observed get one.
    """
    results, _ = _in_units(results, is_share)
    means, noise = cell_means(results), seed_noise(results)
    members = {row[2] for row in undominated(sorted((m.log_seconds, -m.accuracy, cell) for cell, m in means.items()))}
    open_cells = {cell for cell, mean in means.items() if mean.count < most_repeats}
    if noise is None:
        return [cell for cell in means if cell in members & open_cells]
    at_stake = {
        cell: chance.loss if cell in members else chance.gain
        for cell, chance in estimate_front_chances(means, noise, SHARE if is_share else OPEN).items()
        if cell in open_cells
    }
    worth = [cell for cell, accuracy in at_stake.items() if accuracy > AT_STAKE]
    return sorted(worth, key=lambda cell: (-at_stake[cell], cell))
