"""Regression with a trend, a smooth remainder, what is a configuration's own, and noise: one exact Gaussian model.

An observation is

    value = trend · coefficients + smooth(axes) + own[id] + noise

with Gaussian priors on all four: coefficients have means and deviations of their own, `smooth` is a Gaussian process
(Rasmussen and Williams 2006, chapter 2, with the explicit basis of section 2.7), `own` is what only one configuration
has, and the noise may be correlated, as that of points on one curve is. Libraries' regressors have no place for the
first, the third and the last, so the few lines of algebra are here.

Where a model has a parameter that enters nonlinearly, it is fitted once for each of several values, and the fits speak
with the weight of their evidence (`Average`): an interval then holds what the shape of the model leaves open.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

P = ParamSpec("P")
R = TypeVar("R")

LEAST_CALIBRATED = 3  # configurations
CALIBRATION_WEIGHT = 8.0  # configurations that a model's own variances are worth against what leaving out says
LEAST_CALIBRATION = 0.7
LARGEST_SURPRISE = 9.0  # variances that one configuration counts at most
_JITTER = 1e-9
_LEAST_WEIGHT = 1e-3  # shapes below it change nothing


def on_one_thread(function: Callable[P, R]) -> Callable[P, R]:
    """Have linear algebra within a function use one thread.

    For matrices of a hundred rows a second thread gains nothing, and where another process has its core the first one
    spins until it comes back: seven times the seconds, measured.
    """
    wrapped: Callable[P, R] = threadpool_limits.wrap(limits=1, user_api="blas")(function)
    return wrapped


@dataclass(frozen=True)
class Inputs:
    """What observations or candidates look like."""

    trend: Floats  # float64[n, d], features of the trend
    axes: Floats  # float64[n, k], places for the smooth remainder, in length scales
    ids: Ints  # int64[n], equal where it is the same configuration


@dataclass(frozen=True)
class Prior:
    """What is believed before anything is observed; deviations in the unit of the values."""

    means: Floats  # float64[d], of the trend's coefficients
    deviations: Floats  # float64[d], likewise
    smooth: float  # of the smooth remainder
    own: float  # of what only one configuration has

    def covariance(self, one: Inputs, other: Inputs) -> Floats:
        """Return the covariance of two sets of noise-free values: float64[len(one), len(other)]."""
        trend: Floats = (one.trend * self.deviations**2) @ other.trend.T
        alike = one.ids[:, None] == other.ids[None, :]
        squares = (one.axes**2).sum(1)[:, None] + (other.axes**2).sum(1)[None, :] - 2 * one.axes @ other.axes.T
        smooth = self.smooth**2 * np.exp(-0.5 * np.maximum(squares, 0.0))
        covariance: Floats = trend + smooth + self.own**2 * alike
        return covariance

    def variance(self, inputs: Inputs) -> Floats:
        """Return the variance of each noise-free value: float64[n]."""
        trend: Floats = (inputs.trend**2) @ self.deviations**2
        return trend + self.smooth**2 + self.own**2


class Posterior:
    """A prior after observations.

    The prior is of the noise-free values, `values` are float64[n], and `noise` is their covariance, float64[n, n].
    """

    def __init__(self, prior: Prior, inputs: Inputs, values: Floats, noise: Floats) -> None:
        self.prior, self.inputs, self.values = prior, inputs, values
        covariance = prior.covariance(inputs, inputs) + noise
        covariance[np.diag_indices_from(covariance)] += _JITTER
        self._lower = cholesky(covariance, lower=True)
        self._misfit = values - inputs.trend @ prior.means
        self._weights = cho_solve((self._lower, True), self._misfit)

    @property
    def log_evidence(self) -> float:
        """Log density of the observations under the prior, up to a constant that is the same for all priors."""
        return float(-0.5 * self._misfit @ self._weights - np.log(np.diag(self._lower)).sum())

    def predict(self, inputs: Inputs) -> tuple[Floats, Floats]:
        """Return mean and variance of noise-free values: float64[n] each."""
        cross = self.prior.covariance(inputs, self.inputs)
        mean = inputs.trend @ self.prior.means + cross @ self._weights
        explained = solve_triangular(self._lower, cross.T, lower=True)
        return mean, np.maximum(self.prior.variance(inputs) - (explained**2).sum(0), 0.0)

    @cached_property
    def _precision(self) -> Floats:
        inverse: Floats = cho_solve((self._lower, True), np.eye(len(self.values)))
        return inverse

    def surprise(self, rows: Ints, counted: NDArray[np.bool_]) -> float:
        """Return how far the mean of some observations lies from what all others predict, in variances of that.

        Exact, without fitting again (Rasmussen and Williams 2006, equation 5.12, for a block of rows).

        Args:
            rows: that are left out together.
            counted: bool[len(rows)], those whose mean is asked for.
        """
        covariance = np.linalg.inv(self._precision[np.ix_(rows, rows)])
        distance = covariance @ self._weights[rows]
        return float(distance[counted].mean() ** 2 / covariance[np.ix_(counted, counted)].mean())


class Average:
    """Several posteriors of the same observations, one for each shape of a model, weighted by their evidence.

    Args:
        posteriors: by shape.
        more_evidence: float64[len(posteriors)], log evidence of what is not among their observations.
        weights: float64[len(posteriors)], where they are known already.
    """

    def __init__(
        self, posteriors: Sequence[Posterior], more_evidence: Floats | float = 0.0, weights: Floats | None = None
    ) -> None:
        if weights is None:
            scores = np.array([posterior.log_evidence for posterior in posteriors]) + more_evidence
            weights = np.exp(scores - scores.max())
            self.log_evidence = float(scores.max() + np.log(weights.mean()))  # of all shapes, each as likely before
            weights /= weights.sum()
        self.kept: list[int] = np.flatnonzero(weights > _LEAST_WEIGHT).tolist()  # shapes whose weight counts
        self.weights: Floats = weights[self.kept] / weights[self.kept].sum()  # of these
        self._posteriors = [posteriors[index] for index in self.kept]

    def predict(self, inputs_of: Callable[[int], tuple[Inputs, Floats]]) -> tuple[Floats, Floats]:
        """Return mean and variance of noise-free values over all shapes: float64[n] each.

        Args:
            inputs_of: returns the inputs of what is predicted as a shape has them, and what it adds to the mean.
        """
        means, variances = [], []
        for index, posterior in zip(self.kept, self._posteriors, strict=True):
            inputs, offset = inputs_of(index)
            mean, variance = posterior.predict(inputs)
            means.append(mean + offset)
            variances.append(variance)
        mean = self.weights @ np.array(means)
        return mean, self.weights @ (np.array(variances) + (np.array(means) - mean) ** 2)

    @property
    def best(self) -> Posterior:
        return self._posteriors[int(np.argmax(self.weights))]

    def calibration(self) -> float:
        """Return a factor on variances, at least 1, by how far observations lie from what all others predict."""
        rows, counted = range(len(self.best.values)), np.array([True])
        return max(1.0, calibration_of([self.best.surprise(np.array([row]), counted) for row in rows]))


def calibration_of(squares: Sequence[float]) -> float:
    """Return a factor on variances, from how many of them held-out configurations lie away from their predictions."""
    if len(squares) < LEAST_CALIBRATED:
        return 1.0
    trimmed = sum(min(LARGEST_SURPRISE, square) for square in squares)
    return max(LEAST_CALIBRATION, (CALIBRATION_WEIGHT + trimmed) / (CALIBRATION_WEIGHT + len(squares)))
