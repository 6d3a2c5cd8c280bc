"""How trials trained, as plain values: curves, phases, repeats, pruning asked for and done."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from budgettune.errors import NothingToDraw
from budgettune.records import PhaseSeconds, TrialRecord
from budgettune.report.axes import grouped, is_number
from budgettune.report.view import Overview, objectives, params_text
from budgettune.spec.documents import full_key

MOST_CURVES = 40
MOST_FRONT_CURVES = 10
MOST_BARS = 24
MOST_BAR_GROUPS = 12
MOST_SPREADS = 200


@dataclass(frozen=True)
class Curve:
    """Accuracy of one trial over its training seconds; points that were not evaluated are left out."""

    number: int
    seconds: tuple[float, ...]
    accuracy: tuple[float, ...]
    is_on_front: bool


@dataclass(frozen=True)
class CurvePoint:
    """A trial as it was after one epoch."""

    seconds: float
    accuracy: float
    number: int
    epoch: int


@dataclass(frozen=True)
class Curves:
    """Curves of a sample of trials, and what all of them reached on the way.

    Attributes:
        shown: the ends of the front and trials spread evenly over the ranking by accuracy.
        total: trials that have a curve.
        front: points after any epoch of any trial that no other point beats, fastest first.
    """

    shown: tuple[Curve, ...]
    total: int
    front: tuple[CurvePoint, ...]


def curves(view: Overview) -> Curves:
    """Return the accuracy curves of a study.

    Raises:
        NothingToDraw: where no trial has been evaluated more than once.
    """
    evaluated = [trial for trial in view.trials if sum(epoch.accuracy is not None for epoch in trial.curve) > 1]
    if not evaluated:
        raise NothingToDraw(
            "Accuracy was evaluated at the end of each trial only: train.evaluate_every = 1 draws curves."
        )
    on_front = {trial.number for trial in view.answers}
    shown = tuple(_curve(trial, trial.number in on_front) for trial in _sample(evaluated, on_front))
    return Curves(shown, len(evaluated), _front_of_curves(evaluated))


def _curve(trial: TrialRecord, is_on_front: bool) -> Curve:
    points = [(epoch.train_seconds, epoch.accuracy) for epoch in trial.curve if epoch.accuracy is not None]
    return Curve(trial.number, tuple(p[0] for p in points), tuple(p[1] for p in points), is_on_front)


def _sample(trials: Sequence[TrialRecord], on_front: set[int]) -> list[TrialRecord]:
    """Return at most MOST_CURVES trials: some of the front, the rest evenly from the ranking by accuracy."""
    if len(trials) <= MOST_CURVES:
        return list(trials)
    best = [trial for trial in trials if trial.number in on_front]
    best = _evenly(sorted(best, key=objectives), MOST_FRONT_CURVES)
    others = sorted((t for t in trials if t.number not in on_front), key=lambda trial: objectives(trial)[1])
    return [*_evenly(others, MOST_CURVES - len(best)), *best]


def _evenly(items: list[TrialRecord], most: int) -> list[TrialRecord]:
    """Return that many items at even distances, the first and the last among them."""
    if len(items) <= most:
        return items
    return [items[round(place)] for place in np.linspace(0, len(items) - 1, most)]


def _front_of_curves(trials: Sequence[TrialRecord]) -> tuple[CurvePoint, ...]:
    points = [
        (epoch.train_seconds, epoch.accuracy, trial.number, epoch.epoch)
        for trial in trials
        for epoch in trial.curve
        if epoch.accuracy is not None
    ]
    seconds, accuracy = np.array([point[:2] for point in points]).T
    order = np.lexsort((-accuracy, seconds))
    best_before = np.concatenate([[-math.inf], np.maximum.accumulate(accuracy[order])[:-1]])
    return tuple(CurvePoint(*points[row]) for row in order[accuracy[order] > best_before])


@dataclass(frozen=True)
class PhaseBar:
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
        by_time = sorted(trials, key=objectives)
        return tuple(_bar(f"{trial.number}", [trial]) for trial in by_time)
    groups = grouped(view.marker, trials, MOST_BAR_GROUPS)
    name = f"{groups.axis.label} " if groups.axis else ""
    members = [(label, [trials[row] for row in groups.rows(index)]) for index, label in enumerate(groups.labels)]
    return tuple(_bar(f"{name}{label}", some) for label, some in members if some)


def _bar(label: str, trials: Sequence[TrialRecord]) -> PhaseBar:
    phases = [trial.phases for trial in trials if trial.phases is not None]
    means = {f.name: statistics.fmean(getattr(each, f.name) for each in phases) for f in fields(PhaseSeconds)}
    return PhaseBar(label, len(trials), PhaseSeconds(**means))


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation over the repeats of one configuration."""

    label: str
    repeats: int
    seconds: float
    seconds_deviation: float
    accuracy: float
    accuracy_deviation: float


def spreads(view: Overview) -> tuple[Spread, ...]:
    """Return the spread of each configuration that ran more than once, most accurate first.

    Raises:
        NothingToDraw: where none did.
    """
    repeated = [trials for trials in configurations(view).values() if len(trials) > 1]
    if not repeated:
        raise NothingToDraw(
            "Every configuration ran once, so nothing tells how much of a difference is chance: "
            "`study create --repeats 3` does."
        )
    found = [_spread(trials, view) for trials in repeated]
    return tuple(sorted(found, key=lambda spread: -spread.accuracy))


def configurations(view: Overview) -> dict[str, list[TrialRecord]]:
    """Return the trials of each configuration: those whose parameters are equal."""
    found: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for trial in view.trials:
        found[configuration_key(trial)].append(trial)
    return dict(found)


def configuration_key(trial: TrialRecord) -> str:
    """Return what trials of one configuration share."""
    return repr(sorted(trial.params.items()))


def _spread(trials: Sequence[TrialRecord], view: Overview) -> Spread:
    seconds, accuracy = zip(*map(objectives, trials), strict=True)
    return Spread(
        label=params_text(trials[0], view.axes),
        repeats=len(trials),
        seconds=statistics.fmean(seconds),
        seconds_deviation=statistics.stdev(seconds),
        accuracy=statistics.fmean(accuracy),
        accuracy_deviation=statistics.stdev(accuracy),
    )


@dataclass(frozen=True)
class PruningDone:
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
    told = [t for t in view.trials if t.keep_fraction is not None and is_number(t.params.get(axis.name))]
    if not told:
        raise NothingToDraw("No trial recorded which share of the samples it kept: trials that budgettune trained do.")
    realised = 1 - np.array([trial.keep_fraction for trial in told], dtype=float)
    return PruningDone(axis.codes(told), realised, tuple(trial.number for trial in told))
