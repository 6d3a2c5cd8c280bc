"""Locks that all processes of a database share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from budgettune.errors import StorageError
from budgettune.storage.connection import engine_options, parse_url, shown, sqlite_file
from budgettune.storage.driver_errors import translated

LOCK_NOT_AVAILABLE = "55P03"  # PostgreSQL's code


@contextmanager
def exclusive(url_or_engine: str | sa.URL | sa.Engine, name: str, timeout_seconds: float = 60) -> Iterator[None]:
    """Hold a lock by name that all processes of a database share; it is freed when its holder dies.

    A file beside an SQLite file, an advisory lock in PostgreSQL (on a connection and in a transaction of its own, so
    that it also works through a pooler).

    Raises:
        StorageError: where another process holds it for too long.
    """
    url = url_or_engine.url if isinstance(url_or_engine, sa.Engine) else url_or_engine
    url = parse_url(url) if isinstance(url, str) else url
    lock = _file_lock if url.get_backend_name() == "sqlite" else _advisory_lock
    with lock(url, name, timeout_seconds):
        yield


@contextmanager
def _file_lock(url: sa.URL, name: str, timeout_seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{sqlite_file(url)}-{name}.lock", timeout=timeout_seconds)
    try:
        lock.acquire()
    except Timeout:
        raise _lock_is_busy(url, name, timeout_seconds) from None
    except OSError as error:
        raise StorageError(f"{shown(url)}: cannot make a lock file beside it ({error.strerror})") from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _advisory_lock(url: sa.URL, name: str, timeout_seconds: float) -> Iterator[None]:
    key = int.from_bytes(hashlib.sha256(f"budgettune/{name}".encode()).digest()[:8], "big", signed=True)
    engine = sa.create_engine(url, poolclass=sa.NullPool, connect_args=engine_options(url)["connect_args"])
    with translated(shown(url)), engine.begin() as connection:
        connection.execute(sa.text(f"SET LOCAL lock_timeout = {int(timeout_seconds * 1000)}"))
        try:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(key)))
        except sa.exc.OperationalError as error:
            if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
                raise
            raise _lock_is_busy(url, name, timeout_seconds) from None
        yield


def _lock_is_busy(url: sa.URL, name: str, timeout_seconds: float) -> StorageError:
    return StorageError(
        f"{shown(url)}: another process holds the lock {name!r} for over {timeout_seconds:g} s: stop it, or try again"
    )
