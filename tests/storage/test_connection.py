import gc
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from optuna.testing.pytest_storages import StorageTestCase

from budgettune.errors import StorageError
from budgettune.storage.connection import (
    open_engine,
    open_storage,
    reading,
    schema_lock,
    writing,
)
from budgettune.storage.url import DEFAULT_URL, parse_url, storage_url
from budgettune.study.handle import create_study
from budgettune.text import redact
from tests.support.studies import grid, result


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def shared_storage(request, tmp_path_factory):
    """Return one storage for all tests of the contract, once on each kind of database."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('contract') / 'study.db'}"
    else:
        url = request.getfixturevalue("shared_postgresql_url")
    storage = open_storage(url, create=True)
    yield storage
    storage.remove_session()
    storage.engine.dispose()


class TestContractOfOptuna(StorageTestCase):
    """Optuna's own tests of a storage, on what `open_storage` returns."""

    @pytest.fixture
    def storage(self, shared_storage):
        for study in shared_storage.get_all_studies():
            shared_storage.delete_study(study._study_id)
        return shared_storage

    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    def test_pickle_storage(self, storage):
        super().test_pickle_storage(storage)
        gc.collect()  # it drops an open storage, which psycopg warns of


def test_the_url_is_the_explicit_one_else_ours_else_optunas_else_a_local_file(monkeypatch):
    monkeypatch.delenv("BUDGETTUNE_STORAGE", raising=False)
    monkeypatch.delenv("OPTUNA_STORAGE", raising=False)
    assert storage_url() == DEFAULT_URL
    monkeypatch.setenv("OPTUNA_STORAGE", "sqlite:///optuna.db")
    assert storage_url() == "sqlite:///optuna.db"
    monkeypatch.setenv("BUDGETTUNE_STORAGE", "sqlite:///ours.db")
    assert storage_url() == "sqlite:///ours.db"
    assert storage_url("sqlite:///named.db") == "sqlite:///named.db"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("postgresql://anna:secret@host/db", "postgresql://anna:***@host/db"),
        ("no postgresql+psycopg://a:s@b@host:5432/db here", "no postgresql+psycopg://a:***@host:5432/db here"),
        ("postgresql://:secret@host/db", "postgresql://:***@host/db"),
        ("host=h password=secret dbname=d", "host=h password=*** dbname=d"),
        ("postgresql://host/db?user=a&password=secret&sslmode=require", "postgresql://host/db?user=a&password=***&sslmode=require"),
        ("sqlite:///some/file.db", "sqlite:///some/file.db"),
        ("postgresql://anna@host/db", "postgresql://anna@host/db"),
    ],
)  # fmt: skip
def test_passwords_are_redacted_and_the_rest_stays(text, redacted):
    assert redact(text) == redacted


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1))
def test_no_password_survives_redaction(password):
    shown = redact(f"postgresql://user:§{password}§@host/db")
    assert shown == "postgresql://user:***@host/db"


@pytest.mark.parametrize("url", ["", "study.db", "postgresql://", "://", "sqlite", "http://host:port:x", "sqlite://"])
def test_a_url_that_cannot_work_says_how_to_write_one(url):
    with pytest.raises(StorageError, match=r"sqlite:///|host|server"):
        open_engine(url)


@given(st.text(max_size=60))
def test_no_text_given_as_a_url_raises_anything_else(text):
    with pytest.raises(StorageError):
        open_engine(f"nothing-{text}")


def test_other_databases_are_refused_by_name():
    with pytest.raises(StorageError, match=r"mysql: .* use SQLite"):
        open_engine("mysql://user:secret@host/db")


def test_a_missing_file_is_not_made_by_looking(tmp_path):
    file = tmp_path / "none.db"
    with pytest.raises(StorageError, match="no such file: make it with `budgettune study create`"):
        open_engine(f"sqlite:///{file}")
    assert not file.exists()


def test_a_database_without_tables_says_what_makes_them(storage_url, tmp_path):
    if storage_url.startswith("sqlite"):
        (tmp_path / "study.db").touch()
    with pytest.raises(StorageError, match="budgettune study create"):
        open_engine(storage_url)


