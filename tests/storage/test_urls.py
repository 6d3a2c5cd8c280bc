"""Database URLs as people write them: files of any name, servers as other tools spell them, and slips."""

import sqlite3
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from budgettune.errors import StorageError
from budgettune.storage.connection import open_engine
from budgettune.storage.sqlite_file import sqlite_file
from budgettune.storage.url import parse_url, storage_url
from budgettune.study.handle import create_study, load_study
from tests.support.studies import grid


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite:///with space.db", "with space.db"),
        ("sqlite:///./here.db", "here.db"),
        ("sqlite:///50%.db", "50%.db"),
        ("sqlite:///a#b@c:d.db", "a#b@c:d.db"),
        ("sqlite:///a%3Fb.db", "a?b.db"),
        ("sqlite:///名前.db", "名前.db"),
        ("SQLite:///upper.db", "upper.db"),
        ("sqlite+pysqlite:///driver.db", "driver.db"),
        ("sqlite:///file:uri name.db?mode=rwc&uri=true", "uri name.db"),
        ("'sqlite:///quoted.db'", "quoted.db"),
        (' "sqlite:///quoted.db" ', "quoted.db"),
    ],
)
def test_files_of_any_name_are_made_and_found_again(url, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    create_study(grid(), storage_url(url)).close()
    assert (tmp_path / name).is_file()
    assert load_study(storage_url(url)).name == "study"


def test_a_home_that_no_shell_has_seen_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert sqlite_file(parse_url("sqlite:///~/study.db")) == tmp_path / "study.db"
    (tmp_path / "~").mkdir()  # whoever has such a folder means it
    assert sqlite_file(parse_url("sqlite:///~/study.db")) == Path("~/study.db")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("study.db", "study.db: not a database URL: write sqlite:///study.db, or"),
        ("data/study.db", "write sqlite:///data/study.db"),
        ("sqlite://study.db", "write three slashes: sqlite:///study.db"),
        ("sqlite://data/study.db", "write three slashes: sqlite:///data/study.db"),
        ("sqlite:///a?b/study.db", "b/study.db has no value: write ? in a name as %3F"),
        ("sqlite+aiosqlite:///study.db", "is not installed: write the URL as sqlite://…"),
        ("postgresql+asyncpg://host/db", "is not installed: write the URL as postgresql://…"),
        ("postgresql://host/db?sslmode", "sslmode has no value"),
        ("redis://host", "redis: not a database that works here"),
        ("postgresql://host:port/db", "the database URL cannot be read: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"),
    ],
)  # fmt: skip
def test_a_slip_is_answered_with_what_to_write(url, says):
    with pytest.raises(StorageError) as caught:
        open_engine(url, create=True)
    assert says in str(caught.value)


def test_a_server_is_found_however_its_socket_is_spelled(postgresql_url):
    create_study(grid(), postgresql_url)
    url = make_url(postgresql_url)
    folder = url.query["host"]
    encoded = folder.replace("/", "%2F")
    for spelled in (
        f"postgres://postgres@/{url.database}?host={folder}",
        f"PostgreSQL://postgres@/{url.database}?host={encoded}",
        f"postgresql://postgres@{encoded}/{url.database}",
        f"postgresql+psycopg://postgres@{encoded}/{url.database}?connect_timeout=5&sslmode=disable",
    ):
        study = load_study(spelled)
        assert study.storage.get_study_name_from_id(study.study_id) == "study"


def test_a_service_file_and_variables_name_a_server(postgresql_url, tmp_path, monkeypatch):
    create_study(grid(), postgresql_url)
    url = make_url(postgresql_url)
    (tmp_path / "services").write_text(f"[mine]\nhost={url.query['host']}\nuser=postgres\ndbname={url.database}\n")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    assert load_study("postgresql://?service=mine").name == "study"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("postgres:@/test_", "postgres:@/none_"), "no such database: make it with `createdb`"),
        (("postgres:@", "nobody_here:@"), "no such user: check the user in the URL"),
        (("?host=", "?pgbouncer=true&host="), "PostgreSQL has no such option: leave out what another program wants"),
    ],
)
def test_what_a_server_does_not_know_is_said_as_such(postgresql_url, change, says):
    for create in (False, True):
        with pytest.raises(StorageError, match=says):
            open_engine(postgresql_url.replace(*change), create=create)


def test_the_database_of_mlflow_is_left_alone(storage_url):
    """Both keep the version of their tables in one and the same place."""
    run_sql(
        storage_url, "CREATE TABLE alembic_version (version_num VARCHAR(32))", "CREATE TABLE experiments (id INTEGER)"
    )
    run_sql(storage_url, "INSERT INTO alembic_version VALUES ('bda7b8c39065')")
    for create in (False, True):
        with pytest.raises(
            StorageError, match=r"another program, such as MLflow, .* use a database of its own for each"
        ):
            open_engine(storage_url, create=create)
    with pytest.raises((sqlite3.OperationalError, psycopg.errors.UndefinedTable)):
        run_sql(storage_url, "SELECT * FROM studies")


def test_a_database_that_mlflow_has_taken_over_says_so(storage_url):
    open_engine(storage_url, create=True).dispose()
    run_sql(storage_url, "UPDATE alembic_version SET version_num = 'bda7b8c39065'")
    with pytest.raises(StorageError, match="another program, such as MLflow"):
        load_study(storage_url)


def run_sql(url, *statements):
    file = url.removeprefix("sqlite:///")
    connection = psycopg.connect(url) if file == url else sqlite3.connect(file)
    try:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    finally:
        connection.close()
