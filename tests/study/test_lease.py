"""Leases, and what a look at a study repairs."""

import time

import psycopg
import pytest
import sqlalchemy as sa

from budgettune.records import Slot
from budgettune.storage.connection import open_engine, reading, schema_lock, writing
from budgettune.storage.schema import (
    TABLES_OF_A_TRIAL,
    trial_heartbeats,
    trials,
    utc_in,
)
from budgettune.storage.url import parse_url
from budgettune.study.handle import create_study
from tests.support.studies import grid, let_lease_run_out, records, result, sampled, statements_of, work_off


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


def test_a_cell_that_another_tool_runs_gets_a_lease_when_it_is_first_seen(study):
    trial_id = study.claim().trial_id
    with writing(study.engine) as connection:
        connection.execute(sa.delete(trial_heartbeats))
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


def test_work_goes_on_where_no_setting_of_a_session_survives(postgresql_url):
    """A pooler that lends a connection for one transaction gives the next one to somebody else."""
    open_engine(postgresql_url, create=True)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(f"ALTER DATABASE {connection.info.dbname} SET timezone = 'Asia/Tokyo'")

    def forget(connection, *_):
        connection.execute("DISCARD ALL")

    with (
        create_study(grid(max_attempts=9), postgresql_url) as study,
        create_study(sampled(trials=2, name="b"), postgresql_url) as other,
    ):
        for engine in (study.engine, other.storage.engine):
            engine.dispose()
            sa.event.listen(engine, "checkout", forget)
        with reading(study.engine) as connection:
            assert connection.execute(sa.text("SHOW TIME ZONE")).scalar() == "UTC"
            assert connection.execute(sa.text("SHOW lock_timeout")).scalar() == "1min"
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


def kept(study, epochs):
    """Claim a trial, keep it after so many epochs in turn, and lose its worker; return the attempt that it was."""
    claim = study.claim()
    for count in epochs:
        assert study.heartbeat(claim.trial_id, count)
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    return claim.attempt


def test_a_lost_trial_that_moved_on_uses_up_no_attempt(storage_url):
    study = create_study(grid(search={"scale": [1.0]}, max_attempts=2), storage_url)
    assert [kept(study, epochs) for epochs in ([1, 3], [4], [], [5])] == [1, 1, 1, 2]
    assert study.claim().attempt == 2
    assert study.verify().given_up == ()


def test_a_lost_trial_that_is_kept_no_further_than_before_uses_one_up(storage_url):
    study = create_study(grid(search={"scale": [1.0]}, max_attempts=2), storage_url)
    # Epoch 3 is reached again and again, on boxes that share no folder: that must have an end.
    assert [kept(study, epochs) for epochs in ([3], [3], [1, 2])] == [1, 1, 2]
    assert study.claim() is None
    assert [failed.slot for failed in study.verify().given_up] == [Slot(0, 0)]


def test_a_failure_of_a_trials_own_uses_one_up_however_far_it_came(storage_url):
    study = create_study(grid(search={"scale": [1.0]}, max_attempts=2), storage_url)
    claim = study.claim()
    study.heartbeat(claim.trial_id, 7)
    study.fail(claim, "error", "no such optimizer")
    assert study.claim().attempt == 2
