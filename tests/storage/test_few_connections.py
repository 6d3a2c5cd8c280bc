"""Connections to a server: held for moments, closed when unused, without settings that outlive their use."""

import os
import subprocess
import sys
import threading
from contextlib import closing
from types import SimpleNamespace

import psycopg
import pytest
import sqlalchemy as sa

from benchmarks.support.noop_workers import connections_beside
from budgettune.errors import StorageBusy
from budgettune.storage import connection as connections
from budgettune.storage.connection import open_engine, open_storage, reading, writing
from budgettune.storage.driver_errors import storage_error
from budgettune.storage.patience import pauses
from budgettune.study.handle import create_study, load_study
from budgettune.worker import watchdog
from budgettune.worker.watchdog import Heartbeat
from tests.support.processes import wait_until
from tests.support.studies import grid, result, sampled, work_off


@pytest.fixture
def held(postgresql_url):
    """Return what counts the connections that a database has, its own left out."""
    with psycopg.connect(postgresql_url, autocommit=True) as own:
        yield lambda: connections_beside(own)


@pytest.mark.parametrize("spec", [grid(), sampled("tpe", trials=2)], ids=["grid", "sampled"])
def test_no_connection_is_held_while_a_trial_trains(postgresql_url, held, spec):
    study = create_study(spec, postgresql_url)
    claim = study.claim()
    with Heartbeat(study, claim, 3600):
        wait_until(lambda: held() == 0)
    assert study.complete(claim, result())
    wait_until(lambda: held() == 0)


def test_statements_one_after_the_other_use_one_connection(postgresql_url, monkeypatch):
    monkeypatch.setattr(connections, "UNUSED_SECONDS", 60.0)
    study = create_study(grid(), postgresql_url)
    opened = []
    sa.event.listen(study.engine, "connect", lambda *_: opened.append(1))
    work_off(study)
    assert len(opened) <= 1  # none where that of `create_study` was still open
    study.close()


def test_threads_get_their_answers_while_connections_are_closed_under_them(postgresql_url, held, monkeypatch):
    monkeypatch.setattr(connections, "UNUSED_SECONDS", 0.0)
    study, wrong = create_study(grid(), postgresql_url), []

    def ask():
        for _ in range(40):
            try:
                assert study.counts()["WAITING"] == 4
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    wait_until(lambda: held() == 0)


