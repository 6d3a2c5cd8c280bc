"""Servers that refuse one more connection: what is said, who asks again, and how few connections are enough."""

import sys
import threading
import uuid
from types import SimpleNamespace
from weakref import WeakKeyDictionary

import optuna
import psycopg
import pytest
import sqlalchemy as sa

from budgettune import api
from budgettune.errors import StorageBusy, StorageError, StudyNotFound
from budgettune.spec.study_spec import load_spec
from budgettune.storage import connection as our_connection
from budgettune.storage import patience
from budgettune.storage.connection import open_engine, reading
from budgettune.storage.driver_errors import storage_error, translated
from budgettune.storage.patience import asking_again, pauses
from budgettune.study.handle import create_study, delete_study, load_study
from budgettune.study.summary import list_studies
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag
from tests.support.studies import grid, result, sampled

TINY = ["train.epochs=1", "train.batch_size=256", "pruning.strategy=random", "clock.warmup_steps=1"]


@pytest.fixture
def limited_url(postgresql_url):
    """Return the URL of a user who may have two connections."""
    role = f"limited_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 2")
        connection.execute(f"GRANT ALL ON SCHEMA public TO {role}")
    return postgresql_url.replace("postgres:@", f"{role}@")


@pytest.fixture
def held(limited_url):
    """Hold both connections of the user until the test closes them."""
    connections = [psycopg.connect(limited_url) for _ in range(2)]
    yield connections
    for connection in connections:
        connection.close()


class Unused:
    pool = SimpleNamespace(dispose=lambda: None)


def test_a_full_server_is_waited_for_while_other_threads_open_databases(monkeypatch):
    monkeypatch.setattr(our_connection, "GIVING_BACK_SECONDS", (0.0,) * 100)
    monkeypatch.setattr(our_connection, "_tuned_servers", others := WeakKeyDictionary())
    switch_seconds, is_over = sys.getswitchinterval(), threading.Event()

    def open_others():
        while not is_over.is_set():
            engines = [Unused() for _ in range(1_000)]
            others.update(dict.fromkeys(engines))

    def full(*_):
        raise psycopg.OperationalError("FATAL:  sorry, too many clients already")

    threads = [threading.Thread(target=open_others) for _ in range(3)]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        with pytest.raises(psycopg.OperationalError):
            our_connection._connect_to_postgresql(SimpleNamespace(connect=full, loaded_dbapi=psycopg), None, (), {})
    finally:
        is_over.set()
        sys.setswitchinterval(switch_seconds)
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    "said",
    [
        'FATAL:  too many connections for role "anna"',
        'FATAL:  too many connections for database "studies"',
        "FATAL:  sorry, too many clients already",
        "FATAL:  remaining connection slots are reserved for non-replication superuser connections",
        "FATAL:  remaining connection slots are reserved for roles with the SUPERUSER attribute",
        'FATAL:  remaining connection slots are reserved for roles with privileges of the "pg_use_reserved_…" role',
        "FATAL:  remaining connection slots are reserved for rds_reserved users",
        "could not fork new process for connection: Resource temporarily unavailable",
        "FATAL:  no more connections allowed (max_client_conn)",
        "FATAL:  query_wait_timeout",
        "FATAL:  MaxClientsInSessionMode: max clients reached - in Session mode max clients are limited to pool_size",
        "FATAL:  Max client connections reached",
    ],
)  # fmt: skip
def test_every_way_to_say_that_no_connection_is_left_is_known(said):
    error = storage_error("postgresql://host/db", psycopg.OperationalError(f"connection failed: {said}"))
    assert isinstance(error, StorageBusy)
    assert "the server has no connection left" in str(error)


@pytest.mark.parametrize(
    "said", ["the database system is starting up", "the database system is not yet accepting connections"]
)
def test_a_server_that_starts_is_asked_again_too(said):
    assert isinstance(storage_error("postgresql://host/db", psycopg.OperationalError(said)), StorageBusy)


def test_what_optuna_wraps_says_what_the_database_said():
    with (
        pytest.raises(StorageError, match="no connection left for this user") as caught,
        translated("postgresql://h/d"),
    ):
        try:
            raise psycopg.OperationalError('too many connections for role "anna"')
        except psycopg.OperationalError as cause:
            raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from cause
    assert isinstance(caught.value, StorageBusy)


