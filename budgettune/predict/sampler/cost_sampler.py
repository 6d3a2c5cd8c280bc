"""The sampler `cost`: the most hypervolume of time against accuracy for the least time."""

from __future__ import annotations

import math
import secrets
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.search_space import intersection_search_space
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from scipy.stats import qmc

from budgettune.errors import UsageError
from budgettune.predict.regression import Floats, on_one_thread
from budgettune.predict.sampler.acquisition import ParetoModel
from budgettune.predict.sampler.encoding import Encoding
from budgettune.predict.sampler.history import History, history_of
from budgettune.spec.conditions import Conditions

FIRST_TRIALS = 3  # finished, before a model is worth its name
FIRST_POINTS = 256  # that those to begin with are taken from; a power of two, as Sobol's sequence wants it
FIRST_REACH = 1 / 3  # of these points, from the centre, as a share of the way to the edge
CHEAPEST = 1 / 3  # of these points, where their cost is known
WARY_TRIALS = 10  # finished, before a model of costs is trusted far from all of them
WARY_STRIDE = 0.25  # of an axis, that a trial is away at most from some finished one until then
SPREAD_CANDIDATES = 1024  # all over the space; a power of two, as Sobol's sequence wants it
NEAR_CANDIDATES = 400  # around the front
STEP = 0.15  # of a candidate around the front, as a share of an axis


@dataclass(frozen=True)
class Prospect:
    """What the next trial is expected to bring: of all candidates, that of the most gain per second."""

    gain: float  # of score, in the mean over budgets
    seconds: float
    is_settled: bool  # whether nothing runs or waits whose result may change this


