"""Figures of how the search went: the hypervolume over trials and time, and the importance of parameters."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import plotly.graph_objects as go

from budgettune.errors import NothingToDraw
from budgettune.report.axes import FigureAxis
from budgettune.report.style import CATEGORY_COLOURS, FRONT, html_safe, new_figure, two_panels
from budgettune.report.view import Figure, Overview, configuration_key, counted, objectives
from budgettune.study.pareto import hypervolume_reference
from budgettune.text import format_duration

FEWEST_FOR_IMPORTANCE = 10
FEW_FOR_IMPORTANCE = 40
MOST_FOR_IMPORTANCE = 1_000
LITTLE_EXPLAINED = 0.2
FOLDS = 5
TREES = 100
SHUFFLES = 10


class Growth(NamedTuple):
    """Hypervolume after so many finished trials and their training seconds."""

    trials: int
    compute_seconds: float
    volume: float


class VolumeHistory(NamedTuple):
    """Each trial that made the hypervolume grow, and the last one; against a reference of (seconds, value)."""

    steps: tuple[Growth, ...]
    reference: tuple[float, float]


def hypervolume_history(view: Overview) -> VolumeHistory:
    """Return how the hypervolume grew in order of completion.

    The reference is that of `front`: 1.1 times the slowest trial, at accuracy 0 or beyond the worst of other values.
    Trials beyond the limits of the study add nothing to it but their seconds.

    Raises:
        NothingToDraw: where none is within the limits of the study.
    """
    assert view.best  # or there is nothing to draw
    objective = view.words.objective
    points = list(zip(*(each[view.is_within_limits].tolist() for each in (view.seconds, view.scores)), strict=True))
    reference = hypervolume_reference(points, is_share=objective.is_accuracy)
    in_order = sorted(view.trials, key=lambda trial: (trial.completed_at or "", trial.number))
    front: list[tuple[float, float]] = []
    steps: list[Growth] = []
    compute_seconds = volume = 0.0
    for count, trial in enumerate(in_order, start=1):
        seconds, _ = objectives(trial)
        compute_seconds += seconds
        gain = _join(front, (seconds, view.score(trial)), reference) if view.aim.allows(trial) else 0.0
        volume += gain
        if gain > 0 or count == len(in_order):
            steps.append(Growth(count, compute_seconds, volume))
    return VolumeHistory(tuple(steps), (reference[0], objective.score(reference[1])))


def _join(front: list[tuple[float, float]], point: tuple[float, float], reference: tuple[float, float]) -> float:
    """Put a point of (seconds, score) into a front (fastest first) and return the area that it adds.

    Those it beats leave the front.
    """
    seconds, score = point
    place = bisect_right(front, point)
    level = front[place - 1][1] if place else reference[1]
    if score <= level:
        return 0.0
    area, left = 0.0, seconds
    while place < len(front) and front[place][1] <= score:
        beaten_seconds, beaten_score = front.pop(place)
        area += (beaten_seconds - left) * (score - level)
        left, level = beaten_seconds, beaten_score
    right = front[place][0] if place < len(front) else reference[0]
    # A point as fast as a worse one before it takes its place.
    if place and front[place - 1][0] == seconds:
        front.pop(place - 1)
        place -= 1
    front.insert(place, point)
    return area + (right - left) * (score - level)


def _draw_hypervolume(view: Overview, history: VolumeHistory) -> go.Figure:
    trials, seconds, volume = zip(*history.steps, strict=True)
    looks = {"mode": "lines+markers", "line": {"color": FRONT, "shape": "hv"}, "marker": {"size": 5}}
    unit = {"title": {"text": html_safe(f"hypervolume (s × {view.words.label})")}, "rangemode": "tozero"}
    return new_figure(
        "Hypervolume of the front",
        [go.Scatter(x=trials, y=volume, **looks), go.Scatter(x=seconds, y=volume, xaxis="x2", yaxis="y2", **looks)],
        height=380,
        showlegend=False,
        **two_panels("over trials", "over training time"),
        xaxis={"title": {"text": "finished trials"}, "rangemode": "tozero"},
        yaxis=unit,
        xaxis2={"title": {"text": "training seconds of all trials so far"}, "rangemode": "tozero"},
        yaxis2={**unit, "matches": "y"},
    )


def _say_hypervolume(view: Overview, history: VolumeHistory) -> str:
    last, label = history.steps[-1], view.words.label
    enough = next(step for step in history.steps if step.volume >= 0.95 * last.volume)
    seconds, worst = history.reference
    return (
        f"{last.volume:.4g} seconds × {label} against {format_duration(seconds)} and {label} {worst:.4g}; 95% of it "
        f"was there after {counted(enough.trials, 'trial')} of {last.trials:,} and "
        f"{format_duration(enough.compute_seconds)} of training."
    )


hypervolume = Figure(
    name="hypervolume",
    title="How the search went",
    guide="Hypervolume is the area {beyond} the front, up to the reference point. It grows when a trial joins the "
    "front.",
    values=hypervolume_history,
    draw=_draw_hypervolume,
    say=_say_hypervolume,
)


@dataclass(frozen=True)
class Importance:
    """How much worse a forest predicts an objective when it is told wrong values of one parameter."""

    objective: str  # what is predicted
    shares: tuple[float, ...]  # of each parameter: growth of the squared error over the objective's variance
    explained: float  # share of the variance that the forest predicts of trials that it has not seen (R²)


@dataclass(frozen=True)
class Importances:
    """Importance of each parameter for each objective, from `trials` trials."""

    axes: tuple[FigureAxis, ...]
    objectives: tuple[Importance, ...]
    trials: int


def importances(view: Overview) -> Importances:
    """Return how much each searched parameter matters for time and for the objective.

    Permutation importance (Breiman 2001) of a random forest, on trials that the forest was not fitted to: five folds
    that keep repeats of a configuration together. Time is predicted by its logarithm.

    Raises:
        NothingToDraw: where nothing was searched, or too few configurations are finished.
    """
    if not view.axes:
        raise NothingToDraw("One configuration was run: no parameter varied.")
    chosen = np.arange(len(view.trials))
    if len(chosen) > MOST_FOR_IMPORTANCE:
        chosen = np.random.default_rng(0).choice(chosen, MOST_FOR_IMPORTANCE, replace=False)
    trials = [view.trials[index] for index in chosen]
    _, groups = np.unique([configuration_key(trial) for trial in trials], return_inverse=True)
    count = groups.max() + 1
    if count < FEWEST_FOR_IMPORTANCE:
        fewest = f"fewer than {FEWEST_FOR_IMPORTANCE} say nothing about importance."
        raise NothingToDraw(f"{count} configurations are finished: {fewest}")
    inputs = np.column_stack([np.nan_to_num(axis.codes(trials), nan=-1.0) for axis in view.axes])
    of_time = _importance("training time", inputs, np.log(np.maximum(view.seconds[chosen], 1e-9)), groups)
    of_objective = _importance(view.words.label, inputs, view.values[chosen], groups)
    return Importances(view.axes, (of_time, of_objective), len(trials))


def _importance(objective: str, inputs: np.ndarray, target: np.ndarray, groups: np.ndarray) -> Importance:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    # Not sklearn.inspection.permutation_importance: it shuffles within the few trials of a fold, which often share a
    # value, and so sees too little. Wrong values are drawn from all trials here.
    rng = np.random.default_rng(0)
    error, wrong_error = 0.0, np.zeros(inputs.shape[1])
    for seen, unseen in GroupKFold(FOLDS).split(inputs, target, groups):
        forest = RandomForestRegressor(TREES, random_state=0).fit(inputs[seen], target[seen])
        error += float(np.sum((forest.predict(inputs[unseen]) - target[unseen]) ** 2))
        truth = np.tile(target[unseen], SHUFFLES)
        for column in range(inputs.shape[1]):
            wrong = np.tile(inputs[unseen], (SHUFFLES, 1))
            wrong[:, column] = rng.choice(inputs[:, column], len(wrong))
            wrong_error[column] += float(np.sum((forest.predict(wrong) - truth) ** 2)) / SHUFFLES
    variance = float(np.sum((target - target.mean()) ** 2))
    if variance == 0:
        return Importance(objective, (0.0,) * inputs.shape[1], 0.0)
    shares = np.maximum(0.0, (wrong_error - error) / variance)
    return Importance(objective, tuple(shares.tolist()), 1 - error / variance)


def _draw_importance(_: Overview, values: Importances) -> go.Figure:
    labels = [html_safe(axis.label) for axis in values.axes]
    traces = [
        go.Bar(y=labels, x=list(each.shares), orientation="h", name=html_safe(each.objective), marker={"color": colour})
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


def _say_importance(view: Overview, values: Importances) -> str:
    parts = []
    for each in values.objectives:
        first = values.axes[int(np.argmax(each.shares))].label
        parts.append(
            f"A forest predicts {each.objective} of new trials hardly better than its mean does: its bars say nothing."
            if each.explained < LITTLE_EXPLAINED
            else f"For {each.objective}, {first} matters most (a forest explains {each.explained:.0%} of the variance)."
        )
    if values.trials < FEW_FOR_IMPORTANCE:
        parts.append(f"{values.trials} trials are few: take it as a hint.")
    if values.trials < len(view.trials):
        parts.append(f"From a random {MOST_FOR_IMPORTANCE:,} trials.")
    return " ".join(parts)


importance = Figure(
    name="importance",
    title="Which parameters matter",
    guide="Permutation importance (Breiman 2001) of a random forest, on trials that it was not fitted to (five folds; "
    "repeats stay together): how much its error grows when it is told wrong values of one parameter. Time counts "
    "by its logarithm.",
    values=importances,
    draw=_draw_importance,
    say=_say_importance,
)
