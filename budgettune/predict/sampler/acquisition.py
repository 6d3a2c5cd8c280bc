"""The gain to expect of a next trial: hypervolume of time against accuracy, and the chance that it ends well."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import log_ndtr, ndtr

from budgettune.predict.regression import Floats, Ints
from budgettune.predict.sampler.encoding import Encoding
from budgettune.predict.sampler.gaussian_process import GaussianProcess
from budgettune.predict.sampler.history import History

SMALLEST = 1e-300
REACH = 0.25  # of a failure, as a share of an axis
MOST_HALVINGS = 1_000.0  # floating point ends there

MOST_FITTED = 100  # trials that hyperparameters are fitted to
MOST_CONDITIONED = 500  # trials that predictions are conditioned on
GAIN_OFFSET = 0.02  # added to errors before the logarithm of a gain: a search need not tell smaller ones apart
LEAST_SECONDS = 1e-6
USUAL_SPREAD = 2.0  # of the logarithm of seconds all over a space: from a seventh to seven times the middle one
ROOM = math.log(2.0)  # beyond the slowest trial, for slower ones that are more accurate


def front(costs: Floats, gains: Floats) -> Ints:
    """Return the indices of the trials that none is both cheaper and better than, by rising cost."""
    order = np.lexsort((-gains, costs))
    best = np.maximum.accumulate(np.concatenate([[-np.inf], gains[order]]))
    return order[best[1:] > best[:-1]]


def expected_excess(mean: Floats, deviation: Floats, thresholds: Floats) -> Floats:
    """Return E[max(0, Y - threshold)] of normal Y, float64[points, thresholds]."""
    gap = mean[:, None] - thresholds
    z = gap / deviation[:, None]
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    excess: Floats = np.maximum(gap * ndtr(z) + deviation[:, None] * density, 0.0)
    return excess


def expected_error_saved(mean: Floats, deviation: Floats, thresholds: Floats) -> Floats:
    """Return E[max(0, exp(-threshold) - exp(-Y))] of normal Y, float64[points, thresholds].

    Y is the negative logarithm of an error, so this is how far the error falls below another one: the price of a put
    option on what is log-normal (Black and Scholes, 1973).
    """
    z = (mean[:, None] - thresholds) / deviation[:, None]
    expected = np.exp(deviation**2 / 2 - mean)[:, None]
    saved: Floats = np.maximum(np.exp(-thresholds) * ndtr(z) - expected * ndtr(z - deviation[:, None]), 0.0)
    return saved


def expected_hypervolume_improvement(
    cost: tuple[Floats, Floats],
    gain: tuple[Floats, Floats],
    front_costs: Floats,
    front_gains: Floats,
    reference: tuple[float, float],
) -> Floats:
    """Return the expected growth of the area of cost and error between a front and a reference point, float64[points].

    The two outputs are independent normals, and the result is exact. Between two neighbours of the front the error to
    beat is constant, so each such strip adds the product of two expectations: of the strip's width that lies beyond
    the new cost, and of the error saved (the strips of Emmerich, Deutz and Klinkenberg, 2011, with an objective whose
    logarithm is normal).

    Args:
        cost: means and standard deviations of the output to minimise, float64[points] each.
        gain: the same of the negative logarithm of the error.
        front_costs: float64[front], rising.
        front_gains: float64[front], rising.
        reference: cost and gain that a point must beat to count.
    """
    counts = (front_costs < reference[0]) & (front_gains > reference[1])
    edges = np.append(front_costs[counts], reference[0])
    floors = np.append(reference[1], front_gains[counts])
    widths = np.diff(expected_excess(-cost[0], cost[1], -edges), axis=1, prepend=0.0)
    improvement: Floats = np.maximum((widths * expected_error_saved(*gain, floors)).sum(axis=1), SMALLEST)
    return improvement


def chance_to_end_well(candidates: Floats, finished: Floats, failed: Floats) -> Floats:
    """Return how likely a trial at each candidate is to give a result, float64[candidates].

    Trials count by their nearness (a Gaussian of width REACH). A failure halves the chance of its own point and leaves
    distant ones alone, several multiply; each success beside it halves the odds against. So a region that always fails
    is soon worth nothing, whatever it promises, and failures by accident are forgiven. All are float64[n, features].
    """
    good, bad = (
        np.exp(-0.5 * cdist(candidates, trials, "sqeuclidean") / REACH**2).sum(axis=1) if len(trials) else 0.0
        for trials in (finished, failed)
    )
    odds_against = np.exp2(np.minimum(bad, MOST_HALVINGS) - good) - np.exp2(-good)
    return np.broadcast_to(1.0 / (1.0 + odds_against), len(candidates))


def _gains(scores: Floats, is_share: bool) -> Floats:
    """Return the negative logarithms of errors, float64[scores].

    A score that is no share has an error by the best one: how far it lies behind it, and as much again as the middle
    one does, which is what a trial may yet be better by.
    """
    if is_share:
        return -np.log(1.0 + GAIN_OFFSET - np.clip(scores, 0.0, 1.0))
    best = float(scores.max())
    room = best - float(np.median(scores)) or abs(best) or 1.0
    return -np.log(best - scores + room)


def _front_within(costs: Floats, gains: Floats, is_allowed: NDArray[np.bool_]) -> Ints:
    """Return the front of the trials within the study's constraints, or of all where none is."""
    counting = np.flatnonzero(is_allowed) if is_allowed.any() else np.arange(len(costs))
    members: Ints = counting[front(costs[counting], gains[counting])]
    return members


