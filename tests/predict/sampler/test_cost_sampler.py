"""The sampler `cost`: its arithmetic against brute force, and what it does with studies of every kind."""

import math

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from budgettune.errors import UsageError
from budgettune.predict.sampler.acquisition import (
    ParetoModel,
    chance_to_end_well,
    expected_hypervolume_improvement,
    front,
)
from budgettune.predict.sampler.cost_sampler import CostSampler, moved
from budgettune.predict.sampler.encoding import Encoding
from budgettune.predict.sampler.history import history_of
from budgettune.spec.conditions import active

SPACE = {
    "width": CategoricalDistribution((16, 32, 64, 128)),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "rate": FloatDistribution(0.0, 0.5, step=0.1),
    "batch": IntDistribution(16, 512, log=True),
    "optimizer": CategoricalDistribution(("adam", "sgd", "lion")),
}
LINE = {"x": FloatDistribution(0.0, 1.0)}


def outcome(params):
    """Seconds that span a factor of 80, and an accuracy that wider networks and one learning rate win."""
    seconds = params["width"] * (1 - params["rate"]) * 64 / math.sqrt(params["batch"])
    accuracy = 0.95 - 2 / params["width"] - 0.02 * (math.log10(params["lr"]) + 2.5) ** 2 - 0.05 * params["rate"]
    return seconds, accuracy - 0.03 * (params["optimizer"] == "sgd")


def new_study(sampler):
    return optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)


def run(study, space=SPACE, trials=1, outcome=outcome):
    for _ in range(trials):
        trial = study.ask(space)
        study.tell(trial, outcome(trial.params))
    return study


def add(study, x, *values, state=TrialState.COMPLETE, **attributes):
    study.add_trial(
        create_trial(params={"x": x}, distributions=LINE, values=values or None, state=state, user_attrs=attributes)
    )


# --- Arithmetic -----------------------------------------------------------------------------------------------------


def area(costs, gains, reference):
    """Return the dominated area by a sweep over all corners."""
    corners = sorted({cost for cost in costs if cost < reference[0]})
    best = [max(gain for cost, gain in zip(costs, gains, strict=True) if cost <= corner) for corner in corners]
    ends = [*corners[1:], reference[0]][: len(corners)]
    return sum(
        (end - corner) * max(0.0, gain - reference[1]) for corner, end, gain in zip(corners, ends, best, strict=True)
    )


@pytest.mark.parametrize("size", [0, 1, 2, 5])
def test_the_expected_improvement_agrees_with_monte_carlo(size):
    rng = np.random.default_rng(size)
    costs, gains = rng.normal(size=size), rng.normal(size=size)
    members = front(costs, gains)
    reference = 0.8, -0.7  # some members lie beyond it
    mean, deviation = rng.normal(size=(2, 3)), rng.uniform(0.2, 1.5, size=(2, 3))
    exact = expected_hypervolume_improvement(
        (mean[0], deviation[0]), (mean[1], deviation[1]), costs[members], gains[members], reference
    )
    draws = mean + deviation * rng.normal(size=(20_000, 2, 3))
    accuracies, least = 1 - np.exp(-gains), 1 - math.exp(-reference[1])
    before = area(costs, accuracies, (reference[0], least))
    for point in range(3):
        reached = zip(draws[:, 0, point], 1 - np.exp(-draws[:, 1, point]), strict=True)
        gained = [area([*costs, x], [*accuracies, y], (reference[0], least)) - before for x, y in reached]
        assert exact[point] == pytest.approx(np.mean(gained), abs=5 * np.std(gained) / math.sqrt(len(draws)) + 1e-12)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=12))
def test_the_front_holds_what_nothing_else_is_at_least_as_good_as(points):
    costs, gains = np.array(points, dtype=float).reshape(-1, 2).T
    better = {
        (cost, gain)
        for cost, gain in points
        if not any((c <= cost and g >= gain) and (c, g) != (cost, gain) for c, g in points)
    }
    found = [(costs[index], gains[index]) for index in front(costs, gains)]
    assert set(found) == better
    assert found == sorted(found)
    assert len(found) == len(better)


