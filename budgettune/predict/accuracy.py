"""How accurate a run will be: a curve in what training saw, what is smooth, and what is its own.

The logit of accuracy at the end of a run is

    level + growth · (1 - length ** -bend) / bend + size + pruning + … + smooth + own + seed

where `length` counts samples and steps (a critical batch says how much of each) in units of a middling run, so that
one law says what more epochs, fewer samples and smaller batches are worth. `bend` and the critical batch are not known:
many are tried and weighted by their evidence. `size` is by the log of multiply-adds, never by `scale`. Earlier points
of the curves take part as `budgettune.predict.curves` puts them: with the worth of annealing as one more coefficient,
with noise of their own, and correlated with the other points of their trial. Between seeds,

    variance of the logit = scale · (base² · (length / middle) ** -2·fall + half of the test set's own)

Short runs scatter more than long ones. The scale is estimated from repeats, held near 1 by as much as PRIOR_WEIGHT of
them, so that it is 1 without any.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray

from budgettune.predict.curves import EpochPoint, inside_edges, points_of, test_images
from budgettune.predict.features import DesignRows, Features, ModelShape
from budgettune.predict.regression import Average, Floats, Ints, Posterior, Prior
from budgettune.predict.workload import RunLength, Workload, Workloads
from budgettune.records import TrialRecord

BENDS = (0.3, 0.6, 1.0, 2.0)
CRITICAL_BATCHES = (0.1, 0.5, 2.0, 10.0, 1000.0)
"""Tried, in median batches: from "only samples count" to "only steps count"."""

SMOOTH = (0.03, 0.1, 0.3)
OWN = (0.02, 0.06, 0.15)
"""Deviations of the logit that are tried: of the smooth remainder, and of what is a configuration's own."""
HELPERS = (0.1, 0.2, 0.4, 0.8)
"""Deviations of an early point that are tried, per share of the learning rate that is still to fall."""

MOST_LEARNT = 250
"""Trials to learn from; of more, a fixed chance draws so many."""
MOST_SEARCHED = 160  # points that deviations and shapes are chosen on
SAME_TRIAL = 0.5  # correlation of the seed's effect on two points of one curve
CALIBRATION_WEIGHT = 8.0  # configurations that the model's own variances are worth against what leaving out says
LEAST_CALIBRATED = 3  # configurations
LEAST_CALIBRATION = 0.7
LARGEST_SURPRISE = 9.0  # variances that one configuration counts at most

BASE = 0.05
"""Deviation of the logit before anything is observed: 0.8 points at an accuracy of 80%, 0.25 at 95%."""
FALL = 0.5
"""Exponent of length, as its deviation falls."""
LENGTH_RANGE = (1 / 16, 16.0)
TEST_SHARE = 0.5
"""Part of a test set's binomial variance that differs between seeds: they see the same images."""
PRIOR_WEIGHT = 4.0

_NORMAL = NormalDist()


@dataclass(frozen=True)
class SeedNoise:
    """How far runs of one configuration lie apart when only their seed differs: a fitted law."""

    scale: float  # of the variance
    middle: float  # length of a middling run, in steps of a small batch
    critical_batch: float  # from which larger batches save no steps, in that length
    repeats: int  # trials beyond the first of their configuration and length: what the scale was estimated from

    def variance(self, workload: Workload, samples: float, accuracy: float, test_images: int) -> float:
        """Return the variance of the logit of one run that visits so many samples."""
        low, high = LENGTH_RANGE
        length = samples / (workload.batch + self.critical_batch) / self.middle
        inside = inside_edges(accuracy, test_images)
        own = BASE**2 * min(high, max(low, length)) ** (-2 * FALL)
        return float(self.scale * (own + TEST_SHARE / (test_images * inside * (1 - inside))))

    def of(self, point: EpochPoint) -> float:
        return self.variance(point.workload, point.samples, point.accuracy, point.test_images)


def fit_seed_noise(finals: Sequence[EpochPoint]) -> SeedNoise:
    """Return the law that repeats among the final points of all trials suggest."""
    batch = median(float(point.workload.batch) for point in finals)
    middle = median(point.samples / (point.workload.batch + batch) for point in finals)
    unit = SeedNoise(scale=1.0, middle=middle, critical_batch=batch, repeats=0)
    # Repeats are of equal configuration and (but for a strategy's chance) of equal length.
    repeats: defaultdict[tuple[int, int], list[EpochPoint]] = defaultdict(list)
    for point in finals:
        repeats[point.workload.number, round(20 * math.log(point.samples))].append(point)
    squares, freedom = 0.0, 0
    for group in repeats.values():
        centre = sum(point.logit for point in group) / len(group)
        squares += sum((point.logit - centre) ** 2 / unit.of(point) for point in group)
        freedom += len(group) - 1
    return replace(unit, scale=(PRIOR_WEIGHT + squares) / (PRIOR_WEIGHT + freedom), repeats=freedom)


@dataclass(frozen=True)
class AccuracyForecasts:
    """Accuracies of some runs; the logit of each is normal."""

    means: Floats  # float64[n], of the logit
    variances: Floats  # float64[n], of what is not known about the configuration
    seeds: Floats  # float64[n], variances between seeds

    def expected(self) -> Floats:
        """Return the mean accuracy of a run, over seeds and over what is not known: float64[n]."""
        # The logistic function against a normal one: MacKay (1992), equation 10.
        return _accuracy(self.means / np.sqrt(1 + np.pi / 8 * (self.variances + self.seeds)))

    def quantile(self, share: float) -> Floats:
        """Return the accuracy below which a run ends with a probability: float64[n]."""
        return _accuracy(self.means + _NORMAL.inv_cdf(share) * np.sqrt(self.variances + self.seeds))