def test_a_user_with_two_connections_makes_and_works_off_a_sampled_study(limited_url):
    study = create_study(sampled("tpe", trials=3), limited_url)
    while (claim := study.claim()) is not None:
        with reading(study.engine):
            assert study.heartbeat(claim.trial_id)  # as from the thread beside the loop
        assert study.complete(claim, result())
    assert study.verify().whole


@pytest.mark.parametrize("spec", [grid(), sampled("tpe", trials=3)], ids=["grid", "sampled"])
def test_study_create_asks_again_until_a_connection_is_free(limited_url, held, spec, monkeypatch, caplog):
    let_go = SimpleNamespace(sleep=lambda seconds: [connection.close() for connection in held])
    monkeypatch.setattr(patience, "time", let_go)
    study = create_study(spec, limited_url)
    assert study.counts()["WAITING"] == (4 if spec.sampler.name == "grid" else 0)
    assert "asking the database again in 0." in caplog.text
    assert "the server has no connection left for this user: raise its limit" in caplog.text


@pytest.mark.parametrize(
    "ask",
    [
        lambda url: api.load_study("study", storage=url).name,
        lambda url: api.best_under_budget("study", "1h", storage=url)[0].number,
        lambda url: list_studies(url)[0].name,
        lambda url: delete_study(url, "study"),
    ],
    ids=["show", "best", "list", "delete"],
)
def test_commands_that_answer_ask_again_too(limited_url, monkeypatch, caplog, ask):
    with create_study(grid(), limited_url) as study:
        study.complete(study.claim(), result())
    held = [psycopg.connect(limited_url) for _ in range(2)]
    let_go = SimpleNamespace(sleep=lambda seconds: [connection.close() for connection in held])
    monkeypatch.setattr(patience, "time", let_go)
    assert ask(limited_url) in ("study", 0, None)
    assert "asking the database again" in caplog.text


def test_study_create_says_so_where_no_connection_comes_free(limited_url, held, monkeypatch):
    monkeypatch.setattr("budgettune.study.handle.CREATE_PATIENCE_SECONDS", 0.0)
    with pytest.raises(StorageBusy, match="the server has no connection left"):
        create_study(grid(), limited_url)


def test_a_limit_of_the_database_is_said_as_such(postgresql_url, limited_url):
    open_engine(limited_url, create=True).dispose()
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE {sa.make_url(limited_url).username} CONNECTION LIMIT -1")
        connection.execute(f'ALTER DATABASE "{connection.info.dbname}" CONNECTION LIMIT 0')
        with pytest.raises(
            StorageBusy, match=r"no connection left for this database: raise its limit \(ALTER DATABASE"
        ):
            open_engine(limited_url)


class Releasing(StopFlag):
    """Closes what a test holds as soon as a worker waits."""

    def __init__(self, held):
        super().__init__()
        self.held = held

    def wait(self, seconds=None):
        for connection in self.held:
            connection.close()
        return super().wait(0)


def test_a_worker_asks_again_from_its_first_moment_on(limited_url, caplog):
    spec = load_spec("digits").with_overrides([*TINY, "search={scale = [1.0]}", "sampler={name = 'tpe', trials = 1}"])
    create_study(spec, limited_url).close()
    held = [psycopg.connect(limited_url) for _ in range(2)]
    summary = run_worker(limited_url, None, WorkerOptions(device="cpu"), stop=Releasing(held))
    assert (summary.completed, summary.failed) == (1, 0)
    assert "the server has no connection left for this user" in caplog.text
    assert load_study(limited_url).verify().whole


def test_pauses_grow_until_patience_is_over():
    clock = iter([0, 0, 1, 2, 3, 4, 5, 6, 11]).__next__
    assert list(pauses(10, clock, chance=lambda: 0.0)) == [0.5, 1, 2, 4, 8, 16, 30]


def test_a_database_that_was_busy_is_asked_again_whatever_it_says_but_for_what_stays_as_it_is(monkeypatch):
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: None))
    answers = iter([StorageBusy("full"), StorageError("does not answer in time"), StudyNotFound("no such study")])

    def call():
        raise next(answers)

    with pytest.raises(StudyNotFound):
        asking_again(call, 60)


def test_only_a_busy_database_is_asked_again(monkeypatch):
    monkeypatch.setattr(patience, "time", SimpleNamespace(sleep=lambda seconds: pytest.fail("waited")))

    def call():
        raise StorageError("no such database")

    with pytest.raises(StorageError, match="no such database"):
        asking_again(call, 60)