@pytest.mark.parametrize(
    "distribution",
    [
        *SPACE.values(),
        FloatDistribution(-1.0, 1.0),
        FloatDistribution(2.0, 2.0),
        IntDistribution(-10, 10, step=5),
        CategoricalDistribution((None, True, "a", 2)),
        CategoricalDistribution((0.3, 0.1, 0.2)),
    ],
    ids=str,
)
@given(position=st.floats(0, 1))
def test_positions_lead_to_values_and_back(distribution, position):
    encoding = Encoding({"x": distribution})
    snapped = encoding.snap(np.array([[position]]))
    params = encoding.params(snapped[0])
    assert distribution._contains(distribution.to_internal_repr(params["x"]))
    np.testing.assert_allclose(encoding.positions([params]), snapped, atol=1e-9)
    assert np.all((snapped >= 0) & (snapped <= 1))


def test_lists_of_numbers_are_lines_and_other_lists_are_as_far_apart_as_the_ends_of_a_line():
    encoding = Encoding({"width": CategoricalDistribution((64, 16, 32)), "name": CategoricalDistribution(("a", "b"))})
    points = [{"width": width, "name": name} for width, name in ((16, "a"), (32, "a"), (64, "a"), (16, "b"))]
    features = encoding.features(encoding.positions(points))
    small, middle, large, other = features
    assert small[0] < middle[0] < large[0]
    assert np.linalg.norm(small - other) == pytest.approx(1)
    assert list(encoding.groups) == [0, 1, 1]


# --- Studies --------------------------------------------------------------------------------------------------------


def test_what_is_inactive_has_no_position_and_lies_as_far_from_all_values():
    names, numbers = CategoricalDistribution(("a", "b")), FloatDistribution(0.0, 1.0)
    space = {"deep": names, "shallow": numbers, "top": CategoricalDistribution(("x", "y", "z"))}
    conditions = {"deep": {"top": ("x",)}, "shallow": {"deep": ("b",)}}
    encoding = Encoding(space, conditions)
    positions = encoding.snap(np.random.default_rng(0).random((200, 3)))
    points = [encoding.params(row) for row in positions]
    assert {tuple(point) for point in points} == {("top",), ("deep", "top"), ("deep", "shallow", "top")}
    assert all(active(conditions, point) == point for point in points)
    np.testing.assert_allclose(encoding.positions(points), positions, atol=1e-9)
    start = np.repeat(positions[:1], 200, axis=0)
    near = encoding.snap(moved(start, encoding, np.random.default_rng(1)))
    assert {tuple(encoding.params(row)) for row in near} >= {("top",), ("deep", "top")}
    lacking, one, other = encoding.features(
        encoding.positions([{"top": "x"}, {"top": "x", "deep": "a"}, {"top": "x", "deep": "b"}])
    )
    assert np.linalg.norm(lacking - one) == pytest.approx(np.linalg.norm(lacking - other)) == pytest.approx(0.5)


@pytest.mark.slow
def test_it_finds_a_larger_hypervolume_in_the_same_seconds_than_random_search():
    def volume_within(study, seconds):
        spent, costs, gains = 0.0, [], []
        for trial in study.trials:
            spent += trial.values[0]
            if spent <= seconds:
                costs.append(math.log(trial.values[0]))
                gains.append(trial.values[1])
        return area(costs, gains, (math.log(3000), 0.0))

    ours, theirs = [], []
    for seed in range(3):
        ours.append(volume_within(run(new_study(CostSampler(seed, space=SPACE)), trials=40), 5_000))
        theirs.append(volume_within(run(new_study(optuna.samplers.RandomSampler(seed)), trials=40), 5_000))
    assert min(ours) > max(theirs)


def test_it_begins_in_the_middle_and_goes_on_near_it():
    study = new_study(CostSampler(4, space=SPACE))
    encoding = Encoding(SPACE)
    positions = encoding.positions(study.ask(SPACE).params for _ in range(12))[:, encoding.is_ordered]
    np.testing.assert_allclose(positions[0], encoding.snap(np.full((1, 5), 0.5))[0, encoding.is_ordered])
    assert np.abs(positions - 0.5).max() < 0.3  # half a step of the coarsest axis beyond a sixth
    assert len(np.unique(positions, axis=0)) == 12
    optimizers = {trial.params["optimizer"] for trial in study.trials}
    assert optimizers == {"adam", "sgd", "lion"}


