"""Answers for own training code, on studies whose truth is known."""

import math
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from budgettune.errors import UsageError
from budgettune.predict.curves import Line
from budgettune.predict.held_out import coverage, held_out
from budgettune.predict.measured_time import Pace
from budgettune.predict.predictor import Predictor, choice_of, prediction_of, unmeasured
from budgettune.predict.quality import QualityForecasts
from budgettune.predict.recommend import Ask, Candidates, recommend
from budgettune.records import StepProbe
from tests.support.own_world import OwnWorld, own_spec
from tests.support.simulated import MACHINE

SEEDS = range(6)


@pytest.fixture(scope="module")
def worlds():
    """Return some worlds, each with 16 trials drawn at random and what is learnt from them."""
    found = []
    for seed in SEEDS:
        world = OwnWorld(own_spec(), seed=seed, anneals=seed % 2 == 0)
        trials = world.drawn(16)
        found.append((world, trials, Predictor(world.spec, trials)))
    return found


def least_loss(world, budget_seconds):
    """Return the best loss that any configuration of the world can reach in time, its own chance left out."""
    points = [
        {"params.width": width, "params.batch": batch, "params.lr": rate}
        for width in (32, 64, 96, 128)
        for batch in (8, 16, 32)
        for rate in np.geomspace(4e-3, 3e-2, 7)
    ]
    return min(
        world.loss(point, epochs)
        for point in points
        for epochs in range(1, 45, 2)
        if world.seconds(point, epochs) <= budget_seconds
    )


def test_the_axes_that_change_no_time_are_learnt(worlds):
    for _, _, predictor in worlds:
        assert {axis.name for axis in predictor.time_model.steps.axes} == {"params.width", "params.batch"}


@pytest.mark.slow
def test_intervals_of_what_was_timed_hold_at_lengths_and_rates_that_never_ran(worlds):
    in_time, in_value = [], []
    for world, _, predictor in worlds:
        times = choice_of(predictor).times
        for length in (3, 8, 24):
            some = random.Random(length).sample(times, 40)
            forecasts = predictor.quality_model.predict([(time.workload, length) for time in some])
            for index, time in enumerate(some):
                told = prediction_of(time, length, 1.0, forecasts, index, world.spec.objective)
                later = world.trial(999, {**told.params, "train.epochs": length}, repeat=length)
                in_time.append(told.seconds_low <= later.train_seconds <= told.seconds_high)
                in_value.append(told.value_low <= later.value <= told.value_high)
    assert 0.75 < np.mean(in_time) < 0.99
    assert 0.8 < np.mean(in_value) < 0.99


@pytest.mark.slow
def test_answers_beat_the_best_that_ran_and_keep_the_budget(worlds):
    regrets, observed, kept = [], [], []
    for world, trials, predictor in worlds:
        for budget in (0.1, 0.3):
            candidates = Candidates(predictor, Ask(budget))
            choice = candidates.prediction(candidates.best)
            best = least_loss(world, budget)
            regrets.append(world.loss(choice.params, choice.epochs) - best)
            within = [trial.value for trial in trials if trial.train_seconds <= budget]
            observed.append(min(within, default=math.nan) - best)
            kept.append(world.trial(9, {**choice.params, "train.epochs": choice.epochs}, 5).train_seconds <= budget)
    assert np.mean(regrets) < 0.7 * np.nanmean(observed)
    assert np.mean(kept) >= 0.8


def test_no_run_is_worth_more_than_the_whole_loss_of_the_best(worlds):
    candidates = Candidates(worlds[0][2], Ask(0.3))
    places, variances = np.full((2, len(candidates.runs)), 1.0)
    places[0], variances[0] = -8.0, 9.0  # of a loss of thousands, and nobody knows
    forecasts = QualityForecasts(places, variances, np.full(len(places), 0.01), Line.LOG)
    candidates._forecasts, candidates.expected = forecasts, forecasts.expected()
    candidates.best = int(np.argmax(candidates.expected))
    assert 0 < candidates.worth_knowing().gain < -candidates.expected[candidates.best]


