"""What a worker that finds nothing asks the database, whatever the study's size."""

import pytest
import sqlalchemy as sa

from budgettune.study.handle import create_study, load_study
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag
from tests.support.studies import grid, let_lease_run_out, sampled, work_off

OPTIONS = WorkerOptions(device="cpu", allow_mixed=True)


def looks_of(url, name, options, monkeypatch, count=4):
    """Return the statements of each look of a worker between its pauses."""
    sent, looks = [], []

    def note(_connection, _cursor, statement, *_):
        if not statement.startswith(("BEGIN", "PRAGMA")):
            sent.append(statement)

    def wait(stop, *_):
        looks.append(tuple(sent))
        sent.clear()
        if len(looks) == count:
            stop.request()
        return False

    with monkeypatch.context() as patch:
        patch.setattr(StopFlag, "wait", wait)
        sa.event.listen(sa.Engine, "before_cursor_execute", note)
        run_worker(url, name, options)
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    return looks


@pytest.mark.parametrize("spec", [grid(), sampled("random", trials=2), sampled("random", trials=2, repeats="auto")])
def test_a_look_that_finds_nothing_is_two_statements_that_lock_nothing(storage_url, spec, monkeypatch):
    with create_study(spec, storage_url) as study:
        last = study.claim()
        work_off(study)
        assert study.machine_key() is not None
        looks = looks_of(storage_url, study.name, OPTIONS, monkeypatch)
        for look in looks[2:]:
            assert [statement.split()[0] for statement in look] == ["SELECT", "SELECT"]
            assert not any("FOR UPDATE" in statement for statement in look)
        assert study.heartbeat(last.trial_id)


def test_a_worker_of_all_studies_asks_once_for_them_and_once_for_each(storage_url, monkeypatch):
    for name in ("one", "other"):
        with create_study(grid(name=name), storage_url) as study:
            study.claim()
            work_off(study)
    assert [len(look) for look in looks_of(storage_url, None, OPTIONS, monkeypatch)[2:]] == [3, 3]


@pytest.mark.parametrize("spec", [grid(), sampled("random", trials=4)])
def test_who_found_nothing_takes_what_comes_back(storage_url, spec):
    with create_study(spec, storage_url) as study, load_study(storage_url, study.name) as idle:
        claims = [study.claim() for _ in range(4)]
        for _ in range(3):
            assert idle.claim(lease_seconds=60.0) is None
        study.hand_back(claims[0])
        assert idle.claim(lease_seconds=60.0).cell == claims[0].cell
        assert idle.claim(lease_seconds=60.0) is None
        let_lease_run_out(study)
        found = [idle.claim(lease_seconds=60.0) for _ in range(4)]
        assert sorted(claim.cell for claim in found) == [0, 1, 2, 3]
        assert idle.claim(lease_seconds=60.0) is None
