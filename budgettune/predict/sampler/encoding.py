"""Search spaces as numbers: points as positions in the unit cube, and as features that a kernel compares."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from budgettune.predict.regression import Floats, Ints
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
    """A search space in numbers."""

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self.space = dict(space)
        self._axes = [_axis(distribution) for distribution in self.space.values()]
        # bool[params], whether neighbouring positions are alike.
        self.is_ordered = np.array([axis.is_ordered for axis in self._axes])
        widths = [len(axis.values) if isinstance(axis, Choices) and not axis.is_ordered else 1 for axis in self._axes]
        self.groups = np.repeat(np.arange(len(widths)), widths)  # int64[features], the param that each stands for

    def snap(self, positions: Floats) -> Floats:
        """Return the positions of the points nearest to float64[points, params], each in [0, 1]."""
        return np.column_stack(
            [axis.positions(axis.numbers(column)) for axis, column in zip(self._axes, positions.T, strict=True)]
        )

    def positions(self, points: Iterable[Mapping[str, Any]]) -> Floats:
        """Return float64[points, params]."""
        numbers = np.array(
            [[each.to_internal_repr(point[name]) for name, each in self.space.items()] for point in points]
        ).reshape(-1, len(self._axes))
        return np.column_stack([axis.positions(column) for axis, column in zip(self._axes, numbers.T, strict=True)])

    def params(self, position: Floats) -> dict[str, Any]:
        return {
            name: distribution.to_external_repr(float(axis.numbers(position[index : index + 1])[0]))
            for index, ((name, distribution), axis) in enumerate(zip(self.space.items(), self._axes, strict=True))
        }

    def features(self, positions: Floats) -> Floats:
        """Return float64[points, features]: a position each, or one column per choice where they have no order.

        Two different choices without order are at distance 1, as the two ends of a line are.
        """
        columns = [
            np.eye(len(axis.values))[axis.numbers(column).astype(int)] / math.sqrt(2)
            if isinstance(axis, Choices) and not axis.is_ordered
            else column[:, None]
            for axis, column in zip(self._axes, positions.T, strict=True)
        ]
        return np.hstack(columns)
