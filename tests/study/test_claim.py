"""Claims, results and failures of one worker."""

import json
import math

import pytest
import sqlalchemy as sa

from budgettune.records import Slot
from budgettune.storage.connection import writing
from budgettune.storage.schema import (
    trial_user_attributes,
)
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from tests.support.studies import grid, records, result, sampled, statements_of, work_off


def test_each_cell_is_claimed_once_in_order_with_its_params_and_seed(study):
    claims = [study.claim() for _ in range(5)]
    assert claims[4] is None
    assert [claim.cell for claim in claims[:4]] == [0, 1, 2, 3]
    assert [claim.params for claim in claims[:4]] == study.spec.cells()
    assert [claim.seed for claim in claims[:4]] == [study.spec.trial_seed(cell, 0) for cell in range(4)]
    assert {(claim.repeat, claim.attempt) for claim in claims[:4]} == {(0, 1)}


def test_a_result_is_stored_whole_and_shown_to_every_optuna_tool(study):
    import optuna

    claim = study.claim()
    assert study.complete(claim, result()) is True
    [record] = trial_records(study.engine, study.study_id, states={"COMPLETE"})
    assert (record.train_seconds, record.test_accuracy, record.status) == (10.0, 0.9, "unverified")
    assert (record.cell, record.repeat, record.attempt, record.seed) == (0, 0, 1, claim.seed)
    assert record.prune_seconds == pytest.approx(0.3)
    assert (record.curve, record.phases, record.machine) == (result().curve, result().phases, result().machine)
    assert record.device_name == "cpu x2"
    [best] = optuna.load_study(study_name="study", storage=study.storage).best_trials
    assert (best.values, best.params) == ([10.0, 0.9], claim.params)
    assert best.datetime_start <= best.datetime_complete


def test_delivering_a_result_twice_changes_nothing(study):
    claim = study.claim()
    assert study.complete(claim, result()) is True
    assert study.complete(claim, result()) is True
    assert study.counts()["COMPLETE"] == 1


def test_objectives_that_are_not_finite_fail_the_trial(study):
    claim = study.claim()
    assert study.complete(claim, result(test_accuracy=math.nan)) is False
    assert records(study)[claim.number].failure.startswith("non-finite-result: ")
    assert study.counts()["FAIL"] == 1


def test_rows_that_another_program_queued_are_left_to_it(study):
    import optuna

    optuna.load_study(study_name="study", storage=study.storage).enqueue_trial({"scale": 9.0})
    assert [study.claim().cell for _ in range(4)] == [0, 1, 2, 3]
    assert study.claim() is None
    assert study.counts()["WAITING"] == 0


def test_a_study_is_finished_when_every_cell_is(study):
    assert not study.is_finished()
    work_off(study)
    assert study.is_finished()
    verification = study.verify()
    assert (verification.cells, verification.complete, verification.whole) == (4, 4, True)
    assert verification.describe() == "4 of 4 cells × repeats have exactly one complete trial"
    assert study.reconcile().queued == 0


def test_a_failed_cell_is_tried_again_until_it_is_given_up_with_its_reasons(study):
    for attempt in (1, 2, 3):
        claim = next(claim for claim in iter(study.claim, None) if claim.cell == 0)
        assert claim.attempt == attempt
        assert study.fail(claim, "out-of-memory", f"try {attempt} at postgresql://u:secret@h/d") is (attempt < 3)
    assert study.claim() is None
    [given_up] = study.verify().given_up
    assert given_up.slot == Slot(0, 0)
    assert given_up.reasons == tuple(f"out-of-memory: try {n} at postgresql://u:***@h/d" for n in (1, 2, 3))
    assert study.reconcile().queued == 0
    assert "given up: cell 0 repeat 0" in study.verify().describe()
    assert not study.verify().whole


def give_up(study, cells):
    for claim in iter(study.claim, None):
        if claim.cell in cells:
            study.fail(claim, "error", "broken")
        else:
            study.complete(claim, result())


