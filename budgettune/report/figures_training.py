"""Figures of how trials trained and how the search went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from budgettune.errors import NothingToDraw
from budgettune.records import OFF_CLOCK, ON_CLOCK
from budgettune.report.axes import Search
from budgettune.report.runs import (
    MOST_SPREADS,
    Curve,
    phase_bars,
    pruning_done,
    spreads,
)
from budgettune.report.runs import (
    curves as curve_values,
)
from budgettune.report.search import hypervolume_history, importances
from budgettune.report.style import (
    BLUE,
    BROWN,
    CATEGORY_COLOURS,
    FRONT,
    GOLD,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    accuracy_axis,
    in_unit,
    new_figure,
    plain,
    time_axis,
)
from budgettune.report.tradeoff import Records, panel_title
from budgettune.report.view import Overview, overview, unit_for

PHASES = {
    "prepare": ("pruning: preparing", BROWN),
    "plan": ("pruning: choosing samples", GREEN),
    "data": ("batches", SKY),
    "select": ("pruning: choosing in batches", GOLD),
    "step": ("steps (forward, backward, optimiser)", BLUE),
    "observe": ("pruning: handing losses back", PURPLE),
    "load": ("loading images", BROWN),
    "build": ("building the model", VERMILLION),
    "warmup": ("warm-up", ORANGE),
    "evaluate": ("evaluation", GREY),
}
"""Name and colour of each field of `PhaseSeconds`."""


def curves(records: Records, search: Search | None = None) -> go.Figure:
    """Return accuracy over training seconds for a sample of trials, and the front of what all reached on the way."""
    view = overview(records, search)
    values = curve_values(view)
    reached = go.Scatter(
        x=in_unit(view, [point.seconds for point in values.front]),
        y=[point.accuracy for point in values.front],
        mode="lines",
        line={"color": FRONT, "width": 3, "shape": "hv"},
        hovertext=[f"trial {point.number} after epoch {point.epoch + 1}" for point in values.front],
        hoverinfo="x+y+text",
        name="best reached on the way, of all trials",
    )
    others = [curve for curve in values.shown if not curve.is_on_front]
    best = [curve for curve in values.shown if curve.is_on_front]
    traces = [
        *_curve_lines(view, others, "other trials", GREY, 0.8),
        *_curve_lines(view, best, "trials of the final front", BLUE, 1.8),
        reached,
    ]
    return new_figure(
        "Accuracy while training", traces, xaxis=time_axis(view, rangemode="normal"), yaxis=accuracy_axis(view)
    )


def _curve_lines(view: Overview, some: list[Curve], name: str, colour: str, width: float) -> list[Any]:
    """Return many curves as one trace, with gaps between them."""
    if not some:
        return []
    return [
        go.Scatter(
            x=np.concatenate([[*in_unit(view, curve.seconds), np.nan] for curve in some]),
            y=np.concatenate([[*curve.accuracy, np.nan] for curve in some]),
            mode="lines+markers" if max(len(curve.seconds) for curve in some) <= 2 else "lines",
            line={"color": colour, "width": width},
            hovertext=[f"trial {curve.number}" for curve in some for _ in range(len(curve.seconds) + 1)],
            hoverinfo="x+y+text",
            name=name,
        )
    ]


def phases(records: Records, search: Search | None = None) -> go.Figure:
    """Return where each trial's time went, on the clock and off it."""
    view = overview(records, search)
    bars = phase_bars(view)
    traces = [
        go.Bar(
            y=[plain(bar.label) for bar in bars],
            x=[getattr(bar.seconds, phase) for bar in bars],
            orientation="h",
            name=PHASES[phase][0] + (" (off the clock)" if phase in OFF_CLOCK else ""),
            marker={"color": PHASES[phase][1], "pattern": {"shape": "/" if phase in OFF_CLOCK else ""}},
            hovertemplate="%{x:.3g} s<extra>%{fullData.name}</extra>",
        )
        for phase in (*ON_CLOCK, *OFF_CLOCK)
        if any(getattr(bar.seconds, phase) > 0 for bar in bars)
    ]
    is_each_trial = all(bar.trials == 1 for bar in bars)
    return new_figure(
        "Where the time went",
        traces,
        height=160 + 26 * len(bars),
        barmode="stack",
        legend={"traceorder": "normal"},
        xaxis={"title": {"text": "seconds" if is_each_trial else "mean seconds per trial"}},
        yaxis={
            "type": "category",
            "autorange": "reversed",
            "dtick": 1,
            "title": {"text": "trial" if is_each_trial else ""},
        },
    )


