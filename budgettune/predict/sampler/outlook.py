"""What a study may expect of points that it has not run: seconds, error, and what they would add to its front."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from budgettune.predict.sampler.acquisition import chance_to_end_well, expected_hypervolume_improvement, front
from budgettune.predict.sampler.encoding import Encoding, Floats
from budgettune.predict.sampler.gaussian_process import GaussianProcess
from budgettune.predict.sampler.history import Evidence

MOST_FITTED = 100  # trials that hyperparameters are fitted to
MOST_CONDITIONED = 500  # trials that predictions are conditioned on
LEAST_ERROR = 0.02  # smaller ones are hardly told apart
LEAST_SECONDS = 1e-6
ROOM = math.log(2.0)  # beyond the slowest trial, for slower ones that are more accurate


class Outlook:
    """Two Gaussian processes: of cost, the logarithm of the seconds, and of gain, the negative logarithm of the error.

    Both are modelled as logarithms, where their differences are alike all over the space. What a trial may gain is
    counted in logarithm of time and in accuracy itself: half the time is worth the same anywhere, and so is a point of
    accuracy. Counted in logarithm of the error, the last tenths of a point would outweigh whole points elsewhere.

    Args:
        evidence: with at least one finished trial.
        encoding: of the search space.
        rng: draws the trials that a large study is cut to.
        max_seconds: nothing is gained beyond; None for no limit.

    Attributes:
        best: float64[front, params], positions of the trials that none is both faster and more accurate than.
    """

    def __init__(
        self, evidence: Evidence, encoding: Encoding, rng: np.random.Generator, max_seconds: float | None = None
    ) -> None:
        self._encoding, self._evidence = encoding, evidence
        self._limit = math.inf if max_seconds is None else math.log(max_seconds)
        costs = np.log(np.maximum(evidence.seconds, LEAST_SECONDS))
        gains = -np.log(1.0 + LEAST_ERROR - np.clip(evidence.accuracy, 0.0, 1.0))
        kept = _kept(front(costs, gains), len(costs), rng)
        self._costs, pending_costs = self._process(costs, kept, rng, trend=True)
        self._gains, pending_gains = self._process(gains, kept, rng, trend=False)
        costs, gains = np.concatenate([costs, pending_costs]), np.concatenate([gains, pending_gains])
        members = front(costs, gains)
        self._front = costs[members], gains[members]
        self._reference = min(self._limit, float(costs.max()) + ROOM), float(gains.min())
        self.best = np.vstack([evidence.finished, evidence.pending])[members]

    def _process(
        self, outputs: Floats, kept: NDArray[np.int64], rng: np.random.Generator, *, trend: bool
    ) -> tuple[GaussianProcess, Floats]:
        """Return the process after all trials, pending ones as it predicts them, and what it predicts for these."""
        features = self._encoding.features(self._evidence.finished)[kept]
        fitted = rng.permutation(len(kept))[:MOST_FITTED]
        process = GaussianProcess.fitted(features, outputs[kept], self._encoding.groups, fitted, trend=trend)
        return process.believing(self._encoding.features(self._evidence.pending))

    def scores(self, positions: Floats, exponent: float) -> Floats:
        """Return the logarithm of the gain to expect of each point per second to the power of the exponent.

        Args:
            positions: float64[points, params].
            exponent: 1 for gain per second, 0 for gain whatever it costs.
        """
        features = self._encoding.features(positions)
        finished, failed = (self._encoding.features(each) for each in (self._evidence.finished, self._evidence.failed))
        mean, deviation = self._costs.predict(features)
        gain = self._gains.predict(features)
        improvement = expected_hypervolume_improvement((mean, deviation), gain, *self._front, self._reference)
        chance = np.log(chance_to_end_well(features, finished, failed)) + log_ndtr((self._limit - mean) / deviation)
        scores: Floats = np.log(improvement) + chance - exponent * (mean + deviation**2 / 2)
        return scores


def _kept(members: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return which of so many trials predictions are conditioned on: the front, and others at random."""
    others = np.setdiff1d(rng.permutation(count), members, assume_unique=True)
    return np.concatenate([members, others])[:MOST_CONDITIONED]
