import csv
import io
import json
import math
import multiprocessing
import os
import signal
import time
import tomllib
from collections import Counter
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from budgettune import api
from budgettune.errors import BudgetTuneError, SpecError, StorageError, StudyExists, StudyNotFound, UsageError
from budgettune.records import Slot
from budgettune.spec.study_spec import StudySpec
from budgettune.storage import answers as query
from budgettune.storage import transactions
from budgettune.storage.connection import open_engine, parse_url, reading, schema_lock, writing
from budgettune.storage.schema import (
    TABLES_OF_A_STUDY,
    TABLES_OF_A_TRIAL,
    studies,
    trial_heartbeats,
    trial_user_attributes,
    trials,
    utc_in,
)
from budgettune.study.dashboard_note import study_note
from budgettune.study.export import export
from budgettune.study.handle import create_study, delete_study, list_studies, load_study
from tests.support.studies import SEARCH, grid, let_lease_run_out, records, result, sampled, work_off


@pytest.fixture
def study(storage_url):
    """Return a grid of four cells."""
    with create_study(grid(), storage_url) as handle:
        yield handle


# --- Create ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_a_waiting_trial_per_cell_and_repeat_that_optuna_can_read(storage_url):
    import optuna

    spec = grid(repeats=2, seed=7)
    with create_study(spec, storage_url) as study:
        seen = optuna.load_study(study_name="study", storage=study.storage)
        assert seen.metric_names == ["train_seconds", "test_accuracy"]
        assert [direction.name for direction in seen.directions] == ["MINIMIZE", "MAXIMIZE"]
        assert StudySpec.from_document(seen.user_attrs["budgettune:spec"]) == spec
        assert [trial.number for trial in seen.trials] == list(range(8))
        assert {trial.state.name for trial in seen.trials} == {"WAITING"}
        for trial in seen.trials:
            assert trial.params == spec.cells()[trial.user_attrs["cell"]]
            assert trial.distributions["scale"].choices == (1.0, 1.4)
            assert trial.user_attrs["attempt"] == 1
            assert trial.user_attrs["seed"] == spec.trial_seed(trial.user_attrs["cell"], trial.user_attrs["repeat"])
        assert len({(trial.user_attrs["cell"], trial.user_attrs["repeat"]) for trial in seen.trials}) == 8


def test_a_worker_needs_only_the_url(study):
    with load_study(study.url) as other:
        assert (other.name, other.spec, other.study_id) == (study.name, study.spec, study.study_id)


@pytest.mark.parametrize(
    "name", ["x", "Fränzi’s “Studie” 🚀", "a'; DROP TABLE studies; --", "%s {0} \\ \n", "名" * 400]
)
def test_any_name_works(storage_url, name):
    with create_study(grid(name), storage_url), load_study(storage_url, name) as study:
        assert study.name == name
        assert [summary.name for summary in list_studies(storage_url)] == [name]


@pytest.mark.parametrize("name", ["a\0b", "lone \ud800 surrogate"])
def test_a_name_that_no_database_keeps_is_refused(sqlite_url, name):
    with pytest.raises(SpecError, match=r"name: .*leave it out"):
        create_study(grid().model_copy(update={"name": name}), sqlite_url)


def test_a_name_that_is_taken_is_refused_and_skipped_if_asked(study):
    with pytest.raises(StudyExists, match="--skip-if-exists"):
        create_study(grid(), study.url)
    with create_study(grid(), study.url, skip_if_exists=True) as again:
        assert again.study_id == study.study_id
        assert again.counts()["WAITING"] == 4
    with pytest.raises(StudyExists, match="other settings"):
        create_study(grid(repeats=2), study.url, skip_if_exists=True)


def test_a_study_is_made_whole_or_not_at_all(sqlite_url, monkeypatch):
    def killed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(transactions, "insert_trials", killed)
    with pytest.raises(KeyboardInterrupt):
        create_study(grid(), sqlite_url)
    assert query.studies(open_engine(sqlite_url)) == []