def repeats(records: Records, search: Search | None = None) -> go.Figure:
    """Return mean and standard deviation of time and accuracy over the repeats of each configuration."""
    view = overview(records, search)
    shown = spreads(view)[:MOST_SPREADS]
    trace = go.Scatter(
        x=in_unit(view, [spread.seconds for spread in shown]),
        y=[spread.accuracy for spread in shown],
        error_x={
            "array": in_unit(view, [spread.seconds_deviation for spread in shown]),
            "color": GREY,
            "thickness": 1.2,
        },
        error_y={"array": [spread.accuracy_deviation for spread in shown], "color": GREY, "thickness": 1.2},
        mode="markers",
        marker={"size": 8, "color": BLUE},
        hovertext=[plain(f"{spread.label}: mean of {spread.repeats}") for spread in shown],
        hoverinfo="x+y+text",
    )
    return new_figure(
        "Spread over repeats",
        [trace],
        showlegend=False,
        xaxis=time_axis(view, "mean training time"),
        yaxis=accuracy_axis(view),
    )


def pruning(records: Records, search: Search | None = None) -> go.Figure:
    """Return the prune rate that trials realised against the one that was asked for."""
    view = overview(records, search)
    done = pruning_done(view)
    most = float(max(done.asked.max(), done.realised.max(), 0.01))
    same = go.Scatter(
        x=[0, most], y=[0, most], mode="lines", line={"color": GREY, "dash": "dot"}, name="as asked", hoverinfo="skip"
    )
    trials = go.Scatter(
        x=done.asked,
        y=done.realised,
        mode="markers",
        marker={"size": 8, "color": BLUE, "opacity": 0.6},
        hovertext=[f"trial {number}" for number in done.numbers],
        hoverinfo="x+y+text",
        name="trials",
    )
    return new_figure(
        "Samples left out",
        [same, trials],
        xaxis={"title": {"text": "prune rate asked for"}, "tickformat": ".3~p"},
        yaxis={"title": {"text": "share of sample visits left out"}, "tickformat": ".3~p"},
    )


def hypervolume(records: Records, search: Search | None = None) -> go.Figure:
    """Return how the hypervolume of the front grew over trials and over training seconds."""
    view = overview(records, search)
    history = hypervolume_history(view)
    volume = [step.volume for step in history.steps]
    looks = {"mode": "lines+markers", "line": {"color": FRONT, "shape": "hv"}, "marker": {"size": 5}}
    traces = [
        go.Scatter(x=[step.trials for step in history.steps], y=volume, **looks),
        go.Scatter(x=[step.compute_seconds for step in history.steps], y=volume, xaxis="x2", yaxis="y2", **looks),
    ]
    unit = {"title": {"text": "hypervolume (s × accuracy)"}, "rangemode": "tozero"}
    return new_figure(
        "Hypervolume of the front",
        traces,
        height=380,
        showlegend=False,
        grid={"rows": 1, "columns": 2, "pattern": "independent", "xgap": 0.18, "ygap": 0.3},
        meta={"panels": 2},
        annotations=[panel_title(1, "over trials"), panel_title(2, "over training time")],
        xaxis={"title": {"text": "finished trials"}, "rangemode": "tozero"},
        yaxis=unit,
        xaxis2={"title": {"text": "training seconds of all trials so far"}, "rangemode": "tozero"},
        yaxis2={**unit, "matches": "y"},
    )


def importance(records: Records, search: Search | None = None) -> go.Figure:
    """Return how much each parameter matters for time and for accuracy."""
    values = importances(overview(records, search))
    traces = [
        go.Bar(
            y=[plain(axis.label) for axis in values.axes],
            x=list(each.shares),
            orientation="h",
            name=each.objective,
            marker={"color": colour},
        )
        for each, colour in zip(values.objectives, CATEGORY_COLOURS, strict=False)
    ]
    return new_figure(
        "Importance of parameters",
        traces,
        height=180 + 60 * len(values.axes),
        barmode="group",
        xaxis={"title": {"text": "growth of the error (1 = variance)"}, "rangemode": "tozero"},
        yaxis={"type": "category", "autorange": "reversed"},
    )


def stopping(notes: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Return what trials that were stopped early took, and what they would have taken to their end, one on the other.

    Args:
        notes: on a study's trials, as `budgettune.storage.trials.stopping_notes` returns them.

    Raises:
        NothingToDraw: where no trial was stopped.
    """
    stopped = [note for note in notes if note["stopped"]]
    if not stopped:
        raise NothingToDraw("No trial was stopped early.")
    spent = np.cumsum([0.0, *(note["train_seconds"] for note in stopped)])
    saved = np.cumsum([0.0, *(max(0.0, note["expected_seconds"] - note["train_seconds"]) for note in stopped)])
    unit = unit_for(float(spent[-1] + saved[-1]))
    count = np.arange(len(spent))
    areas = [
        go.Scatter(
            x=count,
            y=(seconds / unit.seconds).astype(np.float32),
            name=name,
            mode="lines",
            line={"color": colour, "shape": "vh"},
            stackgroup="seconds",
        )
        for name, seconds, colour in (("trained", spent, BLUE), ("saved, as forecast", saved, GREEN))
    ]
    return new_figure(
        "Seconds of stopped trials",
        areas,
        height=340,
        xaxis={"title": {"text": "trials that were stopped, in their order"}, "rangemode": "tozero"},
        yaxis={"title": {"text": f"training time ({unit.name})"}, "rangemode": "tozero"},
    )