class CostSampler(BaseSampler):
    """Expected hypervolume improvement per predicted second.

    Two Gaussian processes learn the logarithm of the seconds and of the error (1 - accuracy; of an objective that is no
    share, what lies between its value and the best, and as much again as the middle one lies behind the best), and one
    more by how much trials exceed each constraint of the study. Of many candidates, all over the space and around the
    front, the one with the largest

        expected hypervolume improvement · chance to end well, within constraints / predicted seconds ^ exponent

    runs next, as in "expected improvement per second" (Snoek, Larochelle and Adams, 2012), with an exponent that cools
    from 1 to 0 as the study uses up its trials or its seconds (Lee, Perrone, Archambeau and Seeger, 2020).

    Trials that run count as if they had come out as predicted, those stopped early as they were forecast. Failed trials
    make their neighbourhood less likely to be tried. A point depends on the seed, the trial's number and what the
    storage holds: nothing is lost by a restart.

    The search begins in the middle. What a trial costs multiplies along the axes, so that the centre costs about the
    median, and a point drawn at random the mean, which rare dear ones rule. The first trial is the centre of all axes
    with an order, the next ones are points of a Sobol sequence drawn towards it; where something tells beforehand what
    points cost, they are the cheapest third of these (the cost-effective initial design of Lee et al., 2020). While few
    have finished, which tells little of costs far away, no trial goes far from all of them.

    With a price no trial begins that is not expected to be worth its seconds, as long as any is, and `prospect` says
    when none is (the stopping rule of Xie et al., 2025, with hypervolume for the gain).

    Args:
        seed: of the study; None for one that no other sampler has.
        space: params to search; None takes those that all finished trials share.
        conditions: for params of the space that some points lack: which others they depend on, and for which values.
        max_seconds: longest training that shall be tried; None for any.
        total_seconds: that the study will take, None where that is open.
        trials: that the study will take, None where that is open.
        is_share: whether the second objective is an accuracy in [0, 1]; None where it is if it is maximised.
        known_cost: what a point costs as far as that is known before anything ran, in any unit; None where nothing is.
        price_seconds: that 1 of the second objective is worth, in the mean over budgets; None for any.
    """

    def __init__(
        self,
        seed: int | None = None,
        *,
        space: Mapping[str, BaseDistribution] | None = None,
        conditions: Conditions = MappingProxyType({}),
        max_seconds: float | None = None,
        total_seconds: float | None = None,
        trials: int | None = None,
        is_share: bool | None = None,
        known_cost: Callable[[Mapping[str, Any]], float] | None = None,
        price_seconds: float | None = None,
    ) -> None:
        self._seed = secrets.randbits(63) if seed is None else seed
        self._space = space
        self._conditions = conditions
        self._max_seconds = max_seconds
        self._total_seconds = total_seconds
        self._trials = trials
        self._is_share = is_share
        self._known_cost = known_cost
        self._price_seconds = price_seconds

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        if len(study.directions) != 2 or study.directions[0] is not StudyDirection.MINIMIZE:
            raise UsageError(
                "sampler cost: the study must minimise train_seconds first, and have one more objective: "
                "create it with directions=['minimize', 'maximize'], or choose another sampler"
            )

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return dict(self._space or intersection_search_space(study.get_trials(deepcopy=False)))

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw a param that is not drawn with the others at random."""
        rng = np.random.default_rng([self._seed, trial.number, zlib.crc32(param_name.encode())])
        return Encoding({param_name: param_distribution}).params(rng.random(1))[param_name]

    @on_one_thread
    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        if not search_space:
            return {}
        encoding = Encoding(search_space, self._conditions)
        is_rising = study.directions[1] is StudyDirection.MAXIMIZE
        history = history_of(study.get_trials(deepcopy=False), encoding, trial.number, is_rising=is_rising)
        if len(history.seconds) < FIRST_TRIALS:
            points = np.roll(self._first_points(encoding), -trial.number, axis=0)
            return encoding.params(untried(points, history.tried)[0])
        candidates, gains, seconds = self._judged(history, encoding, trial.number, is_rising=is_rising)
        scores = gains - self._exponent(history) * seconds
        if self._price_seconds is not None:
            is_worth_it = gains + math.log(self._price_seconds) > seconds
            scores[~is_worth_it] -= math.inf if is_worth_it.any() else 0.0
        return encoding.params(candidates[np.argmax(scores)])

    @on_one_thread
    def prospect(self, study: optuna.Study) -> Prospect | None:
        """Return what the next trial is expected to bring; None before enough have finished to tell.

        Every process gets the same, as long as no trial begins or ends.
        """
        trials, is_rising = study.get_trials(deepcopy=False), study.directions[1] is StudyDirection.MAXIMIZE
        encoding = Encoding(self._space or intersection_search_space(trials), self._conditions)
        history = history_of(trials, encoding, -1, is_rising=is_rising)
        if len(history.seconds) < WARY_TRIALS:
            return None
        _, gains, seconds = self._judged(history, encoding, len(trials), is_rising=is_rising)
        best = np.argmax(gains - seconds)
        return Prospect(math.exp(gains[best]), math.exp(seconds[best]), is_settled=not len(history.pending))

    def _first_points(self, encoding: Encoding) -> Floats:
        """Return the positions of the points to begin with, in their order: float64[points, params]."""
        points = qmc.Sobol(len(encoding.space), rng=np.random.default_rng(self._seed)).random(FIRST_POINTS)
        points[0] = np.where(encoding.is_ordered, 0.5, points[0])
        points = np.where(encoding.is_ordered, 0.5 + FIRST_REACH * (points - 0.5), points)
        points = encoding.snap(points)
        if self._known_cost is None:
            return points
        costs = [self._known_cost(encoding.params(point)) for point in points]
        cheapest = np.argsort(costs, kind="stable")[: round(CHEAPEST * FIRST_POINTS)]
        return points[np.sort(cheapest)]

    def _judged(
        self, history: History, encoding: Encoding, number: int, *, is_rising: bool
    ) -> tuple[Floats, Floats, Floats]:
        """Return candidates, and the logarithms of the gain and of the seconds to expect of each."""
        rng = np.random.default_rng([self._seed, number])
        is_share = is_rising if self._is_share is None else self._is_share
        model = ParetoModel(history, encoding, rng, self._max_seconds, is_share=is_share)
        spread = qmc.Sobol(len(encoding.space), rng=rng).random(SPREAD_CANDIDATES)
        near = moved(model.best[rng.integers(len(model.best), size=NEAR_CANDIDATES)], encoding, rng)
        candidates = untried(encoding.snap(np.vstack([spread, near])), history.tried)
        if len(history.seconds) < WARY_TRIALS:
            candidates = within_a_stride(candidates, history.finished, encoding)
        return candidates, *model.expected(candidates)

    def _exponent(self, history: History) -> float:
        """Return what the predicted seconds are raised to: less, the more of the study is over."""
        trials = len(history.seconds)
        shares = []
        if self._trials is not None:
            shares.append(trials / self._trials)
        if self._total_seconds is not None:
            shares.append(float(history.seconds.sum()) / self._total_seconds)
        return max(0.0, 1.0 - max(shares)) if shares else 1 / (1 + trials / 200)


def moved(positions: Floats, encoding: Encoding, rng: np.random.Generator) -> Floats:
    """Return the same points with one or a few params changed: by a step along a line, to any choice of a list."""
    points, params = positions.shape
    if (is_inactive := np.isnan(positions)).any():  # what a change makes active begins anywhere
        positions = np.where(is_inactive, rng.random(positions.shape), positions)
    changes = rng.random((points, params)) < 0.5 / params
    changes[np.arange(points), rng.integers(params, size=points)] = True
    steps = np.clip(positions + rng.normal(0.0, STEP, positions.shape), 0.0, 1.0)
    return np.where(changes, np.where(encoding.is_ordered, steps, rng.random(positions.shape)), positions)


def within_a_stride(candidates: Floats, finished: Floats, encoding: Encoding) -> Floats:
    """Return the candidates near to a finished trial in every axis with an order, or all where there is none."""
    reach = np.maximum(WARY_STRIDE, encoding.strides) + 1e-9
    away = np.nan_to_num(np.abs(candidates[:, None, :] - finished))
    is_near = np.all((away <= reach) | ~encoding.is_ordered, axis=2).any(axis=1)
    return candidates[is_near] if is_near.any() else candidates


def untried(candidates: Floats, tried: Floats) -> Floats:
    """Return the candidates that no trial has, or all of them where there is none."""
    known = {row.tobytes() for row in np.round(tried, 9) + 0.0}  # adding zero turns -0.0 into 0.0
    fresh = [row.tobytes() not in known for row in np.round(candidates, 9) + 0.0]
    return candidates[fresh] if any(fresh) else candidates
