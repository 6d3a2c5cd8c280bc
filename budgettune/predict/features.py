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


@dataclass(frozen=True)
class DesignRows:
    """Points or candidates before a shape is chosen; all arrays are as long."""

    columns: Floats  # float64[n, d], of the trend without growth; the second is the centred log of multiply-adds
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
    """Features of one study's search space, in units of the workloads that ran."""

    def __init__(self, spec: StudySpec, workloads: Sequence[Workload]) -> None:
        axes = search_axes(spec)
        scales = [axis for axis in axes if axis.key in SCALE_KEYS]
        self._axes = [axis for axis in axes if axis not in scales]
        self._by_depth = len(scales) > 1  # where width and depth are searched apart, arithmetic does not say it all
        sizes = [_log_size(workload) for workload in workloads]
        self._middle_size = (min(sizes) + max(sizes)) / 2
        self._size_range = max(LEAST_SIZE_RANGE, max(sizes) - min(sizes))
        self._strategies = list(dict.fromkeys(workload.config.pruning.strategy for workload in workloads))
        self._described: dict[int, tuple[list[float], list[float]]] = {}

    @cached_property
    def priors(self) -> tuple[Floats, Floats]:
        """Means and deviations of the trend's coefficients: float64[d + 2] each, growth last."""
        pairs = [(0.0, ANY_LEVEL), SIZE, (-ANNEALING[0], ANNEALING[1])]
        pairs += [(0.0, RATE)] * (len(self._strategies) + 1) + [(0.0, NUMBER)] * self._by_depth
        for axis in self._axes:
            pairs += [(0.0, deviation) for deviation in _axis_deviations(axis)]
        pairs += [GROWTH, (0.0, GROWTH_BY_SIZE)]
        means, deviations = zip(*pairs, strict=True)
        return np.array(means), np.array(deviations)

    def design(self, runs: Sequence[tuple[Workload, float, float]]) -> DesignRows:
        """Return the rows of (workload, samples visited, share of the learning rate still to fall)."""
        columns, places = [], []
        for workload, samples, still_to_fall in runs:
            trend, axes = self._describe(workload)
            columns.append([*trend[:2], still_to_fall, *trend[2:]])
            places.append([*axes, math.log(samples) / LENGTH_SCALE])
        return DesignRows(
            columns=np.array(columns),
            samples=np.array([samples for _, samples, _ in runs]),
            batches=np.array([float(workload.batch) for workload, _, _ in runs]),
            axes=np.array(places),
            ids=np.array([workload.number for workload, _, _ in runs]),
        )

    def inputs(self, rows: DesignRows, shape: ModelShape) -> Inputs:
        """Return rows by a shape's law of length."""
        lengths = rows.lengths(shape.critical_batch) / shape.middle_length
        growth = (1 - lengths**-shape.bend) / shape.bend
        return Inputs(np.column_stack([rows.columns, growth, growth * rows.columns[:, 1]]), rows.axes, rows.ids)

    def _describe(self, workload: Workload) -> tuple[list[float], list[float]]:
        """Return a workload's columns (the learning rate's left out) and its place (length left out)."""
        if workload.number not in self._described:
            pruning, size = workload.config.pruning, _log_size(workload) - self._middle_size
            rate = 0.0 if pruning.strategy == "full" else pruning.prune_rate
            is_known = pruning.strategy in self._strategies
            depth = [math.log(workload.arithmetic.layers) - math.log(10)] * self._by_depth
            columns = [1.0, size, *(rate * (pruning.strategy == name) for name in self._strategies)]
            columns += [rate * (not is_known), *depth]
            places = [size / self._size_range, *depth]
            for axis in self._axes:
                is_inactive = axis.is_conditional and axis.name not in workload.params
                own = axis.places(None if is_inactive else workload.value(axis.key))
                places += own
                # A line or a parabola, because a learning rate has a best one.
                powers = own if axis.choices else [own[0] - 0.5, (own[0] - 0.5) ** 2]
                columns += powers[: len(_axis_deviations(axis))]
            self._described[workload.number] = columns, [place / AXIS_SCALE for place in places]
        return self._described[workload.number]


def _log_size(workload: Workload) -> float:
    return math.log(workload.arithmetic.multiply_adds)


def _axis_deviations(axis: SearchAxis) -> list[float]:
    """Return the deviations of the coefficients of an axis' columns."""
    if axis.choices:
        return [CHOICE] * len(axis.choices)
    if axis.key == "pruning.prune_rate":
        return []  # each strategy has a column of its own
    return [BATCH] if axis.key == "train.batch_size" else [NUMBER, NUMBER]