def test_a_file_that_is_no_database_is_named_as_such(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("remember the milk\n" * 100)
    for create in (False, True):
        with pytest.raises(StorageError, match=r"notes.txt: not a database file"):
            open_engine(f"sqlite:///{file}", create=create)
    assert file.read_text().startswith("remember")


def test_the_database_of_another_program_is_left_alone(tmp_path):
    file = tmp_path / "places.sqlite"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE moz_places (id INTEGER)")
    connection.close()
    for create in (False, True):
        with pytest.raises(StorageError, match=r"not an Optuna database .*moz_places"):
            open_engine(f"sqlite:///{file}", create=create)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("moz_places",)]
    connection.close()


@pytest.mark.parametrize(
    ("revision", "remedy"),
    [
        ("v2.6.0.a", "run `optuna storage upgrade"),
        ("v3.0.0.d", "run `optuna storage upgrade"),
        ("v3.10.0.a", "install a newer budgettune"),
        ("v5.1.0.a", "install a newer budgettune"),
    ],
)
def test_other_versions_of_the_tables_are_refused_with_what_helps(storage_url, revision, remedy):
    engine = open_engine(storage_url, create=True)
    with writing(engine) as connection:
        connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))
    for create in (False, True):
        with pytest.raises(StorageError, match=rf"of version {revision}, not v3\.2\.0\.a: {remedy}"):
            open_engine(storage_url, create=create)
    engine.dispose()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(StorageError, match=r"no folder .*missing"):
        open_engine(f"sqlite:///{tmp_path / 'missing' / 'study.db'}", create=True)


def test_a_folder_is_no_database(tmp_path):
    with pytest.raises(StorageError, match="cannot open the file"):
        open_engine(f"sqlite:///{tmp_path}")


def test_a_file_without_write_permission_can_be_read_and_says_so_when_written(sqlite_url, tmp_path):
    open_engine(sqlite_url, create=True).dispose()
    read_only = f"sqlite:///file:{tmp_path / 'study.db'}?mode=ro&uri=true"
    engine = open_engine(read_only)
    with reading(engine) as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 0
    with pytest.raises(StorageError, match="the file is read-only"), writing(engine) as connection:
        connection.execute(sa.text("DELETE FROM studies"))


def test_a_full_disk_is_reported_and_work_goes_on_after_space_is_freed(sqlite_url):
    engine = open_engine(sqlite_url, create=True)

    @sa.event.listens_for(engine, "connect")
    def limit(connection, _record):
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    engine.dispose()
    fill = sa.text("INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'k', :text)")
    with pytest.raises(StorageError, match="the disk is full"), writing(engine) as connection:
        connection.execute(fill, {"text": "x" * 1_000_000})
    sa.event.remove(engine, "connect", limit)
    engine.dispose()
    with writing(engine) as connection:
        connection.execute(fill, {"text": "x" * 1_000_000})
        assert connection.execute(sa.text("PRAGMA integrity_check")).scalar() == "ok"


def test_a_server_that_is_not_there_is_reported_without_the_password():
    with pytest.raises(StorageError, match="is it up") as caught:
        open_engine("postgresql://anna:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_or_database_name_is_reported(postgresql_server):
    missing = postgresql_server.replace("/postgres?", "/nowhere?")
    with pytest.raises(StorageError, match="no such database: make it"):
        open_engine(missing)


def test_a_user_without_rights_is_told_to_ask_for_them(postgresql_url):
    open_engine(postgresql_url, create=True)
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute("DROP ROLE IF EXISTS visitor")
        connection.execute("CREATE ROLE visitor LOGIN")
    engine = open_engine_of(postgresql_url.replace("postgres:@", "visitor:@").replace("postgres@", "visitor@"))
    with pytest.raises(StorageError, match="no permission: grant"), reading(engine) as connection:
        connection.execute(sa.text("SELECT * FROM studies"))
    engine.dispose()


def open_engine_of(url):
    """Return an engine without the check of the tables, which this user may not read."""
    return sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))


def test_urls_of_both_spellings_and_with_braces_work(postgresql_url, tmp_path):
    for url in (postgresql_url.replace("postgresql:", "postgres:"), f"sqlite:///{tmp_path / '{odd} name%.db'}"):
        storage = open_storage(url, create=True)
        assert storage.get_all_studies() == []
        storage.engine.dispose()