def test_until_ten_have_finished_no_trial_goes_far_from_all_of_them():
    study = run(new_study(CostSampler(2, space=SPACE)), trials=14)
    encoding = Encoding(SPACE)
    positions = encoding.positions(trial.params for trial in study.trials)[:, encoding.is_ordered]
    away = [np.abs(positions[:n] - positions[n]).max(axis=1).min() for n in range(3, 14)]
    assert max(away[:7]) <= 0.25 + 1e-9
    assert max(away[7:]) > 0.25


def test_where_costs_are_known_it_begins_with_the_cheapest_third():
    def cost(params):
        return outcome(params)[0]

    study = new_study(CostSampler(4, space=SPACE, known_cost=cost))
    plain = new_study(CostSampler(4, space=SPACE))
    cheap, usual = ([cost(each.ask(SPACE).params) for _ in range(30)] for each in (study, plain))
    assert max(cheap) <= np.quantile(usual, 0.5)
    nothing = new_study(CostSampler(4, space=SPACE, known_cost=lambda params: math.inf))
    assert [nothing.ask(SPACE).params for _ in range(3)] == [trial.params for trial in plain.trials[:3]]


def test_a_point_depends_on_the_seed_the_number_and_the_storage_alone():
    def points(seed, restart_every):
        study = new_study(CostSampler(seed, space=SPACE))
        for number in range(8):
            if number % restart_every == 0:
                study.sampler = CostSampler(seed, space=SPACE)
            run(study)
        return [trial.params for trial in study.trials]

    assert points(1, restart_every=8) == points(1, restart_every=1)
    assert points(1, restart_every=8)[:4] != points(2, restart_every=8)[:4]


@pytest.mark.parametrize("finished", [0, 1, 2, 5])
def test_no_running_trial_is_repeated_whatever_has_finished(finished):
    study = run(new_study(CostSampler(0, space=SPACE)), trials=finished)
    points = [tuple(study.ask(SPACE).params.items()) for _ in range(6)]
    assert len(set(points)) == 6


def test_a_pending_trial_takes_the_gain_out_of_its_neighbourhood():
    study = new_study(None)
    for x in (0.0, 0.2, 0.9, 1.0):
        add(study, x, 1 + x, 0.5 + 0.3 * math.sin(3 * x))
    encoding = Encoding(LINE)

    def scores():
        model = ParetoModel(history_of(study.trials, encoding, -1), encoding, np.random.default_rng(0))
        gains, seconds = model.expected(np.array([[0.5], [0.52]]))
        return gains - seconds

    before = scores()
    add(study, 0.5, state=TrialState.RUNNING)
    assert np.all(scores() < before - math.log(3))


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.PRUNED])
def test_failures_make_their_neighbourhood_less_likely_and_handed_back_trials_do_not(state):
    encoding = Encoding(LINE)

    def chance(**attributes):
        study = new_study(None)
        add(study, 0.1, 1.0, 0.5)
        add(study, 0.9, state=state, **attributes)
        history = history_of(study.trials, encoding, -1)
        assert len(history.seconds) == 1
        return chance_to_end_well(np.array([[0.9], [0.1]]), history.finished, history.failed)

    near, far = chance(failure={"kind": "out-of-memory", "message": "no room"})
    assert near == pytest.approx(0.5, abs=0.01)
    assert far > 0.99
    assert chance(failure={"kind": "interrupted", "message": "told to stop"}) == pytest.approx(1)


def test_a_region_that_always_fails_is_left_alone():
    study = new_study(CostSampler(3, space=LINE))
    for _ in range(25):
        trial = study.ask(LINE)
        x = trial.params["x"]
        # The accuracy rises towards the region where memory ends.
        study.tell(trial, (1 + x, x)) if x < 0.7 else study.tell(trial, state=TrialState.FAIL)
    assert sum(trial.state == TrialState.FAIL for trial in study.trials[-10:]) <= 4


def test_extras_unfinished_numbers_and_other_spaces_do_not_enter_the_history():
    study = new_study(None)
    add(study, 0.1, 1.0, 0.5)
    add(study, 0.2, 9.0, 0.9, extra=True)
    add(study, 0.3, math.inf, 0.9)
    add(study, 0.4, state=TrialState.WAITING)
    study.add_trial(create_trial(params={"x": 3}, distributions={"x": IntDistribution(0, 9)}, values=[1.0, 1.0]))
    study.enqueue_trial({"x": 0.5})
    history = history_of(study.trials, Encoding(LINE), number=0)
    assert (len(history.finished), len(history.pending), len(history.failed)) == (0, 1, 0)
    assert len(history_of(study.trials, Encoding(LINE), number=99).seconds) == 1


