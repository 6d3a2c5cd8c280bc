"""Figures of what never ran: the recommended path over budgets, what each scale would reach, how far to trust both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from budgettune.errors import NothingFits, NothingToDraw, UsageError
from budgettune.predict.held_out import HeldOut, coverage, held_out
from budgettune.predict.predictor import Prediction, Predictor
from budgettune.predict.recommend import Ask, Candidates
from budgettune.predict.regression import on_one_thread
from budgettune.records import StepProbe, TrialRecord
from budgettune.report import style
from budgettune.report.axes import value_text
from budgettune.report.view import LOG_TIME_RATIO, Figure, Overview, counted, objectives
from budgettune.spec.study_spec import StudySpec
from budgettune.text import format_duration

BUDGETS = 8
ENDS = (0.7, 1.5)
"""Smallest and largest budget, as shares of the fastest and the slowest trial's time."""
CONFIDENCE = 0.9
MOST_LEVELS = 8
MOST_TRIALS = 300
FEW_OF_MANY = 120
"""Beyond MOST_TRIALS so many are learnt from, a random choice: a page of 10,000 trials shall not take long to build."""
WIDTHS = tuple(share / 20 for share in range(1, 20))
"""Central intervals of which a calibration plot tells."""


Surface = tuple[tuple[Prediction | None, ...], ...]
"""For each budget, the best run of each level; None where nothing of it ends in time."""
Checks = tuple[HeldOut, ...]
"""Finished trials beside what the others say of them; empty where there are too few to hold any out."""


@dataclass(frozen=True)
class StudyForecast:
    """What is predicted of a study on one kind of machine."""

    view: Overview
    budgets: tuple[float, ...]  # seconds, rising
    path: tuple[Prediction, ...]  # the recommended run within each budget
    levels: tuple[str, ...]  # values of the view's marker parameter (a model's scale, mostly), in order
    surface: Surface
    checks: Checks


@on_one_thread
def forecast(
    view: Overview,
    spec: StudySpec | None,
    records: Sequence[TrialRecord],
    probes: Mapping[str, Sequence[StepProbe]] | None = None,
) -> StudyForecast:
    """Return what is predicted for the machine of a view.

    The records are of all trials of the study, its spec is None where this version cannot read it, and probes are step
    times taken outside trials, by kind of machine.

    Raises:
        NothingToDraw: where too little has finished to predict anything, or the study cannot be predicted.
    """
    if spec is None:
        raise NothingToDraw("the study's spec cannot be read, so nothing is predicted")
    device_name, records = view.trials[0].device_name, _some(records)
    lowest, highest = ENDS[0] * view.seconds.min(), ENDS[1] * view.seconds.max()
    asked = []
    try:
        predictor = Predictor(spec, records, device_name=device_name, probes=probes)
        for budget in np.geomspace(lowest, highest, BUDGETS).tolist():
            with suppress(NothingFits):
                asked.append(Candidates(predictor, Ask(budget, CONFIDENCE)))
    except UsageError as reason:
        raise NothingToDraw(str(reason)) from reason
    if not asked:
        raise NothingToDraw("nothing is predicted to end within the times that ran: run `budgettune worker` further")
    try:
        checks = tuple(held_out(spec, records, device_name=device_name, probes=probes))
    except UsageError:  # enough to predict from, not enough to hold any out
        checks = ()
    name, levels = (view.marker.name, view.marker.levels[:MOST_LEVELS]) if view.marker else ("", ())
    texts = tuple(map(value_text, levels))
    return StudyForecast(
        view=view,
        budgets=tuple(candidates.ask.budget_seconds for candidates in asked),
        path=tuple(candidates.prediction(candidates.best) for candidates in asked),
        levels=texts,
        surface=tuple(tuple(_best_of(candidates, name, level) for level in texts) for candidates in asked),
        checks=checks,
    )


