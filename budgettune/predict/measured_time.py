"""Step times where no formula tells the arithmetic: measured ones, and what changes them.

Of a model of a library or of your own a step is told apart by the settings that change it. Of own training code, whose
epoch is its step, nobody says which params change it. That is learnt: the log of a step's seconds is

    trend along the axes + smooth + own + noise

and axes are taken out one by one until the evidence is against it. What agrees in all axes that stay was measured,
though it may never have run: at another learning rate, say.

Epochs of own code need not take equally long: the first may load kernels, and a forest looks at all its trees again.
After k epochs so many usual ones have passed:

    k + first + growth · k²
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from scipy.optimize import nnls

from budgettune.predict.regression import Average, Floats, Inputs, Posterior, Prior
from budgettune.predict.search_axes import SearchAxis, search_axes
from budgettune.predict.step_time import PROBE_DEVIATION, StepTime
from budgettune.predict.workload import Workload
from budgettune.spec.study_spec import StudySpec

RUN_DEVIATIONS = (0.005, 0.015, 0.03, 0.06, 0.1, 0.16)
SMOOTH = (0.03, 0.12, 0.4)
OWN = (0.01, 0.03)
"""Deviations of the log of seconds that are tried: between runs, of the smooth remainder, of what is a step's own."""
LINE, SQUARE, CHOICE = 1.0, 0.4, 0.5
"""Deviations of what an axis changes, from one end to the other; of its bend; of each choice of a list."""
ANY_LEVEL = 2.0
AXIS_SCALE = 0.8
MOST_SEARCHED = 60  # runs that the axes are chosen on
MOST_LEARNT = 200
CHANGE = 1.1  # log of the odds from which an axis counts as changing a step's time
UNLIKELY = 4.0  # the same against a set of axes that is left out of account
USUAL_FIXED_SHARE = 0.1  # of a step of the built-in trainer: what does not depend on the batch

STEP_KEYS = (
    "model.",
    "data.",
    "train.batch_size",
    "train.optimizer",
    "train.precision",
    "train.compile",
    "train.cuda_graphs",
    "train.deterministic",
    "train.memory_format",
)
"""What changes a step of the built-in trainer: beginnings of settings."""


@dataclass(frozen=True)
class Pace:
    """How epochs of own training code add up, in usual ones."""

    first: float = 0.0  # that the first epoch takes longer
    growth: float = 0.0  # by which each takes longer than the one before, halved

    def epochs(self, count: float) -> float:
        return count + self.first + self.growth * count**2

    @classmethod
    def of(cls, curves: Sequence[Sequence[float]]) -> Pace:
        """Return the pace of some curves: seconds at the end of each whole epoch."""
        rows, values = [np.eye(2) * 1e-3], [np.zeros(2)]  # next to no evidence against either
        for curve in curves:
            if len(curve) < 3:
                continue
            count, share = np.arange(1, len(curve)), np.array(curve[:-1]) / curve[-1]
            whole = float(len(curve))
            # share = pace(count) / pace(whole), in such a form that both unknowns enter by themselves
            row = np.column_stack([share - 1, share * whole**2 - count**2]) / whole
            rows.append(row / np.sqrt(len(count)))
            values.append((count - share * whole) / whole / np.sqrt(len(count)))
        first, growth = nnls(np.vstack(rows), np.concatenate(values))[0]
        return cls(float(first), float(growth))


Axes = tuple[SearchAxis, ...]


@dataclass(frozen=True)
class _Shape:
    smooth: float
    own: float
    run: float


_SHAPES = tuple(_Shape(*each) for each in product(SMOOTH, OWN, RUN_DEVIATIONS))


