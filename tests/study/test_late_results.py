"""Results of trials that were taken for lost."""

import pytest

from budgettune.study.handle import create_study, delete_study
from tests.support.studies import grid, lost_claim, records, result, work_off


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
