"""Figures of time against accuracy, and of which parameters move them: the answer, the front, panels, times, a map."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from budgettune.errors import NothingToDraw
from budgettune.report import style
from budgettune.report.axes import ABSENT, FigureAxis, Groups, grouped, value_text
from budgettune.report.view import (
    MOST_IN_FRONT,
    MOST_IN_OTHERS,
    Figure,
    Overview,
    objectives,
    pareto_front,
    shown_indices,
    summary,
)
from budgettune.report.wording import Wording
from budgettune.text import format_duration

LABEL_BOX = (0.075, 0.05)
"""Width and height of a short text beside a point, as shares of a figure."""
MOST_LABELS = 100
PANEL_HEIGHT = 300
TITLE_HEIGHT = 32
"""Pixels."""
PANELS_IN_A_ROW = 3
MOST_CELLS_ON_A_SIDE = 8


def _sample_sentence(view: Overview, most: int) -> str:
    count = len(view.trials)
    return "" if count <= most else f" Drawn are {most:,} of {count:,} trials: the front and a random sample."


def _draw_answer(view: Overview, points: np.ndarray) -> go.Figure:
    seconds, values = style.in_unit(view, points[:, 0]), points[:, 1]
    stairs = style.scatter(
        [*seconds.tolist(), 1.1 * float(seconds[-1])],
        [*values.tolist(), float(values[-1])],
        mode="lines",
        line={"color": style.FRONT, "width": 3, "shape": "hv"},
    )
    texts = [summary(trial, view.words) for trial in view.answers]
    marks = style.scatter(seconds, values, texts, marker={"size": 9, "color": style.FRONT}).update(hoverinfo="text")
    budget = style.scatter([], [], mode="lines", line={"color": style.GREY, "dash": "dash"}, meta="budget")
    chosen = style.scatter([], [], marker={"size": 16, "color": style.BLUE, "symbol": "circle"}, meta="chosen")
    return style.new_figure(
        f"Best {view.words.label} within a budget",
        [stairs, budget, chosen, marks],
        height=340,
        showlegend=False,
        xaxis=style.time_axis(view, "budget of training time"),
        yaxis=style.value_axis(view, "best "),
    )


def _say_answer(view: Overview, points: np.ndarray) -> str:
    text = f"The {view.words.most} of all: {summary(view.best, view.words)}."
    within = np.flatnonzero(points[:, 0] <= points[-1, 0] / 2)
    if len(within):
        half = within[-1]
        text += f" Half of that time buys {view.words.said(points[half, 1])} (trial {view.answers[half].number})."
    return text


def _answer_points(view: Overview) -> np.ndarray:
    """Return seconds and value of each answer: float64 of shape (answers, 2)."""
    view.check_limits()
    return np.array([objectives(trial) for trial in view.answers])


answer = Figure(
    name="answer",
    title="What should I train?",
    guide="The staircase is the best {label} that a finished trial reached within each budget of training time.",
    values=_answer_points,
    draw=_draw_answer,
    say=_say_answer,
)


def _draw_front(view: Overview, groups: Groups) -> go.Figure:
    """Return every trial by time and objective with the Pareto front (the paper's Figure 1)."""
    x, y = style.in_unit(view, view.seconds), view.values.astype(np.float32)
    traces = [
        style.front_line(view, view.front),
        *style.trial_markers(view, groups, shown_indices(view, MOST_IN_FRONT), x, y),
        *style.marker_legend(view, groups),
    ]
    if view.label is not None:
        beside = label_indices(view)
        texts = [style.html_safe(value_text(view.trials[index].params.get(view.label.name))) for index in beside]
        labels = style.scatter(
            x[beside], y[beside], mode="markers+text", marker={"size": 12, "opacity": 0}, meta="labels"
        )
        labels.update(
            text=texts, textposition=view.words.beside, textfont={"size": 11}, showlegend=False, cliponaxis=False
        )
        traces.append(labels)
    return style.new_figure(
        f"Training time against {view.words.name}",
        traces,
        height=520,
        xaxis=style.time_axis(view),
        yaxis=style.value_axis(view),
        **style.colour_axis(view.colour),
    )


def label_indices(view: Overview) -> list[int]:
    """Return the trials beside which a text fits, those of the front first; the others keep theirs for hovering.

    The text stands on the better side and to the left of its point, where no trial of the front has a neighbour.
    """
    x = _unit_interval(np.log(view.seconds) if view.time_is_log else view.seconds)
    y = _unit_interval(view.scores)
    width, height = LABEL_BOX
    chosen: list[int] = []
    labelled = [index for index, trial in enumerate(view.trials) if view.label and view.label.name in trial.params]
    for index in sorted(labelled, key=lambda index: not view.is_on_front[index])[:MOST_LABELS]:
        hides_a_point = ((x > x[index] - width) & (x < x[index]) & (y > y[index]) & (y < y[index] + height)).any()
        hides_a_text = any(abs(x[index] - x[other]) < width and abs(y[index] - y[other]) < height for other in chosen)
        if not hides_a_point and not hides_a_text:
            chosen.append(index)
    return chosen


def _unit_interval(values: np.ndarray) -> np.ndarray:
    width = np.ptp(values)
    return np.asarray((values - values.min()) / width if width else np.full(len(values), 0.5))


def _say_front(view: Overview, _: Groups) -> str:
    if len(view.trials) == 1:
        return f"One trial is finished, {summary(view.trials[0], view.words)}: a front needs more."
    words, count = view.words, len(view.front)
    text = f"{count} of {len(view.trials):,} trials {'is' if count == 1 else 'are'} on the front: no other one is both "
    text += f"faster and {words.more}."
    text += f" The fastest is {summary(view.front[0], words)}" if count else ""
    text += f"; the {words.most} {summary(view.best, words)}." if count > 1 else "." if count else ""
    beyond = int((~view.is_within_limits).sum())
    if beyond:
        were = "trial is" if beyond == 1 else "trials are"
        text += f" {beyond:,} {were} beyond the limits of the study ({view.aim.limits_text}), and so not on the front "
        text += "(thin crosses)."
    if view.label:
        text += f" Beside markers, where there is room: {view.label.label}."
    disturbed = sum(trial.status == "disturbed" for trial in view.trials)
    if disturbed:
        were = "time was" if disturbed == 1 else "times were"
        text += f" {disturbed:,} {were} disturbed by other work (hollow markers)."
    return text + _sample_sentence(view, MOST_IN_FRONT)


front = Figure(
    name="front",
    title="Every trial: time against {label}",
    guide="One marker per finished trial; {side} and to the left is better. The red staircase is the Pareto front: for "
    "every trial {beyond} it, some other one is at least as fast and {more}. Hover over a marker, or tap it, for "
    "its details.",
    values=lambda view: grouped(view.marker, view.trials, style.MOST_GROUPS),
    draw=_draw_front,
    say=_say_front,
)


def _panels(view: Overview) -> Groups:
    if view.marker is None:
        raise NothingToDraw("Panels need two parameters that varied.")
    return grouped(view.marker, view.trials, style.MOST_GROUPS)


def _draw_panels(view: Overview, split: Groups) -> go.Figure:
    """Return a panel of time and objective for each value of the marker's parameter (the paper's Figures 2 to 7)."""
    shapes = grouped(view.label, view.trials, style.MOST_GROUPS)
    x, y = style.in_unit(view, view.seconds), view.values.astype(np.float32)
    shown = shown_indices(view, MOST_IN_OTHERS)
    faint = {"color": style.GREY, "width": 1.5, "dash": "dot", "shape": "hv"}
    traces: list[Any] = [*style.marker_legend(view, shapes)]
    for panel in range(len(split.labels)):
        place = {"xaxis": style.axis_id("x", panel + 1), "yaxis": style.axis_id("y", panel + 1)}
        own = pareto_front((view.trials[index] for index in split.indices(panel)), view.aim)
        traces += [
            style.front_line(view, view.front, showlegend=panel == 0, name="front of all", line=faint, **place),
            style.front_line(view, own, showlegend=panel == 0, name="front of the panel", **place),
            *style.trial_markers(view, shapes, shown[split.members[shown] == panel], x, y, **place),
        ]
    titles = [style.html_safe(f"{split.axis.label if split.axis else ''} {label}") for label in split.labels]
    return style.new_figure(
        f"Time and {view.words.label} by panel", traces, **_grid(view, titles), **style.colour_axis(view.colour)
    )


def _grid(view: Overview, titles: list[str]) -> dict[str, Any]:
    """Return the layout of panels that share their scales; a narrow page gives each a row of its own."""
    count = len(titles)
    rows = math.ceil(count / PANELS_IN_A_ROW)
    layout: dict[str, Any] = {
        "grid": {
            "rows": rows,
            "columns": min(count, PANELS_IN_A_ROW),
            "pattern": "independent",
            "xgap": 0.2,
            "ygap": 0.3,
        },
        "height": 60 + PANEL_HEIGHT * rows,
        "margin": {"t": 150},  # of a picture, whose title stands above a legend of two lines
        "legend": {"y": 1 + TITLE_HEIGHT / (PANEL_HEIGHT * rows)},
        "meta": {"panels": count},
        "annotations": [style.panel_title(place, title) for place, title in enumerate(titles, start=1)],
    }
    for place in range(1, count + 1):
        layout[f"xaxis{place}"] = style.time_axis(view) | ({} if place == 1 else {"matches": "x"})
        layout[f"yaxis{place}"] = style.value_axis(view) | ({} if place == 1 else {"matches": "y"})
    return layout


def _say_panels(view: Overview, split: Groups) -> str:
    counts = Counter(split.members[view.is_on_front].tolist())
    name = split.axis.label if split.axis else ""
    *first, last = [f"{counts[group]} from {name} {split.labels[group]}" for group in sorted(counts)] or ["no trial"]
    parts = f"{', '.join(first)} and {last}" if first else last
    return f"The front of {len(view.front)} takes {parts}." + _sample_sentence(view, MOST_IN_OTHERS)


panels = Figure(
    name="panels",
    title="The same trials, panel by panel",
    guide="Each panel holds the trials of one value, on the same scales. Red is the front of the panel, dotted the "
    "front of all trials.",
    values=_panels,
    draw=_draw_panels,
    say=_say_panels,
)


def _time_axes(view: Overview) -> list[FigureAxis]:
    axes = [axis for axis in (view.marker, view.colour) if axis is not None]
    if not axes:
        raise NothingToDraw("One configuration was run: nothing to compare its time with.")
    return axes


def _draw_times(view: Overview, axes: list[FigureAxis]) -> go.Figure:
    """Return the marker's or the colour's parameter against training time (the paper's Figure 8)."""
    axis = axes[0]
    x, y = axis.codes(view.trials).astype(np.float32), style.in_unit(view, view.seconds)
    single = grouped(None, view.trials, style.MOST_GROUPS)
    shown = shown_indices(view, MOST_IN_OTHERS)
    traces = [
        *_median_lines(view, axis, x, y),
        *style.trial_markers(view, single, shown[~np.isnan(x[shown])], x, y),
        *style.marker_legend(view, single),
    ]
    layout = {"xaxis": style.param_axis(axis), "yaxis": style.time_axis(view), **style.colour_axis(view.colour)}
    return style.new_figure("Training time by parameter", traces, **layout)


def _median_lines(view: Overview, axis: FigureAxis, x: np.ndarray, y: np.ndarray) -> list[Any]:
    """Return a line through the median time at each value of an axis, one for each colour where they are few."""
    if len(axis.levels) > 2 * style.MOST_GROUPS or axis.kind == "categorical":
        return []
    other = view.colour if view.colour is not axis else None
    lines = grouped(other if other and len(other.levels) <= style.MOST_GROUPS else None, view.trials, style.MOST_GROUPS)
    traces = []
    for group in range(len(lines.labels)):
        some = lines.indices(group)
        places = sorted(set(x[some][~np.isnan(x[some])].tolist()))
        medians = [float(np.median(y[some][x[some] == place])) for place in places]
        traces.append(
            style.scatter(places, medians, mode="lines", line={"color": style.GREY, "width": 1}, showlegend=False)
        )
    return traces


def _say_times(view: Overview, axes: list[FigureAxis]) -> str:
    return " ".join(_time_ratio(view, axis) for axis in axes) + _sample_sentence(view, MOST_IN_OTHERS)


def _time_ratio(view: Overview, axis: FigureAxis) -> str:
    groups = grouped(axis, view.trials, style.MOST_GROUPS)
    medians = [
        (float(np.median(view.seconds[some])), f"{axis.label} {label}")
        for group, label in enumerate(groups.labels)
        if len(some := groups.indices(group)) and label != ABSENT
    ]
    if axis.kind == "categorical":
        medians.sort()
    (first_seconds, first), (last_seconds, last) = medians[0], medians[-1]
    ratio = f"{last_seconds / first_seconds:.3g} times" if first_seconds else "far above"
    return f"The median time at {last} is {format_duration(last_seconds)}, {ratio} that at {first}."


times = Figure(
    name="times",
    title="What takes time",
    guide="Where values are few, lines join the median times of trials of one colour.",
    values=_time_axes,
    draw=_draw_times,
    say=_say_times,
)


@dataclass(frozen=True)
class ValueMap:
    """Mean objective of the trials in each cell of two parameters, NaN where there is none."""

    across: Groups
    down: Groups
    mean: np.ndarray  # shape (rows, columns), of (groups of `down`, groups of `across`)
    count: np.ndarray  # trials in each cell, the same shape

    def best(self, words: Wording) -> tuple[str, str, float]:
        """Return the labels (across, down) of the best cell, and its mean."""
        scores = -self.mean if words.is_less_better else self.mean
        row, column = np.unravel_index(np.nanargmax(scores), scores.shape)
        return self.across.labels[column], self.down.labels[row], float(self.mean[row, column])


def value_map(view: Overview) -> ValueMap:
    """Return the mean objective over the parameters of marker and colour.

    Raises:
        NothingToDraw: where fewer than two parameters varied.
    """
    if view.marker is None or view.colour is None:
        raise NothingToDraw("A map needs two parameters that varied.")
    across, down = (grouped(axis, view.trials, MOST_CELLS_ON_A_SIDE) for axis in (view.marker, view.colour))
    shape = (len(down.labels), len(across.labels))
    place = down.members * shape[1] + across.members
    count = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(place, weights=view.values, minlength=shape[0] * shape[1]).reshape(shape)
    with np.errstate(invalid="ignore"):
        return ValueMap(across, down, total / count, count)


def _draw_accuracies(view: Overview, cells: ValueMap) -> go.Figure:
    """Return the map (the paper's Figure 9)."""
    heat = go.Heatmap(
        z=[[None if math.isnan(mean) else mean for mean in row] for row in cells.mean.tolist()],
        x=[style.html_safe(label) for label in cells.across.labels],
        y=[style.html_safe(label) for label in cells.down.labels],
        text=[
            [f"{view.words.text(mean, 1)}<br>n={count}" if count else "" for mean, count in zip(*row, strict=True)]
            for row in zip(cells.mean, cells.count, strict=True)
        ],
        texttemplate="%{text}",
        colorscale="Viridis",
        reversescale=view.words.is_less_better or None,
        showscale=False,
        xgap=2,
        ygap=2,
        hoverinfo="x+y+text",
    )
    xaxis, yaxis = (
        {"type": "category", "title": {"text": style.html_safe(groups.axis.label if groups.axis else "")}}
        for groups in (cells.across, cells.down)
    )
    return style.new_figure(f"{view.words.heading} by parameter", [heat], xaxis=xaxis, yaxis=yaxis)


def _say_accuracies(view: Overview, cells: ValueMap) -> str:
    across, down, mean = cells.best(view.words)
    sides = ((cells.across, across), (cells.down, down))
    names = [f"{groups.axis.label} {label}" for groups, label in sides if groups.axis]
    most = view.words.most.capitalize()
    return f"{most} on average: {' with '.join(names)}, {view.words.said(mean)}."


accuracies = Figure(
    name="accuracies",
    title="What {gives} {label}",
    guide="Each cell has the mean {label} of its trials, whatever their other parameters, and how many they are.",
    values=value_map,
    draw=_draw_accuracies,
    say=_say_accuracies,
)
