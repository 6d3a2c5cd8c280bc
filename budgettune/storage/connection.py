"""Connections that concurrent work can trust: how SQLite and PostgreSQL are opened, read and written."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy import Engine, event

from budgettune.errors import StorageError
from budgettune.storage.driver_errors import redact, translated
from budgettune.text import one_line

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

BUSY_TIMEOUT_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 10
NETWORK_TIMEOUT_MS = 60_000
SQLITE_OPTIONS = frozenset(("cache", "immutable", "mode", "nolock", "psow", "timeout", "uri", "vfs"))
POSTGRESQL_SESSION = (
    # Optuna's heartbeats are CURRENT_TIMESTAMP in a column without time zone: all boxes must mean the same one.
    "SET TIME ZONE 'UTC'",
    # A process that is stopped in the middle of a transaction must not stop all others with its locks.
    f"SET idle_in_transaction_session_timeout = '{BUSY_TIMEOUT_SECONDS}s'",
    f"SET lock_timeout = '{BUSY_TIMEOUT_SECONDS}s'",
)


def parse_url(url: str) -> sa.URL:
    """Return the URL with the driver that we use, or raise StorageError."""
    if one_line(url) != url:
        raise StorageError(f"{redact(url)}: a database URL holds no control characters: leave them out")
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        raise StorageError(
            f"{redact(url)}: not a database URL: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
        ) from None
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    backend = parsed.drivername.partition("+")[0]
    if backend not in ("sqlite", "postgresql"):
        raise StorageError(f"{backend}: not a database that works here: use SQLite (one box) or PostgreSQL (many)")
    if backend == "sqlite":
        _check_sqlite(parsed)
    return parsed


def _check_sqlite(url: sa.URL) -> None:
    if sqlite_file(url) is None:
        raise StorageError(f"{shown(url)}: lives in one process only: name a file, for example sqlite:///budgettune.db")
    known = SQLITE_OPTIONS if "uri" in url.query else SQLITE_OPTIONS & {"timeout"}
    unknown = sorted(url.query.keys() - known)
    if unknown:
        raise StorageError(
            f"{shown(url)}: SQLite takes no {', '.join(unknown)} here: leave it out, or write "
            f"sqlite:///file:FILE?mode=ro&uri=true"
        )


def sqlite_file(url: sa.URL) -> Path | None:
    """Return the file of an SQLite URL, None for a database in memory."""
    name = (url.database or "").removeprefix("file:")
    in_memory = not name or name.startswith(":memory:") or url.query.get("mode") == "memory"
    return None if in_memory else Path(name)


def shown(url: sa.URL) -> str:
    """Return a URL for people, without its password."""
    return redact(url.render_as_string(hide_password=True))


@contextmanager
def reading(engine: Engine) -> Iterator[sa.Connection]:
    """Yield a connection for reading; it takes no lock, and works on a read-only file."""
    with translated(shown(engine.url)), engine.connect().execution_options(budgettune_read=True) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[sa.Connection]:
    """Yield a connection in one transaction, committed where the block ends well."""
    with translated(shown(engine.url)), engine.begin() as connection:
        yield connection


class _Connection(sqlite3.Connection):
    """Closed with its last reference, so that nobody has to dispose of an engine."""

    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it never opened
            self.close()


def engine_options(url: sa.URL) -> dict[str, Any]:
    """Return what SQLAlchemy is told beside the URL."""
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "factory": _Connection}}
    # prepare_threshold: prepared statements belong to one server connection, and a pooler hands out many.
    connect_args: dict[str, Any] = {"prepare_threshold": None} if url.drivername == "postgresql+psycopg" else {}
    defaults = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "tcp_user_timeout": NETWORK_TIMEOUT_MS}
    connect_args |= {name: value for name, value in defaults.items() if name not in url.query}
    return {"connect_args": connect_args, "pool_pre_ping": True, "pool_size": 2, "max_overflow": 3}


def engine_of(url: sa.URL) -> Engine:
    """Return an engine of this process: one for each server, so that many handles share few connections.

    A file gets a new one each time, because another file may have its name by now.
    """
    if url.get_backend_name() == "sqlite":
        return tuned(new_engine(url))
    with _servers_lock:
        key = url.render_as_string(hide_password=False)
        if key not in _servers:
            _servers[key] = tuned(new_engine(url))
        return _servers[key]


_servers: dict[str, Engine] = {}
_servers_lock = threading.Lock()


def _forget_connections() -> None:
    """In a forked child: leave the parent's connections to the parent."""
    for engine in _servers.values():
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


def new_engine(url: sa.URL) -> Engine:
    """Return an engine as SQLAlchemy makes it: not yet fit for concurrent work."""
    with driver_named(url), translated(shown(url)):
        return sa.create_engine(url, **engine_options(url))


@contextmanager
def driver_named(url: sa.URL) -> Iterator[None]:
    """Name the missing driver where a URL asks for one that is not installed."""
    try:
        yield
    except ImportError:
        raise StorageError(
            f"{shown(url)}: the driver {url.drivername} is not installed: write the URL as postgresql://…"
        ) from None


def tuned(engine: Engine, *, read_only: bool = False) -> Engine:
    """Set what makes concurrent work safe, on every connection that is opened from now on.

    Args:
        engine: as SQLAlchemy makes it.
        read_only: let the database refuse writes; on SQLite no read then waits for a writer, or keeps one waiting.
    """
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
    else:
        event.listen(engine, "connect", _on_postgresql_connect)
    if read_only:
        # Per transaction on PostgreSQL: a setting of the session would reach others through a pooler.
        engine.update_execution_options(budgettune_read=True, postgresql_readonly=True)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _on_sqlite_connect_to_read)
    engine.dispose()  # connections that were opened before know nothing of these events
    return engine


def _on_sqlite_connect(connection: DBAPIConnection, _record: object) -> None:
    # The driver's own BEGIN is deferred: two workers read the same WAITING row before either writes.
    connection.isolation_level = None
    # One text that is no UTF-8, from whatever program, must not make all studies of the file unreadable.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute("PRAGMA synchronous=NORMAL")


def _on_sqlite_connect_to_read(connection: DBAPIConnection, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _on_sqlite_begin(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("budgettune_read", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _on_postgresql_connect(connection: DBAPIConnection, _record: object) -> None:
    cursor = connection.cursor()
    for statement in POSTGRESQL_SESSION:
        cursor.execute(statement)
    cursor.close()
    connection.commit()