def test_the_study_file_in_a_studys_note_makes_the_same_study():
    axes = {"train.lr": {"low": 1e-4, "high": 0.1, "log": True}, "batch_size": [16, 64], "prune_rate": [0.0, 0.25]}
    document = {"name": "Fränzi’s \x7f", "search": axes, "model": {"name": "mine:Net", "options": {"a b": '\\ "'}}}
    spec = StudySpec.from_document({**document, "sampler": {"name": "random"}})
    text = study_note(spec).partition("```toml\n")[2].partition("\n```")[0]
    again = StudySpec.from_document(tomllib.loads(text))
    assert again == spec
    assert list(again.search) == list(axes)


def test_a_study_of_a_newer_budgettune_is_refused_by_name_and_still_listed(study):
    with writing(study.engine) as connection:
        connection.execute(sa.text("UPDATE study_user_attributes SET value_json = '{\"warp\": 9}'"))
    with pytest.raises(StorageError, match=r"study 'study': .*open it with the budgettune that made it"):
        load_study(study.url)
    [summary] = list_studies(study.url)
    assert (summary.name, summary.cells, summary.states["WAITING"]) == ("study", None, 4)


# --- Claim and complete ---------------------------------------------------------------------------------------------


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
    [record] = query.trial_records(study.engine, study.study_id, states={"COMPLETE"})
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


def test_numbers_that_are_not_finite_reach_no_other_program(study, tmp_path):
    def refuse(constant):
        raise AssertionError(constant)

    study.complete(study.claim(), result())  # its step_ms_mad is NaN
    with reading(study.engine) as connection:
        for text in connection.execute(sa.select(trial_user_attributes.c.value_json)).scalars():
            json.loads(text, parse_constant=refuse)
    trial = _trial_with_param("seed")
    trial.user_attrs["curve"] = [{"epoch": 0, "train_seconds": 1, "steps": 1, "samples": 1, "loss": math.inf}]
    study.storage.create_new_trial(study.study_id, trial)
    export(study.engine, study.study_id, "json", tmp_path / "trials.json")
    json.loads((tmp_path / "trials.json").read_text(), parse_constant=refuse)


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
    assert study.counts()["WAITING"] == 1


def test_a_study_is_finished_when_every_cell_is(study):
    assert not study.is_finished()
    work_off(study)
    assert study.is_finished()
    verification = study.verify()
    assert (verification.cells, verification.complete, verification.whole) == (4, 4, True)
    assert verification.describe() == "4 of 4 cells × repeats have exactly one complete trial"
    assert study.reconcile().queued == 0


# --- Failures -------------------------------------------------------------------------------------------------------


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


# --- Leases ---------------------------------------------------------------------------------------------------------


def test_a_trial_without_signs_of_life_comes_back_and_uses_up_an_attempt(study):
    claim = study.claim()
    assert study.reconcile().lost == 0
    let_lease_run_out(study)
    reconciled = study.reconcile()
    assert (reconciled.lost, reconciled.queued, reconciled.given_up) == (1, 1, 0)
    assert records(study)[claim.number].failure == "lost: its worker gave no sign of life for 60 s"
    assert sorted((claim.cell, claim.attempt) for claim in iter(study.claim, None)) == [(0, 2), (1, 1), (2, 1), (3, 1)]


def test_a_heartbeat_renews_the_lease_and_tells_when_it_is_lost(study):
    claim = study.claim()
    let_lease_run_out(study)
    assert study.heartbeat(claim.trial_id) is True
    assert study.reconcile().lost == 0
    let_lease_run_out(study)
    study.reconcile()
    assert study.heartbeat(claim.trial_id) is False


