"""The sampler's Gaussian processes: the kernel against Matern's, and what they say of a curve."""

import math

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.gaussian_process.kernels import Matern

from budgettune.predict.sampler.gaussian_process import GaussianProcess, GroupedMatern


def test_the_kernel_is_materns_where_each_param_has_one_feature_and_its_gradient_is_right():
    rng = np.random.default_rng(0)
    points, others, scales = rng.random((6, 3)), rng.random((4, 3)), np.array([0.3, 1.0, 2.0])
    kernel = GroupedMatern(scales, np.arange(3))
    np.testing.assert_allclose(kernel(points, others), Matern(scales, nu=2.5)(points, others))
    grouped = GroupedMatern(np.array([0.3, 2.0]), np.array([0, 1, 1]))
    for i, j in [(0, 1), (2, 5)]:
        error = check_grad(
            lambda theta: grouped.clone_with_theta(theta)(points)[i, j],  # noqa: B023
            lambda theta: grouped.clone_with_theta(theta)(points, eval_gradient=True)[1][i, j],  # noqa: B023
            grouped.theta,
        )
        assert error < 1e-6


def test_a_process_returns_to_what_it_saw_and_is_unsure_elsewhere():
    features = np.linspace(0, 0.5, 12)[:, None]
    process = GaussianProcess.fitted(features, np.sin(6 * features[:, 0]), np.array([0]), np.arange(12), trend=False)
    mean, deviation = process.predict(np.array([[0.25], [1.0]]))
    assert mean[0] == pytest.approx(math.sin(1.5), abs=0.02)
    assert deviation[1] > 10 * deviation[0]
    believed, outputs = process.believing(np.array([[1.0]]))
    assert outputs == pytest.approx(mean[1:])
    assert believed.predict(np.array([[1.0]]))[1][0] < deviation[1] / 3


def test_a_trend_reaches_beyond_what_was_seen():
    features = np.linspace(0, 0.4, 8)[:, None]
    fitted = (
        GaussianProcess.fitted(features, 5 * features[:, 0], np.array([0]), np.arange(8), trend=trend)
        for trend in (True, False)
    )
    lines = [process.predict(np.array([[1.0]]))[0][0] for process in fitted]
    assert abs(lines[0] - 5) < abs(lines[1] - 5)