class MeasuredSteps:
    """Step times of one kind of machine.

    Args:
        spec: of the study.
        times: of each run and each probe, at least one.
    """

    def __init__(self, spec: StudySpec, times: Sequence[StepTime]) -> None:
        chosen = np.random.default_rng(0).permutation(len(times))
        self._times = [times[index] for index in chosen[:MOST_LEARNT]]
        self._level = float(np.mean([time.log_seconds for time in self._times]))
        self._numbers: dict[tuple[SearchAxis, ...], dict[tuple[Any, ...], int]] = {}
        axes = tuple(search_axes(spec))
        if spec.train.is_own_code:
            self.axes, doubted = self._that_change_it(axes)
        else:
            self.axes = tuple(axis for axis in axes if axis.key.startswith(STEP_KEYS))
            doubted = [self.axes]
        # What is known of each step that was timed: its values along the axes that change it.
        self.measured = {self.key(time.workload.params): self._values(time.workload.params) for time in times}
        # Which axes change it is doubted no less than the shape of what they change.
        self._models = [(some, shape) for some in doubted for shape in _SHAPES]
        self._average = Average([self._posterior(some, shape, self._times) for some, shape in self._models])
        self.calibration = self._average.calibration()
        runs = np.array([self._models[index][1].run for index in self._average.kept])
        # Of the log of a run's time, between runs of one step.
        self.run_deviation = float(np.sqrt(self.calibration * (self._average.weights @ runs**2)))

    def key(self, params: Mapping[str, Any]) -> tuple[Any, ...]:
        """Return what steps share exactly where they take equally long."""
        return tuple(params.get(axis.name) for axis in self.axes)

    def _values(self, params: Mapping[str, Any]) -> dict[str, Any]:
        return {axis.name: params[axis.name] for axis in self.axes if axis.name in params}

    def key_of(self, workload: Workload) -> tuple[Any, ...]:
        return self.key(workload.params)

    def is_measured(self, workload: Workload) -> bool:
        return self.key(workload.params) in self.measured

    def predict(self, workloads: Sequence[Workload]) -> tuple[Floats, Floats]:
        """Return mean and variance of the log of a full step's seconds: float64[n] each."""
        probed, level = [False] * len(workloads), np.full(len(workloads), self._level)
        sets = {self._models[index][0] for index in self._average.kept}
        inputs = {axes: self._inputs(axes, workloads, probed) for axes in sets}
        means, variances = self._average.predict(lambda index: (inputs[self._models[index][0]], level))
        return means, self.calibration * variances

    def fixed_shares(self, workloads: Sequence[Workload]) -> Floats:
        """Return what part of a full step's time is taken not to depend on the batch: float64[n]."""
        return np.array([0.0 if workload.is_own_code else USUAL_FIXED_SHARE for workload in workloads])

    def _that_change_it(self, axes: Axes) -> tuple[Axes, list[Axes]]:
        """Return the axes that change a step's time, by the evidence of what was timed, and all sets that may be it."""
        some = self._times[:MOST_SEARCHED]

        def evidence(axes: Axes) -> float:
            return Average([self._posterior(axes, shape, some) for shape in _SHAPES]).log_evidence

        left, known = axes, {axes: evidence(axes)}
        while left:
            fewer = {without: evidence(without) for axis in left if (without := _without(left, axis)) not in known}
            best = max(fewer, key=lambda each: fewer[each])
            known |= fewer
            if known[left] - known[best] > CHANGE:
                break
            left = best
        likeliest = max(known.values())
        return left, [each for each, found in known.items() if found > likeliest - UNLIKELY or each == left]

    def _posterior(self, axes: Axes, shape: _Shape, times: Sequence[StepTime]) -> Posterior:
        inputs = self._inputs(axes, [time.workload for time in times], [time.is_probe for time in times])
        values = np.array([time.log_seconds for time in times]) - self._level
        deviations = [ANY_LEVEL, PROBE_DEVIATION]
        for axis in axes:
            deviations += [CHOICE] * len(axis.choices) or [LINE, SQUARE]
        prior = Prior(np.zeros(len(deviations)), np.array(deviations), shape.smooth, shape.own)
        return Posterior(prior, inputs, values, np.diag([shape.run**2 + time.variance for time in times]))

    def _inputs(self, axes: Axes, workloads: Sequence[Workload], probed: Sequence[bool]) -> Inputs:
        trend, places, ids = [], [], []
        numbers = self._numbers.setdefault(axes, {})
        for workload, is_probe in zip(workloads, probed, strict=True):
            each = [axis.places(workload.params.get(axis.name)) for axis in axes]
            powers = [
                power
                for axis, own in zip(axes, each, strict=True)
                for power in (own if axis.choices else [own[0] - 0.5, (own[0] - 0.5) ** 2])
            ]
            trend.append([1.0, float(is_probe), *powers])
            places.append([place / AXIS_SCALE for own in each for place in own])
            key = tuple(workload.params.get(axis.name) for axis in axes)
            ids.append(numbers.setdefault(key, len(numbers)))
        return Inputs(np.array(trend), np.array(places).reshape(len(trend), len(places[0])), np.array(ids))


def _without(axes: Axes, left_out: SearchAxis) -> Axes:
    return tuple(axis for axis in axes if axis is not left_out)
