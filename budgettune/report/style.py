"""How figures look: colours that colour-blind readers tell apart, a light and a dark template, axes, trial markers."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from budgettune.records import TrialRecord
from budgettune.report.axes import ABSENT, FigureAxis, Groups
from budgettune.report.view import Overview, measure_texts, objectives, param_texts

# Okabe and Ito (2008), without the yellow, which is too pale for a white page.
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"
BROWN, GOLD = "#8c5a2b", "#b59b00"
"""Two more for stacked bars, which have a name beside each; both have a contrast of 2.7 or more on white."""
GREY = "#7b8190"
"""Stands out from a white page and from a dark one."""
CATEGORY_COLOURS = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, GREY)
FRONT = "#cc2a4b"
SEQUENTIAL = [[0.0, "#2b6cc4"], [0.5, "#1f9a8a"], [1.0, "#b58900"]]
"""Blue to gold, told apart by all kinds of colour vision; each colour has a contrast of 3 on white and on dark."""
SYMBOLS = ("triangle-up", "square", "pentagon", "hexagon", "octagon", "circle")
"""More vertices for larger models, as in the paper."""
MOST_GROUPS = len(SYMBOLS)
BEYOND_LIMITS = {"symbol": "x-thin", "size": 8, "line": {"width": 1.5, "color": GREY}}
MANY_TRIALS = 1_000
"""From here on markers are small and see-through."""
SHARE = {"tickformat": ".3~p"}
"""Ticks of a share, in per cent."""
HEIGHT = 460
"""Pixels."""


def template(ink: str, background: str, grid: str) -> dict[str, Any]:
    axis = {
        "gridcolor": grid,
        "linecolor": GREY,
        "zeroline": False,
        "ticks": "outside",
        "tickcolor": GREY,
        "automargin": True,
        "title": {"standoff": 8},
    }
    return {
        "layout": {
            "font": {"color": ink, "family": "system-ui, sans-serif", "size": 13},
            "paper_bgcolor": background,
            "plot_bgcolor": background,
            "xaxis": axis,
            "yaxis": axis,
            "colorway": list(CATEGORY_COLOURS),
            "hoverlabel": {"align": "left", "bgcolor": background, "bordercolor": GREY, "font": {"color": ink}},
            "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.01, "x": 0},
            "margin": {"l": 60, "r": 20, "t": 32, "b": 56},
        }
    }


LIGHT = template("#1b1f27", "#ffffff", "#e3e6eb")
DARK = template("#e6e8ec", "#171a20", "#343a46")


def html_safe(text: Any) -> str:
    """Return a text that plotly shows as it is: no tag, no entity and no template in it works."""
    return html.escape(str(text)).replace("%{", "&#37;{")


def new_figure(title: str, traces: Sequence[Any], height: int = HEIGHT, **layout: Any) -> go.Figure:
    """Return a figure in our light template; a page, which has headings of its own, takes title and margin away."""
    heading = {"text": title, "font": {"size": 17}, "x": 0.01, "yref": "container", "y": 0.97, "yanchor": "top"}
    return go.Figure(traces, {"template": LIGHT, "title": heading, "margin": {"t": 100}, "height": height, **layout})


def time_axis(
    view: Overview, title: str = "training time", *, is_log: bool | None = None, **more: Any
) -> dict[str, Any]:
    """Return an axis of times; logarithmic where the view's are, unless told."""
    heading = {"title": {"text": f"{title} ({view.unit.name})"}}
    if not (view.time_is_log if is_log is None else is_log):
        return {**heading, "rangemode": "tozero", **more}
    # plotly's own ticks say 2 and 5 for 0.2 and 50.
    ticks = [digit * 10.0**power for power in range(-6, 6) for digit in (1, 2, 5)]
    return {**heading, "type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks], **more}


def value_axis(view: Overview, prefix: str = "", **more: Any) -> dict[str, Any]:
    """Return an axis of the objective's values, with its name behind a prefix."""
    # Around a single share plotly would draw an axis from -20% to 180%.
    ends = view.words.ends if view.values.min() >= 0 and view.values.max() <= 1 else {}
    return {"title": {"text": html_safe(f"{prefix}{view.words.axis_title}")}, **view.words.ticks, **ends, **more}


def param_axis(axis: FigureAxis, **more: Any) -> dict[str, Any]:
    ticks = axis.ticks()
    placed = {} if ticks is None else {"tickvals": ticks[0], "ticktext": [html_safe(text) for text in ticks[1]]}
    return {"title": {"text": html_safe(axis.label)}, **placed, **more}


def colour_axis(axis: FigureAxis | None) -> dict[str, Any]:
    if axis is None:
        return {}
    bar = {"thickness": 12, "outlinewidth": 0, **param_axis(axis)}
    if axis.kind != "categorical":
        ends = {"cmin": axis.code(axis.levels[0]), "cmax": axis.code(axis.levels[-1])}
        return {"coloraxis": {"colorscale": SEQUENTIAL, **ends, "colorbar": bar}}
    count = len(axis.levels)
    colours = [CATEGORY_COLOURS[place % len(CATEGORY_COLOURS)] for place in range(count)]
    steps = [[(place + end) / count, colour] for place, colour in enumerate(colours) for end in (0, 1)]
    return {"coloraxis": {"colorscale": steps, "cmin": -0.5, "cmax": count - 0.5, "colorbar": bar}}


def in_unit(view: Overview, seconds: np.ndarray | Sequence[float]) -> np.ndarray:
    """Return seconds in the study's unit as float32: nobody sees the difference, and a page is smaller."""
    return np.asarray(np.asarray(seconds, dtype=float) / view.unit.seconds, dtype=np.float32)


def hover_text(trial: TrialRecord, view: Overview) -> str:
    measures = (f"{name} {text}" for name, text in measure_texts(trial, view.aim).items())
    told = map(html_safe, (*param_texts(trial, view.axes), *measures))
    kept = "" if trial.keep_fraction is None else f"kept {trial.keep_fraction:.0%}, "
    epochs = "" if trial.epochs is None else f"{trial.epochs} epochs, "
    return "<br>".join(
        [f"trial {trial.number}", *told, f"{kept}{epochs}clock {html_safe(trial.status or 'unverified')}"]
    )


def scatter(x: Any, y: Any, hover: Sequence[str] | None = None, mode: str = "markers", **look: Any) -> go.Scatter:
    """Return points or lines that tell their place and these texts to who hovers over them, nothing without texts."""
    texts = {"hoverinfo": "skip"} if hover is None else {"hovertext": hover, "hoverinfo": "x+y+text"}
    return go.Scatter(x=x, y=y, mode=mode, **texts, **look)


def diagonal(low: float, high: float, **look: Any) -> go.Scatter:
    """Return the dotted line on which both axes have the same value."""
    return scatter([low, high], [low, high], mode="lines", line={"color": GREY, "dash": "dot"}, **look)


def trial_markers(
    view: Overview, groups: Groups, chosen: np.ndarray, x: np.ndarray, y: np.ndarray, **more: Any
) -> list[Any]:
    """Return traces of trials: shape by group, colour by the view's colour axis, hollow where the clock was disturbed.

    Trials beyond the limits of the study are thin grey crosses, whatever their group.

    Drawn are the chosen indices of the view's trials; x and y are of all, in the units of their axes.
    """
    disturbed = np.array([trial.status == "disturbed" for trial in view.trials], dtype=bool)
    codes = None if view.colour is None else view.colour.codes(view.trials).astype(np.float32)
    many = len(view.trials) > MANY_TRIALS
    within, beyond = chosen[view.is_within_limits[chosen]], chosen[~view.is_within_limits[chosen]]
    traces = []
    for group, is_hollow in ((g, h) for g in range(len(groups.labels)) for h in (False, True)):
        some = within[(groups.members[within] == group) & (disturbed[within] == is_hollow)]
        if not len(some):
            continue
        marker = {
            "symbol": symbol(groups, group) + ("-open" if is_hollow else ""),
            "size": (5 if many else 9) + group,
            "opacity": 0.6 if many else 0.95,
            "line": {"width": 2 if is_hollow else 0 if many else 1, **({} if is_hollow else {"color": GREY})},
            **({"color": BLUE} if codes is None else {"color": codes[some], "coloraxis": "coloraxis"}),
        }
        texts = [hover_text(view.trials[index], view) for index in some]
        look = {"marker": marker, "legendgroup": f"group{group}", "showlegend": False, **more}
        traces.append(scatter(x[some], y[some], texts, meta="trials", **look))
    if len(beyond):
        texts = [hover_text(view.trials[index], view) for index in beyond]
        look = {"marker": BEYOND_LIMITS, "legendgroup": "beyond", "showlegend": False, **more}
        traces.append(scatter(x[beyond], y[beyond], texts, meta="trials", **look))
    return traces


def symbol(groups: Groups, group: int) -> str:
    """Return the marker of a group; a circle where there is one group only, a cross for what has no value."""
    if len(groups.labels) == 1:
        return "circle"
    return "x" if groups.labels[group] == ABSENT else SYMBOLS[group]


def marker_legend(view: Overview, groups: Groups) -> list[Any]:
    """Return traces without points that explain the markers in the legend."""
    entries = []
    if groups.axis is not None:
        name = groups.axis.label
        entries = [(f"{name} {label}", symbol(groups, g), 9 + g, f"group{g}") for g, label in enumerate(groups.labels)]
    if any(trial.status == "disturbed" for trial in view.trials):
        entries.append(("hollow: disturbed clock", "circle-open", 9, "hollow"))
    point = {"x": [None], "y": [None], "mode": "markers"}
    legend = [
        go.Scatter(point, marker={"symbol": mark, "size": size, "color": GREY}, name=html_safe(text), legendgroup=group)
        for text, mark, size, group in entries
    ]
    if not view.is_within_limits.all():
        legend.append(go.Scatter(point, marker=BEYOND_LIMITS, name="cross: beyond a limit", legendgroup="beyond"))
    return legend


def front_line(view: Overview, trials: Sequence[TrialRecord], **more: Any) -> Any:
    """Return the front as a staircase: what is reached within each time."""
    points = np.array([objectives(trial) for trial in trials], dtype=float).reshape(-1, 2)
    look = {"line": {"color": FRONT, "width": 2, "shape": "hv"}, "name": "Pareto front", **more}
    return scatter(in_unit(view, points[:, 0]), points[:, 1].astype(np.float32), mode="lines", **look)


def axis_id(letter: str, place: int) -> str:
    """Return plotly's name for the axis of a panel, counted from 1."""
    return letter if place == 1 else f"{letter}{place}"


def panel_title(place: int, title: str) -> dict[str, Any]:
    """Return a title above one panel, which it follows wherever the panel goes."""
    refs = {"xref": f"{axis_id('x', place)} domain", "yref": f"{axis_id('y', place)} domain"}
    anchors = {"x": 0, "y": 1.02, "xanchor": "left", "yanchor": "bottom", "showarrow": False}
    return {"text": f"<b>{title}</b>", **refs, **anchors}


def two_panels(first: str, second: str) -> dict[str, Any]:
    """Return the layout of two panels side by side, which a narrow page puts one below the other."""
    return {
        "grid": {"rows": 1, "columns": 2, "pattern": "independent", "xgap": 0.18, "ygap": 0.3},
        "meta": {"panels": 2},
        "annotations": [panel_title(1, first), panel_title(2, second)],
    }
