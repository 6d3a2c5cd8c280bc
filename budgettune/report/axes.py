"""Searched parameters as axes of figures: numeric, logarithmic or categorical, and the groups that they make."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from budgettune.records import TrialRecord
from budgettune.spec.axes import RangeSpec
from budgettune.text import short_names

LOG_AXIS_RATIO = 100.0
"""Positive numbers that span at least this ratio are placed by their logarithm."""
MOST_TICKS = 8
OTHER, ABSENT = "other", "not set"

Search = Mapping[str, Any]
"""The search space of a spec, by key."""


@dataclass(frozen=True)
class FigureAxis:
    """A searched parameter that took at least two values."""

    name: str  # as in a trial's params
    label: str  # for people: the last part of the name, or all of it where two names end alike
    kind: Literal["numeric", "log", "categorical"]
    levels: tuple[Any, ...]  # its distinct values in order; texts where it is categorical

    def code(self, value: Any) -> float:
        """Return where a value lies on a linear scale, NaN where it has no place on this axis."""
        if self.kind == "categorical":
            text = value_text(value)
            return float(self.levels.index(text)) if text in self.levels else math.nan
        if not is_number(value):
            return math.nan
        if self.kind == "log":
            return math.log10(value) if value > 0 else math.nan
        return float(value)

    def codes(self, trials: Iterable[TrialRecord]) -> np.ndarray:
        """Return where each trial lies, NaN where it lacks the parameter: float64 of shape (trials,)."""
        return np.array([self.code(trial.params.get(self.name)) for trial in trials], dtype=float)

    def ticks(self) -> tuple[list[float], list[str]] | None:
        """Return positions and texts of ticks; None where an automatic scale of plain numbers says it as well."""
        if len(self.levels) <= MOST_TICKS or self.kind == "categorical":
            return [self.code(level) for level in self.levels], [value_text(level) for level in self.levels]
        if self.kind == "numeric":
            return None
        low, high = math.floor(self.code(self.levels[0])), math.ceil(self.code(self.levels[-1]))
        return [float(power) for power in range(low, high + 1)], [f"{10.0**power:g}" for power in range(low, high + 1)]


@dataclass(frozen=True)
class Groups:
    """Trials put together by one axis."""

    axis: FigureAxis | None  # None where nothing was searched, so that all trials are one group
    labels: tuple[str, ...]  # of the groups, in order
    members: np.ndarray  # index of each trial's group

    def indices(self, group: int) -> np.ndarray:
        return np.flatnonzero(self.members == group)


def is_number(value: Any) -> bool:
    """Whether a value is a finite number (true and false are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def value_text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def searched_axes(trials: Sequence[TrialRecord], search: Search | None = None) -> tuple[FigureAxis, ...]:
    """Return the parameters that took at least two values, in the order of the search space."""
    search = search or {}
    labels = param_labels([*search, *(name for trial in trials for name in trial.params)])
    axes = [
        _axis(name, label, [trial.params[name] for trial in trials if name in trial.params], search.get(name))
        for name, label in labels.items()
    ]
    return tuple(axis for axis in axes if len(axis.levels) > 1)


def param_labels(names: Iterable[str]) -> dict[str, str]:
    """Return each parameter's name for people: its last part, or all of it where two end alike."""
    return {name: short.replace("_", " ") for name, short in short_names(names).items()}


def _axis(name: str, label: str, values: Sequence[Any], searched: Any) -> FigureAxis:
    if not all(map(is_number, values)):
        taken = dict.fromkeys(map(value_text, values))
        # What a study file lists comes first, and in its order.
        listed = map(value_text, searched if isinstance(searched, Sequence) else ())
        texts = dict.fromkeys([*(text for text in listed if text in taken), *taken])
        return FigureAxis(name, label, "categorical", tuple(texts))
    levels = tuple(sorted(set(values)))
    if isinstance(searched, RangeSpec):
        is_log = searched.log
    else:
        is_log = bool(levels) and levels[0] > 0 and levels[-1] / levels[0] >= LOG_AXIS_RATIO
    return FigureAxis(name, label, "log" if is_log else "numeric", levels)


def grouped(axis: FigureAxis | None, trials: Sequence[TrialRecord], most: int) -> Groups:
    """Return trials in at most that many groups: one for each level, or intervals of equal width where there are more.

    Trials that lack the parameter make a group of their own.
    """
    if axis is None:
        return Groups(None, ("all trials",), np.zeros(len(trials), dtype=int))
    codes = axis.codes(trials)
    if len(axis.levels) <= most:
        places = [axis.code(level) for level in axis.levels]
        labels = [value_text(level) for level in axis.levels]
        members = np.searchsorted(places, np.nan_to_num(codes, nan=places[0]))
    elif axis.kind == "categorical":
        labels, members = _frequent(axis, codes, most)
    else:
        labels, members = _intervals(axis, codes, most)
    if np.isnan(codes).any():
        members = np.where(np.isnan(codes), len(labels), members)
        labels = [*labels, ABSENT]
    return Groups(axis, tuple(labels), members)


def _frequent(axis: FigureAxis, codes: np.ndarray, most: int) -> tuple[list[str], np.ndarray]:
    counts = Counter(codes[~np.isnan(codes)].astype(int).tolist())
    kept = sorted(code for code, _ in counts.most_common(most - 1))
    place = {code: index for index, code in enumerate(kept)}
    members = [place.get(int(code), len(kept)) for code in np.nan_to_num(codes, nan=-1)]
    return [*(axis.levels[code] for code in kept), OTHER], np.array(members)


def _intervals(axis: FigureAxis, codes: np.ndarray, most: int) -> tuple[list[str], np.ndarray]:
    edges = np.linspace(axis.code(axis.levels[0]), axis.code(axis.levels[-1]), most + 1)
    texts = [f"{10**edge if axis.kind == 'log' else edge:.3g}" for edge in edges]
    labels = [f"{low} to {high}" for low, high in itertools.pairwise(texts)]
    return labels, np.digitize(codes, edges[1:-1])