def test_the_clock_of_a_workers_box_does_not_matter(study):
    """Whatever a worker's clock wrote, leases are read off the database's clock."""
    for hours in (-5, 5):
        claim = study.claim()
        with writing(study.engine) as connection:
            row = trials.c.trial_id == claim.trial_id
            connection.execute(sa.update(trials).where(row).values(datetime_start=utc_in(3600 * hours)))
    assert study.reconcile().lost == 0
    let_lease_run_out(study)
    assert study.reconcile().lost == 2


def test_a_heartbeat_from_the_future_does_not_keep_a_dead_trial_for_ever(study):
    study.claim()
    with writing(study.engine) as connection:
        connection.execute(sa.update(trial_heartbeats).values(heartbeat=utc_in(3600)))
    assert study.reconcile(lease_seconds=0.2).lost == 0
    time.sleep(0.3)
    assert study.reconcile(lease_seconds=0.2).lost == 1


def test_a_running_trial_of_another_tool_gets_a_lease_when_it_is_first_seen(study):
    trial_id = study.storage.create_new_trial(study.study_id)
    assert study.reconcile(lease_seconds=0.2).lost == 0
    time.sleep(0.3)
    study.storage.record_heartbeat(trial_id)
    assert study.reconcile(lease_seconds=2.5).lost == 0
    time.sleep(0.3)
    assert study.reconcile(lease_seconds=0.2).lost == 1
    assert study.counts() == {"RUNNING": 0, "COMPLETE": 0, "PRUNED": 0, "FAIL": 1, "WAITING": 4}


def test_cells_that_have_no_trial_are_queued(study):
    with writing(study.engine) as connection:
        for table in (*TABLES_OF_A_TRIAL, trials):
            connection.execute(sa.delete(table).where(table.c.trial_id.in_([3, 4])))
    assert study.verify().missing == (Slot(0, 0), Slot(1, 0), Slot(2, 0), Slot(3, 0))
    assert study.reconcile().queued == 2
    assert sorted(claim.cell for claim in iter(study.claim, None)) == [0, 1, 2, 3]


def statements_of(study, call):
    """Return how many statements a call sends."""
    sent = []

    def note(_connection, _cursor, statement, *_):
        sent.append(statement)

    sa.event.listen(study.engine, "before_cursor_execute", note)
    call()
    sa.event.remove(study.engine, "before_cursor_execute", note)
    return len([statement for statement in sent if not statement.startswith("BEGIN")])


def test_a_look_at_a_study_where_nothing_came_open_is_one_statement(study):
    study.reconcile()
    assert statements_of(study, study.reconcile) == 1
    work_off(study)
    assert statements_of(study, study.reconcile) == 1


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_look_finds_a_cell_that_came_open_by_any_hand_since_the_last_one(study, is_deleted):
    claim = study.claim()
    study.reconcile()
    assert study.reconcile().queued == 0
    with writing(study.engine) as connection:
        if is_deleted:
            for table in (*TABLES_OF_A_TRIAL, trials):
                connection.execute(sa.delete(table).where(table.c.trial_id == claim.trial_id))
        else:
            connection.execute(sa.update(trials).where(trials.c.trial_id == claim.trial_id).values(state="FAIL"))
    assert study.reconcile().queued == 1
    assert study.reconcile().queued == 0


def test_a_row_that_came_back_to_waiting_is_found_after_the_next_look(study):
    """Another worker held it for an instant, and its transaction failed."""
    first = study.claim()
    assert [study.claim().cell for _ in range(3)] == [1, 2, 3]
    with writing(study.engine) as connection:
        connection.execute(sa.update(trials).where(trials.c.trial_id == first.trial_id).values(state="WAITING"))
    study.reconcile()
    assert study.claim() == first


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


# --- Late results ---------------------------------------------------------------------------------------------------


def lost_claim(study):
    claim = study.claim()
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    return claim


