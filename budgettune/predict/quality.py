"""How good a run will be: a curve in what training saw, what is smooth, and what is its own.

The score of a run, on its line (the logit of an accuracy), is

    level + growth · (1 - length ** -bend) / bend + size + pruning + … + smooth + own + seed

where `length` counts samples and steps (a critical batch says how much of each) in units of a middling run, so that
one law says what more epochs, fewer samples and smaller batches are worth. `bend` and the critical batch are not known:
many are tried and weighted by their evidence. `size` is by the log of multiply-adds where a formula tells them, never
by `scale`. Earlier points of the curves take part as `budgettune.predict.curves` puts them: with the worth of annealing
as one more coefficient, with noise of their own, and correlated with the other points of their trial. Between seeds,

    variance of the logit = scale · (base² · (length / middle) ** -2·fall + half of the test set's own)

Short runs scatter more than long ones. The scale is estimated from repeats, held near 1 by as much as PRIOR_WEIGHT of
them, so that it is 1 without any.

Own training code says neither what its numbers mean nor whether its learning rate falls. Priors are then in units of
how far trials lie apart; the schedule and how far seeds lie apart are tried, and the likeliest are taken.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import NormalDist, median

import numpy as np
from numpy.typing import NDArray

from budgettune.predict.curves import (
    HELPERS_AT,
    UNKNOWN_TEST_IMAGES,
    EpochPoint,
    Line,
    inside_edges,
    line_of,
    points_of,
    test_images,
)
from budgettune.predict.features import DesignRows, Features, ModelShape
from budgettune.predict.regression import Average, Floats, Ints, Posterior, Prior, calibration_of
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

OWN_BENDS = (-0.6, 0.0, 0.5, 1.2, 2.5)
OWN_SMOOTH = (0.1, 0.3, 0.8)
NARROW = (1.0, 2.0)
SCHEDULES = ("constant", "linear", "cosine")
SEED_SCALES = (0.04, 0.3, 1.5, 6.0)
SAME_CURVE = (0.5, 0.8, 0.95)
"""Of own training code, what is tried beside or in place of the above; of the variance between seeds, a factor, and the
correlation of its effect on points of one curve."""
USUAL_SPREAD = 0.35  # deviation between trials, in the logit, that all deviations here are meant for

MOST_LEARNT = 250
"""Trials to learn from; of more, a fixed chance draws so many."""
MOST_SEARCHED = 160  # points that deviations and shapes are chosen on
SAME_TRIAL = 0.5  # correlation of the seed's effect on two points of one curve

BASE = 0.05
"""Deviation of the logit before anything is observed: 0.8 points at an accuracy of 80%, 0.25 at 95%."""
FALL = 0.5
"""Exponent of length, as its deviation falls."""
LENGTH_RANGE = (1 / 16, 16.0)
TEST_SHARE = 0.5
"""Part of a test set's binomial variance that differs between seeds: they see the same images."""
PRIOR_WEIGHT = 4.0
UNLIKELY = 5.0  # log of the odds against a schedule that is left out

_NORMAL = NormalDist()


@dataclass(frozen=True)
class SeedNoise:
    """How far runs of one configuration lie apart when only their seed differs: a fitted law."""

    scale: float  # of the variance
    middle: float  # length of a middling run, in steps of a small batch
    critical_batch: float  # from which larger batches save no steps, in that length
    repeats: int  # trials beyond the first of their configuration and length: what the scale was estimated from
    unit: float = 1.0  # of deviations
    counts_images: bool = True  # whether scores are shares of images

    def variance(self, workload: Workload, samples: float, score: float, test_images: int) -> float:
        """Return the variance of the place of one run that visits so many samples."""
        low, high = LENGTH_RANGE
        length = samples / (workload.batch + self.critical_batch) / self.middle
        own = (self.unit * BASE) ** 2 * min(high, max(low, length)) ** (-2 * FALL)
        if not self.counts_images:
            return float(self.scale * own)
        inside = inside_edges(score, test_images)
        return float(self.scale * (own + TEST_SHARE / (test_images * inside * (1 - inside))))

    def of(self, point: EpochPoint) -> float:
        return self.variance(point.workload, point.samples, point.score, point.test_images)


def fit_seed_noise(finals: Sequence[EpochPoint], unit: float = 1.0, counts_images: bool = True) -> SeedNoise:
    """Return the law that repeats among the final points of all trials suggest."""
    batch = median(float(point.workload.batch) for point in finals)
    middle = median(point.samples / (point.workload.batch + batch) for point in finals)
    law = SeedNoise(scale=1.0, middle=middle, critical_batch=batch, repeats=0, unit=unit, counts_images=counts_images)
    # Repeats are of equal configuration and (but for a strategy's chance) of equal length.
    repeats: defaultdict[tuple[int, int], list[EpochPoint]] = defaultdict(list)
    for point in finals:
        repeats[point.workload.number, round(20 * math.log(point.samples))].append(point)
    squares, freedom = 0.0, 0
    for group in repeats.values():
        centre = sum(point.place for point in group) / len(group)
        squares += sum((point.place - centre) ** 2 / law.of(point) for point in group)
        freedom += len(group) - 1
    return replace(law, scale=(PRIOR_WEIGHT + squares) / (PRIOR_WEIGHT + freedom), repeats=freedom)


