"""How the search went, as plain values: hypervolume over trials and time, importance of parameters, cells of a map."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from budgettune.errors import NothingToDraw
from budgettune.records import TrialRecord
from budgettune.report.axes import Axis, Groups, grouped
from budgettune.report.runs import configuration_key
from budgettune.report.view import Overview, objectives
from budgettune.study.pareto import hypervolume_reference

FEWEST_FOR_IMPORTANCE = 10
FEW_FOR_IMPORTANCE = 40
MOST_FOR_IMPORTANCE = 1_000
FOLDS = 5
TREES = 100
SHUFFLES = 10
MOST_CELLS_ON_A_SIDE = 8


@dataclass(frozen=True)
class Progress:
    """Hypervolume after so many finished trials and their training seconds."""

    trials: int
    compute_seconds: float
    volume: float


@dataclass(frozen=True)
class History:
    """Each trial that made the hypervolume grow, and the last one; against a reference of (seconds, accuracy)."""

    steps: tuple[Progress, ...]
    reference: tuple[float, float]


def hypervolume_history(view: Overview) -> History:
    """Return how the hypervolume grew in order of completion.

    The reference is that of `front`: 1.1 times the slowest trial, at accuracy 0.
    """
    reference = hypervolume_reference([float(view.seconds.max())])
    in_order = sorted(view.trials, key=lambda trial: (trial.completed_at or "", trial.number))
    front: list[tuple[float, float]] = []
    steps: list[Progress] = []
    compute_seconds = volume = 0.0
    for count, point in enumerate(map(objectives, in_order), start=1):
        compute_seconds += point[0]
        gain = _join(front, point, reference)
        volume += gain
        if gain > 0 or count == len(in_order):
            steps.append(Progress(count, compute_seconds, volume))
    return History(tuple(steps), reference)


def _join(front: list[tuple[float, float]], point: tuple[float, float], reference: tuple[float, float]) -> float:
    """Put a point into a front (fastest first) and return the area that it adds; those it beats leave."""
    seconds, accuracy = point
    place = bisect_right(front, point)
    level = front[place - 1][1] if place else reference[1]
    if accuracy <= level:
        return 0.0
    area, left = 0.0, seconds
    while place < len(front) and front[place][1] <= accuracy:
        beaten_seconds, beaten_accuracy = front.pop(place)
        area += (beaten_seconds - left) * (accuracy - level)
        left, level = beaten_seconds, beaten_accuracy
    right = front[place][0] if place < len(front) else reference[0]
    # A point as fast as a less accurate one before it takes its place.
    if place and front[place - 1][0] == seconds:
        front.pop(place - 1)
        place -= 1
    front.insert(place, point)
    return area + (right - left) * (accuracy - level)


@dataclass(frozen=True)
class Importance:
    """How much worse a forest predicts an objective when it is told wrong values of one parameter.

    Attributes:
        objective: what is predicted.
        shares: of each parameter: growth of the squared error over the objective's variance.
        explained: share of the variance that the forest predicts of trials that it has not seen (R²).
    """

    objective: str
    shares: tuple[float, ...]
    explained: float


@dataclass(frozen=True)
class Importances:
    """Importance of each parameter for each objective, from `trials` trials."""

    axes: tuple[Axis, ...]
    objectives: tuple[Importance, ...]
    trials: int


@lru_cache(maxsize=1)  # the sentence and the figure of a page both ask
def importances(view: Overview) -> Importances:
    """Return how much each searched parameter matters for time and for accuracy.

    Permutation importance (Breiman 2001) of a random forest, on trials that the forest was not fitted to: five folds
    that keep repeats of a configuration together. Time is predicted by its logarithm.

    Raises:
        NothingToDraw: where nothing was searched, or too few configurations are finished.
    """
    if not view.axes:
        raise NothingToDraw("One configuration was run: no parameter varied.")
    rows = np.arange(len(view.trials))
    if len(rows) > MOST_FOR_IMPORTANCE:
        rows = np.random.default_rng(0).choice(rows, MOST_FOR_IMPORTANCE, replace=False)
    trials = [view.trials[row] for row in rows]
    _, groups = np.unique([configuration_key(trial) for trial in trials], return_inverse=True)
    if groups.max() + 1 < FEWEST_FOR_IMPORTANCE:
        raise NothingToDraw(
            f"{groups.max() + 1} configurations are finished: fewer than {FEWEST_FOR_IMPORTANCE} "
            "say nothing about importance."
        )
    inputs = np.column_stack([np.nan_to_num(axis.codes(trials), nan=-1.0) for axis in view.axes])
    seconds, accuracy = view.seconds[rows], view.accuracy[rows]
    found = (
        _importance("training time", inputs, np.log(np.maximum(seconds, 1e-9)), groups),
        _importance("accuracy", inputs, accuracy, groups),
    )
    return Importances(view.axes, found, len(trials))


def _importance(objective: str, inputs: np.ndarray, target: np.ndarray, groups: np.ndarray) -> Importance:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import GroupKFold

    rng = np.random.default_rng(0)
    error, shuffled_error = 0.0, np.zeros(inputs.shape[1])
    for seen, unseen in GroupKFold(FOLDS).split(inputs, target, groups):
        forest = RandomForestRegressor(TREES, random_state=0).fit(inputs[seen], target[seen])
        error += _squared_error(forest, inputs[unseen], target[unseen])
        for column in range(inputs.shape[1]):
            told_wrong = np.tile(inputs[unseen], (SHUFFLES, 1))
            told_wrong[:, column] = rng.choice(inputs[:, column], len(told_wrong))
            shuffled_error[column] += _squared_error(forest, told_wrong, np.tile(target[unseen], SHUFFLES)) / SHUFFLES
    variance = float(np.sum((target - target.mean()) ** 2))
    if variance == 0:
        return Importance(objective, (0.0,) * inputs.shape[1], 0.0)
    shares = np.maximum(0.0, (shuffled_error - error) / variance)
    return Importance(objective, tuple(shares.tolist()), 1 - error / variance)


def _squared_error(forest: Any, inputs: np.ndarray, target: np.ndarray) -> float:
    return float(np.sum((forest.predict(inputs) - target) ** 2))


@dataclass(frozen=True)
class AccuracyMap:
    """Mean accuracy of the trials in each cell of two parameters, NaN where there is none.

    Attributes:
        mean: shape (rows, columns), of (rows of `down`, labels of `across`).
        count: trials in each cell, the same shape.
    """

    across: Groups
    down: Groups
    mean: np.ndarray
    count: np.ndarray


def accuracy_map(view: Overview) -> AccuracyMap:
    """Return mean accuracy over the parameters of marker and colour.

    Raises:
        NothingToDraw: where fewer than two parameters varied.
    """
    if view.marker is None or view.colour is None:
        raise NothingToDraw("A map needs two parameters that varied.")
    across = _cells(view.marker, view.trials)
    down = _cells(view.colour, view.trials)
    shape = (len(down.labels), len(across.labels))
    place = down.members * shape[1] + across.members
    count = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
    total = np.bincount(place, weights=view.accuracy, minlength=shape[0] * shape[1]).reshape(shape)
    with np.errstate(invalid="ignore"):
        return AccuracyMap(across, down, total / count, count)


def _cells(axis: Axis, trials: Sequence[TrialRecord]) -> Groups:
    return grouped(axis, trials, MOST_CELLS_ON_A_SIDE)


def best_cell(cells: AccuracyMap) -> tuple[str, str, float]:
    """Return the labels (across, down) of the most accurate cell, and its mean accuracy."""
    row, column = np.unravel_index(np.nanargmax(cells.mean), cells.mean.shape)
    return cells.across.labels[column], cells.down.labels[row], float(cells.mean[row, column])