def test_nan_fails_a_trial_and_the_search_goes_on():
    study = new_study(CostSampler(0, space=SPACE))
    study.optimize(lambda trial: (math.nan, 0.5), n_trials=2)
    study.optimize(lambda trial: outcome({name: trial._suggest(name, SPACE[name]) for name in SPACE}), n_trials=6)
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 6


def test_trials_over_the_limit_are_not_proposed_once_times_are_known():
    study = run(new_study(CostSampler(0, space=SPACE, max_seconds=300.0)), trials=25)
    seconds = [trial.values[0] for trial in study.trials]
    assert max(seconds[8:]) <= 300 * 1.05
    assert max(trial.values[1] for trial in study.trials[8:]) > 0.85


def test_a_limit_that_every_trial_has_broken_still_lets_the_search_go_on():
    study = run(new_study(CostSampler(0, space=SPACE, max_seconds=1.0)), trials=6)
    fastest_first = [trial.values[0] for trial in study.trials]
    assert min(fastest_first[3:]) <= min(fastest_first[:3])


@pytest.mark.parametrize(
    "space",
    [
        {"x": CategoricalDistribution((1,)), "y": FloatDistribution(2.0, 2.0)},
        {"x": CategoricalDistribution(("a", "b")), "y": CategoricalDistribution((True, False, None))},
        {"x": IntDistribution(1, 3)},
    ],
    ids=["one value", "all categorical", "three values"],
)
def test_small_spaces_are_searched_beyond_their_end(space):
    study = run(new_study(CostSampler(0, space=space)), space, trials=8, outcome=lambda params: (1.0, 0.5))
    size = math.prod(len(getattr(each, "choices", (1, 2, 3))) if not each.single() else 1 for each in space.values())
    assert len({tuple(trial.params.items()) for trial in study.trials}) == size


def test_constant_outcomes_do_not_stop_it():
    study = run(new_study(CostSampler(0, space=SPACE)), trials=8, outcome=lambda params: (1.0, 0.1))
    assert len({tuple(trial.params.items()) for trial in study.trials}) == 8


def test_repeats_of_a_point_are_noise_and_no_obstacle():
    study = new_study(CostSampler(0, space=LINE))
    for seconds, accuracy in [(1.0, 0.50), (1.1, 0.56), (0.9, 0.52), (1.0, 0.54)]:
        add(study, 0.5, seconds, accuracy)
    assert run(study, LINE, outcome=lambda params: (1.0, 0.5)).trials[-1].params["x"] != 0.5


@pytest.mark.parametrize(
    ("limits", "before", "after"),
    [
        ({"trials": 4}, 1.0, 0.25),
        ({"total_seconds": 8.0}, 1.0, 0.25),
        ({"trials": 100, "total_seconds": 4.0}, 1.0, 0.0),
        ({}, 1.0, 200 / 203),
    ],
)
def test_the_exponent_of_the_seconds_cools_with_the_share_of_the_study_that_is_over(limits, before, after):
    sampler, study = CostSampler(0, **limits), new_study(None)
    assert sampler._exponent(history_of(study.trials, Encoding(LINE), -1)) == before
    for x in (0.1, 0.2, 0.3):
        add(study, x, 2.0, 0.5)
    assert sampler._exponent(history_of(study.trials, Encoding(LINE), -1)) == pytest.approx(after)


def test_studies_of_something_else_are_refused():
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=CostSampler(0))
    with pytest.raises(UsageError, match="must minimise train_seconds first"):
        study.ask(LINE)


def test_large_studies_are_cut_to_what_a_request_can_bear_and_keep_their_front(monkeypatch):
    from budgettune.predict.sampler import acquisition

    monkeypatch.setattr(acquisition, "MOST_CONDITIONED", 20)
    study = run(new_study(optuna.samplers.RandomSampler(0)), trials=60)
    encoding = Encoding(SPACE)
    history = history_of(study.trials, encoding, -1)
    best = ParetoModel(history, encoding, np.random.default_rng(0)).best
    assert len(best) == len(front(history.seconds, history.scores))
    study.sampler = CostSampler(0)
    assert run(study).trials[-1].state is TrialState.COMPLETE