@dataclass(frozen=True)
class QualityForecasts:
    """Scores of some runs; the place of each on its line is normal."""

    means: Floats  # float64[n], of the place
    variances: Floats  # float64[n], of what is not known about the configuration
    seeds: Floats  # float64[n], variances between seeds
    line: Line = Line.LOGIT

    def expected(self) -> Floats:
        """Return the mean score of a run, over seeds and over what is not known: float64[n]."""
        return self.line.means(self.means, self.variances + self.seeds)

    def quantile(self, share: float) -> Floats:
        """Return the score below which a run ends with a probability: float64[n]."""
        return self.line.scores(self.means + _NORMAL.inv_cdf(share) * np.sqrt(self.variances + self.seeds))


@dataclass(frozen=True)
class _Observations:
    """Points of curves as arrays."""

    rows: DesignRows
    values: Floats  # float64[n], places about their level
    seeds: Floats  # float64[n], variance of the seed's effect
    helpers: Floats  # float64[n], factor on the deviation of early points, 0 for final ones
    trials: Ints  # int64[n]
    finals: NDArray[np.bool_]  # bool[n]
    alike: float = SAME_TRIAL  # correlation of the seed's effect on points of one curve

    def first(self, count: int) -> _Observations:
        some = np.arange(min(count, len(self.values)))
        names = [name for name in self.__dataclass_fields__ if name != "alike"]
        return replace(self, **{name: getattr(self, name)[some] for name in names})

    def noise(self, helper: float) -> Floats:
        """Return the covariance of the points' noise, helper being its deviation for early points: float64[n, n]."""
        shared = self.alike * np.sqrt(np.outer(self.seeds, self.seeds))
        noise: Floats = shared * (self.trials[:, None] == self.trials[None, :])
        noise[np.diag_indices_from(noise)] = self.seeds + (helper * self.helpers) ** 2
        return noise


