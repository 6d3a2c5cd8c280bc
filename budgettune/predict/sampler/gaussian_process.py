"""Gaussian processes (scikit-learn's) for few, dear, noisy trials: a length scale per param, priors on everything."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from scipy.optimize import minimize
from scipy.spatial.distance import cdist
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import (
    ConstantKernel,
    DotProduct,
    Hyperparameter,
    Kernel,
    NormalizedKernelMixin,
    StationaryKernelMixin,
    WhiteKernel,
)

from budgettune.predict.regression import Floats, Ints

JITTER = 1e-6  # of the outputs' variance: repeats of a point leave the matrix invertible
ITERATIONS = 25
USUAL_TRIALS = 2
LIMITS = (1e-9, 1e9)  # the priors keep all hyperparameters far inside


class GroupedMatern(StationaryKernelMixin, NormalizedKernelMixin, Kernel):
    """Matern kernel of smoothness 5/2 in which the features of one param share a length scale.

    scikit-learn's own has one for each feature: for six params of five choices 30 in place of 6, to be learnt from a
    dozen trials.

    Args:
        scales: float64[params].
        groups: int64[features], the param that each feature stands for.
    """

    def __init__(self, scales: Floats, groups: Ints) -> None:
        self.scales = scales
        self.groups = groups

    @property
    def hyperparameter_scales(self) -> Hyperparameter:
        """What scikit-learn adapts, as it asks for it."""
        return Hyperparameter("scales", "numeric", LIMITS, np.size(self.scales))

    def __call__(self, X: Floats, Y: Floats | None = None, eval_gradient: bool = False) -> Any:  # noqa: N803
        """Return float64[X, Y]; with its gradient by the logarithms of the scales where that is asked for."""
        own_scales = np.atleast_1d(self.scales)  # scikit-learn hands a single one over without its list
        scales = own_scales[self.groups]
        distances = np.sqrt(5) * cdist(X / scales, (X if Y is None else Y) / scales)
        decay = np.exp(-distances)
        covariance = (1 + distances + distances**2 / 3) * decay
        if not eval_gradient:
            return covariance
        slope = 5 / 3 * (1 + distances) * decay
        gradient = np.empty((*covariance.shape, len(own_scales)))
        for param, scale in enumerate(own_scales):
            own = X[:, self.groups == param] / scale
            gradient[:, :, param] = slope * cdist(own, own, "sqeuclidean")
        return covariance, gradient


class GaussianProcess:
    """One output over a search space, given trials: features float64[trials, features], outputs float64[trials].

    Outputs are standardised inside, by the mean and the standard deviation in `scale`.
    """

    def __init__(self, kernel: Kernel, features: Floats, outputs: Floats, scale: tuple[float, float]) -> None:
        self._kernel, self._features, self._outputs, self._scale = kernel, features, outputs, scale
        regressor = GaussianProcessRegressor(kernel, alpha=JITTER, optimizer=None)
        self._regressor = regressor.fit(features, (outputs - scale[0]) / scale[1])

    @classmethod
    def fitted(
        cls,
        features: Floats,
        outputs: Floats,
        groups: Ints,
        subset: Ints,
        *,
        trend: bool,
        usual_spread: float | None = None,
    ) -> Self:
        """Return the process whose hyperparameters are the most probable ones, given a subset of the trials.

        Args:
            features: float64[trials, features].
            outputs: float64[trials].
            groups: int64[features], the param that each feature stands for.
            subset: int64[at most trials], what the hyperparameters are fitted to; all trials count in what follows.
            trend: whether outputs may rise along a line through the whole space.
            usual_spread: standard deviation that outputs have all over a space, as good as that of USUAL_TRIALS: those
                that begin side by side look more alike than they are. None where nothing is known of it.
        """
        spread = float(outputs.std()) or 1.0
        if usual_spread is not None:
            squares = USUAL_TRIALS * usual_spread**2 + len(outputs) * float(outputs.var())
            spread = math.sqrt(squares / (USUAL_TRIALS + len(outputs)))
        scale = float(outputs.mean()), spread
        kernel, means, spreads = _prior(groups, trend)

        def optimise(loss: Callable[[Floats], tuple[float, Floats]], _: Floats, bounds: Floats) -> tuple[Floats, float]:
            """Add log-normal priors to the likelihood, and start at their means."""

            def with_prior(theta: Floats) -> tuple[float, Floats]:
                value, gradient = loss(theta)
                away = (theta - means) / spreads
                return value + 0.5 * float(away @ away), gradient + away / spreads

            best = minimize(with_prior, means, jac=True, bounds=bounds, options={"maxiter": ITERATIONS})
            return best.x, best.fun

        regressor = GaussianProcessRegressor(kernel, alpha=JITTER, optimizer=optimise)
        regressor.fit(features[subset], (outputs[subset] - scale[0]) / scale[1])
        return cls(regressor.kernel_, features, outputs, scale)

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the output without noise, float64[points] each."""
        mean, deviation = self._regressor.predict(features, return_std=True)
        variance = np.maximum(deviation**2 - self._kernel.k2.noise_level, JITTER)
        return self._scale[0] + self._scale[1] * mean, self._scale[1] * np.sqrt(variance)

    def believing(self, features: Floats) -> tuple[GaussianProcess, Floats]:
        """Return the process after trials that came out as predicted, and their outputs.

        The "kriging believer" of Ginsbourger, Le Riche and Carraro (2010): what runs already is not asked for again.
        """
        if not len(features):
            return self, np.empty(0)
        outputs, _ = self.predict(features)
        together = np.vstack([self._features, features]), np.concatenate([self._outputs, outputs])
        return GaussianProcess(self._kernel, *together, self._scale), outputs


def _prior(groups: Ints, trend: bool) -> tuple[Kernel, Floats, Floats]:
    """Return a kernel, and the means and the standard deviations of its hyperparameters' logarithms.

    The scales grow with the root of the number of params, as distances do (Hvarfner, Hellsten and Nardi, 2024). A trend
    is as steep as makes its variance over the whole space 1; few trials side by side must not flatten it.
    """
    params = int(groups[-1]) + 1
    kernel = ConstantKernel(1.0, LIMITS) * GroupedMatern(np.ones(params), groups)
    means, spreads = [0.0, *[np.log(0.5 * np.sqrt(params))] * params], [1.0] * (1 + params)
    if trend:
        kernel += ConstantKernel(1.0, LIMITS) * DotProduct(1.0, "fixed")
        widths = np.bincount(groups)
        variance = np.where(
            widths == 1, 1 / 12, (1 - 1 / widths) / 2
        ).sum()  # of the features of a point drawn at random
        means, spreads = [*means, -math.log(variance)], [0.3, *spreads[1:], 0.5]
    return kernel + WhiteKernel(1e-3, LIMITS), np.array([*means, np.log(1e-3)]), np.array([*spreads, 2.0])
