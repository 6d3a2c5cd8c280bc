"""Every figure of the report, by its name and in the order of the page.

`budgettune.report.figures.front(records)` is a plotly figure. Records are trials of a study, finished or not, of one
kind of machine; what shows what never ran takes what `forecast` returns, and `stopping` takes the notes on stopped
trials.
"""

from __future__ import annotations

from typing import Any

import plotly.graph_objects as go

from budgettune.errors import NothingToDraw, UsageError
from budgettune.report.axes import Search
from budgettune.report.forecast import StudyForecast, calibration, forecast, predicted, recommended, surface
from budgettune.report.runs import Notes, curves, phases, pruning, repeats, stopping
from budgettune.report.search import hypervolume, importance
from budgettune.report.tradeoff import accuracies, answer, front, panels, times
from budgettune.report.view import Figure, Records
from budgettune.spec.objective import Aim

FIGURES: dict[str, Figure[Any, Any]] = {
    figure.name: figure
    for figure in (
        answer,
        front,
        recommended,
        surface,
        predicted,
        calibration,
        curves,
        panels,
        times,
        accuracies,
        importance,
        repeats,
        phases,
        pruning,
        hypervolume,
        stopping,
    )
}

__all__ = ["FIGURES", "draw", "forecast", *FIGURES]


def draw(
    name: str,
    records: Records,
    search: Search | None = None,
    of: StudyForecast | None = None,
    notes: Notes = (),
    aim: Aim | None = None,
) -> go.Figure:
    """Return the figure of that name.

    Args:
        name: in FIGURES.
        records: of a study, or their overview.
        search: the search space of the spec.
        of: for figures of what never ran, from `forecast`.
        notes: on trials that were stopped early.
        aim: of the spec: what trials are judged by, and their limits; the usual where None.

    Raises:
        UsageError: where there is no such figure.
        NothingToDraw: where the study does not hold what it shows.
    """
    if name not in FIGURES:
        raise UsageError(f"figure {name!r}: choose one of {', '.join(FIGURES)}")
    figure = FIGURES[name]
    if figure.about == "trials":
        return figure(records, search, aim)
    if figure.about == "stopping":
        return figure(notes)
    if of is None:
        raise NothingToDraw(f"figure {name!r} shows what is predicted, for which the study's spec must be readable")
    return figure(of)
