"""Search spaces as numbers: points as positions in the unit cube, and as features that a kernel compares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

from budgettune.predict.regression import Floats, Ints
from budgettune.spec.conditions import Conditions, holds, in_order
from budgettune.spec.tables import are_numbers


@dataclass(frozen=True)
class Line:
    """A range, its positions evenly spread over it or over its logarithm; `numbers` are its values."""

    low: float
    high: float
    step: float | None  # between values, None for real numbers
    log: bool
    is_ordered = True

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """Half a step beyond the outer values, so that they get as much room as the others."""
        half = 0.0 if self.step is None else self.step / 2
        low, high = self.low - half, self.high + half
        return (math.log(low), math.log(high)) if self.log else (low, high)

    @property
    def stride(self) -> float:
        """The widest gap between neighbouring values, as a position; 0 of real numbers."""
        if self.step is None or self.high <= self.low:
            return 0.0
        first, second = self.positions(np.array([self.low, self.low + self.step]))  # of logarithms the widest
        return float(second - first)

    def numbers(self, positions: Floats) -> Floats:
        begin, end = self._ends
        numbers = begin + positions * (end - begin)
        if self.log:
            numbers = np.exp(numbers)
        if self.step is not None:
            numbers = self.low + np.round((numbers - self.low) / self.step) * self.step
        return np.clip(numbers, self.low, self.high)

    def positions(self, numbers: Floats) -> Floats:
        begin, end = self._ends
        numbers = np.log(numbers) if self.log else numbers
        return (numbers - begin) / (end - begin) if end > begin else np.full(len(numbers), 0.5)


@dataclass(frozen=True)
class Choices:
    """A list of values, evenly spread; `numbers` are their indices. Numbers lie by size, other values have no order.

    Whoever lists 16, 64 and 256 spaced them as they matter: ranks say more than sizes.
    """

    values: tuple[Any, ...]

    @cached_property
    def is_ordered(self) -> bool:
        return are_numbers(self.values)

    @property
    def stride(self) -> float:
        return 1 / len(self.values) if self.is_ordered else 1.0

    @cached_property
    def _order(self) -> Ints:
        return np.argsort(self.values) if self.is_ordered else np.arange(len(self.values))

    def numbers(self, positions: Floats) -> Floats:
        places = np.floor(positions * len(self.values)).astype(int)
        indices: Floats = self._order[np.clip(places, 0, len(self.values) - 1)].astype(float)
        return indices

    def positions(self, numbers: Floats) -> Floats:
        places: Floats = (np.argsort(self._order)[numbers.astype(int)] + 0.5) / len(self.values)
        return places


def _axis(distribution: BaseDistribution) -> Line | Choices:
    if isinstance(distribution, CategoricalDistribution):
        return Choices(distribution.choices)
    assert isinstance(distribution, (FloatDistribution, IntDistribution))  # Optuna has no others
    return Line(distribution.low, distribution.high, distribution.step, distribution.log)


class Encoding:
    """A search space in numbers. The position of an axis that is inactive at a point is NaN.

    Args:
        space: distributions by name.
        conditions: of the axes that some points lack.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], conditions: Conditions = MappingProxyType({})) -> None:
        self.space, self._conditions = dict(space), conditions
        self._axes = [_axis(distribution) for distribution in self.space.values()]
        # bool[params], whether neighbouring positions are alike.
        self.is_ordered = np.array([axis.is_ordered for axis in self._axes])
        self.strides = np.array([axis.stride for axis in self._axes])  # float64[params], the widest between neighbours
        widths = [len(axis.values) if isinstance(axis, Choices) and not axis.is_ordered else 1 for axis in self._axes]
        self.groups = np.repeat(np.arange(len(widths)), widths)  # int64[features], the param that each stands for

    def snap(self, positions: Floats) -> Floats:
        """Return the positions of the points nearest to float64[points, params], each in [0, 1]."""
        snapped = np.column_stack(
            [axis.positions(axis.numbers(column)) for axis, column in zip(self._axes, positions.T, strict=True)]
        )
        places = {name: place for place, name in enumerate(self.space)}
        for name in in_order(self.space, self._conditions) if self._conditions else ():
            for other, values in self._conditions.get(name, {}).items():
                distribution, column = self.space[other], snapped[:, places[other]]
                allowed = self._axes[places[other]].positions(
                    np.array([distribution.to_internal_repr(v) for v in values])
                )
                # An axis that is inactive itself has no position, and so none of these.
                snapped[~np.isin(column, allowed), places[name]] = np.nan
        return snapped

    def holds(self, trial: FrozenTrial) -> bool:
        """Whether a trial is a point of this space, each of its params drawn from the same distribution."""
        wanted = (name for name in self.space if holds(self._conditions.get(name, {}), trial.params))
        return all(trial.distributions.get(name) == self.space[name] for name in wanted)

    def positions(self, points: Iterable[Mapping[str, Any]]) -> Floats:
        """Return float64[points, params]."""
        numbers = np.array(
            [
                [each.to_internal_repr(point[name]) if name in point else math.nan for name, each in self.space.items()]
                for point in points
            ]
        ).reshape(-1, len(self._axes))
        positions = np.full_like(numbers, math.nan, dtype=float)
        for place, axis in enumerate(self._axes):
            is_active = ~np.isnan(numbers[:, place])
            positions[is_active, place] = axis.positions(numbers[is_active, place])
        return positions

    def params(self, position: Floats) -> dict[str, Any]:
        return {
            name: distribution.to_external_repr(float(axis.numbers(position[index : index + 1])[0]))
            for index, ((name, distribution), axis) in enumerate(zip(self.space.items(), self._axes, strict=True))
            if not np.isnan(position[index])
        }

    def features(self, positions: Floats) -> Floats:
        """Return float64[points, features]: a position each, or one column per choice where they have no order.

        Two different choices without order are at distance 1, as the two ends of a line are. What is inactive lies in
        the middle, at an equal distance from all values: that it is inactive tell the axes that it depends on.
        """
        columns = []
        for axis, column in zip(self._axes, positions.T, strict=True):
            is_inactive = np.isnan(column)
            filled = np.where(is_inactive, 0.5, column)
            if isinstance(axis, Choices) and not axis.is_ordered:
                chosen = np.eye(len(axis.values))[axis.numbers(filled).astype(int)] / math.sqrt(2)
                columns.append(np.where(is_inactive[:, None], chosen.shape[1] ** -1 / math.sqrt(2), chosen))
            else:
                columns.append(filled[:, None])
        return np.hstack(columns)
