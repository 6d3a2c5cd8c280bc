"""Figures of time against accuracy and of what moves them: the answer at each budget, the front, panels, maps."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import plotly.graph_objects as go

from budgettune.errors import NothingToDraw
from budgettune.records import TrialRecord
from budgettune.report.axes import Axis, Search, grouped, value_text
from budgettune.report.search import accuracy_map
from budgettune.report.style import (
    BLUE,
    FRONT,
    GREY,
    MOST_GROUPS,
    accuracy_axis,
    colour_axis,
    front_line,
    in_unit,
    marker_legend,
    new_figure,
    param_axis,
    plain,
    time_axis,
    trial_markers,
)
from budgettune.report.view import (
    MOST_IN_FRONT,
    MOST_IN_OTHERS,
    Overview,
    label_rows,
    objectives,
    overview,
    pareto_front,
    shown_rows,
    summary,
)

Records = Iterable[TrialRecord] | Overview
PANEL_HEIGHT = 300
TITLE_HEIGHT = 32
"""Pixels."""
PANELS_IN_A_ROW = 3


def answer(records: Records, search: Search | None = None) -> go.Figure:
    """Return the best accuracy within each budget as a staircase, with the places where a page marks a choice."""
    view = overview(records, search)
    seconds = in_unit(view, [objectives(trial)[0] for trial in view.answers])
    accuracy = np.array([objectives(trial)[1] for trial in view.answers])
    end = 1.1 * float(seconds[-1])
    stairs = go.Scatter(
        x=[*seconds.tolist(), end],
        y=[*accuracy.tolist(), float(accuracy[-1])],
        mode="lines",
        line={"color": FRONT, "width": 3, "shape": "hv"},
        hoverinfo="skip",
    )
    points = go.Scatter(
        x=seconds,
        y=accuracy,
        mode="markers",
        marker={"size": 9, "color": FRONT},
        hovertext=[summary(trial) for trial in view.answers],
        hoverinfo="text",
    )
    budget = go.Scatter(x=[], y=[], mode="lines", line={"color": GREY, "dash": "dash"}, hoverinfo="skip", meta="budget")
    chosen = go.Scatter(
        x=[],
        y=[],
        mode="markers",
        marker={"size": 16, "color": BLUE, "symbol": "circle"},
        hoverinfo="skip",
        meta="chosen",
    )
    return new_figure(
        "Best accuracy within a budget",
        [stairs, budget, chosen, points],
        height=340,
        showlegend=False,
        xaxis=time_axis(view, "budget of training time"),
        yaxis=accuracy_axis(view, "best test accuracy"),
    )


def front(records: Records, search: Search | None = None) -> go.Figure:
    """Return every trial by time and accuracy with the Pareto front (the paper's Figure 1)."""
    view = overview(records, search)
    groups = grouped(view.marker, view.trials, MOST_GROUPS)
    x, y = in_unit(view, view.seconds), view.accuracy.astype(np.float32)
    traces = [
        front_line(view, view.front),
        *trial_markers(view, groups, shown_rows(view, MOST_IN_FRONT), x, y),
        *marker_legend(view, groups),
        *_labels(view, x, y),
    ]
    return new_figure(
        "Training time against test accuracy",
        traces,
        height=520,
        xaxis=time_axis(view),
        yaxis=accuracy_axis(view),
        **colour_axis(view.colour),
    )


def _labels(view: Overview, x: np.ndarray, y: np.ndarray) -> list[Any]:
    """Return the label parameter's values beside the points where they fit."""
    if view.label is None:
        return []
    rows = label_rows(view)
    texts = [plain(value_text(view.trials[row].params.get(view.label.name))) for row in rows]
    return [
        go.Scatter(
            x=x[rows],
            y=y[rows],
            mode="markers+text",
            marker={"size": 12, "opacity": 0},
            text=texts,
            textposition="top left",
            textfont={"size": 11},
            hoverinfo="skip",
            showlegend=False,
            cliponaxis=False,
            meta="labels",
        )
    ]


def panels(records: Records, search: Search | None = None) -> go.Figure:
    """Return one panel of time and accuracy for each value of the marker's parameter (the paper's Figures 2 to 7)."""
    view = overview(records, search)
    if view.marker is None:
        raise NothingToDraw("Panels need two parameters that varied.")
    split = grouped(view.marker, view.trials, MOST_GROUPS)
    shapes = grouped(view.label, view.trials, MOST_GROUPS)
    x, y = in_unit(view, view.seconds), view.accuracy.astype(np.float32)
    shown = shown_rows(view, MOST_IN_OTHERS)
    traces: list[Any] = [*marker_legend(view, shapes)]
    for panel in range(len(split.labels)):
        place = {"xaxis": axis_id("x", panel + 1), "yaxis": axis_id("y", panel + 1)}
        rows = shown[split.members[shown] == panel]
        own = pareto_front(view.trials[row] for row in split.rows(panel))
        traces += [
            front_line(view, view.front, showlegend=panel == 0, name="front of all", line=_FAINT, **place),
            front_line(view, own, showlegend=panel == 0, name="front of the panel", **place),
            *trial_markers(view, shapes, rows, x, y, **place),
        ]
    titles = [plain(f"{view.marker.label} {label}") for label in split.labels]
    return new_figure("Time and accuracy by panel", traces, **_grid(view, titles), **colour_axis(view.colour))


_FAINT = {"color": GREY, "width": 1.5, "dash": "dot", "shape": "hv"}


def _grid(view: Overview, titles: list[str]) -> dict[str, Any]:
    """Return the layout of panels that share their scales; a narrow page gives each a row of its own."""
    count = len(titles)
    columns = min(count, PANELS_IN_A_ROW)
    rows = math.ceil(count / columns)
    layout: dict[str, Any] = {
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", "xgap": 0.14, "ygap": 0.3},
        "height": 60 + PANEL_HEIGHT * rows,
        "legend": {"y": 1 + TITLE_HEIGHT / (PANEL_HEIGHT * rows)},
        "meta": {"panels": count},
        "annotations": [panel_title(place, title) for place, title in enumerate(titles, start=1)],
    }
    for place in range(1, count + 1):
        shared = {} if place == 1 else {"matches": "x"}
        layout[f"xaxis{place}"] = time_axis(view, **shared)
        layout[f"yaxis{place}"] = accuracy_axis(view, **({} if place == 1 else {"matches": "y"}))
    return layout


def axis_id(letter: str, place: int) -> str:
    """Return plotly's name for the axis of a panel, counted from 1."""
    return letter if place == 1 else f"{letter}{place}"


def panel_title(place: int, title: str) -> dict[str, Any]:
    """Return a title above one panel, which it follows wherever the panel goes."""
    return {
        "text": f"<b>{title}</b>",
        "xref": f"{axis_id('x', place)} domain",
        "yref": f"{axis_id('y', place)} domain",
        "x": 0,
        "y": 1.02,
        "xanchor": "left",
        "yanchor": "bottom",
        "showarrow": False,
    }


def times(records: Records, search: Search | None = None) -> go.Figure:
    """Return the marker's and the colour's parameter against training time (the paper's Figure 8)."""
    view = overview(records, search)
    axis = view.marker or view.colour
    if axis is None:
        raise NothingToDraw("One configuration was run: nothing to compare its time with.")
    x, y = axis.codes(view.trials).astype(np.float32), in_unit(view, view.seconds)
    single = grouped(None, view.trials, MOST_GROUPS)
    shown = shown_rows(view, MOST_IN_OTHERS)
    traces = [
        *_median_lines(view, axis, x, y),
        *trial_markers(view, single, shown[~np.isnan(x[shown])], x, y),
        *marker_legend(view, single),
    ]
    return new_figure(
        "Training time by parameter",
        traces,
        xaxis=param_axis(axis),
        yaxis=time_axis(view),
        **colour_axis(view.colour),
    )


def _median_lines(view: Overview, axis: Axis, x: np.ndarray, y: np.ndarray) -> list[Any]:
    """Return a line through the median time at each value of an axis, one for each colour where they are few."""
    if len(axis.levels) > 2 * MOST_GROUPS or axis.kind == "categorical":
        return []
    other = view.colour if view.colour is not axis else None
    lines = grouped(other if other and len(other.levels) <= MOST_GROUPS else None, view.trials, MOST_GROUPS)
    traces = []
    for group in range(len(lines.labels)):
        rows = lines.rows(group)
        places = sorted(set(x[rows][~np.isnan(x[rows])].tolist()))
        medians = [float(np.median(y[rows][x[rows] == place])) for place in places]
        traces.append(
            go.Scatter(
                x=places, y=medians, mode="lines", line={"color": GREY, "width": 1}, hoverinfo="skip", showlegend=False
            )
        )
    return traces


def accuracies(records: Records, search: Search | None = None) -> go.Figure:
    """Return mean accuracy over the parameters of marker and colour as a map (the paper's Figure 9)."""
    view = overview(records, search)
    cells = accuracy_map(view)
    texts = [
        [f"{mean:.1%}<br>n={count}" if count else "" for mean, count in zip(*row, strict=True)]
        for row in zip(cells.mean, cells.count, strict=True)
    ]
    heat = go.Heatmap(
        z=[[None if math.isnan(mean) else mean for mean in row] for row in cells.mean.tolist()],
        x=[plain(label) for label in cells.across.labels],
        y=[plain(label) for label in cells.down.labels],
        text=texts,
        texttemplate="%{text}",
        colorscale="Viridis",
        showscale=False,
        xgap=2,
        ygap=2,
        hoverinfo="x+y+text",
    )
    return new_figure(
        "Accuracy by parameter",
        [heat],
        xaxis={"type": "category", **_titled(cells.across.axis)},
        yaxis={"type": "category", **_titled(cells.down.axis)},
    )


def _titled(axis: Axis | None) -> dict[str, Any]:
    return {"title": {"text": plain(axis.label if axis else "")}}