def test_a_late_result_counts_where_its_cell_still_waits(study):
    claim = lost_claim(study)
    assert study.complete(claim, result(train_seconds=3.0)) is True
    assert study.complete(claim, result(train_seconds=3.0)) is True
    work_off(study)
    assert study.verify().whole
    assert study.counts()["COMPLETE"] == 4
    assert [record.cell for record in records(study) if record.train_seconds == 3.0] == [0]


@pytest.mark.parametrize("other_is_done", [False, True])
def test_a_late_result_is_an_extra_where_another_worker_has_the_cell(study, other_is_done):
    claim = lost_claim(study)
    again = next(other for other in iter(study.claim, None) if other.cell == claim.cell)
    if other_is_done:
        study.complete(again, result())
    assert study.complete(claim, result(train_seconds=3.0)) is False
    assert study.complete(claim, result(train_seconds=3.0)) is False
    if not other_is_done:
        assert study.complete(again, result()) is True
    assert study.verify().doubled == ()
    assert study.verify().complete == 1
    late = [record for record in records(study) if record.train_seconds == 3.0]
    assert [(record.cell, record.params, record.state) for record in late] == [(claim.cell, claim.params, "COMPLETE")]


def test_a_late_result_counts_where_its_cell_was_given_up(storage_url):
    with create_study(grid(max_attempts=1), storage_url) as study:
        claim = lost_claim(study)
        assert [failed.cell for failed in study.verify().given_up] == [0]
        assert study.complete(claim, result()) is True
        work_off(study)
        assert study.verify().whole


# --- One kind of machine --------------------------------------------------------------------------------------------


def test_the_first_finished_trial_says_which_machine_counts_and_other_times_are_kept_as_extras(study):
    first, second = study.claim(), study.claim()
    assert study.machine_kind() is None
    assert study.complete(first, result(device_name="fast")) is True
    assert study.machine_kind() == "fast x2"
    other = load_study(study.url)  # a worker that knows nothing of the first one's kind
    assert other.complete(second, result(device_name="slow")) is False
    assert other.complete(second, result(device_name="slow")) is False
    extras = [record for record in records(study) if record.extra]
    assert [(record.number, record.device_name) for record in extras] == [(second.number, "slow x2")]
    again = [record for record in records(study) if record.cell == second.cell and record.state == "WAITING"]
    assert [record.attempt for record in again] == [second.attempt]
    work_off(study, device_name="fast")
    assert study.verify().whole


def test_kinds_may_be_mixed_knowingly(study):
    first, second = study.claim(), study.claim()
    study.complete(first, result(device_name="fast"))
    assert study.complete(second, result(device_name="slow"), allow_mixed=True) is True
    assert api.machines(study) == (
        "fast x2",
        "times of fast x2 only; the study also holds slow x2: --device-name chooses, any takes all",
    )


def test_kinds_are_looked_up_with_the_study_and_not_in_each_of_its_trials(study):
    from budgettune.storage.schema import study_user_attributes

    for device_name in ("fast", "slow"):
        study.complete(study.claim(), result(device_name=device_name), allow_mixed=True)
    assert query.device_names(study.engine, study.study_id) == ["fast x2", "slow x2"]
    assert statements_of(study, lambda: query.device_names(study.engine, study.study_id)) == 1
    with writing(study.engine) as connection:  # as before the list was kept
        table = study_user_attributes
        connection.execute(sa.delete(table).where(table.c.key == "budgettune:machine_kinds"))
    assert load_study(study.url).machine_kind() == "fast x2"
    assert query.device_names(study.engine, study.study_id) == ["fast x2", "slow x2"]
    later = load_study(study.url)
    later.complete(later.claim(), result(device_name="third"), allow_mixed=True)
    assert statements_of(study, lambda: query.device_names(study.engine, study.study_id)) == 1
    assert query.device_names(study.engine, study.study_id) == ["fast x2", "slow x2", "third x2"]


