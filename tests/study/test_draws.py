"""A draw reads the rows that may have changed, and decides as from all of them."""

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from budgettune.records import HANDED_BACK, Slot, SlotRow
from budgettune.storage.connection import reading, writing
from budgettune.storage.schema import TABLES_OF_A_TRIAL, trials
from budgettune.storage.writes import NewTrial, insert_trials
from budgettune.study import sampling
from budgettune.study.draws import Draws
from budgettune.study.handle import create_study, load_study
from budgettune.study.ledger import DrawLedger, Ledger, Settled
from budgettune.study.sampling import search_space, storing
from tests.support.studies import records, result, sampled, statements_of, work_off

STATES = st.sampled_from(["COMPLETE", "FAIL", "PRUNED", "STOPPED", "RUNNING", "WAITING"])
FAILURES = st.sampled_from([("error", "broken"), (HANDED_BACK, "told to stop"), None])
SAMPLERS = st.fixed_dictionaries(
    {"repeats": st.sampled_from([1, 2, "auto"]), "trials": st.sampled_from([1, 3, 6])},
    optional={"total": st.sampled_from([1.0, 5.0, 40.0])},
)


@st.composite
def studies(draw):
    """Return a spec, its rows as they were first seen, and as they are now: what had ended stays, more has come."""
    spec = sampled("random", **draw(SAMPLERS))
    earlier = [_row(draw, number) for number in range(draw(st.integers(0, 6)))]
    now = [row if row.state not in ("RUNNING", "WAITING") else _row(draw, row.number, row) for row in earlier]
    now += [_row(draw, number) for number in range(len(now), len(now) + draw(st.integers(0, 3)))]
    lost = [row.number for row in now if row.state == "FAIL"]
    late = [
        SlotRow(100 + number, 100 + number, "COMPLETE", Slot(draw(st.integers(0, 4)), 0), late_of=number, seconds=3.0)
        for number in draw(st.lists(st.sampled_from(lost), max_size=2, unique=True))
    ] if lost else []  # fmt: skip
    return spec, earlier, [*now, *late]


def _row(draw, number, before=None):
    state = draw(STATES)
    has_params = draw(st.booleans()) or (before is not None and before.has_params)
    return SlotRow(
        trial_id=number + 1,
        number=number,
        state="PRUNED" if state == "STOPPED" else state,
        slot=before.slot if before else Slot(draw(st.integers(-1, 4)), draw(st.sampled_from([0, 0, 0, 1, 2]))),
        attempt=draw(st.integers(1, 3)),
        has_params=has_params,
        failure=draw(FAILURES) if state == "FAIL" else None,
        extra=draw(st.booleans()) and state == "COMPLETE",
        seconds=float(draw(st.integers(0, 9))),
        is_stopped=state == "STOPPED",
    )


@settings(max_examples=1_000)
@given(studies())
def test_a_draw_is_decided_without_the_settled_rows_as_with_them(study):
    spec, earlier, now = study
    settled, left = Settled().grown(spec, earlier)
    unchanged = [row for row in left if row.state not in ("RUNNING", "WAITING")]
    asked_again = {row.trial_id for row in left} - {row.trial_id for row in unchanged}
    seen = {row.trial_id for row in earlier}
    news = [row for row in now if row.trial_id not in seen or row.trial_id in asked_again]
    for _ in range(2):  # the second time nothing has changed
        settled, left = settled.grown(spec, [*unchanged, *news])
        partial, whole = DrawLedger(spec, left, settled), Ledger(spec, now)
        assert partial.is_spent == whole.is_spent
        assert spec.sampler.total is None or partial.seconds == whole.seconds
        assert partial.to_draw() == whole.to_draw()
        unchanged, news = left, []


@pytest.fixture
def filled(storage_url):
    """Return a study without an end in which fifty points have run."""
    with create_study(sampled("random"), storage_url) as study:
        add_points(study, 50)
        yield study


def add_points(study, count):
    first = len(records(study))
    params = storing(search_space(study.spec))({"train.lr": 0.01, "batch_size": 16, "scale": 1.0})
    rows = [
        NewTrial("COMPLETE", {"cell": cell, "repeat": 0, "attempt": 1}, params, values=(1.0, 0.5))
        for cell in range(first, first + count)
    ]
    with writing(study.engine) as connection:
        insert_trials(connection, study.study_id, rows)


