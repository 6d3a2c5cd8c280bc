"""Searched values as numbers: where a configuration lies in its search space, and whether anything ran near it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budgettune.predict.workload import LENGTH_KEYS
from budgettune.spec.documents import full_key
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import RangeSpec

RATIO_FOR_LOG = 4.0
"""Positive numbers that span at least this ratio are placed by their logarithm."""


@dataclass(frozen=True)
class SearchAxis:
    """A searched setting.

    Attributes:
        name: as in a trial's params.
        key: its full dotted key.
        choices: of a categorical setting; empty for a numeric one.
        low: of a numeric one.
        high: likewise.
        is_log: whether it is placed by its logarithm.
    """

    name: str
    key: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 1.0
    is_log: bool = False

    def place(self, value: Any) -> float:
        """Return where a number lies, 0 at the low end of the search space and 1 at the high one."""
        if not self.is_log:
            return (float(value) - self.low) / (self.high - self.low)
        return math.log(float(value) / self.low) / math.log(self.high / self.low)

    def places(self, value: Any) -> list[float]:
        """Return the coordinates of a value: one of a number, one for each choice of a categorical setting."""
        return [float(value == choice) for choice in self.choices] if self.choices else [self.place(value)]


def search_axes(spec: StudySpec) -> list[SearchAxis]:
    """Return the axes of a search space, those of the length of training left out."""
    found = []
    for name, axis in spec.search.items():
        key = full_key(name)
        if key in LENGTH_KEYS:
            continue
        if isinstance(axis, RangeSpec):
            found.append(_numeric(name, float(axis.low), float(axis.high), axis.log))
        elif all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in axis):
            found += [_numeric(name, float(min(axis)), float(max(axis)), False)] if len(axis) > 1 else []
        elif len(axis) > 1:
            found.append(SearchAxis(name, key, choices=tuple(axis)))
    return found


def _numeric(name: str, low: float, high: float, log: bool) -> SearchAxis:
    is_log = low > 0 and (log or high / low >= RATIO_FOR_LOG)
    return SearchAxis(name, full_key(name), low=low, high=high, is_log=is_log)


def outside(axes: Sequence[SearchAxis], params: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences on the axes on which a configuration lies outside all that ran."""
    return [text for axis in axes if (text := _outside(axis, params, seen)) is not None]


def _outside(axis: SearchAxis, params: Mapping[str, Any], seen: Sequence[Mapping[str, Any]]) -> str | None:
    value, values = params.get(axis.name), [one[axis.name] for one in seen if axis.name in one]
    if value is None or not values:
        return None
    if axis.choices:
        return None if value in values else f"{axis.name} {value} never ran"
    low, high = min(values), max(values)
    return None if low <= value <= high else f"{axis.name} {value:g} lies outside {low:g} to {high:g}, which ran"