class ParetoModel:
    """Two Gaussian processes: of cost, the logarithm of the seconds, and of gain, the negative logarithm of the error.

    Both are modelled as logarithms, where their differences are alike all over the space. What a trial may gain is
    counted in logarithm of time and in accuracy itself: half the time is worth the same anywhere, and so is a point of
    accuracy. Counted in logarithm of the error, the last tenths of a point would outweigh whole points elsewhere.

    Args:
        history: with at least one finished trial.
        encoding: of the search space.
        rng: draws the trials that a large study is cut to.
        max_seconds: nothing is gained beyond; None for no limit.
        is_share: whether scores are accuracies in [0, 1].
    """

    def __init__(
        self,
        history: History,
        encoding: Encoding,
        rng: np.random.Generator,
        max_seconds: float | None = None,
        *,
        is_share: bool = True,
    ) -> None:
        self._encoding, self._history = encoding, history
        self._limit = math.inf if max_seconds is None else math.log(max_seconds)
        costs = np.log(np.maximum(history.seconds, LEAST_SECONDS))
        gains = _gains(history.scores, is_share)
        members = _front_within(costs, gains, history.is_allowed)
        others = np.setdiff1d(rng.permutation(len(costs)), members, assume_unique=True)
        kept = np.concatenate([members, others])[:MOST_CONDITIONED]  # the front, and others at random
        self._costs, pending_costs = self._process(costs, kept, rng, trend=True, usual_spread=USUAL_SPREAD)
        self._gains, pending_gains = self._process(gains, kept, rng, trend=False)
        self._excesses = [self._process(each, kept, rng, trend=True)[0] for each in history.excesses.T]
        costs, gains = np.concatenate([costs, pending_costs]), np.concatenate([gains, pending_gains])
        may_run = np.ones(len(pending_costs), dtype=bool)
        members = _front_within(costs, gains, np.concatenate([history.is_allowed, may_run]))
        self._front = costs[members], gains[members]
        self._reference = min(self._limit, float(costs.max()) + ROOM), float(gains.min())
        self.best = np.vstack([history.finished, history.pending])[members]  # float64[front, params], positions

    def _process(
        self, outputs: Floats, kept: Ints, rng: np.random.Generator, *, trend: bool, usual_spread: float | None = None
    ) -> tuple[GaussianProcess, Floats]:
        """Return the process after all trials, pending ones as it predicts them, and what it predicts for these."""
        features = self._encoding.features(self._history.finished)[kept]
        fitted = rng.permutation(len(kept))[:MOST_FITTED]
        groups = self._encoding.groups
        process = GaussianProcess.fitted(
            features, outputs[kept], groups, fitted, trend=trend, usual_spread=usual_spread
        )
        return process.believing(self._encoding.features(self._history.pending))

    def expected(self, positions: Floats) -> tuple[Floats, Floats]:
        """Return the logarithms of the gain and of the seconds to expect of each point, float64[points] each.

        The gain is that of the front's score in the mean over budgets, evenly spread in their logarithm from the
        fastest trial to beyond the slowest. Positions are float64[points, params].
        """
        features = self._encoding.features(positions)
        finished, failed = (self._encoding.features(each) for each in (self._history.finished, self._history.failed))
        mean, deviation = self._costs.predict(features)
        gain = self._gains.predict(features)
        improvement = expected_hypervolume_improvement((mean, deviation), gain, *self._front, self._reference)
        chance = np.log(chance_to_end_well(features, finished, failed)) + log_ndtr((self._limit - mean) / deviation)
        for process in self._excesses:  # as in constrained expected improvement (Gardner et al., 2014)
            excess, spread = process.predict(features)
            chance += log_ndtr(-excess / spread)
        gains: Floats = np.log(improvement) + chance - math.log(max(ROOM, self._reference[0] - self._front[0].min()))
        seconds: Floats = mean + deviation**2 / 2
        return gains, seconds
