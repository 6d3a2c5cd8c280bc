"""`[sampler] total`: a study that ends by the seconds its trials took, over all workers."""

import pytest
import sqlalchemy as sa

from budgettune.errors import SpecError
from budgettune.records import Slot, SlotRow
from budgettune.storage.connection import writing
from budgettune.storage.schema import trial_heartbeats, trials, utc_in
from budgettune.study.handle import create_study
from budgettune.study.ledger import Ledger
from budgettune.study.summary import list_studies
from tests.support.studies import let_lease_run_out, records, result, sampled, work_off


@pytest.fixture
def new_study(storage_url):
    """Return what makes a study that draws at random."""
    handles = []

    def make(**options):
        handles.append(create_study(sampled("random", **options), storage_url))
        return handles[-1]

    yield make
    for handle in handles:
        handle.close()


def let_run(study, claim, seconds):
    """Make a running trial so many seconds old, its last sign of life just now."""
    with writing(study.engine) as connection:
        connection.execute(
            sa.update(trials).where(trials.c.trial_id == claim.trial_id).values(datetime_start=utc_in(-seconds))
        )
        connection.execute(
            sa.update(trial_heartbeats).where(trial_heartbeats.c.trial_id == claim.trial_id).values(heartbeat=utc_in())
        )


def test_no_trial_begins_once_the_total_is_used_up(new_study):
    study = new_study(total="25s")
    work_off(study, train_seconds=10.0)
    assert [record.state for record in records(study)] == ["COMPLETE"] * 3
    assert study.is_finished()
    assert study.verify().whole
    assert study.verify().cells == 3
    assert list_studies(study.url)[0].seconds_left == 0.0


def test_only_trials_that_run_already_go_beyond_the_total(new_study):
    study = new_study(total=25.0)
    claims = [study.claim() for _ in range(4)]
    for claim in claims[:3]:
        study.complete(claim, result(10.0))
    assert study.claim() is None
    assert not study.is_finished()
    study.complete(claims[3], result(10.0))
    assert study.is_finished()
    assert len(records(study)) == 4


def test_what_running_trials_have_used_counts(new_study):
    study = new_study(total=25.0)
    claim = study.claim()
    let_run(study, claim, 20.0)
    other = study.claim()
    let_run(study, other, 8.0)
    assert study.claim() is None
    assert study.reconcile().queued == 0
    study.complete(other, result(1.0))  # most of it was not on the clock
    assert study.claim() is not None


def test_failed_trials_count_up_to_their_last_sign_of_life_and_are_not_tried_again(new_study):
    study = new_study(total=25.0)
    claim = study.claim()
    let_run(study, claim, 30.0)
    assert study.fail(claim, "error", "broken")
    assert study.claim() is None
    assert study.is_finished()
    assert study.verify().whole
    assert study.verify().cells == 0


def test_the_seconds_after_a_worker_died_do_not_count(new_study):
    study = new_study(total=25.0)
    study.claim()
    with writing(study.engine) as connection:
        connection.execute(sa.update(trials).values(datetime_start=utc_in(-3605)))
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    assert study.claim() is not None


def test_repeats_that_wait_are_not_begun(new_study):
    study = new_study(total=15.0, repeats=5)
    work_off(study, train_seconds=10.0)
    assert study.counts()["WAITING"] == 3
    assert study.is_finished()
    assert study.verify().whole


def test_the_first_of_two_ends_counts(new_study):
    study = new_study(total=35.0, trials=3)
    work_off(study, train_seconds=10.0)
    assert study.is_finished()
    assert len(records(study)) == 3
    other = new_study(total=15.0, trials=3, name="other")
    work_off(other, train_seconds=10.0)
    assert other.is_finished()
    assert len(records(other)) == 2


def test_a_late_result_and_the_lost_trial_that_it_is_of_count_once():
    spec = sampled("random", total=25.0)
    lost = SlotRow(1, 0, "FAIL", Slot(0, 0), failure=("lost", "gone"), seconds=20.0)
    late = SlotRow(2, 1, "COMPLETE", Slot(0, 0), late_of=0, seconds=21.0)
    assert not Ledger(spec, [lost, late]).is_spent
    assert Ledger(spec, [lost, SlotRow(2, 1, "COMPLETE", Slot(0, 0), seconds=21.0)]).is_spent


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "grid", "search": {"scale": [1.0]}, "total": "4h"}, "sampler: total ends a sampler"),
        ({"sampler": "tpe", "max_seconds": "2m"}, "sampler: max_seconds works with name = 'cost' only"),
        ({"sampler": "cost", "total": "soon"}, r"sampler\.total: .*is not a duration"),
    ],
)
def test_limits_that_nobody_keeps_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        sampled(**options)


def test_durations_are_read_as_people_write_them():
    sampler = sampled("cost", total="4h", max_seconds="2m").sampler
    assert (sampler.total, sampler.max_seconds) == (14_400.0, 120.0)
