"""Models of time and accuracy, judged on a world whose truth is known."""

import random
from statistics import NormalDist

import numpy as np
import pytest
from scipy.stats import spearmanr

from budgettune.predict.curves import points_of
from budgettune.predict.quality import QualityModel, fit_seed_noise
from budgettune.predict.run_time import TimeModel
from tests.support.simulated import World, simulated_spec

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
        forecasts = QualityModel(world.workloads, trials).predict([(world.workloads.of(cell), 12) for cell in others])
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
        model = QualityModel(world.workloads, trials)
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
