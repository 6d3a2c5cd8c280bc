"""Studies some of whose axes are searched only where others have certain values."""

import json
import math
from collections import Counter

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

from budgettune.predict.search_axes import search_axes
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import writing
from budgettune.storage.schema import trial_params
from budgettune.study.handle import create_study
from budgettune.study.sampling import propose, search_space
from tests.support.studies import records, result, work_off

OPTIMIZERS = ["sgd", "adam", "none"]
SEARCH = {
    "params.optimizer": OPTIMIZERS,
    "params.momentum": {"low": 0.0, "high": 1.0, "when": {"params.optimizer": "sgd"}},
    "params.beta": {"low": 0.0, "high": 1.0, "when": {"params.optimizer": "adam"}},
}
LISTS = {
    "params.optimizer": OPTIMIZERS,
    "params.momentum": {"values": [0.8, 0.9], "when": {"params.optimizer": "sgd"}},
    "params.nesterov": {"values": [True, False], "when": {"params.momentum": 0.9}},
}


def own(search=SEARCH, **sampler):
    return StudySpec.from_document(
        {"name": "own", "train": {"loop": "mine:train", "epochs": 2}, "search": search, "sampler": sampler}
    )


def outcome(params):
    """Adam wins in both objectives, most near a beta of 0.8."""
    if params["params.optimizer"] == "adam":
        return 10.0, 0.8 - 0.3 * (params["params.beta"] - 0.8) ** 2
    return 11.0, 0.6


def draw(spec, count, outcome=outcome):
    """Return points that are drawn one by one, each with its outcome known before the next."""
    storage, space, points = optuna.storages.InMemoryStorage(), search_space(spec), []
    study = optuna.create_study(study_name=spec.name, storage=storage, directions=["minimize", "maximize"])
    for _ in range(count):
        trial = storage.create_new_trial(study._study_id)
        points.append(point := propose(storage, spec, trial))
        for name, value in point.items():
            storage.set_trial_param(trial, name, space[name].to_internal_repr(value), space[name])
        storage.set_trial_state_values(trial, TrialState.COMPLETE, outcome(point))
    return points