def test_a_late_result_of_another_machine_takes_no_cell(study):
    study.complete(study.claim(), result(device_name="fast"))
    late = study.claim()
    let_lease_run_out(study)
    study.reconcile()
    assert study.complete(late, result(device_name="slow")) is False
    work_off(study, device_name="fast")
    assert study.verify().whole


def test_a_spec_may_name_the_machine(storage_url):
    spec = StudySpec.from_document({"name": "s", "search": {"scale": [1.0]}, "machine": {"device_name": "fast x2"}})
    study = create_study(spec, storage_url)
    assert study.machine_kind() == "fast x2"
    assert study.complete(study.claim(), result(device_name="slow")) is False
    assert study.complete(study.claim(), result(device_name="fast")) is True
    assert study.verify().whole


def test_answers_hold_the_times_of_one_kind_of_machine_unless_all_are_asked_for(study):
    for device_name, seconds in (("fast", 10.0), ("slow", 5.0)):
        study.complete(study.claim(), result(seconds, device_name=device_name), allow_mixed=True)
    for asked, fastest in ((None, 10.0), ("slow x2", 5.0), ("any", 5.0)):
        kind = query.comparable_kind(study.engine, study.study_id, asked)
        front = query.pareto_front(study.engine, study.study_id, device_name=kind)
        assert front[0].train_seconds == fastest
    with pytest.raises(UsageError, match="'fast x2', 'slow x2'"):
        query.comparable_kind(study.engine, study.study_id, "unknown")


def test_a_late_failure_changes_nothing(study):
    claim = lost_claim(study)
    before = study.counts()
    assert study.fail(claim, "error", "too late") is False
    assert study.hand_back(claim) is False
    assert study.counts() == before


def test_the_end_of_a_trial_whose_study_was_deleted_is_no_error(study):
    claim = study.claim()
    delete_study(study.url, study.name)
    assert study.heartbeat(claim.trial_id) is False
    assert study.complete(claim, result()) is False
    assert study.fail(claim, "error", "gone") is False
    assert study.claim() is None
    assert study.reconcile().queued == 0


# --- Sampled studies ------------------------------------------------------------------------------------------------


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
        transactions.reserve(study.engine, study.study_id, study._next_point)
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


# --- List, delete ---------------------------------------------------------------------------------------------------


def test_a_summary_counts_and_estimates(study):
    assert list_studies(study.url)[0].seconds_left is None
    for seconds in (10.0, 30.0, 20.0):
        study.complete(study.claim(), result(seconds))
    study.claim()
    [summary] = list_studies(study.url)
    assert (summary.name, summary.cells, summary.devices) == ("study", 4, ("cpu x2",))
    assert (summary.train_seconds, summary.seconds_left) == (60.0, 20.0)
    assert summary.states == {"RUNNING": 1, "COMPLETE": 3, "PRUNED": 0, "FAIL": 0, "WAITING": 0}


def test_deleting_a_study_leaves_no_row_of_it_and_others_untouched(study):
    with create_study(grid("other", repeats=50), study.url) as other:
        work_off(study)
        for _ in range(3):
            other.complete(other.claim(), result())
        before = records(study)
        delete_study(study.url, "other")
        assert records(study) == before
        delete_study(study.url, "study")
        with reading(study.engine) as connection:
            for table in (studies, trials, *TABLES_OF_A_STUDY, *TABLES_OF_A_TRIAL):
                assert connection.execute(sa.select(table)).all() == []
    with pytest.raises(StudyNotFound):
        delete_study(study.url, "study")


# --- Export ---------------------------------------------------------------------------------------------------------


def test_csv_has_one_row_per_trial_and_a_column_per_param(study, tmp_path):
    study.complete(study.claim(), result())
    out = tmp_path / "trials.csv"
    export(study.engine, study.study_id, "csv", out)
    rows = list(csv.DictReader(io.StringIO(out.read_text())))
    assert [row["state"] for row in rows] == ["COMPLETE", "WAITING", "WAITING", "WAITING"]
    assert (rows[0]["train_seconds"], rows[0]["scale"], rows[3]["prune_rate"]) == ("10.0", "1.0", "0.3")
    assert list(tmp_path.glob(".trials*")) == []