def test_a_study_that_minimises_and_one_that_maximises_the_negative_give_mirrored_answers():
    worlds = [OwnWorld(own_spec(direction), seed=3) for direction in ("minimize", "maximize")]
    down, up = (recommend(world.spec, world.drawn(16), Ask(0.3)) for world in worlds)
    for one, other in ((down.choice, up.choice), (down.next_trial.prediction, up.next_trial.prediction)):
        assert (one.params, one.epochs, one.seconds) == (other.params, other.epochs, other.seconds)
        assert (one.value, one.value_low, one.value_high) == (-other.value, -other.value_high, -other.value_low)
    assert down.observed.number == up.observed.number
    assert down.next_trial.gain == up.next_trial.gain
    assert down.basis == up.basis
    assert down.notes == up.notes


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_the_unit_of_an_objective_does_not_matter(factor):
    world = OwnWorld(own_spec(), seed=1)
    trials = world.drawn(16)
    scaled = [
        replace(
            trial,
            value=factor * trial.value,
            curve=tuple(replace(epoch, value=factor * epoch.value) for epoch in trial.curve),
        )
        for trial in trials
    ]
    answer, other = (recommend(world.spec, each, Ask(0.3)).choice for each in (trials, scaled))
    assert answer.params == other.params
    assert factor * answer.value_high == pytest.approx(other.value_high)


def test_a_share_stays_within_its_ends():
    world = OwnWorld(own_spec("maximize", name="test accuracy"), seed=1)
    choice = recommend(world.spec, world.drawn(16), Ask(0.3)).choice
    assert 0 < choice.value_low < choice.value < choice.value_high < 1
    assert choice.to_json(world.spec.objective)["accuracy"] == choice.value


def test_an_objective_has_its_name_in_json():
    world = OwnWorld(own_spec(name="bits per byte"), seed=1)
    document = recommend(world.spec, world.drawn(16), Ask(0.3)).to_json()
    assert document["objective"] == {"name": "bits per byte", "direction": "minimize"}
    assert document["choice"]["bits_per_byte_low"] < document["choice"]["bits_per_byte"]
    assert "accuracy" not in document["choice"]
    assert set(document["observed"]) == {"number", "params", "epochs", "train_seconds", "bits_per_byte"}


def test_what_was_never_timed_is_left_out_by_name():
    search = {"params.width": [32, 64, 96], "params.lr": [0.003, 0.01, 0.03]}
    world = OwnWorld(own_spec(search=search, sampler={"name": "grid"}))
    cells = [cell for cell in world.spec.cells() if cell["params.width"] != 96]
    trials = [world.trial(number, cell, number) for number, cell in enumerate(cells * 2)]
    answer = recommend(world.spec, trials, Ask(10.0))
    assert answer.choice.params["params.width"] != 96
    (note,) = [note for note in answer.notes if "left out" in note]
    assert note == (
        "params.width 96 never ran: 3 configurations without a measured step are left out, of 9 in the search space"
    )
    assert "the time of an epoch shows no sign of depending on params.lr" in answer.notes
    probe = StepProbe(
        params={"params.width": 96, "params.lr": 0.01}, step="w", ms_mean=30, ms_error=0, steps=1, seconds=1
    )
    left = unmeasured(world.spec, trials, [], MACHINE.key)
    assert [one.params["params.width"] for one in left] == [96]
    assert not unmeasured(world.spec, trials, [probe], MACHINE.key)
    probed = recommend(world.spec, trials, Ask(10.0), probes={MACHINE.key: [probe]})
    assert not [note for note in probed.notes if "left out" in note]


def test_axes_of_lists_and_axes_that_depend_on_others_are_answered():
    search = {
        "params.optimizer": ["sgd", "adam", "lion"],
        "params.momentum": {"low": 0.5, "high": 0.99, "when": {"params.optimizer": "sgd"}},
        "params.width": [32, 64],
    }
    world = OwnWorld(own_spec(search=search))
    chance, trials = random.Random(0), []
    for number in range(14):
        point = {"params.optimizer": chance.choice(["sgd", "adam", "lion"]), "params.width": chance.choice([32, 64])}
        if point["params.optimizer"] == "sgd":
            point["params.momentum"] = chance.uniform(0.5, 0.99)
        trial = world.trial(number, point, number)
        worse = 1.0 if point["params.optimizer"] == "adam" else 1.3
        curve = tuple(replace(epoch, value=worse * epoch.value) for epoch in trial.curve)
        trials.append(replace(trial, value=worse * trial.value, curve=curve))
    answer = recommend(world.spec, trials, Ask(0.5))
    assert answer.choice.params["params.optimizer"] == "adam"
    assert "params.momentum" not in answer.choice.params