@pytest.mark.parametrize(
    ("sampler", "count"), [("tpe", 60), ("nsga2", 240), ("cost", 60), pytest.param("gp", 30, marks=pytest.mark.slow)]
)
def test_samplers_draw_active_axes_only_try_every_branch_and_learn_which_is_better_and_what_in_it(sampler, count):
    spec = own(name=sampler)
    points = draw(spec, count)
    assert all(map(spec.is_complete, points))
    assert {point["params.optimizer"] for point in points} == set(OPTIMIZERS)
    late = points[-count // 3 :]
    betas = [point["params.beta"] for point in late if "params.beta" in point]
    assert len(betas) > len(late) / 2  # a third by chance
    assert sum(abs(beta - 0.8) for beta in betas) / len(betas) < 0.28  # 0.34 by chance


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsga2", "cost"])
def test_a_sampled_study_ends_with_whole_points(sqlite_url, sampler):
    search = SEARCH | {"params.fused": {"values": [True, False], "when": {"params.optimizer": ["adam", "none"]}}}
    with create_study(own(search, name=sampler, trials=14, repeats=2), sqlite_url) as study:
        work_off(study)
        assert study.verify().whole
        rows = records(study)
        assert len(rows) == 28
        assert all(study.spec.is_complete(row.params) for row in rows)
        assert len({tuple(sorted(row.params.items())) for row in rows}) == 14


@pytest.mark.parametrize("sampler", ["random", "cost"])
def test_a_small_space_is_covered_without_a_point_twice(sqlite_url, sampler):
    with create_study(own(LISTS, name=sampler, trials=5), sqlite_url) as study:
        points = []
        while (claim := study.claim()) is not None:
            points.append(claim.params)
        assert len(points) == 5
        assert all(cell in points for cell in study.spec.cells())


def test_a_grid_runs_each_point_and_everything_shows_what_a_trial_lacks_as_blank(sqlite_url, run):
    with create_study(own(LISTS, repeats=2), sqlite_url) as study:
        counts = Counter()
        while (claim := study.claim()) is not None:
            counts[tuple(sorted(claim.params.items()))] += 1
            assert study.complete(claim, result(10.0 + len(counts), 0.5 + len(counts) / 10))
        assert counts == {tuple(sorted(cell.items())): 2 for cell in study.spec.cells()}
        assert study.verify().whole
        theirs = optuna.load_study(study_name="own", storage=study.storage)
        assert {len(trial.params) for trial in theirs.trials} == {1, 2, 3}
    status, out, _ = run("study", "show", "--storage", sqlite_url)
    assert status == 0
    assert "search.params.momentum: 0.8, 0.9 where params.optimizer is sgd" in out
    assert "search.params.nesterov: True, False where params.momentum is 0.9" in out
    status, out, _ = run("front", "--storage", sqlite_url)
    assert status == 0
    heading, row = (line.split() for line in out.splitlines()[:2])
    assert (heading[3:6], row[3:6]) == (["optimizer", "momentum", "nesterov"], ["sgd", "0.8", "-"])
    status, out, _ = run("front", "--format", "csv", "--storage", sqlite_url)
    assert out.splitlines()[0].count("params.") == 3
    status, out, _ = run("study", "export", "--format", "json", "--storage", sqlite_url)
    assert {len(trial["params"]) for trial in json.loads(out)} == {1, 2, 3}
    assert run("study", "export", "--storage", sqlite_url)[0] == 0
    assert run("report", "--out", "report.html", "--storage", sqlite_url)[0] == 0


def test_a_claim_with_an_inactive_axis_is_another_programs_hand(sqlite_url):
    with create_study(own(LISTS), sqlite_url) as study:
        with writing(study.engine) as connection:
            column = trial_params.c.param_name
            connection.execute(sa.delete(trial_params).where(column == "params.momentum"))
        points = []
        while (claim := study.claim()) is not None:
            points.append(claim.params)
        assert all(cell in points for cell in study.spec.cells())
        assert Counter(row.state for row in records(study)) == {"RUNNING": 5, "FAIL": 3}


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (
            {"params.optimizer": "adam", "params.momentum": 0.5},
            "which is not searched where params.optimizer is 'adam'",
        ),
        ({"params.momentum": 0.5}, "and not for params.optimizer, which that depends on: enqueue both"),
    ],
)
def test_an_enqueued_point_that_cannot_be_is_refused_with_the_reason(sqlite_url, asked, reason):
    with create_study(own(name="random", trials=2), sqlite_url) as study:
        optuna.load_study(study_name="own", storage=study.storage).enqueue_trial(asked)
        work_off(study)
        [failed] = [row for row in records(study) if row.state == "FAIL"]
        assert failed.failure.endswith(reason)
        assert study.verify().whole


@pytest.mark.parametrize("sampler", ["random", "tpe", "cost"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_an_enqueued_branch_leaves_open_is_drawn_in_that_branch(sqlite_url, sampler, optimizer):
    with create_study(own(name=sampler, trials=1), sqlite_url) as study:
        optuna.load_study(study_name="own", storage=study.storage).enqueue_trial({"params.optimizer": optimizer})
        params = study.claim().params
        assert params["params.optimizer"] == optimizer
        assert study.spec.is_complete(params)


def test_an_inactive_setting_lies_in_the_middle_for_predictions_whatever_its_default_is():
    decay = {"low": 1e-5, "high": 1e-1, "log": True, "when": {"train.optimizer": "sgd"}}
    search = {"train.optimizer": ["sgd", "adam"], "train.weight_decay": decay}
    spec = StudySpec.from_document({"name": "built-in", "search": search, "sampler": {"name": "random"}})
    [_, axis] = search_axes(spec)
    assert axis.is_conditional
    assert axis.places(None) == [0.5]
    assert math.isclose(axis.places(1e-3)[0], 0.5)
