"""Figures of how trials trained: curves, phases, repeats, pruning asked for and done, and trials stopped early."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from budgettune.errors import NothingToDraw
from budgettune.records import OFF_CLOCK, ON_CLOCK, PhaseSeconds, StoppingNote, TrialRecord
from budgettune.report import style
from budgettune.report.axes import grouped, is_number
from budgettune.report.view import Figure, Overview, counted, objectives, param_texts, unit_for
from budgettune.spec.documents import full_key
from budgettune.study.early_stop import summary_of_notes
from budgettune.study.pareto import undominated
from budgettune.text import format_duration

MOST_CURVES = 40
MOST_FRONT_CURVES = 10
MOST_BARS = 24
MOST_BAR_GROUPS = 12
MOST_SPREADS = 200


class ReachedPoint(NamedTuple):
    """A trial as it was after one epoch."""

    seconds: float
    value: float
    number: int
    epoch: int


@dataclass(frozen=True)
class Curves:
    """A sample of trials that were evaluated on the way, and what all such trials reached."""

    best: list[TrialRecord]  # of the front, at even distances, its ends among them
    others: list[TrialRecord]  # spread evenly over the ranking by objective
    total: int  # trials that have a curve
    front: tuple[ReachedPoint, ...]  # points after any epoch of any trial that no other point beats, fastest first


def curves_of(view: Overview) -> Curves:
    """Return the curves of a study's objective.

    Raises:
        NothingToDraw: where no trial has been evaluated more than once.
    """
    evaluated = [trial for trial in view.trials if sum(epoch.value is not None for epoch in trial.curve) > 1]
    if not evaluated:
        remedy = "train.evaluate_every = 1" if view.knows_pruning else "a report after each epoch"
        raise NothingToDraw(f"{view.words.heading} was evaluated at the end of each trial only: {remedy} draws curves.")
    on_front = {trial.number for trial in view.answers}
    best = [trial for trial in evaluated if trial.number in on_front]
    others = [trial for trial in evaluated if trial.number not in on_front]
    if len(evaluated) > MOST_CURVES:
        best = _evenly(sorted(best, key=objectives), MOST_FRONT_CURVES)
        others = _evenly(sorted(others, key=view.score), MOST_CURVES - len(best))
    score = view.words.objective.score
    points = sorted(
        (epoch.train_seconds, -score(epoch.value), trial.number, epoch.epoch)
        for trial in evaluated
        if view.aim.allows(trial)
        for epoch in trial.curve
        if epoch.value is not None
    )
    front = tuple(ReachedPoint(seconds, score(-loss), *of) for seconds, loss, *of in undominated(points))
    return Curves(best, others, len(evaluated), front)


def _evenly(items: list[TrialRecord], most: int) -> list[TrialRecord]:
    if len(items) <= most:
        return items
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def _draw_curves(view: Overview, values: Curves) -> go.Figure:
    reached = style.scatter(
        style.in_unit(view, [point.seconds for point in values.front]),
        [point.value for point in values.front],
        [f"trial {point.number} after epoch {point.epoch + 1}" for point in values.front],
        mode="lines",
        line={"color": style.FRONT, "width": 3, "shape": "hv"},
        name="best reached on the way, of all trials",
    )
    others = _curve_lines(view, values.others, "other trials", style.GREY, 0.8)
    best = _curve_lines(view, values.best, "trials of the final front", style.BLUE, 1.8)
    xaxis, yaxis = style.time_axis(view, rangemode="normal"), style.value_axis(view)
    return style.new_figure(f"{view.words.heading} while training", [*others, *best, reached], xaxis=xaxis, yaxis=yaxis)


def _curve_lines(view: Overview, trials: list[TrialRecord], name: str, colour: str, width: float) -> list[Any]:
    """Return many curves as one trace, with gaps between them; points that were not evaluated are left out."""
    if not trials:
        return []
    curves = [[epoch for epoch in trial.curve if epoch.value is not None] for trial in trials]
    seconds = [[*(epoch.train_seconds for epoch in curve), np.nan] for curve in curves]
    reached = [np.array([*(epoch.value for epoch in curve), np.nan], dtype=np.float32) for curve in curves]
    return [
        style.scatter(
            style.in_unit(view, np.concatenate(seconds)),
            np.concatenate(reached),
            [f"trial {trial.number}" for trial, times in zip(trials, seconds, strict=True) for _ in times],
            mode="lines+markers" if max(map(len, curves)) <= 2 else "lines",
            line={"color": colour, "width": width},
            name=name,
        )
    ]


def _say_curves(view: Overview, values: Curves) -> str:
    last_epoch = {trial.number: trial.curve[-1].epoch for trial in view.trials if trial.curve}
    early = [point for point in values.front if point.epoch < last_epoch[point.number]]
    shown = len(values.best) + len(values.others)
    sample = "all" if shown == values.total else f"{shown} of {values.total:,}"
    steps = f"{len(early)} of the {len(values.front)} steps of the red staircase"
    text = f"Shown: {sample} trials. {steps} belong to trials that had not ended"
    if not early:
        return f"{text}: none would have been a better answer had it stopped early."
    best = max(early, key=lambda point: view.words.objective.score(point.value))
    reached = f"{view.words.said(best.value)} in {format_duration(best.seconds)}"
    return f"{text}; the best of them is trial {best.number} after epoch {best.epoch + 1}: {reached}."


curves = Figure(
    name="curves",
    title="{heading} while training",
    guide="Each line is one trial, from its first epoch to its last. The red staircase is the best that any trial had "
    "reached by then. {heading} on the way promises little: a learning rate that falls to zero earlier would have "
    "ended better.",
    values=curves_of,
    draw=_draw_curves,
    say=_say_curves,
)


class RepeatSpread(NamedTuple):
    """Mean and sample standard deviation over the repeats of one configuration."""

    label: str
    repeats: int
    seconds: float
    seconds_deviation: float
    value: float
    value_deviation: float


def repeat_spreads(view: Overview) -> tuple[RepeatSpread, ...]:
    """Return the spread of each configuration that ran more than once, the best first.

    Raises:
        NothingToDraw: where none did.
    """
    spreads = []
    for trials in view.configurations.values():
        if len(trials) > 1:
            seconds, reached = zip(*map(objectives, trials), strict=True)
            times, values = ((statistics.fmean(some), statistics.stdev(some)) for some in (seconds, reached))
            spreads.append(RepeatSpread(", ".join(param_texts(trials[0], view.axes)), len(trials), *times, *values))
    if not spreads:
        raise NothingToDraw(
            "Every configuration ran once, so nothing tells how much of a difference is chance: "
            "`study create --repeats 3` does."
        )
    return tuple(sorted(spreads, key=lambda spread: -view.words.objective.score(spread.value)))


def _draw_repeats(view: Overview, spreads: tuple[RepeatSpread, ...]) -> go.Figure:
    shown = spreads[:MOST_SPREADS]
    bars = {"color": style.GREY, "thickness": 1.2}
    trace = style.scatter(
        style.in_unit(view, [spread.seconds for spread in shown]),
        [spread.value for spread in shown],
        [style.html_safe(f"{spread.label}: mean of {spread.repeats}") for spread in shown],
        error_x={"array": style.in_unit(view, [spread.seconds_deviation for spread in shown]), **bars},
        error_y={"array": [spread.value_deviation for spread in shown], **bars},
        marker={"size": 8, "color": style.BLUE},
    )
    xaxis, yaxis = style.time_axis(view, "mean training time"), style.value_axis(view)
    return style.new_figure("Spread over repeats", [trace], showlegend=False, xaxis=xaxis, yaxis=yaxis)


def _say_repeats(view: Overview, spreads: tuple[RepeatSpread, ...]) -> str:
    typical = view.words.distance(statistics.median(spread.value_deviation for spread in spreads))
    share = statistics.median(spread.seconds_deviation / (spread.seconds or 1.0) for spread in spreads)
    shown = f" (the {MOST_SPREADS} {view.words.most} are shown)" if len(spreads) > MOST_SPREADS else ""
    return (
        f"{counted(len(spreads), 'configuration')} ran more than once{shown}. Typical standard deviation between "
        f"repeats: {typical} of {view.words.label} and {share:.1%} of the time. A difference of that size may well be "
        "chance."
    )


repeats = Figure(
    name="repeats",
    title="How much is chance",
    guide="Means over the repeats of each configuration, which differ in their seed only. Bars reach one standard "
    "deviation to each side.",
    values=repeat_spreads,
    draw=_draw_repeats,
    say=_say_repeats,
)


PHASES = {
    "prepare": ("pruning: preparing", style.BROWN),
    "plan": ("pruning: choosing samples", style.GREEN),
    "data": ("batches", style.SKY),
    "select": ("pruning: choosing in batches", style.GOLD),
    "step": ("steps (forward, backward, optimiser)", style.BLUE),
    "observe": ("pruning: handing losses back", style.PURPLE),
    "load": ("loading images", style.BROWN),
    "build": ("building the model", style.VERMILLION),
    "warmup": ("warm-up", style.ORANGE),
    "compile": ("compilation", style.GOLD),
    "capture": ("capture of CUDA graphs", style.PURPLE),
    "evaluate": ("evaluation", style.GREY),
    "checkpoint": ("keeping the half-trained trial", style.SKY),
}
"""Name and colour of each field of `PhaseSeconds`."""
OWN_PHASES = {"step": ("what trial.clock() counts", style.BLUE), "build": ("before the first epoch", style.VERMILLION)}
"""The same of code of your own, whose steps are all that is on the clock."""
ASIDE_COLOURS = (style.BROWN, style.GOLD, style.SKY, style.PURPLE, style.GREEN, style.ORANGE)
"""Of what code of your own gives a name."""


class PhaseBar(NamedTuple):
    """Mean seconds of each phase over some trials; `trials` is how many."""

    label: str
    trials: int
    seconds: PhaseSeconds


def phase_bars(view: Overview) -> tuple[PhaseBar, ...]:
    """Return where the time went: a bar for each trial, or for each group of the marker's axis where there are many.

    Raises:
        NothingToDraw: where no trial has phases.
    """
    trials = [trial for trial in view.trials if trial.phases is not None]
    if not trials:
        raise NothingToDraw("No trial recorded its phases: trials that budgettune trained do.")
    if len(trials) <= MOST_BARS:
        return tuple(_bar(f"{trial.number}", [trial]) for trial in sorted(trials, key=objectives))
    groups = grouped(view.marker, trials, MOST_BAR_GROUPS)
    name = f"{groups.axis.label} " if groups.axis else ""
    members = [(label, [trials[index] for index in groups.indices(g)]) for g, label in enumerate(groups.labels)]
    return tuple(_bar(f"{name}{label}", some) for label, some in members if some)


def _bar(label: str, trials: Sequence[TrialRecord]) -> PhaseBar:
    phases = [trial.phases for trial in trials if trial.phases is not None]
    names = (*ON_CLOCK, *OFF_CLOCK)
    means: dict[str, Any] = {name: statistics.fmean(getattr(each, name) for each in phases) for name in names}
    asides = dict.fromkeys(name for each in phases for name in each.asides)
    own = {name: statistics.fmean(each.asides.get(name, 0.0) for each in phases) for name in asides}
    return PhaseBar(label, len(trials), PhaseSeconds(**means, asides=own))


class _Part(NamedTuple):
    """A part of the bars: its name, its colour, and its seconds in each of them."""

    name: str
    colour: str
    seconds: list[float]
    is_off_clock: bool


def _parts(view: Overview, bars: tuple[PhaseBar, ...]) -> list[_Part]:
    """Return the phases that took time, and what code of your own has given a name of its own."""
    names_and_colours = PHASES if view.knows_pruning else PHASES | OWN_PHASES
    phases = [
        _Part(*names_and_colours[name], [getattr(bar.seconds, name) for bar in bars], name in OFF_CLOCK)
        for name in (*ON_CLOCK, *OFF_CLOCK)
    ]
    names = dict.fromkeys(name for bar in bars for name in bar.seconds.asides)
    asides = [
        _Part(name, colour, [bar.seconds.asides.get(name, 0.0) for bar in bars], True)
        for name, colour in zip(names, cycle(ASIDE_COLOURS), strict=False)
    ]
    return [part for part in (*phases, *asides) if any(seconds > 0 for seconds in part.seconds)]


def _draw_phases(view: Overview, bars: tuple[PhaseBar, ...]) -> go.Figure:
    traces = [
        go.Bar(
            y=[style.html_safe(bar.label) for bar in bars],
            x=part.seconds,
            orientation="h",
            name=style.html_safe(part.name) + (" (off the clock)" if part.is_off_clock else ""),
            marker={"color": part.colour, "pattern": {"shape": "/" if part.is_off_clock else ""}},
            hovertemplate="%{x:.3g} s<extra>%{fullData.name}</extra>",
        )
        for part in _parts(view, bars)
    ]
    seconds, trial = ("seconds", "trial") if all(b.trials == 1 for b in bars) else ("mean seconds per trial", "")
    return style.new_figure(
        "Where the time went",
        traces,
        height=160 + 26 * len(bars),
        barmode="stack",
        legend={"traceorder": "normal"},
        xaxis={"title": {"text": seconds}},
        yaxis={"type": "category", "autorange": "reversed", "dtick": 1, "title": {"text": trial}},
    )


def _say_phases(view: Overview, bars: tuple[PhaseBar, ...]) -> str:
    if not view.knows_pruning:
        return _say_own_phases(_parts(view, bars), bars)
    on_clock = sum(bar.trials * bar.seconds.on_clock for bar in bars) or 1.0
    step, data, pruning = (
        sum(bar.trials * getattr(bar.seconds, name) for bar in bars) / on_clock for name in ("step", "data", "pruning")
    )
    return (
        f"Of the time on the clock {step:.0%} are steps, {data:.0%} batches; choosing samples, with what that needs "
        f"before and after, which pruning must earn back, takes {pruning:.2%}."
    )


def _say_own_phases(parts: Sequence[_Part], bars: tuple[PhaseBar, ...]) -> str:
    trials = [bar.trials for bar in bars]
    on_clock = sum(bar.trials * bar.seconds.on_clock for bar in bars)
    off_clock = {part.name: float(np.dot(trials, part.seconds)) for part in parts if part.is_off_clock}
    text = f"On the clock were {format_duration(on_clock)}, off it {format_duration(sum(off_clock.values()))}"
    if not off_clock:
        return f"{text}."
    longest = max(off_clock, key=lambda name: off_clock[name])
    return f"{text}, most of it {longest} ({format_duration(off_clock[longest])})."


phases = Figure(
    name="phases",
    title="Where the time went",
    guide="Phases on the clock add up to the training time. Hatched ones are off the clock and count for nothing.",
    values=phase_bars,
    draw=_draw_phases,
    say=_say_phases,
)


class PruningDone(NamedTuple):
    """Prune rate asked for and realised (1 - keep fraction over the whole training) of some trials."""

    asked: np.ndarray
    realised: np.ndarray
    numbers: tuple[int, ...]


def pruning_done(view: Overview) -> PruningDone:
    """Return what share of the sample visits trials left out, against what they were asked.

    Raises:
        NothingToDraw: where no trial tells both.
    """
    axis = next((axis for axis in view.axes if full_key(axis.name) == "pruning.prune_rate"), None)
    if axis is None:
        raise NothingToDraw("The prune rate was not searched: all trials were asked for the same.")
    trials = [t for t in view.trials if t.keep_fraction is not None and is_number(t.params.get(axis.name))]
    if not trials:
        raise NothingToDraw("No trial recorded which share of the samples it kept: trials that budgettune trained do.")
    realised = 1 - np.array([trial.keep_fraction for trial in trials], dtype=float)
    return PruningDone(axis.codes(trials), realised, tuple(trial.number for trial in trials))


def _draw_pruning(_: Overview, done: PruningDone) -> go.Figure:
    most = float(max(done.asked.max(), done.realised.max(), 0.01))
    texts = [f"trial {number}" for number in done.numbers]
    marker = {"size": 8, "color": style.BLUE, "opacity": 0.6}
    trials = style.scatter(done.asked, done.realised, texts, marker=marker, name="trials")
    return style.new_figure(
        "Samples left out",
        [style.diagonal(0, most, name="as asked"), trials],
        xaxis={"title": {"text": "prune rate asked for"}, **style.SHARE},
        yaxis={"title": {"text": "share of sample visits left out"}, **style.SHARE},
    )


def _say_pruning(_: Overview, done: PruningDone) -> str:
    most = float(done.asked.max())
    realised = float(done.realised[done.asked == most].mean())
    return f"Trials asked for a prune rate of {most:.4g} left out {realised:.1%} of their sample visits."


pruning = Figure(
    name="pruning",
    title="Samples left out",
    guide="The prune rate asks for a share of the run's sample visits to be dropped. On the dotted line as much was "
    'dropped; some strategies let chance or the model decide. With `rate_per = "epoch"`, as in `paper`, and with '
    "`paper-as-coded` it is the share of the epochs that prune, and less of the run.",
    values=pruning_done,
    draw=_draw_pruning,
    say=_say_pruning,
    is_of_pruning=True,
)


Notes = Sequence[StoppingNote]
"""On trials that were stopped early and on controls, as `budgettune.storage.trials.stopping_notes` returns them."""


def _draw_stopping(_: Notes, stopped: Notes) -> go.Figure:
    if not stopped:
        raise NothingToDraw("No trial was stopped early.")
    spent = np.cumsum([0.0, *(note.train_seconds for note in stopped)])
    saved = np.cumsum([0.0, *(max(0.0, note.expected_seconds - note.train_seconds) for note in stopped)])
    unit = unit_for(float(spent[-1] + saved[-1]))
    areas = [
        go.Scatter(
            x=np.arange(len(spent)),
            y=(seconds / unit.seconds).astype(np.float32),
            name=name,
            mode="lines",
            line={"color": colour, "shape": "vh"},
            stackgroup="seconds",
        )
        for name, seconds, colour in (("trained", spent, style.BLUE), ("saved, as forecast", saved, style.GREEN))
    ]
    return style.new_figure(
        "Seconds of stopped trials",
        areas,
        height=340,
        xaxis={"title": {"text": "trials that were stopped, in their order"}, "rangemode": "tozero"},
        yaxis={"title": {"text": f"training time ({unit.name})"}, "rangemode": "tozero"},
    )


stopping = Figure(
    name="stopping",
    title="Trials that were stopped early",
    guide="Trials add up from left to right: blue is what they trained, green what they would have trained to their "
    "end, as forecast when they were stopped. Controls are trials that the rule would have stopped and that ran on to "
    "test it.",
    values=lambda notes: [note for note in notes if note.stopped],
    draw=_draw_stopping,
    say=lambda notes, _: f"{summary_of_notes(notes).describe()}.",
    about="stopping",
)
