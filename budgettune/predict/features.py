"""A configuration and a length as the accuracy model sees them: columns of a trend, and a place for the remainder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from budgettune.predict.regression import Floats, Inputs, Ints
from budgettune.predict.search_axes import SearchAxis, search_axes
from budgettune.predict.workload import Workload
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import SCALE_KEYS

GROWTH = (0.3, 0.2)
"""Mean and deviation of the logit per factor of e in length, for a middling run."""
GROWTH_BY_SIZE = 0.05  # deviation of what a factor of e in arithmetic changes about it
ANNEALING = (0.5, 0.25)  # what the learning rate's fall from its top to zero is worth
SIZE = (0.08, 0.1)  # per factor of e in multiply-adds
RATE = 0.7  # per unit of prune rate, beyond what fewer samples cost, for each strategy
BATCH = 0.15  # from one end of the searched batches to the other, beyond what fewer steps cost
NUMBER = 0.5  # the same of any other number, and of its square
CHOICE = 0.3  # of each choice of a categorical setting
ANY_LEVEL = 2.0

GROWTH_BY_AXIS = 0.15  # of own training code: what an axis, from one end to the other, changes about growth
OWN_GROWTH = (0.3, 0.5)  # of own training code, about which less is known
OWN_NUMBER, OWN_SQUARE, OWN_CHOICE = 0.8, 1.5, 0.5  # likewise

AXIS_SCALE = 0.8  # of the range that was searched, over which smooth remainders are alike
LENGTH_SCALE = 1.5  # in factors of e
LEAST_SIZE_RANGE = 0.5  # in factors of e


@dataclass(frozen=True)
class ModelShape:
    """What enters the model nonlinearly: the law of length, and how much is left to the two remainders."""

    bend: float  # how soon more training stops to help: 0 would be never
    critical_batch: float  # from which larger batches save no steps
    middle_length: float  # of a middling run, by the critical batch: the unit of lengths
    smooth: float  # deviation of the smooth remainder
    own: float  # deviation of what is a configuration's own
    narrow: float = 1.0  # how many times faster than by AXIS_SCALE smooth remainders change along axes


@dataclass(frozen=True)
class DesignRows:
    """Points or candidates before a shape is chosen; all arrays are as long."""

    columns: Floats  # float64[n, d], of the trend without growth
    growths: Floats  # float64[n, g], what growth depends on beside length
    samples: Floats  # float64[n], visited
    batches: Floats  # float64[n]
    axes: Floats  # float64[n, k], in length scales
    ids: Ints  # int64[n], of the configurations

    def __getitem__(self, rows: Ints) -> DesignRows:
        return DesignRows(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))

    def lengths(self, critical_batch: float) -> Floats:
        """Return how far each is, in steps of a small batch: float64[n]."""
        return self.samples / (self.batches + critical_batch)


class Features:
    """Features of one study's search space, in units of the workloads that ran.

    Args:
        spec: of the study.
        workloads: that ran, one for each trial.
    """

    def __init__(self, spec: StudySpec, workloads: Sequence[Workload]) -> None:
        axes = search_axes(spec)
        self._has_size = all(workload.arithmetic is not None for workload in workloads)
        self._is_own_code = spec.train.is_own_code
        scales = [axis for axis in axes if axis.key in SCALE_KEYS] if self._has_size else []
        self._axes = [axis for axis in axes if axis not in scales]
        self._by_depth = len(scales) > 1  # where width and depth are searched apart, arithmetic does not say it all
        sizes = [_log_size(workload) for workload in workloads]
        self._middle_size = (min(sizes) + max(sizes)) / 2
        self._size_range = max(LEAST_SIZE_RANGE, max(sizes) - min(sizes))
        self._strategies = list(dict.fromkeys(workload.config.pruning.strategy for workload in workloads))
        self._described: dict[int, _Described] = {}

    @cached_property
    def priors(self) -> tuple[Floats, Floats]:
        """Means and deviations of the trend's coefficients: float64[d + 1 + g] each, growth last."""
        pairs = [(0.0, ANY_LEVEL), (-ANNEALING[0], ANNEALING[1])]
        pairs += [SIZE] * self._has_size
        pairs += [(0.0, RATE)] * (len(self._strategies) + 1) + [(0.0, NUMBER)] * self._by_depth
        for axis in self._axes:
            pairs += [(0.0, deviation) for deviation in self._deviations(axis)]
        pairs += [OWN_GROWTH if self._is_own_code else GROWTH]
        pairs += [(0.0, GROWTH_BY_SIZE)] * self._has_size
        if self._is_own_code:
            pairs += [(0.0, GROWTH_BY_AXIS)] * sum(max(1, len(axis.choices)) for axis in self._axes)
        means, deviations = zip(*pairs, strict=True)
        return np.array(means), np.array(deviations)

    def design(self, runs: Sequence[tuple[Workload, float, float]]) -> DesignRows:
        """Return the rows of (workload, samples visited, share of the learning rate still to fall)."""
        described = [self._describe(workload) for workload, _, _ in runs]
        columns = [
            [1.0, still_to_fall, *each.trend] for each, (_, _, still_to_fall) in zip(described, runs, strict=True)
        ]
        places = [
            [*each.places, math.log(samples) / LENGTH_SCALE]
            for each, (_, samples, _) in zip(described, runs, strict=True)
        ]
        return DesignRows(
            columns=np.array(columns),
            growths=np.array([each.growths for each in described]).reshape(len(runs), -1),
            samples=np.array([samples for _, samples, _ in runs]),
            batches=np.array([float(workload.batch) for workload, _, _ in runs]),
            axes=np.array(places),
            ids=np.array([workload.number for workload, _, _ in runs]),
        )

    def inputs(self, rows: DesignRows, shape: ModelShape) -> Inputs:
        """Return rows by a shape's law of length."""
        lengths = rows.lengths(shape.critical_batch) / shape.middle_length
        growth = ((1 - lengths**-shape.bend) / shape.bend if shape.bend else np.log(lengths))[:, None]
        axes = rows.axes * np.array([shape.narrow] * (rows.axes.shape[1] - 1) + [1.0])
        return Inputs(np.column_stack([rows.columns, growth, growth * rows.growths]), axes, rows.ids)

    def _deviations(self, axis: SearchAxis) -> list[float]:
        if not self._is_own_code:
            return _axis_deviations(axis)
        return [OWN_CHOICE] * len(axis.choices) or [OWN_NUMBER, OWN_SQUARE]

    def _describe(self, workload: Workload) -> _Described:
        if workload.number not in self._described:
            pruning, size = workload.config.pruning, _log_size(workload) - self._middle_size
            rate = 0.0 if pruning.strategy == "full" else pruning.prune_rate
            is_known = pruning.strategy in self._strategies
            arithmetic = workload.arithmetic
            depth = [math.log(arithmetic.layers) - math.log(10)] if self._by_depth and arithmetic else []
            columns = [*[size] * self._has_size, *(rate * (pruning.strategy == name) for name in self._strategies)]
            columns += [rate * (not is_known), *depth]
            places = [*[size / self._size_range] * self._has_size, *depth]
            growths = [size] * self._has_size
            for axis in self._axes:
                is_inactive = axis.is_conditional and axis.name not in workload.params
                own = axis.places(None if is_inactive else workload.value(axis.key))
                places += own
                # A line or a parabola, because a learning rate has a best one.
                powers = own if axis.choices else [own[0] - 0.5, (own[0] - 0.5) ** 2]
                columns += powers[: len(self._deviations(axis))]
                growths += (own if axis.choices else powers[:1]) if self._is_own_code else []
            self._described[workload.number] = _Described(columns, growths, [place / AXIS_SCALE for place in places])
        return self._described[workload.number]


@dataclass(frozen=True)
class _Described:
    """What a workload adds to the rows of its runs, whatever their length."""

    trend: list[float]
    growths: list[float]
    places: list[float]  # in length scales


def _log_size(workload: Workload) -> float:
    return math.log(workload.arithmetic.multiply_adds) if workload.arithmetic else 0.0


def _axis_deviations(axis: SearchAxis) -> list[float]:
    """Return the deviations of the coefficients of an axis' columns."""
    if axis.choices:
        return [CHOICE] * len(axis.choices)
    if axis.key == "pruning.prune_rate":
        return []  # each strategy has a column of its own
    return [BATCH] if axis.key == "train.batch_size" else [NUMBER, NUMBER]
