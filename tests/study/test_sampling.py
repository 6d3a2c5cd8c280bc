"""Studies whose points a sampler draws."""

import math
from collections import Counter

import optuna
import pytest

from budgettune.errors import BudgetTuneError
from budgettune.spec.study_spec import StudySpec
from budgettune.storage import transactions
from budgettune.study import sampling
from budgettune.study.handle import create_study
from budgettune.study.summary import list_studies
from tests.support.studies import SEARCH, let_lease_run_out, records, result, sampled, work_off


# The Gaussian process takes seconds for each draw after the tenth result, so it gets one of them.
@pytest.mark.parametrize(("sampler", "repeats"), [("random", 2), ("tpe", 2), ("nsga2", 2), ("gp", 1), ("cost", 2)])
def test_a_sampled_study_ends_at_its_number_of_points_each_with_its_repeats(sqlite_url, sampler, repeats):
    with create_study(sampled(sampler, trials=12, repeats=repeats), sqlite_url) as study:
        assert study.claim().params.keys() == {"train.lr", "batch_size", "scale"}
        work_off(study)
        let_lease_run_out(study)
        study.reconcile()
        work_off(study)
        assert study.verify().whole
        assert study.is_finished()
        points = Counter(tuple(record.params.items()) for record in records(study) if record.state == "COMPLETE")
        assert set(points.values()) == {repeats}
        assert len(points) == 12


@pytest.mark.parametrize("axis", [[1.5], {"low": 1.5, "high": 1.9, "step": 0.5}])
def test_a_sampler_is_not_asked_for_an_axis_of_one_value(sqlite_url, monkeypatch, axis):
    class Asked(optuna.samplers.RandomSampler):
        def sample_independent(self, study, trial, name, distribution):
            assert name == "train.lr", "Optuna's sampler gp warns at each draw"
            return super().sample_independent(study, trial, name, distribution)

    monkeypatch.setitem(sampling.SAMPLERS, "random", Asked)
    searched = {"scale": axis, "train.lr": {"low": 0.1, "high": 0.2}}
    document = {"name": "one", "search": searched, "sampler": {"name": "random", "trials": 2}}
    with create_study(StudySpec.from_document(document), sqlite_url) as study:
        assert study.claim().params["scale"] == 1.5


def test_draws_depend_on_the_seed_and_the_trial_alone(tmp_path):
    points = []
    for seed, name in ((1, "a"), (1, "b"), (2, "c")):
        with create_study(sampled(trials=3, seed=seed), f"sqlite:///{tmp_path / name}") as study:
            points.append([claim.params for claim in iter(study.claim, None)])
    assert points[0] == points[1]
    assert points[0] != points[2]


def test_a_small_space_is_covered_without_a_point_twice(storage_url):
    with create_study(sampled("random", search=SEARCH, trials=4), storage_url) as study:
        points = [tuple(claim.params.items()) for claim in iter(study.claim, None)]
        assert len(set(points)) == len(points) == 4


def test_a_failed_point_is_tried_again(storage_url):
    with create_study(sampled(trials=2), storage_url) as study:
        first = study.claim()
        study.fail(first, "error", "broken")
        second = study.claim()
        assert (second.cell, second.attempt, second.params) == (0, 2, first.params)
        work_off(study)
        let_lease_run_out(study)
        study.reconcile()
        work_off(study)
        assert study.verify().whole


def test_a_point_whose_worker_died_while_it_was_drawn_is_drawn_again(storage_url, monkeypatch):
    from budgettune.study import sampling

    with create_study(sampled(trials=1), storage_url) as study:
        with monkeypatch.context() as patch, pytest.raises(BudgetTuneError, match="cannot draw a point"):
            patch.setattr(sampling, "propose", lambda *_: 1 // 0)
            study.claim()
        assert "sampler: ZeroDivisionError" in records(study)[0].failure
        transactions.reserve(study.engine, study.study_id, study._draws.next_point)
        assert study.claim() is None
        let_lease_run_out(study)
        claim = study.claim()
        assert (claim.cell, claim.repeat) == (0, 0)
        study.complete(claim, result())
        assert study.verify().whole


def test_an_endless_study_is_never_finished(sqlite_url):
    with create_study(sampled("random"), sqlite_url) as study:
        for _ in range(3):
            study.complete(study.claim(), result())
        assert not study.is_finished()
        assert study.verify().whole
        assert list_studies(sqlite_url)[0].cells is None


def test_steps_that_miss_the_end_of_a_range_stay_within_it(sqlite_url):
    search = {"train.lr": {"low": 0.1, "high": 0.35, "step": 0.1}, "batch_size": {"low": 10, "high": 25, "step": 10}}
    with create_study(sampled("random", search=search, trials=6), sqlite_url) as study:
        points = [claim.params for claim in iter(study.claim, None)]
    assert {point["batch_size"] for point in points} == {10, 20}
    assert {round(point["train.lr"], 9) for point in points} == {0.1, 0.2, 0.3}


def test_what_a_point_costs_is_known_before_any_has_run_where_a_formula_tells():
    search = {"scale": [0.5, 1.0, 2.0], "train.epochs": {"low": 2, "high": 16}, "prune_rate": [0.0, 0.3]}
    cost = sampling.known_cost(sampled("cost", search=search))
    usual = cost({"scale": 1.0, "train.epochs": 8, "prune_rate": 0.0})
    assert cost({"scale": 2.0, "train.epochs": 8, "prune_rate": 0.0}) > 2 * usual
    assert cost({"scale": 1.0, "train.epochs": 16, "prune_rate": 0.0}) == 2 * usual
    assert cost({"scale": 1.0, "train.epochs": 8, "prune_rate": 0.3}) == pytest.approx(0.7 * usual, rel=0.05)
    assert cost({"scale": -1.0, "train.epochs": 8, "prune_rate": 0.0}) == math.inf
    own = {"name": "own", "train": {"loop": "a:b"}, "search": {"params.x": [1, 2]}, "sampler": {"name": "cost"}}
    assert sampling.known_cost(StudySpec.from_document(own)) is None


def test_the_first_points_of_our_own_training_are_the_cheapest_of_those_in_the_middle(sqlite_url):
    search = {"scale": {"low": 0.5, "high": 2.0}, "train.epochs": {"low": 2, "high": 16}}
    spec = sampled("cost", search=search)
    cost = sampling.known_cost(spec)
    with create_study(spec, sqlite_url) as study:
        claims = [study.claim() for _ in range(4)]
        assert max(cost(claim.params) for claim in claims) < cost({"scale": 1.25, "train.epochs": 9})
        assert len({tuple(claim.params.items()) for claim in claims}) == 4
