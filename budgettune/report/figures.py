"""Every figure of the report: functions from the records of a study to a plotly Figure, for pages and notebooks.

Each takes the records (finished or not, of one kind of machine) and, where it is known, the search space of the spec.
"""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from budgettune.errors import UsageError
from budgettune.report.axes import Search
from budgettune.report.figures_front import Records, accuracies, answer, front, panels, times
from budgettune.report.figures_training import curves, hypervolume, importance, phases, pruning, repeats

__all__ = [
    "FIGURES",
    "accuracies",
    "answer",
    "curves",
    "draw",
    "front",
    "hypervolume",
    "importance",
    "panels",
    "phases",
    "pruning",
    "repeats",
    "times",
]

FIGURES: dict[str, Callable[..., go.Figure]] = {
    "answer": answer,
    "front": front,
    "curves": curves,
    "panels": panels,
    "times": times,
    "accuracies": accuracies,
    "importance": importance,
    "repeats": repeats,
    "phases": phases,
    "pruning": pruning,
    "hypervolume": hypervolume,
}
"""By the name that `--figure` takes, in the order of the page."""


def draw(name: str, records: Records, search: Search | None = None) -> go.Figure:
    """Return the figure of that name.

    Raises:
        UsageError: where there is no such figure.
        NothingToDraw: where the study does not hold what it shows.
    """
    if name not in FIGURES:
        raise UsageError(f"figure {name!r}: choose one of {', '.join(FIGURES)}")
    return FIGURES[name](records, search)
