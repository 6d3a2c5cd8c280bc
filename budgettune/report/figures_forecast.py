"""Figures of what never ran, and of how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from budgettune.errors import NothingToDraw
from budgettune.predict.held_out import coverage
from budgettune.predict.predictor import Prediction
from budgettune.report.axes import value_text
from budgettune.report.forecast import Forecast
from budgettune.report.style import (
    BLUE,
    GREY,
    HEIGHT,
    LIGHT,
    SEQUENTIAL,
    VERMILLION,
    accuracy_axis,
    front_line,
    in_unit,
    new_figure,
    plain,
    time_axis,
)

LEVELS = tuple(share / 20 for share in range(1, 20))
"""Central intervals of which a calibration plot tells."""


def recommended(forecast: Forecast) -> go.Figure:
    """Return the expected accuracy of what is recommended at each budget, with its 90% interval, beside what ran."""
    view = forecast.view
    budgets = in_unit(view, forecast.budgets)
    low, high = ([getattr(one, name) for one in forecast.path] for name in ("accuracy_low", "accuracy_high"))
    band = go.Scatter(
        x=np.concatenate([budgets, budgets[::-1]]),
        y=[*high, *reversed(low)],
        fill="toself",
        mode="none",
        fillcolor="rgba(0, 114, 178, 0.2)",
        hoverinfo="skip",
        name="9 of 10 runs end in here",
    )
    line = go.Scatter(
        x=budgets,
        y=[one.accuracy for one in forecast.path],
        mode="lines+markers",
        line={"color": BLUE, "width": 2.5},
        hovertext=[_spelled(one) for one in forecast.path],
        hoverinfo="x+y+text",
        name="recommended",
    )
    ran = front_line(view, view.answers, name="best that ran")
    return new_figure(
        "What to train within a budget", [band, line, ran], xaxis=_budget_axis(forecast), yaxis=accuracy_axis(view)
    )


def _spelled(one: Prediction) -> str:
    settings = [plain(f"{name} {value_text(value)}") for name, value in one.params.items()]
    return "<br>".join([*settings, f"{one.epochs} epochs"])


def _budget_axis(forecast: Forecast, **more: Any) -> dict[str, Any]:
    return {**time_axis(forecast.view, "budget"), "type": "log", "rangemode": "normal", **more}


def surface(forecast: Forecast) -> go.Figure:
    """Return the expected accuracy over budget and scale, and beside it how uncertain it is.

    Raises:
        NothingToDraw: where no parameter with several values marks the trials.
    """
    if len(forecast.levels) < 2:
        raise NothingToDraw("a surface needs two values of a searched scale, or of another number")
    figure = make_subplots(1, 2, shared_yaxes=True, subplot_titles=["expected accuracy", "half of its 90% interval"])
    halves = [
        [None if one is None else (one.accuracy_high - one.accuracy_low) / 2 for one in row] for row in forecast.surface
    ]
    means = [[None if one is None else one.accuracy for one in row] for row in forecast.surface]
    budgets = [f"{budget:.3g}" for budget in in_unit(forecast.view, forecast.budgets).tolist()]
    texts = [["" if one is None else _spelled(one) for one in row] for row in forecast.surface]
    for column, values in enumerate((means, halves), start=1):
        figure.add_trace(
            go.Heatmap(
                x=budgets,
                y=list(forecast.levels),
                z=_turned(values),
                hovertext=_turned(texts),
                hoverinfo="x+y+z+text",
                colorscale=SEQUENTIAL,
                zhoverformat=".2%",
                colorbar={"tickformat": ".3~p", "thickness": 12, "outlinewidth": 0, "x": 0.45 if column == 1 else 1.0},
            ),
            row=1,
            col=column,
        )
    name = forecast.view.marker.label if forecast.view.marker else ""
    axis = {"type": "category", "title": {"text": f"budget ({forecast.view.unit.name})"}}
    figure.update_layout(template=LIGHT, height=HEIGHT, xaxis=axis, xaxis2=axis)
    figure.update_layout(
        title="What each scale would reach", yaxis={"type": "category", "title": {"text": plain(name)}}
    )
    figure.update_xaxes(domain=[0.0, 0.42], row=1, col=1)
    figure.update_xaxes(domain=[0.56, 0.98], row=1, col=2)
    return figure


def _turned(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


def predicted(forecast: Forecast) -> go.Figure:
    """Return held-out trials: what was predicted of their time and accuracy against what came.

    Raises:
        NothingToDraw: where no trial could be held out.
    """
    view, checks = forecast.view, _checks(forecast)
    figure = make_subplots(1, 2, subplot_titles=["training time", "test accuracy"])
    said = [one.prediction for one in checks]
    times = [
        in_unit(view, [one.seconds for one in said]),
        in_unit(view, [one.seconds for one in checks]),
        in_unit(view, [one.seconds_low for one in said]),
        in_unit(view, [one.seconds_high for one in said]),
    ]
    shares = [
        np.array([one.accuracy for one in said]),
        np.array([one.accuracy for one in checks]),
        np.array([one.accuracy_low for one in said]),
        np.array([one.accuracy_high for one in said]),
    ]
    numbers = [f"trial {one.number}" for one in checks]
    for column, (means, came, low, high) in enumerate((times, shares), start=1):
        ends = [float(min(low.min(), came.min())), float(max(high.max(), came.max()))]
        figure.add_trace(
            go.Scatter(
                x=ends, y=ends, mode="lines", line={"color": GREY, "dash": "dot"}, hoverinfo="skip", showlegend=False
            ),
            row=1,
            col=column,
        )
        figure.add_trace(
            go.Scatter(
                x=means,
                y=came,
                mode="markers",
                marker={"color": BLUE, "size": 6, "opacity": 0.8},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": high - means,
                    "arrayminus": means - low,
                    "color": GREY,
                    "thickness": 0.8,
                    "width": 0,
                },
                hovertext=numbers,
                hoverinfo="x+y+text",
                showlegend=False,
            ),
            row=1,
            col=column,
        )
    figure.update_layout(template=LIGHT, height=HEIGHT, title="Predicted against observed, on trials held out")
    is_log = float(times[1].max()) > 20 * float(times[1].min()) > 0
    kind = {"type": "log"} if is_log else {}
    figure.update_xaxes(title={"text": f"predicted ({view.unit.name})"}, row=1, col=1, **kind)
    figure.update_yaxes(title={"text": "observed"}, row=1, col=1, **kind)
    figure.update_xaxes(title={"text": "predicted"}, tickformat=".3~p", row=1, col=2)
    figure.update_yaxes(tickformat=".3~p", row=1, col=2)
    return figure


def calibration(forecast: Forecast) -> go.Figure:
    """Return which share of held-out trials lay in intervals of each width.

    Raises:
        NothingToDraw: where no trial could be held out.
    """
    checks = _checks(forecast)
    lines = [
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": GREY, "dash": "dot"}, name="honest", hoverinfo="skip"
        )
    ]
    for name, places, colour in (
        ("time", [one.seconds_place for one in checks], BLUE),
        ("accuracy", [one.accuracy_place for one in checks], VERMILLION),
    ):
        shares = [coverage(places, level) for level in LEVELS]
        lines.append(go.Scatter(x=LEVELS, y=shares, mode="lines+markers", line={"color": colour}, name=name))
    share = {"tickformat": ".0%", "range": [0, 1]}
    return new_figure(
        "Do intervals hold what they promise?",
        lines,
        xaxis={"title": {"text": "promised: share of runs in the interval"}, **share},
        yaxis={"title": {"text": "came: share of held-out trials"}, **share},
    )


def _checks(forecast: Forecast) -> Sequence[Any]:
    if not forecast.checks:
        raise NothingToDraw("too few trials to hold some out and predict them from the others")
    return forecast.checks