def test_json_holds_what_the_records_hold(study, tmp_path):
    study.complete(study.claim(), result())
    out = tmp_path / "trials.json"
    export(study.engine, study.study_id, "json", out)
    assert json.loads(out.read_text()) == json.loads(json.dumps([record.to_json() for record in records(study)]))


def test_a_study_without_trials_exports_as_empty(sqlite_url, tmp_path):
    with create_study(sampled(), sqlite_url) as study:
        export(study.engine, study.study_id, "json", tmp_path / "none.json")
        export(study.engine, study.study_id, "csv", tmp_path / "none.csv")
    assert json.loads((tmp_path / "none.json").read_text()) == []
    assert (tmp_path / "none.csv").read_text().startswith("number,state,")


@pytest.mark.parametrize("out", [None, "-"])
def test_a_dash_is_standard_output(study, capfdbinary, out):
    export(study.engine, study.study_id, "json", out)
    assert len(json.loads(capfdbinary.readouterr().out)) == 4


def test_a_failed_export_leaves_the_old_file(study, tmp_path, monkeypatch):
    out = tmp_path / "trials.csv"
    out.write_text("old")
    monkeypatch.setattr(query, "record_batches", lambda *_, **__: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        export(study.engine, study.study_id, "csv", out)
    assert out.read_text() == "old"
    assert list(tmp_path.glob(".trials*")) == []


def test_places_that_cannot_be_written_are_named_and_devices_are_not_replaced(study, tmp_path):
    for out in (tmp_path, tmp_path / "missing" / "trials.csv"):
        with pytest.raises(UsageError, match="cannot be written"):
            export(study.engine, study.study_id, "csv", out)
    export(study.engine, study.study_id, "csv", os.devnull)
    assert not Path(os.devnull).is_file()
    with pytest.raises(UsageError, match="choose one of csv, json, parquet"):
        export(study.engine, study.study_id, "xlsx", tmp_path / "x")


def test_parquet_without_its_packages_names_the_extra(study, tmp_path):
    try:
        import pandas as pd
        import pyarrow  # noqa: F401
    except ImportError:
        with pytest.raises(BudgetTuneError, match=r"budgettune\[parquet\]"):
            export(study.engine, study.study_id, "parquet", tmp_path / "trials.parquet")
        assert list(tmp_path.glob("*parquet*")) == []
    else:
        export(study.engine, study.study_id, "parquet", tmp_path / "trials.parquet")
        assert list(pd.read_parquet(tmp_path / "trials.parquet")["number"]) == [0, 1, 2, 3]


def test_a_param_named_like_a_column_gets_a_prefix(sqlite_url, tmp_path):
    search = {"train.epochs": [1, 2], "data.seed": [0, 1]}
    with create_study(grid(search=search), sqlite_url) as study:
        study.storage.create_new_trial(study.study_id, _trial_with_param("seed"))
        export(study.engine, study.study_id, "csv", tmp_path / "trials.csv")
    header = (tmp_path / "trials.csv").read_text().splitlines()[0].split(",")
    assert "params.seed" in header
    assert {"train.epochs", "data.seed"} <= set(header)
    assert len(set(header)) == len(header)


def _trial_with_param(name):
    from optuna.distributions import FloatDistribution
    from optuna.trial import create_trial

    return create_trial(params={name: 0.5}, distributions={name: FloatDistribution(0, 1)}, values=[1.0, 0.5])


# --- Many processes -------------------------------------------------------------------------------------------------

SPAWN = multiprocessing.get_context("spawn")
EIGHTY = {"scale": [1.0, 1.1, 1.2, 1.4, 1.6], "prune_rate": [0.0, 0.1, 0.2, 0.3], "batch_size": [14, 16, 18, 20]}


def claim_all(url, start, done):
    """Work as four lines of a worker: claim, complete, until nothing is left."""
    with load_study(url) as study:
        start.wait(60)
        cells = []
        while (claim := study.claim()) is not None:
            study.heartbeat(claim.trial_id)
            study.complete(claim, result(train_seconds=1.0 + claim.cell))
            cells.append(claim.cell)
        done.put(cells)


def create_at_once(url, start, done):
    start.wait(60)
    with create_study(grid(), url, skip_if_exists=True) as study:
        done.put(study.study_id)


def claim_and_hang(url, done):
    with load_study(url) as study:
        done.put(study.claim().cell)
        time.sleep(60)


def run_at_once(target, url, count):
    """Run a function in processes that begin together; return what each put into its queue."""
    start, done = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [SPAWN.Process(target=target, args=(url, start, done)) for _ in range(count)]
    for process in processes:
        process.start()
    answers = [done.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return answers


def test_four_processes_share_a_grid_and_run_every_cell_once(storage_url):
    with create_study(grid(search=EIGHTY), storage_url) as study:
        shares = run_at_once(claim_all, storage_url, 4)
        assert sorted(cell for share in shares for cell in share) == list(range(80))
        assert study.verify().whole
        assert study.counts()["COMPLETE"] == 80


def test_two_processes_share_a_sampled_study_without_overshoot_or_repetition(storage_url):
    with create_study(sampled("tpe", trials=15), storage_url) as study:
        shares = run_at_once(claim_all, storage_url, 2)
        assert sorted(cell for share in shares for cell in share) == list(range(15))
        assert len({tuple(record.params.items()) for record in records(study)}) == 15
        assert study.verify().whole


def test_eight_processes_that_create_the_same_study_make_one(storage_url):
    assert len(set(run_at_once(create_at_once, storage_url, 8))) == 1
    with load_study(storage_url) as study:
        assert [claim.cell for claim in iter(study.claim, None)] == [0, 1, 2, 3]


def test_the_cell_of_a_killed_process_comes_back_after_its_lease(study):
    done = SPAWN.Queue()
    process = SPAWN.Process(target=claim_and_hang, args=(study.url, done))
    process.start()
    cell = done.get(timeout=60)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    work_off(study)
    assert study.reconcile().lost == 0
    deadline = time.monotonic() + 10
    while study.reconcile(lease_seconds=0.5).queued == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    claim = study.claim()
    assert (claim.cell, claim.attempt) == (cell, 2)
    study.complete(claim, result())
    assert study.verify().whole


def test_work_goes_on_where_no_setting_of_a_session_survives(postgresql_url):
    """A pooler that lends a connection for one transaction gives the next one to somebody else."""
    open_engine(postgresql_url, create=True)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET timezone = 'Asia/Tokyo'")

    def forget(connection, *_):
        connection.autocommit = True
        connection.execute("DISCARD ALL")
        connection.autocommit = False

    with (
        create_study(grid(max_attempts=9), postgresql_url) as study,
        create_study(sampled(trials=2, name="b"), postgresql_url) as other,
    ):
        for engine in (study.engine, other.storage.engine):
            engine.dispose()
            sa.event.listen(engine, "checkout", forget)
        with reading(study.engine) as connection:
            assert connection.execute(sa.text("SHOW TIME ZONE")).scalar() == "Asia/Tokyo"
        claim = study.claim()
        assert study.heartbeat(claim.trial_id)
        assert study.reconcile().lost == 0
        let_lease_run_out(study)
        assert study.reconcile().lost == 1
        assert study.complete(claim, result()) is True
        study.fail(study.claim(), "error", "broken")
        for each in (study, other):
            work_off(each)
            assert each.verify().whole
        with schema_lock(parse_url(postgresql_url)):
            pass