def rows_read(engine, call):
    """Return how many rows of trials and their attributes come back from the database in a call."""
    fetched = [0]

    def note(_connection, cursor, statement, *_):
        if statement.startswith("SELECT") and cursor.description is not None and cursor.rowcount > 0:
            fetched[0] += cursor.rowcount

    sa.event.listen(engine, "after_cursor_execute", note)
    call()
    sa.event.remove(engine, "after_cursor_execute", note)
    return fetched[0]


def test_a_draw_reads_as_much_of_a_large_study_as_of_a_small_one(postgresql_url):
    with create_study(sampled("random"), postgresql_url) as study:
        add_points(study, 20)
        study.claim()
        small = rows_read(study.engine, study.claim), statements_of(study, study.claim)
        add_points(study, 400)
        study.claim()
        assert study.claim().cell == 424
        assert rows_read(study.engine, study.claim) <= small[0] + 10
        assert statements_of(study, study.claim) <= small[1]


def test_under_the_lock_a_fresh_handle_reads_only_what_came_meanwhile(filled, monkeypatch):
    sizes = []
    read = Draws.read

    def noting(draws, connection):
        before = draws._seen.last_id
        ledger = read(draws, connection)
        sizes.append((before, len(ledger.rows)))
        return ledger

    monkeypatch.setattr(Draws, "read", noting)
    with load_study(filled.url, filled.name) as fresh:
        assert fresh.claim().cell == 50
    assert [before > 0 for before, _ in sizes] == [False, True, True, True]
    assert all(rows <= 1 for _, rows in sizes)


def test_handles_that_draw_in_turn_never_take_the_same_cell(filled):
    with load_study(filled.url, filled.name) as first, load_study(filled.url, filled.name) as second:
        claims = [handle.claim() for _ in range(4) for handle in (first, second)]
        assert [claim.cell for claim in claims] == list(range(50, 58))
        first.fail(claims[0], "error", "broken")
        assert second.claim().cell == 50
        assert second.claim().cell == 58
        assert first.claim().cell == 59


def test_a_point_that_another_draw_took_meanwhile_is_not_run_twice(storage_url, monkeypatch):
    search = {"scale": [1.0, 1.2], "batch_size": [16, 32]}
    with create_study(sampled("random", search=search, trials=3), storage_url) as study:
        fresh_point, other = sampling.fresh_point, load_study(storage_url, study.name)

        def slow(*arguments):
            point = fresh_point(*arguments)
            monkeypatch.setattr(sampling, "fresh_point", fresh_point)
            theirs.append(other.claim().params)
            return point

        theirs = []
        monkeypatch.setattr(sampling, "propose", lambda *_: {"scale": 1.0, "batch_size": 16})
        monkeypatch.setattr(sampling, "fresh_point", slow)
        mine = study.claim().params
        assert theirs == [{"scale": 1.0, "batch_size": 16}]
        assert mine != theirs[0]
        other.close()


def test_a_study_that_has_all_its_points_is_locked_by_no_further_look(storage_url):
    with create_study(sampled("random", trials=2), storage_url) as study:
        claims = [study.claim() for _ in range(2)]
        assert study.claim() is None
        assert statements_of(study, study.claim) == 1
        study.complete(claims[0], result())
        study.fail(claims[1], "error", "broken")
        assert study.claim().cell == 1


def test_a_point_whose_row_somebody_deleted_is_drawn_again(storage_url):
    with create_study(sampled("random", trials=3), storage_url) as study:
        work_off(study)
        gone = records(study)[1]
        with writing(study.engine) as connection:
            [trial_id] = connection.execute(
                sa.select(trials.c.trial_id).where(trials.c.number == gone.number)
            ).scalars()
            for table in (*TABLES_OF_A_TRIAL, trials):
                connection.execute(sa.delete(table).where(table.c.trial_id == trial_id))
        assert study.claim().cell == 1
        assert study.claim() is None


def test_what_is_read_of_a_study_holds_every_point_of_it(filled):
    work = Draws(filled.spec, filled.study_id)
    with reading(filled.engine) as connection:
        work.read(connection)
        assert len(work.points) == 1
        assert not work.is_enqueued
    claim = filled.claim()
    with reading(filled.engine) as connection:
        work.read(connection)
    assert len(work.points) == 2
    assert filled.complete(claim, result())
