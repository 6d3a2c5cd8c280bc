"""Regression with a trend, remainders and noise: its algebra by brute force."""

import math

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from budgettune.predict.regression import Average, Inputs, Posterior, Prior


def made_up(count, seed):
    rng = np.random.default_rng(seed)
    return Inputs(rng.normal(size=(count, 3)), rng.normal(size=(count, 2)), rng.integers(0, 4, count))


PRIOR = Prior(means=np.array([1.0, -0.5, 0.0]), deviations=np.array([0.5, 1.0, 2.0]), smooth=0.7, own=0.3)


def covariance_by_hand(one, other):
    table = np.zeros((len(one.ids), len(other.ids)))
    for i, j in np.ndindex(*table.shape):
        table[i, j] = sum(one.trend[i] * PRIOR.deviations**2 * other.trend[j])
        table[i, j] += PRIOR.smooth**2 * math.exp(-sum((one.axes[i] - other.axes[j]) ** 2) / 2)
        table[i, j] += PRIOR.own**2 * (one.ids[i] == other.ids[j])
    return table


@pytest.fixture
def observed():
    rng = np.random.default_rng(5)
    root = rng.normal(size=(8, 8))
    return made_up(8, 1), rng.normal(size=8), 0.1 * root @ root.T


def test_a_posterior_is_the_conditional_of_the_joint_normal_distribution(observed):
    inputs, values, noise = observed
    wanted = made_up(5, 2)
    mean, variance = Posterior(PRIOR, inputs, values, noise).predict(wanted)
    gain = covariance_by_hand(wanted, inputs) @ np.linalg.inv(covariance_by_hand(inputs, inputs) + noise)
    np.testing.assert_allclose(mean, wanted.trend @ PRIOR.means + gain @ (values - inputs.trend @ PRIOR.means))
    left = covariance_by_hand(wanted, wanted) - gain @ covariance_by_hand(inputs, wanted)
    np.testing.assert_allclose(variance, np.diag(left), rtol=1e-5)


def test_the_evidence_is_the_density_of_what_was_observed(observed):
    inputs, values, noise = observed
    density = multivariate_normal(inputs.trend @ PRIOR.means, covariance_by_hand(inputs, inputs) + noise)
    evidence = Posterior(PRIOR, inputs, values, noise).log_evidence
    assert evidence - 0.5 * len(values) * math.log(2 * math.pi) == pytest.approx(density.logpdf(values))


def test_leaving_rows_out_says_what_a_fit_without_them_says(observed):
    inputs, values, noise = observed
    left_out, rest = np.array([2, 5, 6]), np.array([0, 1, 3, 4, 7])
    counted = np.array([True, False, True])

    def of(rows):
        return Inputs(inputs.trend[rows], inputs.axes[rows], inputs.ids[rows])

    inner = np.linalg.inv(covariance_by_hand(of(rest), of(rest)) + noise[np.ix_(rest, rest)])
    gain = (covariance_by_hand(of(left_out), of(rest)) + noise[np.ix_(left_out, rest)]) @ inner
    mean = of(left_out).trend @ PRIOR.means + gain @ (values[rest] - of(rest).trend @ PRIOR.means)
    covariance = covariance_by_hand(of(left_out), of(left_out)) + noise[np.ix_(left_out, left_out)]
    covariance -= gain @ (covariance_by_hand(of(rest), of(left_out)) + noise[np.ix_(rest, left_out)])
    wanted = (values[left_out] - mean)[counted].mean() ** 2 / covariance[np.ix_(counted, counted)].mean()
    assert Posterior(PRIOR, inputs, values, noise).surprise(left_out, counted) == pytest.approx(wanted, rel=1e-5)


def test_an_average_is_the_mixture_of_its_shapes_by_their_evidence(observed):
    inputs, values, noise = observed
    posteriors = [Posterior(PRIOR, inputs, values + shift, noise) for shift in (0.0, 0.3)]
    wanted, offsets = made_up(3, 4), [np.zeros(3), np.full(3, -0.3)]
    mean, variance = Average(posteriors).predict(lambda index: (wanted, offsets[index]))
    evidence = np.exp([posterior.log_evidence for posterior in posteriors])
    weights = evidence / evidence.sum()
    means = [posterior.predict(wanted)[0] + offset for posterior, offset in zip(posteriors, offsets, strict=True)]
    squares = [posterior.predict(wanted)[1] + m**2 for posterior, m in zip(posteriors, means, strict=True)]
    np.testing.assert_allclose(mean, weights @ means)
    np.testing.assert_allclose(variance, weights @ squares - mean**2)
