"""Searched values as numbers: where a configuration lies in its search space, and whether anything ran near it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budgettune.predict.workload import LENGTH_KEYS
from budgettune.spec.axes import RangeSpec
from budgettune.spec.documents import full_key
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import are_numbers

RATIO_FOR_LOG = 4.0
"""Positive numbers that span at least this ratio are placed by their logarithm."""


@dataclass(frozen=True)
class SearchAxis:
    """A searched setting."""

    name: str  # as in a trial's params
    key: str  # its full dotted key
    choices: tuple[Any, ...] = ()  # of a categorical setting; empty for a numeric one
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False  # whether a number is placed by its logarithm
    is_conditional: bool = False  # whether some configurations lack it

    def places(self, value: Any) -> list[float]:
        """Return the coordinates of a value: 1 at one of the choices, or a number from 0 (low) to 1 (high).

        An axis that is inactive (None) lies in the middle, and is none of the choices.
        """
        if self.choices:
            return [float(value == choice) for choice in self.choices]
        if value is None:
            return [0.5]
        if not self.is_log:
            return [(float(value) - self.low) / (self.high - self.low)]
        return [math.log(float(value) / self.low) / math.log(self.high / self.low)]


def search_axes(spec: StudySpec) -> list[SearchAxis]:
    """Return the axes of a search space, those of the length of training left out."""
    axes = []
    for name, searched in spec.search.items():
        key = full_key(name)
        if key in LENGTH_KEYS or (isinstance(searched, tuple) and len(searched) < 2):
            continue
        if isinstance(searched, tuple) and not are_numbers(searched):
            axes.append(SearchAxis(name, key, choices=searched, is_conditional=name in spec.conditions))
            continue
        ends = (searched.low, searched.high) if isinstance(searched, RangeSpec) else searched
        low, high = float(min(ends)), float(max(ends))
        has_log = isinstance(searched, RangeSpec) and searched.log
        is_log = low > 0 and (has_log or high / low >= RATIO_FOR_LOG)
        is_conditional = name in spec.conditions
        axes.append(SearchAxis(name, key, low=low, high=high, is_log=is_log, is_conditional=is_conditional))
    return axes


def outside(axes: Sequence[SearchAxis], params: Mapping[str, Any], ran: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield sentences on the axes on which a configuration lies outside all that ran."""
    for axis in axes:
        value, values = params.get(axis.name), [one[axis.name] for one in ran if axis.name in one]
        if value is None or not values:
            continue
        if axis.choices:
            if value not in values:
                yield f"{axis.name} {value} never ran"
        elif not min(values) <= value <= max(values):
            yield f"{axis.name} {value:g} lies outside {min(values):g} to {max(values):g}, which ran"
