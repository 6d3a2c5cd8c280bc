"""Every figure of the report: functions from the records of a study to a plotly Figure, for pages and notebooks.

Each takes the records (finished or not, of one kind of machine) and, where it is known, the search space of the spec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from budgettune.errors import NothingToDraw, UsageError
from budgettune.report.axes import Search
from budgettune.report.figures_forecast import calibration, predicted, recommended, surface
from budgettune.report.figures_training import curves, hypervolume, importance, phases, pruning, repeats, stopping
from budgettune.report.forecast import Forecast, forecast
from budgettune.report.tradeoff import Records, accuracies, answer, front, panels, times

__all__ = [
    "FIGURES",
    "FORECASTS",
    "STOPPING",
    "accuracies",
    "answer",
    "calibration",
    "curves",
    "draw",
    "forecast",
    "front",
    "hypervolume",
    "importance",
    "panels",
    "phases",
    "predicted",
    "pruning",
    "recommended",
    "repeats",
    "stopping",
    "surface",
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


FORECASTS: dict[str, Callable[[Forecast], go.Figure]] = {
    "recommended": recommended,
    "surface": surface,
    "predicted": predicted,
    "calibration": calibration,
}
"""Those of what never ran; each takes what `forecast` returns."""


STOPPING = "stopping"
"""The figure of trials that were stopped early, from `storage.trials.stopping_notes`; of all machines together."""


def draw(
    name: str,
    records: Records,
    search: Search | None = None,
    of: Forecast | None = None,
    notes: Sequence[Mapping[str, Any]] = (),
) -> go.Figure:
    """Return the figure of that name.

    Args:
        name: in FIGURES or in FORECASTS.
        records: of a study, or their overview.
        search: the search space of the spec.
        of: for figures of what never ran, from `forecast`.
        notes: on trials that were stopped early.

    Raises:
        UsageError: where there is no such figure.
        NothingToDraw: where the study does not hold what it shows.
    """
    if name in FIGURES:
        return FIGURES[name](records, search)
    if name == STOPPING:
        return stopping(notes)
    if name not in FORECASTS:
        raise UsageError(f"figure {name!r}: choose one of {', '.join([*FIGURES, *FORECASTS, STOPPING])}")
    if of is None:
        raise NothingToDraw(f"figure {name!r} shows what is predicted, for which the study's spec must be readable")
    return FORECASTS[name](of)
