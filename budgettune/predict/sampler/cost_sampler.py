"""The sampler `cost`: the most hypervolume of time against accuracy for the least time."""

from __future__ import annotations

import secrets
import zlib
from collections.abc import Mapping
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
SPREAD_CANDIDATES = 1024  # all over the space; a power of two, as Sobol's sequence wants it
NEAR_CANDIDATES = 400  # around the front
STEP = 0.15  # of a candidate around the front, as a share of an axis


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
    make their neighbourhood less likely to be tried. The first points are those of a Sobol sequence. A point depends on
    the seed, the trial's number and what the storage holds: nothing is lost by a restart.

    Args:
        seed: of the study; None for one that no other sampler has.
        space: params to search; None takes those that all finished trials share.
        conditions: for params of the space that some points lack: which others they depend on, and for which values.
        max_seconds: longest training that shall be tried; None for any.
        total_seconds: that the study will take, None where that is open.
        trials: that the study will take, None where that is open.
        is_share: whether the second objective is an accuracy in [0, 1]; None where it is if it is maximised.
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
    ) -> None:
        self._seed = secrets.randbits(63) if seed is None else seed
        self._space = space
        self._conditions = conditions
        self._max_seconds = max_seconds
        self._total_seconds = total_seconds
        self._trials = trials
        self._is_share = is_share

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
        if len(history.seconds) < FIRST_TRIALS:  # a Sobol sequence of the study, each trial its own point of it
            sequence = qmc.Sobol(len(search_space), rng=np.random.default_rng(self._seed))
            if trial.number:  # scipy cannot go forward by nothing
                sequence.fast_forward(trial.number)
            return encoding.params(untried(encoding.snap(sequence.random(32)), history.tried)[0])
        rng = np.random.default_rng([self._seed, trial.number])
        is_share = is_rising if self._is_share is None else self._is_share
        model = ParetoModel(history, encoding, rng, self._max_seconds, is_share=is_share)
        spread = qmc.Sobol(len(search_space), rng=rng).random(SPREAD_CANDIDATES)
        near = moved(model.best[rng.integers(len(model.best), size=NEAR_CANDIDATES)], encoding, rng)
        candidates = untried(encoding.snap(np.vstack([spread, near])), history.tried)
        return encoding.params(candidates[np.argmax(model.scores(candidates, self._exponent(history)))])

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


def untried(candidates: Floats, tried: Floats) -> Floats:
    """Return the candidates that no trial has, or all of them where there is none."""
    known = {row.tobytes() for row in np.round(tried, 9) + 0.0}  # adding zero turns -0.0 into 0.0
    fresh = [row.tobytes() not in known for row in np.round(candidates, 9) + 0.0]
    return candidates[fresh] if any(fresh) else candidates