def test_sqlite_transactions_take_the_write_lock_at_once(sqlite_url):
    storage = open_storage(sqlite_url, create=True)
    with storage.engine.begin() as first:
        assert first.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        other = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), timeout=0)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()
    storage.engine.dispose()


def test_reading_waits_for_nobody(sqlite_url):
    engine = open_engine(sqlite_url, create=True)
    with writing(engine), reading(engine) as connection:
        assert connection.execute(sa.text("SELECT count(*) FROM studies")).scalar() == 0


def test_postgresql_sessions_are_in_utc_and_hold_no_lock_for_ever(postgresql_url):
    storage = open_storage(postgresql_url, create=True)
    with storage.engine.connect() as connection:
        assert connection.execute(sa.text("SHOW TIME ZONE")).scalar() == "UTC"
        assert connection.execute(sa.text("SHOW lock_timeout")).scalar() == "1min"
        assert connection.execute(sa.text("SHOW idle_in_transaction_session_timeout")).scalar() == "1min"
    storage.engine.dispose()


def test_a_server_that_ended_our_connections_is_asked_again(postgresql_url):
    engine = open_engine(postgresql_url, create=True)
    with reading(engine):
        pass
    with psycopg.connect(postgresql_url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    with reading(engine) as connection:
        assert connection.execute(sa.text("SELECT 1")).scalar() == 1


def test_a_lock_keeps_others_out_until_it_is_freed(storage_url):
    open_engine(storage_url, create=True)
    order = []

    def other():
        with schema_lock(parse_url(storage_url)):
            order.append("second")

    with schema_lock(parse_url(storage_url)):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(timeout=10)
    assert order == ["first", "second"]


def test_a_lock_held_for_too_long_is_an_error(storage_url):
    open_engine(storage_url, create=True)
    failures = []

    def other():
        try:
            with schema_lock(parse_url(storage_url), timeout_seconds=0.2):
                pass
        except StorageError as error:
            failures.append(str(error))

    with schema_lock(parse_url(storage_url)):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(timeout=10)
    assert len(failures) == 1
    assert "another process holds the lock 'schema'" in failures[0]


def test_an_error_under_a_lock_comes_through_and_frees_it(storage_url):
    open_engine(storage_url, create=True)
    with pytest.raises(ZeroDivisionError), schema_lock(parse_url(storage_url)):
        raise ZeroDivisionError
    with schema_lock(parse_url(storage_url), timeout_seconds=1):
        pass


OPEN = "import sys; from budgettune.storage.connection import open_engine; open_engine(sys.argv[1], create=True)"


@pytest.mark.slow
def test_several_processes_may_make_the_tables_at_once(storage_url):
    processes = [subprocess.Popen([sys.executable, "-W", "error", "-c", OPEN, storage_url]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    storage = open_storage(storage_url)
    assert storage.get_current_version() == storage.get_head_version()
    storage.engine.dispose()


def test_tables_that_a_killed_process_left_half_made_are_completed(sqlite_url):
    with sqlite3.connect(sqlite_url.removeprefix("sqlite:///")) as connection:
        connection.execute(
            "CREATE TABLE version_info (version_info_id INTEGER, schema_version INTEGER, library_version TEXT)"
        )
    connection.close()
    storage = open_storage(sqlite_url, create=True)
    assert optuna.create_study(storage=storage).trials == []
    storage.engine.dispose()


def remove(url, to=None):
    file = Path(url.removeprefix("sqlite:///"))
    for path in file.parent.glob(f"{file.name}*"):
        path.unlink() if to is None else path.rename(path.with_name(path.name.replace(file.name, to)))
    return file


def test_a_file_that_was_removed_while_in_use_takes_no_result_and_is_not_made_again(sqlite_url):
    study = create_study(grid(), sqlite_url)
    claim = study.claim()
    file = remove(sqlite_url)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"study.db: the file is gone: put it back"):
            study.complete(claim, result())
        with pytest.raises(StorageError, match="the file is gone"):
            study.counts()
        assert not file.exists()


def test_a_file_that_was_put_in_the_place_of_another_is_the_one_that_is_used(sqlite_url):
    study = create_study(grid(), sqlite_url)
    assert study.counts()["WAITING"] == 4
    remove(sqlite_url, to="old")
    create_study(grid(search={"scale": [1.0]}), sqlite_url)
    assert study.counts()["WAITING"] == 1
