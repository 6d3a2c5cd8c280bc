"""Trials beyond a study's limits stay in it, and no answer names them."""

import json
import logging

import optuna
import pytest

from budgettune import api
from budgettune.errors import NothingWithinBudget
from budgettune.spec.study_spec import StudySpec
from budgettune.study.handle import create_study
from tests.support.mirrored import KEY, own_result, own_spec, work_off_mirrored
from tests.support.studies import lost_claim, result

LIMITED = {"constraints": {"memory": {"limit": 800}}}  # ranks 1 to 8


@pytest.fixture
def study(storage_url):
    with create_study(own_spec(**LIMITED), storage_url) as handle:
        work_off_mirrored(handle, 1.0)
        yield handle


def ranks(records):
    return {record.params["params.rank"] for record in records}


def test_answers_leave_out_what_is_beyond_a_limit(study):
    assert ranks(api.best_under_budget(study, "1h", top=99)) == {1, 2, 4, 8}
    assert ranks(api.pareto_front(study)) <= {1, 2, 4, 8}
    assert api.best_under_budget(study, "1h")[0].params["params.rank"] == 8
    allowed = [one for one in api.trial_records(study) if one.measures["memory"] <= 800]
    assert api.hypervolume_of(study)[1][0] == pytest.approx(1.1 * max(one.train_seconds for one in allowed))
    assert api.certainty(study).front_chances.keys() == {one.cell for one in allowed}
    assert "8 finished trials are left out" in api.limits_note(study)
    with pytest.raises(NothingWithinBudget, match="the fastest takes"):
        api.best_under_budget(study, 1.0)


def test_a_study_of_which_all_is_beyond_its_limit_has_no_answer(storage_url):
    with create_study(own_spec(constraints={"memory": {"limit": 1}}), storage_url) as study:
        work_off_mirrored(study, 1.0)
        with pytest.raises(NothingWithinBudget, match="left out") as caught:
            api.best_under_budget(study, "1h")
        assert caught.value.fastest_seconds is None
        assert api.pareto_front(study) == []
        assert api.hypervolume_of(study)[0] == 0.0


def test_what_a_trial_does_not_tell_is_beyond_the_limit(storage_url):
    with create_study(own_spec(**LIMITED), storage_url) as study:
        study.complete(study.claim(), own_result(1.0, [2.0]))
        study.complete(study.claim(), own_result(2.0, [3.0], measures={"memory": 800.0}))
        assert [one.number for one in api.pareto_front(study)] == [1]
        assert "1 finished trial is left out" in api.limits_note(study)
        assert [trial.constraints for trial in study.storage.get_all_trials(study.study_id)[:2]] == [
            {"0": 801.0},
            {"0": 0.0},
        ]


def test_the_built_in_trainers_memory_may_be_limited(sqlite_url):
    document = {"name": "usual", "search": {"scale": [1.0, 1.4]}, "constraints": {"peak_memory_mb": {"limit": 99}}}
    with create_study(StudySpec.from_document(document), sqlite_url) as study:
        study.complete(study.claim(), result(1.0, 0.9))  # takes 100 MB
        assert api.pareto_front(study) == []


def test_a_late_result_tells_samplers_what_it_exceeds_too(storage_url):
    with create_study(own_spec(**LIMITED), storage_url) as study:
        claim = lost_claim(study)
        study.complete(claim, own_result(2.0, [3.0], measures={"memory": 900.0}))
        done = [trial for trial in study.storage.get_all_trials(study.study_id) if trial.state.name == "COMPLETE"]
        assert [trial.constraints for trial in done] == [{"0": 100.0}]


def test_studies_without_limits_keep_no_constraints(storage_url):
    with create_study(own_spec(), storage_url) as study:
        study.complete(study.claim(), own_result(2.0, [3.0], measures={"memory": 900.0}))
        assert study.storage.get_all_trials(study.study_id)[0].system_attrs == {}
        assert api.limits_note(study) is None


def test_commands_say_how_many_are_left_out_and_show_what_is_limited(run, sqlite_url):
    with create_study(own_spec(**LIMITED), sqlite_url) as study:
        work_off_mirrored(study, 1.0)
    for words in (("best", "--budget", "1h"), ("front",)):
        _, out, err = run(*words)
        assert "8 finished trials are left out: beyond the limits of the study (memory 800)" in " ".join(err.split())
        assert "memory" in out.splitlines()[0]
    document = json.loads(run("best", "--budget", "1h", "--format", "json")[1])
    assert document[0]["measures"] == {"memory": 800.0}
    assert KEY in document[0]


def test_further_repeats_are_not_spent_beyond_a_limit(sqlite_url):
    sampler = {"sampler": {"repeats": "auto"}}
    with create_study(own_spec(**LIMITED, **sampler), sqlite_url) as study:
        work_off_mirrored(study, 1.0)
        while study.reconcile().queued:
            work_off_mirrored(study, 1.0)
        repeated = [one for one in api.trial_records(study) if one.repeat]
    assert repeated
    assert all(one.measures["memory"] <= 800 for one in repeated)


@pytest.mark.parametrize("sampler", ["tpe", "cost", pytest.param("gp", marks=pytest.mark.slow)])
def test_samplers_draw_where_trials_are_within_the_limit(sqlite_url, sampler, caplog):
    """The larger the rank the better, and the more memory: without the limit they would go to the other end."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    options = {"name": sampler, "trials": 24, "seed": 3}
    search = {"params.rank": {"low": 0.0, "high": 1.0}, "params.rate": {"low": 0.0, "high": 1.0}}
    spec = own_spec(search=search, sampler=options, constraints={"memory": {"limit": 0.3}})
    drawn = []
    with create_study(spec, sqlite_url) as study, caplog.at_level(logging.WARNING):
        while (claim := study.claim()) is not None:
            rank, rate = claim.params["params.rank"], claim.params["params.rate"]
            drawn.append(rank)
            loss = 2.0 - rank + (rate - 0.5) ** 2
            study.complete(claim, own_result(1.0 + 0.1 * rate, [loss], measures={"memory": rank}))
    assert sum(rank <= 0.3 for rank in drawn[12:]) >= 6  # of 12; at random 3.6
    assert "constraint" not in caplog.text