def test_a_limit_of_what_changes_no_time_leaves_out_what_is_near_to_those_beyond_it():
    spec = own_spec(constraints={"rate": {"limit": 0.01}})
    trials = [
        replace(trial, measures={"rate": trial.params["params.lr"]}) for trial in OwnWorld(spec, seed=2).drawn(24)
    ]
    answer = recommend(spec, trials, Ask(0.5))
    assert answer.choice.params["params.lr"] < 0.013
    assert any("went beyond rate" in note for note in answer.notes)


def test_where_longer_training_is_worse_the_better_trial_is_named():
    world = OwnWorld(own_spec(), seed=2)
    trials = []
    for trial in world.drawn(16):
        curve = tuple(replace(point, value=point.value * 1.5 ** (2 * point.epoch)) for point in trial.curve)
        trials.append(replace(trial, value=curve[-1].value, curve=curve))
    notes = recommend(world.spec, trials, Ask(3.0)).notes
    assert any("is better, with" in note and "answers use up the time" in note for note in notes)
    assert not any("answers use up" in note for note in recommend(world.spec, world.drawn(16), Ask(3.0)).notes)


def test_what_goes_beyond_a_limit_is_not_recommended():
    spec = own_spec(constraints={"memory": {"limit": 700.0}})
    world = OwnWorld(spec, seed=2)
    trials = world.drawn(16)
    free = recommend(OwnWorld(own_spec(), seed=2).spec, trials, Ask(3.0)).choice.params["params.width"]
    answer = recommend(spec, trials, Ask(3.0))
    assert answer.choice.params["params.width"] <= 70 < free
    assert answer.observed.params["params.width"] <= 70
    assert any("went beyond memory" in note for note in answer.notes)
    heavy = [trial for trial in trials if trial.params["params.width"] > 70]
    with pytest.raises(UsageError, match=r"nothing of study 'own' is left: .* went beyond memory"):
        recommend(spec, heavy, Ask(3.0))


@pytest.mark.parametrize(("first", "growth"), [(0.0, 0.0), (2.0, 0.0), (0.0, 0.02), (1.0, 0.01)])
def test_the_pace_of_epochs_is_read_from_curves(first, growth):
    truth = Pace(first, growth)
    curves = [[speed * truth.epochs(count) for count in range(1, length)] for speed, length in ((1, 12), (3, 20))]
    found = Pace.of(curves)
    assert found.epochs(40) / found.epochs(10) == pytest.approx(truth.epochs(40) / truth.epochs(10), rel=0.01)


def test_epochs_that_take_ever_longer_are_charged_so():
    world = OwnWorld(own_spec(), seed=1, growth=0.05)
    predictor = Predictor(world.spec, world.drawn(16))
    for time in choice_of(predictor).times[:20]:
        ratio = time.at(40).median_seconds / time.at(4).median_seconds
        assert ratio == pytest.approx(world.seconds({}, 40) / world.seconds({}, 4), rel=0.02)


def test_points_within_curves_help_only_as_far_as_the_evidence_goes(worlds):
    for world, _, predictor in worlds:
        assert (predictor.quality_model.schedule == "constant") != world.anneals


@pytest.mark.slow
def test_held_out_trials_lie_where_they_should():
    places = []
    for seed in range(3):
        world = OwnWorld(own_spec(), seed=seed)
        places += [one.accuracy_place for one in held_out(world.spec, world.drawn(20))]
    assert 0.75 < coverage(places, 0.9) <= 1


def test_an_answer_says_what_its_intervals_are_calibrated_on():
    world = OwnWorld(own_spec(), seed=1)
    basis = recommend(world.spec, world.drawn(16), Ask(0.3)).basis
    assert basis.calibrated_on == 16
    assert basis.time_factor >= 1
    assert basis.value_factor > 0.5


def test_neither_torch_nor_optuna_is_loaded():
    code = (
        "import sys; from tests.support.own_world import OwnWorld, own_spec;"
        "from budgettune.predict.recommend import Ask, recommend;"
        "w = OwnWorld(own_spec()); recommend(w.spec, w.drawn(8), Ask(0.3));"
        "assert not {'torch', 'optuna', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_mean_loss_lies_within_its_interval_however_little_is_known():
    places, variances = np.zeros(4), np.array([0.01, 1.0, 10.0, 100.0])
    means = Line.LOG.means(places, variances)
    assert np.all(means >= Line.LOG.scores(places - 1.645 * np.sqrt(variances)))
    assert means[1] == pytest.approx(-np.exp(0.5))