def test_given_up_cells_count_as_finished_and_can_be_queued_again(study):
    give_up(study, {1, 2})
    assert study.is_finished()
    assert [failed.cell for failed in study.verify().given_up] == [1, 2]
    assert study.retry(cell=0) == 0
    assert study.retry(cell=2) == 1
    assert not study.is_finished()
    claim = study.claim()
    assert (claim.cell, claim.attempt, claim.params) == (2, 1, study.spec.cells()[2])
    study.complete(claim, result())
    assert study.retry() == 1
    assert study.retry() == 0
    work_off(study)
    assert study.verify().whole


def test_handing_back_uses_up_no_attempt(study):
    for _ in range(5):
        claim = next(claim for claim in iter(study.claim, None) if claim.cell == 0)
        assert claim.attempt == 1
        assert study.hand_back(claim) is True
    assert study.verify().given_up == ()
    assert study.reconcile().queued == 0


def test_a_long_failure_message_is_cut(study):
    claim = study.claim()
    study.fail(claim, "error", "x" * 100_000)
    assert len(records(study)[claim.number].failure) < 2_100


def test_a_study_is_finished_although_another_program_has_open_rows_in_it(study):
    import optuna

    theirs = optuna.load_study(study_name="study", storage=study.storage)
    theirs.enqueue_trial({"scale": 9.0}, user_attrs={"cell": "prison"})
    theirs.enqueue_trial({"scale": 9.0})
    assert not study.is_finished()
    work_off(study)
    assert study.is_finished()


def test_a_row_without_its_attempt_and_seed_is_run_with_those_it_must_have(study):
    attribute = trial_user_attributes
    with writing(study.engine) as connection:
        connection.execute(sa.delete(attribute).where(attribute.c.key.in_(["attempt", "seed"])))
    claims = [study.claim() for _ in range(4)]
    assert [(claim.attempt, claim.seed) for claim in claims] == [
        (1, study.spec.trial_seed(cell, 0)) for cell in range(4)
    ]


def test_a_grid_of_many_cells_is_claimed_by_a_few_statements_each(storage_url):
    search = {"train.lr": [0.1 + 0.001 * step for step in range(500)], "scale": [1.0, 2.0]}
    with create_study(grid(search=search), storage_url) as study:
        assert statements_of(study, study.claim) == 5
        assert [study.claim().cell for _ in range(3)] == [1, 2, 3]


def test_a_second_complete_trial_of_a_cell_is_reported(study):
    claim = study.claim()
    study.complete(claim, result())
    study.storage.create_new_trial(study.study_id, study.storage.get_trial(claim.trial_id))
    verification = study.verify()
    assert verification.doubled == (Slot(0, 0),)
    assert not verification.whole
    assert json.loads(json.dumps(verification.to_json()))["doubled"] == [{"cell": 0, "repeat": 0}]


def below(limit):
    return lambda params: params["scale"] < limit


def test_a_trial_that_does_not_fit_is_left_as_it_is(storage_url):
    study = create_study(grid(), storage_url)
    cells = [claim.params for claim in iter(lambda: study.claim(fits=below(1.2)), None)]
    assert [params["scale"] for params in cells] == [1.0, 1.0]
    assert study.counts() == {"RUNNING": 2, "COMPLETE": 0, "PRUNED": 0, "FAIL": 0, "WAITING": 2}
    assert [claim.attempt for claim in iter(study.claim, None)] == [1, 1]


def test_a_trial_that_fits_is_found_behind_many_that_do_not(storage_url):
    rates = [1e-3 * (1 + index) for index in range(100)]
    study = create_study(grid(search={"train.lr": rates}), storage_url)
    assert study.claim(fits=lambda params: params["train.lr"] == rates[-1]).cell == 99
    assert study.claim(fits=lambda params: params["train.lr"] == rates[-1]) is None
    assert study.claim().cell == 0


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_drawn_point_that_does_not_fit_waits_for_who_has_more_time(storage_url, repeats):
    study = create_study(sampled("random", trials=3, repeats=repeats), storage_url)
    drawn = []

    def nothing(params):
        drawn.append(params)
        return False

    assert study.claim(fits=nothing) is None
    assert study.claim(fits=nothing) is None  # and draws no other one
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 0, "WAITING": repeats}
    claim = study.claim(fits=lambda params: True)
    assert (claim.params, claim.cell, claim.attempt) == (drawn[0], 0, 1)
    assert len(list(iter(study.claim, None))) == 3 * repeats - 1