def _accuracy(logits: Floats) -> Floats:
    return 1 / (1 + np.exp(-logits))


@dataclass(frozen=True)
class _Observations:
    """Points of curves as arrays."""

    rows: DesignRows
    values: Floats  # float64[n], logits about their level
    seeds: Floats  # float64[n], variance of the seed's effect
    helpers: Floats  # float64[n], factor on the deviation of early points, 0 for final ones
    trials: Ints  # int64[n]
    finals: NDArray[np.bool_]  # bool[n]

    def first(self, count: int) -> _Observations:
        some = np.arange(min(count, len(self.values)))
        return _Observations(*(getattr(self, name)[some] for name in self.__dataclass_fields__))

    def noise(self, helper: float) -> Floats:
        """Return the covariance of the points' noise, helper being its deviation for early points: float64[n, n]."""
        shared = SAME_TRIAL * np.sqrt(np.outer(self.seeds, self.seeds))
        noise: Floats = shared * (self.trials[:, None] == self.trials[None, :])
        noise[np.diag_indices_from(noise)] = self.seeds + (helper * self.helpers) ** 2
        return noise


class AccuracyModel:
    """Accuracies of one study, learnt from its finished trials, at least one."""

    def __init__(self, workloads: Workloads, records: Sequence[TrialRecord]) -> None:
        # Shuffled, so that any beginning is a fair sample.
        order = np.random.default_rng(0).permutation(len(records))[:MOST_LEARNT]
        points = [point for index in order for point in points_of(workloads, records[index])]
        finals = [point for point in points if point.is_final]
        self.seed_noise = fit_seed_noise(finals)
        self._features = Features(workloads.spec, [point.workload for point in finals])
        self._level = float(np.mean([point.logit for point in finals]))
        middle_batch = float(median(point.workload.batch for point in finals))
        rows = self._features.design([(point.workload, point.samples, point.still_to_fall) for point in points])
        is_final = np.array([point.is_final for point in points])
        lengths = rows.lengths(middle_batch)
        # The shorter the run, the wilder its beginning.
        wildness = np.maximum(1.0, np.median(lengths[is_final]) / lengths)
        all_points = _Observations(
            rows=rows,
            values=np.array([point.logit for point in points]) - self._level,
            seeds=np.array([self.seed_noise.of(point) for point in points]),
            helpers=np.array([point.still_to_fall for point in points]) * wildness,
            trials=np.array([point.trial for point in points]),
            finals=is_final,
        )
        finals_rows = rows[np.flatnonzero(is_final)]
        shapes = [
            ModelShape(bend, critical, float(np.median(finals_rows.lengths(critical))), smooth, own)
            for bend, factor, smooth, own in product(BENDS, CRITICAL_BATCHES, SMOOTH, OWN)
            for critical in [factor * middle_batch]
        ]
        # Shapes are weighted on some of the points; those whose weight counts are then fitted to all.
        some, middle = all_points.first(MOST_SEARCHED), shapes[len(shapes) // 2]
        helper = max(HELPERS, key=lambda helper: self._posterior(some, middle, helper).log_evidence)
        tried = Average([self._posterior(some, shape, helper) for shape in shapes])
        self._shapes = [shapes[index] for index in tried.kept]
        fitted = [self._posterior(all_points, shape, helper) for shape in self._shapes]
        self._average = Average(fitted, weights=tried.weights)
        # A factor on variances, from how well the model predicts configurations that it does not know.
        self.calibration = _calibration(self._average.best, all_points)

    def predict(self, runs: Sequence[RunLength]) -> AccuracyForecasts:
        """Return the accuracies of runs of some epochs.

        Raises:
            SpecError: where a strategy cannot reach its prune rate in so few epochs.
        """
        rows = self._features.design([(workload, float(workload.visits(epochs)), 0.0) for workload, epochs in runs])
        offsets = np.zeros(len(runs))
        means, variances = self._average.predict(
            lambda index: (self._features.inputs(rows, self._shapes[index]), offsets)
        )
        means = means + self._level
        seeds = [
            self.seed_noise.variance(workload, samples, accuracy, test_images(workload.config.data))
            for (workload, _), samples, accuracy in zip(runs, rows.samples, _accuracy(means), strict=True)
        ]
        return AccuracyForecasts(means, self.calibration * variances, self.calibration * np.array(seeds))

    def _posterior(self, points: _Observations, shape: ModelShape, helper: float) -> Posterior:
        prior = Prior(*self._features.priors, shape.smooth, shape.own)
        return Posterior(prior, self._features.inputs(points.rows, shape), points.values, points.noise(helper))


def _calibration(posterior: Posterior, points: _Observations) -> float:
    """Return how far final points lie from what all other configurations say, in variances of the model."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(points.rows.ids.tolist()):
        groups[number].append(index)
    if len(groups) < LEAST_CALIBRATED:
        return 1.0
    squares = [posterior.surprise(np.array(rows), points.finals[rows]) for rows in groups.values()]
    trimmed = sum(min(LARGEST_SURPRISE, square) for square in squares)
    return max(LEAST_CALIBRATION, (CALIBRATION_WEIGHT + trimmed) / (CALIBRATION_WEIGHT + len(squares)))