class QualityModel:
    """Scores of one study, learnt from its finished trials, at least one."""

    def __init__(self, workloads: Workloads, records: Sequence[TrialRecord]) -> None:
        # Shuffled, so that any beginning is a fair sample.
        order = np.random.default_rng(0).permutation(len(records))[:MOST_LEARNT]
        self._workloads, self._records = workloads, [records[index] for index in order]
        self._is_own_code = workloads.spec.train.is_own_code
        self.line = line_of(workloads.spec, self._records)
        finals = [points_of(workloads, record, self.line)[0] for record in self._records]
        places = np.array([point.place for point in finals])
        self._level = float(np.mean(places))
        # What own code reports may be of any size: there, priors are in units of how far trials lie apart.
        self._unit = (float(np.std(places)) / USUAL_SPREAD or 1.0) if self._is_own_code else 1.0
        self.seed_noise = fit_seed_noise(finals, self._unit, workloads.spec.objective.is_accuracy)
        self._features = Features(workloads.spec, [point.workload for point in finals])
        self._middle_batch = float(median(point.workload.batch for point in finals))
        # Weighted on some of the points; what has weight is then fitted to all.
        fits = [
            _Fit(points, points.first(MOST_SEARCHED), helper, shape)
            for points, helper in (self._own_points() if self._is_own_code else self._usual_points())
            for shape in self._shapes_of(points)
        ]
        tried = Average([self._posterior(fit.some, fit) for fit in fits])
        self._fits = [fits[index] for index in tried.kept]
        self._average = Average([self._posterior(fit.points, fit) for fit in self._fits], weights=tried.weights)
        # A factor on variances, from how well the model predicts configurations that it does not know.
        best = int(np.argmax(tried.weights))
        self.calibration, self.calibrated_on = _calibration(self._average.best, self._fits[best].points)

    def predict(self, runs: Sequence[RunLength]) -> QualityForecasts:
        """Return the scores of runs of some epochs.

        Raises:
            SpecError: where a strategy cannot reach its prune rate in so few epochs.
        """
        rows = self._features.design([(workload, float(workload.visits(epochs)), 0.0) for workload, epochs in runs])
        offsets = np.zeros(len(runs))
        means, variances = self._average.predict(
            lambda index: (self._features.inputs(rows, self._fits[index].shape), offsets)
        )
        means = self._level + self._unit * means
        seeds = [
            self.seed_noise.variance(workload, samples, score, self._held_out(workload))
            for (workload, _), samples, score in zip(runs, rows.samples, self.line.scores(means), strict=True)
        ]
        variances = self.calibration * self._unit**2 * variances
        return QualityForecasts(means, variances, self.calibration * np.array(seeds), self.line)

    def _held_out(self, workload: Workload) -> int:
        return UNKNOWN_TEST_IMAGES if self._is_own_code else test_images(workload.config.data)

    def _shapes_of(self, points: _Observations, *, is_rough: bool = False) -> Iterator[ModelShape]:
        """Yield the shapes that are tried, or a few of them."""
        finals, own_code = points.rows[np.flatnonzero(points.finals)], self._is_own_code
        # A batch, where own code has one, is a param like any other.
        bends, batches = (OWN_BENDS, (1.0,)) if own_code else (BENDS, CRITICAL_BATCHES)
        smooths, narrows = (OWN_SMOOTH, NARROW) if own_code else (SMOOTH, (1.0,))
        owns = OWN[1:2] if is_rough else OWN
        narrows = narrows[:1] if is_rough else narrows
        for bend, factor, smooth, own, narrow in product(bends, batches, smooths, owns, narrows):
            critical = factor * self._middle_batch
            middle = float(np.median(finals.lengths(critical)))
            yield ModelShape(bend, critical, middle, smooth, own, narrow)

    def _points(self, schedule: str | None = None, helpers: Sequence[float] = HELPERS_AT) -> _Observations:
        points = [
            point
            for record in self._records
            for point in points_of(self._workloads, record, self.line, schedule, helpers)
        ]
        rows = self._features.design([(point.workload, point.samples, point.still_to_fall) for point in points])
        is_final = np.array([point.is_final for point in points])
        lengths = rows.lengths(self._middle_batch)
        # The shorter the run, the wilder its beginning.
        wildness = np.maximum(1.0, np.median(lengths[is_final]) / lengths)
        return _Observations(
            rows=rows,
            values=(np.array([point.place for point in points]) - self._level) / self._unit,
            seeds=np.array([self.seed_noise.of(point) for point in points]) / self._unit**2,
            helpers=np.array([point.still_to_fall for point in points]) * wildness,
            trials=np.array([point.trial for point in points]),
            finals=is_final,
        )

    def _usual_points(self) -> Iterator[tuple[_Observations, float]]:
        """Yield the points of the built-in trainer's curves, and the noise of early ones."""
        points = self._points()
        shapes = list(self._shapes_of(points))
        some, middle = points.first(MOST_SEARCHED), shapes[len(shapes) // 2]
        yield (
            points,
            max(HELPERS, key=lambda each: self._posterior(some, _Fit(points, some, each, middle)).log_evidence),
        )

    def _own_points(self) -> Iterator[tuple[_Observations, float]]:
        """Yield the points of own code's curves by each schedule, and the likeliest noise of early ones.

        Where the learning rate stays as it is, early points are ends of shorter runs: there are more of them then.
        """
        scales = (1.0,) if self.seed_noise.repeats >= PRIOR_WEIGHT else SEED_SCALES
        found = []
        for schedule in SCHEDULES:
            points = self._points(schedule)
            helpers = HELPERS if schedule != "constant" else HELPERS[:1]
            for scale, helper, alike in product(scales, helpers, SAME_CURVE):
                scaled = replace(points, seeds=scale * points.seeds, alike=alike)
                some = scaled.first(MOST_SEARCHED)
                shapes = self._shapes_of(points, is_rough=True)
                rough = Average([self._posterior(some, _Fit(points, some, helper, shape)) for shape in shapes])
                found.append((rough.log_evidence, schedule, scale, helper, scaled))
        _, self.schedule, scale, helper, _ = best = max(found, key=lambda one: one[0])
        self.seed_noise = replace(self.seed_noise, scale=scale * self.seed_noise.scale)
        for schedule in SCHEDULES:
            likeliest = max((one for one in found if one[1] == schedule), key=lambda one: one[0])
            if likeliest[0] > best[0] - UNLIKELY:
                yield likeliest[4], likeliest[3]

    def _posterior(self, points: _Observations, fit: _Fit) -> Posterior:
        prior = Prior(*self._features.priors, fit.shape.smooth, fit.shape.own)
        return Posterior(prior, self._features.inputs(points.rows, fit.shape), points.values, points.noise(fit.helper))


@dataclass(frozen=True)
class _Fit:
    """One shape of the model, and what it is fitted to."""

    points: _Observations
    some: _Observations  # of the points, to be weighted on
    helper: float  # deviation of early points, per share of the learning rate that is still to fall
    shape: ModelShape


def _calibration(posterior: Posterior, points: _Observations) -> tuple[float, int]:
    """Return how far final points lie from what all other configurations say, in variances of the model.

    The other number is that of the configurations held out.
    """
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, number in enumerate(points.rows.ids.tolist()):
        groups[number].append(index)
    squares = [posterior.surprise(np.array(rows), points.finals[rows]) for rows in groups.values()]
    return calibration_of(squares), len(squares)
