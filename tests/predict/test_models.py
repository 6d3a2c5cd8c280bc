"""Models of time and accuracy: their algebra by brute force, their counts by the trainer's own, their truth by a world
whose truth is known."""

import math
import random
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal, spearmanr

from budgettune.errors import UsageError
from budgettune.predict.accuracy import AccuracyModel, fit_seed_noise
from budgettune.predict.curves import points_of
from budgettune.predict.regression import Average, Inputs, Posterior, Prior
from budgettune.predict.run_time import TimeModel, effective_steps
from budgettune.predict.workload import Workloads, resnet_arithmetic
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec, ModelSpec
from budgettune.training.data.load import load_data
from budgettune.training.resnet import ScalableResNet, count_multiply_adds
from budgettune.training.trainer import train
from tests.support.simulated import World, simulated_spec

# --- Regression -----------------------------------------------------------------------------------------------------


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


# --- Counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [{"scale": 1.4}, {"width_scale": 1.1, "width_multiple": 1}, {"depth_scale": 2.0}])
@pytest.mark.parametrize(("data", "channels", "size"), [({"name": "cifar10"}, 3, 32), ({"image_size": 11}, 1, 11)])
def test_arithmetic_by_formula_is_what_torch_counts(model, data, channels, size):
    spec = ModelSpec(**model)
    counted = count_multiply_adds(
        ScalableResNet.from_spec(spec, channels=channels, num_classes=10), (channels, size, size)
    )
    found = resnet_arithmetic(spec, DataSpec(**data))
    assert found.multiply_adds == counted
    assert found.padded >= counted


@pytest.mark.parametrize(
    "pruning",
    [
        {"strategy": "full", "prune_rate": 0.3},
        {"strategy": "random", "prune_rate": 0.3},
        {"strategy": "stale-quantile", "prune_rate": 0.37, "refresh_every": 2},
        {"strategy": "kakurenbo", "prune_rate": 0.2},
    ],
)
def test_epochs_and_steps_are_those_that_the_trainer_makes(pruning):
    spec = StudySpec.from_document(
        {
            "name": "count",
            "data": {"train_size": 150},
            "model": {"blocks": 1, "widths": [8, 8, 8]},
            "train": {"epochs": 5, "batch_size": 32, "precision": "fp32"},
            "pruning": pruning,
        }
    )
    data = load_data(spec.data)
    result = train(spec, {}, seed=0, data=data, device=torch.device("cpu")).result
    sizes = Workloads(spec, []).of({}).epoch_sizes(5)
    visited = [epoch.samples for epoch in result.curve]
    if pruning["strategy"] == "kakurenbo":  # hides only what is learnt: it may visit more than its schedule says
        assert sum(size * count for size, count in sizes.items()) <= sum(visited)
    else:
        assert sorted(visited) == sorted(size for size, count in sizes.items() for _ in range(count))
        assert result.steps == sum(count * math.ceil(size / 32) for size, count in sizes.items())


def test_a_last_batch_costs_its_share_and_what_every_step_costs():
    assert effective_steps({100: 3}, batch=50, fixed_share=0.4) == 6
    assert effective_steps({110: 1}, batch=50, fixed_share=0.4) == pytest.approx(2 + 0.4 + 0.6 * 0.2)


def test_a_model_of_ones_own_is_refused_in_words():
    spec = simulated_spec().with_overrides(["model.name=mine:net"])
    with pytest.raises(UsageError, match=r"only the built-in network is predicted, not mine:net: `budgettune best"):
        Workloads(spec, []).of({})


# --- A world whose truth is known -----------------------------------------------------------------------------------

DRAWS = range(4)


@pytest.fixture(scope="module")
def drawn():
    """Return, for each of some draws, a world, its model's trials, and the cells that never ran."""
    found = []
    for draw in DRAWS:
        world = World(simulated_spec(), seed=draw)
        cells = world.spec.cells()
        random.Random(draw).shuffle(cells)
        trials = [world.trial(number, cell) for number, cell in enumerate(cells[:16])]
        found.append((world, trials, cells[16:]))
    return found


def within(share, shares):
    """Return what part of some quantiles lies in the middle interval that should hold that share of them."""
    return np.mean([abs(one - 0.5) <= share / 2 for one in shares])


def test_times_of_probed_steps_are_right_to_a_few_percent_and_their_intervals_hold(drawn):
    errors, shares = [], []
    for world, trials, others in drawn:
        model = TimeModel(world.workloads, trials, world.probes())
        workloads = [world.workloads.of(cell) for cell in others]
        for time, cell in zip(model.of(workloads), others, strict=True):
            timing, seconds = time.at(12), world.trial(99, cell).train_seconds
            assert time.is_measured
            errors.append(abs(timing.median_seconds / seconds - 1))
            shares.append(timing.chance_within(seconds))
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.95) < 0.1
    assert within(0.8, shares) > 0.7


def test_steps_that_were_never_timed_have_wider_intervals_that_hold(drawn):
    deviations, shares = {True: [], False: []}, []
    for world, trials, others in drawn:
        some = [trial for trial in trials if trial.params["scale"] not in (1.5, 0.75)]
        for time, cell in zip(
            TimeModel(world.workloads, some).of([world.workloads.of(cell) for cell in others]), others, strict=True
        ):
            deviations[time.is_measured].append(time.deviation)
            if not time.is_measured:
                shares.append(time.at(12).chance_within(world.trial(99, cell).train_seconds))
    assert np.median(deviations[False]) > 1.3 * np.median(deviations[True])
    assert within(0.8, shares) > 0.6


def test_accuracies_of_what_never_ran_are_ranked_and_their_intervals_hold(drawn):
    shares, ranks = [], []
    for world, trials, others in drawn:
        forecasts = AccuracyModel(world.workloads, trials).predict([(world.workloads.of(cell), 12) for cell in others])
        observed = np.array([world.trial(99, cell, repeat=1).test_accuracy for cell in others])
        deviations = np.sqrt(forecasts.variances + forecasts.seeds)
        scores = (np.log(observed / (1 - observed)) - forecasts.means) / deviations
        shares += [NormalDist().cdf(score) for score in scores]
        truth = [world.accuracy(world.workloads.of(cell), 12) for cell in others]
        ranks.append(spearmanr(truth, forecasts.expected()).statistic)
    assert min(ranks) > 0.75
    assert 0.35 < within(0.5, shares) < 0.75
    assert 0.65 < within(0.8, shares) < 0.95


def test_longer_training_is_predicted_with_more_doubt_and_not_far_above_the_truth(drawn):
    for world, trials, _ in drawn:
        workload = world.workloads.of(trials[0].params)
        model = AccuracyModel(world.workloads, trials)
        forecasts = model.predict([(workload, 12), (workload, 24), (workload, 48)])
        assert list(forecasts.variances) == sorted(forecasts.variances)
        truth = world.accuracy(workload, 48)
        assert forecasts.quantile(0.025)[2] < truth < forecasts.quantile(0.975)[2]


def test_the_noise_of_seeds_is_taken_from_repeats():
    loud, quiet = (
        World(simulated_spec(scale=[1.0], prune_rate=[0.0], batch_size=[32, 64, 128]), seed_deviation=deviation)
        for deviation in (0.3, 0.02)
    )
    scales = []
    for world in (loud, quiet):
        noise = fit_seed_noise([points_of(world.workloads, record)[0] for record in world.table(repeats=6)])
        assert noise.repeats == 15
        scales.append(noise.scale)
    assert scales[0] > 4 > 1.5 > scales[1]