def _some(records: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    """Return records with all complete trials, or with a sample of them where they are many."""
    complete = [record.number for record in records if record.state == "COMPLETE"]
    if len(complete) <= MOST_TRIALS:
        return records
    chosen = set(np.random.default_rng(0).choice(complete, FEW_OF_MANY, replace=False).tolist())
    return [record for record in records if record.state != "COMPLETE" or record.number in chosen]


def _best_of(candidates: Candidates, name: str, level: str) -> Prediction | None:
    """Return the best run that has a parameter at a level."""
    values = [value_text(time.workload.params.get(name)) for time, _ in candidates.runs]
    same = [index for index, value in enumerate(values) if value == level]
    return candidates.prediction(max(same, key=lambda index: candidates.expected[index])) if same else None


def _settings(one: Prediction) -> list[str]:
    return [f"{name.removeprefix('params.')} {value_text(value)}" for name, value in one.params.items()]


def _spelled(one: Prediction) -> str:
    return "<br>".join([*map(style.html_safe, _settings(one)), f"{one.epochs} epochs"])


def _draw_recommended(forecast: StudyForecast, path: tuple[Prediction, ...]) -> go.Figure:
    view = forecast.view
    budgets = style.in_unit(view, forecast.budgets)
    band = style.scatter(
        np.concatenate([budgets, budgets[::-1]]),
        [*(one.value_high for one in path), *(one.value_low for one in reversed(path))],
        mode="none",
        fill="toself",
        fillcolor="rgba(0, 114, 178, 0.2)",
        name="9 of 10 runs end in here",
    )
    line = style.scatter(
        budgets,
        [one.value for one in path],
        list(map(_spelled, path)),
        mode="lines+markers",
        line={"color": style.BLUE, "width": 2.5},
        name="recommended",
    )
    ran = style.front_line(view, view.answers, name="best that ran")
    budget_axis = style.time_axis(view, "budget", is_log=True)
    return style.new_figure(
        "What to train within a budget", [band, line, ran], xaxis=budget_axis, yaxis=style.value_axis(view)
    )


def _say_recommended(forecast: StudyForecast, path: tuple[Prediction, ...]) -> str:
    words, place = forecast.view.words, len(forecast.budgets) // 2
    budget, choice = forecast.budgets[place], path[place]
    text = (
        f"Within {format_duration(budget)}: {', '.join(_settings(choice))} for {counted(choice.epochs, 'epoch')}, "
        f"{words.said(choice.value)} expected ({words.text(choice.value_low)} to "
        f"{words.text(choice.value_high)})."
    )
    within = [value for seconds, value in map(objectives, forecast.view.answers) if seconds <= budget]
    text += f" The best that ran within it reached {words.said(within[-1])}." if within else ""
    return text if len(forecast.view.trials) <= MOST_TRIALS else f"{text} Learnt from a random {FEW_OF_MANY} trials."


recommended = Figure(
    name="recommended",
    title="What should I train, of all that could run?",
    guide="`budgettune recommend --budget` gives the same answer for one budget, and says what to run next to know "
    "more. The configuration stands where you hover; each ends within its budget in 9 of 10 cases.",
    values=lambda forecast: forecast.path,
    draw=_draw_recommended,
    say=_say_recommended,
    about="forecast",
)


def _surface(forecast: StudyForecast) -> Surface:
    if len(forecast.levels) < 2:
        raise NothingToDraw("a surface needs two values of a searched scale, or of another number")
    return forecast.surface


def _draw_surface(forecast: StudyForecast, surface: Surface) -> go.Figure:
    levels, words = list(zip(*surface, strict=True)), forecast.view.words
    texts = [["" if one is None else _spelled(one) for one in row] for row in levels]
    means = [[None if one is None else one.value for one in row] for row in levels]
    halves = [[None if one is None else (one.value_high - one.value_low) / 2 for one in row] for row in levels]
    heats = [
        go.Heatmap(
            x=[f"{budget:.3g}" for budget in style.in_unit(forecast.view, forecast.budgets).tolist()],
            y=list(map(style.html_safe, forecast.levels)),
            z=values,
            texttemplate=form,
            hovertext=texts,
            hoverinfo="x+y+z+text",
            colorscale=style.SEQUENTIAL,
            reversescale=is_reversed or None,
            zhoverformat=words.form(2, 4),
            showscale=False,
            xaxis=style.axis_id("x", panel),
            yaxis=style.axis_id("y", panel),
        )
        for panel, values, form, is_reversed in (
            (1, means, f"%{{z:{words.form(0, 3)}}}", words.is_less_better),
            (2, halves, f"%{{z:{words.form(1, 2)}}}", False),
        )
    ]
    name = forecast.view.marker.label if forecast.view.marker else ""
    xaxis = {"type": "category", "title": {"text": f"budget ({forecast.view.unit.name})"}}
    yaxis = {"type": "category", "title": {"text": style.html_safe(name)}}
    return style.new_figure(
        "What each scale would reach",
        heats,
        **style.two_panels(style.html_safe(f"expected {words.label}"), "half of its 90% interval"),
        xaxis=xaxis,
        xaxis2=xaxis,
        yaxis=yaxis,
        yaxis2=yaxis,
    )


def _say_surface(forecast: StudyForecast, surface: Surface) -> str:
    name, words = forecast.view.marker.label if forecast.view.marker else "", forecast.view.words
    parts = []
    for place in (0, -1):
        row = zip(surface[place], forecast.levels, strict=True)
        score, level = max((words.objective.score(one.value), level) for one, level in row if one is not None)
        expected = words.said(words.objective.score(score))
        parts.append(f"{name} {level} at {format_duration(forecast.budgets[place])} ({expected} expected)")
    return f"The best choice goes from {parts[0]} to {parts[1]}."


surface = Figure(
    name="surface",
    title="Budget by budget, value by value",
    guide="Each cell is the best run of that value that ends within the budget; the second panel says how far it may "
    "be off.",
    values=_surface,
    draw=_draw_surface,
    say=_say_surface,
    about="forecast",
)


def _held_out(forecast: StudyForecast) -> Checks:
    if not forecast.checks:
        raise NothingToDraw("too few trials to hold some out and predict them from the others")
    return forecast.checks


def _draw_predicted(forecast: StudyForecast, checks: Checks) -> go.Figure:
    view = forecast.view
    numbers = [f"trial {one.number}" for one in checks]
    predictions = [one.prediction for one in checks]
    said = np.array([(one.seconds, one.seconds_low, one.seconds_high) for one in predictions])
    times = style.in_unit(view, np.column_stack([[one.seconds for one in checks], said])).T
    said = np.array([(one.value, one.value_low, one.value_high) for one in predictions])
    shares = np.column_stack([[one.value for one in checks], said]).T
    traces: list[Any] = []
    for panel, (came, means, low, high) in enumerate((times, shares), start=1):
        axes = {"xaxis": style.axis_id("x", panel), "yaxis": style.axis_id("y", panel)}
        look: dict[str, Any] = {**axes, "showlegend": False}
        ends = float(min(low.min(), came.min())), float(max(high.max(), came.max()))
        reach = {"type": "data", "symmetric": False, "array": high - means, "arrayminus": means - low}
        trials = style.scatter(
            means,
            came,
            numbers,
            marker={"color": style.BLUE, "size": 6, "opacity": 0.8},
            error_x={**reach, "color": style.GREY, "thickness": 0.8, "width": 0},
            **look,
        )
        traces += [style.diagonal(*ends, **look), trials]
    is_log = float(times[0].max()) > LOG_TIME_RATIO * float(times[0].min()) > 0
    kind = {"type": "log"} if is_log else {}
    return style.new_figure(
        "Predicted against observed, on trials held out",
        traces,
        **style.two_panels("training time", style.html_safe(view.words.name)),
        xaxis={"title": {"text": f"predicted ({view.unit.name})"}, **kind},
        yaxis={"title": {"text": f"observed ({view.unit.name})"}, **kind},
        xaxis2={"title": {"text": "predicted"}, **view.words.short_ticks},
        yaxis2={"title": {"text": "observed"}, **view.words.short_ticks},
    )


def _say_predicted(forecast: StudyForecast, checks: Checks) -> str:
    words = forecast.view.words
    shares = [abs(one.prediction.seconds / one.seconds - 1) for one in checks]
    off = [abs(one.prediction.value - one.value) for one in checks]
    return (
        f"{counted(len(checks), 'trial')} were held out, a fifth of the configurations at a time. Times were off by "
        f"{np.median(shares):.1%} in the middle and by {np.quantile(shares, 0.95):.1%} in one of twenty, "
        f"{words.plural} by {words.distances(*np.quantile(off, [0.5, 0.95]).tolist())}, seed noise included."
    )


predicted = Figure(
    name="predicted",
    title="How good are these predictions?",
    guide="Each marker is a trial, predicted from the configurations that remain when its own is taken away. On the "
    "dotted line the prediction came true. Bars are 90% intervals.",
    values=_held_out,
    draw=_draw_predicted,
    say=_say_predicted,
    about="forecast",
)


def _draw_calibration(forecast: StudyForecast, checks: Checks) -> go.Figure:
    lines = [style.diagonal(0, 1, name="honest")]
    for name, places, colour in (
        ("time", [one.seconds_place for one in checks], style.BLUE),
        (style.html_safe(forecast.view.words.label), [one.accuracy_place for one in checks], style.VERMILLION),
    ):
        shares = [coverage(places, width) for width in WIDTHS]
        lines.append(go.Scatter(x=WIDTHS, y=shares, mode="lines+markers", line={"color": colour}, name=name))
    share = {"tickformat": ".0%", "range": [0, 1]}
    return style.new_figure(
        "Do intervals hold what they promise?",
        lines,
        xaxis={"title": {"text": "promised: share of runs in the interval"}, **share},
        yaxis={"title": {"text": "came: share of held-out trials"}, **share},
    )


def _say_calibration(forecast: StudyForecast, checks: Checks) -> str:
    times = coverage([one.seconds_place for one in checks], 0.9)
    shares, label = coverage([one.accuracy_place for one in checks], 0.9), forecast.view.words.label
    return f"Of intervals that promise 90%, {times:.0%} held the time and {shares:.0%} the {label}."


calibration = Figure(
    name="calibration",
    title="Are they as sure as they should be?",
    guide="An honest 50% interval holds half of the trials. Below the dotted line predictions are too sure of "
    "themselves, above it too shy.",
    values=_held_out,
    draw=_draw_calibration,
    say=_say_calibration,
    about="forecast",
)