FORK = """
import os, sys
from budgettune.study.handle import load_study
study = load_study(sys.argv[1])
study.counts(), study.storage.get_all_studies()
if (child := os.fork()) == 0:
    study.counts(), study.storage.get_all_studies()
    os._exit(0 if study.engine.pool.checkedin() == 1 else 1)
assert os.waitpid(child, 0)[1] == 0
study.counts(), study.storage.get_all_studies()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system knows no fork")
def test_a_forked_child_has_connections_of_its_own(postgresql_url):
    create_study(grid(), postgresql_url)
    child = subprocess.run([sys.executable, "-c", FORK, postgresql_url], capture_output=True, text=True, timeout=120)
    assert child.returncode == 0, child.stderr


def test_what_holds_for_our_transactions_is_no_setting_of_the_session(postgresql_url):
    engine = open_engine(postgresql_url, create=True)
    with psycopg.connect(postgresql_url) as plain:
        usual = [plain.execute(f"SHOW {name}").fetchone() for name in ("TIME ZONE", "lock_timeout")]
    with reading(engine) as connection:
        assert connection.execute(sa.text("SHOW lock_timeout")).scalar() == "1min"
    with closing(engine.raw_connection()) as raw, closing(raw.cursor()) as cursor:
        for name, expected in zip(("TIME ZONE", "lock_timeout"), usual, strict=True):
            cursor.execute(f"SHOW {name}")
            assert cursor.fetchone() == expected


def test_a_transaction_is_kept_whole_or_not_at_all(postgresql_url):
    engine = open_engine(postgresql_url, create=True)
    add = sa.text("INSERT INTO studies (study_name) VALUES (:name)")
    with pytest.raises(ZeroDivisionError), writing(engine) as connection:
        connection.execute(add, {"name": "lost"})
        raise ZeroDivisionError
    with writing(engine) as connection:
        connection.execute(add, {"name": "kept"})
    with reading(engine) as connection:
        assert connection.execute(sa.text("SELECT study_name FROM studies")).scalars().all() == ["kept"]


def test_a_storage_for_reading_begins_transactions_in_which_a_server_refuses_writes(postgresql_url):
    storage = open_storage(postgresql_url, create=True, read_only=True)
    with storage.engine.begin() as connection, pytest.raises(sa.exc.InternalError, match="read-only transaction"):
        connection.execute(sa.text("DELETE FROM studies"))
    storage.engine.dispose()


@pytest.mark.parametrize(
    "said",
    [
        "canceling statement due to lock timeout",
        "deadlock detected\nDETAIL:  Process 1 waits for ShareLock on transaction 2",
        "could not serialize access due to concurrent update",
        "FATAL:  server login has been failing, try again later (server_login_retry)",
    ],
)
def test_what_others_are_in_the_way_of_is_asked_again(said):
    assert isinstance(storage_error("postgresql://host/db", psycopg.OperationalError(said)), StorageBusy)


@pytest.fixture
def impatient(monkeypatch):
    """Let nobody wait long for a lock."""
    text = connections.POSTGRESQL_TRANSACTION.replace("lock_timeout = '60s'", "lock_timeout = '20ms'")
    monkeypatch.setattr(connections, "POSTGRESQL_TRANSACTION", text)


@pytest.fixture
def locked(postgresql_url, impatient, monkeypatch):
    """Return a study whose rows another program holds until somebody pauses."""
    study = create_study(grid(), postgresql_url)
    claim = study.claim()
    with psycopg.connect(postgresql_url) as other:
        other.execute("SELECT * FROM studies FOR UPDATE")
        waits = SimpleNamespace(sleep=lambda seconds: other.rollback())
        monkeypatch.setattr("budgettune.storage.patience.time", waits)
        yield study, claim


def test_a_lock_that_others_hold_is_waited_for_when_a_trial_has_failed(locked):
    study, claim = locked
    assert study.fail(claim, "error", "broken")
    assert study.counts() == {"RUNNING": 0, "WAITING": 4, "COMPLETE": 0, "FAIL": 1, "PRUNED": 0}


def test_a_result_says_that_others_hold_the_lock(locked):
    study, claim = locked
    with pytest.raises(StorageBusy, match="another process holds the study's rows for too long"):
        study.complete(claim, result())


def test_a_draw_that_others_are_in_the_way_of_uses_up_no_attempt(postgresql_url, monkeypatch):
    study = create_study(sampled("random", trials=1, max_attempts=1), postgresql_url)

    def busy(*_, **__):
        raise StorageBusy("others hold it")

    with monkeypatch.context() as patch, pytest.raises(StorageBusy):
        patch.setattr("budgettune.study.handle.transactions.fill_reserved", busy)
        study.claim()
    assert study.complete(study.claim(), result())
    assert study.verify().whole


def test_a_busy_database_is_asked_sooner_for_a_sign_of_life_and_nobody_beats_in_step(sqlite_url, monkeypatch):
    monkeypatch.setattr(watchdog, "shortened_by_chance", lambda seconds: 0.75 * seconds)
    study = create_study(grid(), sqlite_url)
    answers, waited = iter([StorageBusy("full"), True, OSError("away"), True]), []

    def beat(trial_id, kept_epochs):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer

    monkeypatch.setattr(study, "heartbeat", beat)
    heartbeat = Heartbeat(study, study.claim(), 8.0)
    heartbeat._done = SimpleNamespace(is_set=lambda: len(waited) == 4, wait=waited.append)
    heartbeat._run()
    assert waited == [1.5, 8.0, 8.0, 8.0]


def test_pauses_are_shortened_by_chance_and_no_two_callers_share_theirs():
    clock = iter([0, 0, 1, 2, 3, 11]).__next__
    assert list(pauses(10, clock, chance=lambda: 0.5)) == [0.375, 0.75, 1.5, 3.0]
    firsts = {next(pauses(10)) for _ in range(20)}
    assert len(firsts) > 1
    assert all(0.25 <= first <= 0.5 for first in firsts)


def test_two_connections_are_the_most_that_a_worker_of_two_threads_has(postgresql_url, held):
    study, most = create_study(grid(), postgresql_url), 0
    while (claim := study.claim()) is not None:
        with Heartbeat(study, claim, 3600):
            most = max(most, held())
            study.complete(claim, result())
    assert most <= 2
    assert load_study(postgresql_url).verify().whole
