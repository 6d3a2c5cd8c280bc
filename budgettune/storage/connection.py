"""From a URL to connections that many workers can share: SQLite on one box, PostgreSQL on many.

Optuna's tables are used as they are. Optuna itself is imported only where its own storage object is asked for, so that
reading answers starts fast.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary, ref

import sqlalchemy as sa
from sqlalchemy import Engine, event

from budgettune.errors import StorageError
from budgettune.storage.driver_errors import is_busy, translated
from budgettune.storage.patience import pauses, shortened_by_chance
from budgettune.storage.sqlite_file import SqliteConnection, sqlite_file, was_disturbed
from budgettune.storage.sqlite_file import tune as tune_sqlite
from budgettune.storage.url import parse_url, shown

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine.interfaces import DBAPIConnection

SCHEMA_REVISION = "v3.2.0.a"
"""Optuna's tables as they are since 3.2; the SQL here is written for them."""

BUSY_TIMEOUT_SECONDS = 60
CONNECT_TIMEOUT_SECONDS = 10
NETWORK_TIMEOUT_MS = 60_000
GIVING_BACK_SECONDS = (0.05, 0.1, 0.2, 0.4)  # a server takes a moment to see that a connection was closed
UNUSED_SECONDS = 0.2
"""For which a server's connection that nobody uses stays open: the next statement of a claim or a result comes sooner.

A worker that trains for hours sends a sign of life every ten seconds, and so holds a connection for a fiftieth of them.
"""
POSTGRESQL_TRANSACTION = "; ".join(
    (
        # Optuna's heartbeats are CURRENT_TIMESTAMP in a column without time zone: all boxes must mean the same one.
        "SET LOCAL TIME ZONE 'UTC'",
        # A process that is stopped in the middle of a transaction must not stop all others with its locks.
        f"SET LOCAL idle_in_transaction_session_timeout = '{BUSY_TIMEOUT_SECONDS}s'",
        f"SET LOCAL lock_timeout = '{BUSY_TIMEOUT_SECONDS}s'",
    )
)
"""What holds for each of our transactions, and not for the session: a pooler lends one session to many programs."""


@contextmanager
def reading(engine: Engine) -> Iterator[sa.Connection]:
    """Yield a connection for reading; it takes no lock, and works on a read-only file."""
    with translated(shown(engine.url)), engine.connect().execution_options(budgettune_read=True) as connection:
        yield connection
        if was_disturbed(connection):
            raise StorageError(f"{shown(engine.url)}: somebody began to write it while it was read: ask again")


@contextmanager
def writing(engine: Engine) -> Iterator[sa.Connection]:
    """Yield a connection in one transaction, committed where the block ends well."""
    with translated(shown(engine.url)), engine.begin() as connection:
        yield connection


def _engine_options(url: sa.URL, poolclass: type[sa.Pool] | None = None) -> dict[str, Any]:
    pool: dict[str, Any] = {} if poolclass is None else {"poolclass": poolclass}
    if url.get_backend_name() == "sqlite":
        # Without a pool the tables are made: on all other ways a file that is missing was there.
        factory = partial(SqliteConnection, may_create=poolclass is not None)
        return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "factory": factory}, **pool}
    # prepare_threshold: prepared statements belong to one server connection, and a pooler hands out many.
    connect_args: dict[str, Any] = {"prepare_threshold": None} if url.drivername == "postgresql+psycopg" else {}
    defaults = {"connect_timeout": CONNECT_TIMEOUT_SECONDS, "tcp_user_timeout": NETWORK_TIMEOUT_MS}
    connect_args |= {name: value for name, value in defaults.items() if name not in url.query}
    pool = pool or {"pool_pre_ping": True, "pool_size": 1, "max_overflow": 4}
    return {"connect_args": connect_args, **pool}


def _engine_of(url: sa.URL) -> Engine:
    """Return an engine of this process: one for each server, so that many handles share few connections.

    A file gets a new one each time, because another file may have its name by now.
    """
    if url.get_backend_name() == "sqlite":
        return _tuned(_new_engine(url))
    with _servers_lock:
        key = url.render_as_string(hide_password=False)
        if key not in _servers:
            _servers[key] = _tuned(_new_engine(url))
        return _servers[key]


_servers: dict[str, Engine] = {}
_servers_lock = threading.Lock()


def _forget_connections() -> None:
    """In a forked child: leave the parent's connections to the parent."""
    for engine, idle in list(_tuned_servers.items()):
        engine.dispose(close=False)
        idle.forget_thread()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_connections)


def _new_engine(url: sa.URL, poolclass: type[sa.Pool] | None = None) -> Engine:
    """Return an engine as SQLAlchemy makes it: not yet fit for concurrent work."""
    with _driver_named(url), translated(shown(url)):
        return sa.create_engine(url, **_engine_options(url, poolclass))


@contextmanager
def _driver_named(url: sa.URL) -> Iterator[None]:
    """Name the missing driver where a URL asks for one that is not installed."""
    try:
        yield
    except ImportError:
        backend = url.get_backend_name()
        raise StorageError(
            f"{shown(url)}: the driver {url.drivername} is not installed: write the URL as {backend}://…"
        ) from None


def _tuned(engine: Engine, *, read_only: bool = False) -> Engine:
    """Set what makes concurrent work safe, on every connection that is opened from now on.

    With `read_only` the database refuses writes; on SQLite no read then waits for a writer, or keeps one waiting.
    """
    if engine.dialect.name == "sqlite":
        tune_sqlite(engine, read_only=read_only)
    else:
        event.listen(engine, "connect", _on_postgresql_connect)
        event.listen(engine, "do_connect", _connect_to_postgresql)
        event.listen(engine, "begin", _on_postgresql_begin)
        _tuned_servers[engine] = idle = _UnusedConnections(engine)
        event.listen(engine, "checkin", idle.note)
    if read_only:
        # Per transaction on PostgreSQL: a setting of the session would reach others through a pooler.
        engine.update_execution_options(budgettune_read=True, postgresql_readonly=True)
    engine.dispose()  # connections that were opened before know nothing of these events
    return engine


class _UnusedConnections:
    """Closes the connections of a server that nobody has used for a moment, from a thread that lives as long."""

    def __init__(self, engine: Engine) -> None:
        self._engine = ref(engine)
        self._used_at = 0.0
        self.forget_thread()

    def forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._is_watched = False

    def note(self, *_: object) -> None:
        """Note that a connection has just been given back."""
        with self._lock:
            self._used_at = time.monotonic()
            if not self._is_watched:
                with suppress(RuntimeError):  # the process ends, or may have no thread more: they stay open
                    threading.Thread(target=self._close, name="unused-connections", daemon=True).start()
                    self._is_watched = True

    def _close(self) -> None:
        while True:
            time.sleep(max(0.0, self._used_at + UNUSED_SECONDS - time.monotonic()))
            with self._lock:
                if self._used_at + UNUSED_SECONDS <= time.monotonic():
                    self._is_watched = False
                    break
        if (engine := self._engine()) is not None:
            engine.pool.dispose()  # only what nobody uses; the pool goes on


_tuned_servers: WeakKeyDictionary[Engine, _UnusedConnections] = WeakKeyDictionary()


def _connect_to_postgresql(
    dialect: sa.Dialect, _record: object, arguments: tuple[Any, ...], options: dict[str, Any]
) -> DBAPIConnection:
    """Connect; where the server has no connection left, first give back those that this process holds unused."""
    for pause_seconds in GIVING_BACK_SECONDS:
        try:
            return dialect.connect(*arguments, **options)
        except dialect.loaded_dbapi.Error as error:
            if not is_busy(error):
                raise
        for engine in filter(None, (each() for each in _tuned_servers.keyrefs())):  # other threads may add some
            engine.pool.dispose()  # only what nobody uses; the pool goes on
        time.sleep(shortened_by_chance(pause_seconds))
    return dialect.connect(*arguments, **options)


def _on_postgresql_connect(connection: DBAPIConnection, _record: object) -> None:
    if _begins_by_itself(connection):
        connection.autocommit = True  # else it would send a BEGIN of its own before ours


def _on_postgresql_begin(connection: sa.Connection) -> None:
    """Begin a transaction with all that holds for it, in one message."""
    driver: Any = connection.connection.driver_connection
    begin = ""
    if _begins_by_itself(driver):
        begin = "BEGIN READ ONLY; " if driver.read_only else "BEGIN; "
    connection.exec_driver_sql(begin + POSTGRESQL_TRANSACTION)


def _begins_by_itself(connection: object) -> bool:
    """Whether we tell a driver's connection when a transaction begins; others do so unasked at the first statement."""
    return type(connection).__module__.partition(".")[0] == "psycopg"


def open_engine(url: str, *, create: bool = False) -> sa.Engine:
    """Return an engine on a database that holds Optuna's tables, without importing Optuna.

    With `create` the file and the tables are made where they are missing.

    Raises:
        StorageError: where the database cannot be reached, is not Optuna's, or has another version of its tables.
    """
    parsed = parse_url(url)
    file = sqlite_file(parsed) if parsed.get_backend_name() == "sqlite" else None
    try:
        if create:
            _create_schema(parsed, file)
            return _engine_of(parsed)
        if file is not None and not file.exists():  # connecting would make an empty one
            raise StorageError(
                f"{shown(parsed)}: no such file: make it with `budgettune study create`, or check --storage"
            )
        engine = _engine_of(parsed)
        _require_schema(engine)
        return engine
    except (OSError, TypeError, ValueError) as error:  # an option without sense, a name that is too long
        raise StorageError(f"{shown(parsed)}: cannot be opened ({error}): check the URL and its options") from None


def open_storage(url: str, *, create: bool = False, read_only: bool = False) -> RDBStorage:
    """Return Optuna's storage on a database, safe for many workers at once; it is opened as by `open_engine`.

    With `read_only` the database itself refuses every write.
    """
    from optuna.storages import RDBStorage

    open_engine(url, create=create)
    parsed = parse_url(url)
    with _driver_named(parsed), translated(shown(parsed)):
        storage = RDBStorage(
            _optuna_url(parsed),
            engine_kwargs=_engine_options(parsed),
            skip_table_creation=True,
            skip_compatibility_check=True,  # it was done, and Optuna's takes two connections
        )
    if (wanted := storage.get_head_version()) != SCHEMA_REVISION:
        raise StorageError(
            f"the installed Optuna wants tables of version {wanted}, not {SCHEMA_REVISION}: "
            f"install a newer budgettune, or an older Optuna"
        )
    _tuned(storage.engine, read_only=read_only)
    return storage


def _revision(engine: sa.Engine) -> str | None:
    """Return the version of Optuna's tables, None where there are none (or only a part of them).

    Raises:
        StorageError: where another program keeps the version of its own tables in Optuna's place.
    """
    with reading(engine) as connection:
        inspector = sa.inspect(connection)
        if not inspector.has_table("alembic_version"):
            return None
        revision: str | None = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
        if revision is not None and not re.fullmatch(r"v\d+(\.\w+)+", revision):
            raise StorageError(
                f"{shown(engine.url)}: another program, such as MLflow, keeps the version of its tables in "
                f"alembic_version, where Optuna keeps its own: use a database of its own for each"
            )
        return revision if inspector.has_table("studies") else None


def _require_schema(engine: sa.Engine) -> None:
    revision, url = _revision(engine), shown(engine.url)
    if revision is None:
        _refuse_foreign_file(engine)
        raise StorageError(f"{url}: holds no study yet: make one with `budgettune study create`")
    if revision != SCHEMA_REVISION:
        is_older = _version_of(revision) < _version_of(SCHEMA_REVISION)
        remedy = "run `optuna storage upgrade --storage URL`" if is_older else "install a newer budgettune"
        raise StorageError(f"{url}: its tables are of version {revision}, not {SCHEMA_REVISION}: {remedy}")


def _version_of(revision: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", revision)]


def _refuse_foreign_file(engine: sa.Engine) -> None:
    """Refuse an SQLite file of some other program; a PostgreSQL database may well hold other tables too."""
    if engine.dialect.name != "sqlite":
        return
    with reading(engine) as connection:
        tables = sa.inspect(connection).get_table_names()
    if tables and "studies" not in tables and "version_info" not in tables:
        names = ", ".join(sorted(tables)[:3])
        raise StorageError(f"{shown(engine.url)}: not an Optuna database (it holds {names}): name another file")


def _create_schema(url: sa.URL, file: Path | None) -> None:
    """Make the tables where they are missing. One process does it, because several at once make most of them fail."""
    if file is not None and not file.parent.is_dir():
        raise StorageError(f"{shown(url)}: no folder {file.parent}: make it first, or name another file")
    engine = _new_engine(url, sa.NullPool)
    try:
        if (file is None or file.exists()) and _revision(engine) == SCHEMA_REVISION and _is_write_ahead(engine):
            return
        with schema_lock(url):
            if _revision(engine) is None:
                _refuse_foreign_file(engine)
                from optuna.storages import RDBStorage

                # One connection, where Optuna takes two by itself: a user's limit may be two, and the lock has one.
                with translated(shown(url)):
                    RDBStorage(_optuna_url(url), engine_kwargs=_engine_options(url, sa.StaticPool)).engine.dispose()
            _require_schema(engine)
            if file is not None:  # readers and one writer work side by side; the file remembers it
                with translated(shown(url)), engine.connect() as connection:
                    connection.exec_driver_sql("PRAGMA journal_mode=WAL")
    finally:
        engine.dispose()


def _is_write_ahead(engine: sa.Engine) -> bool:
    if engine.dialect.name != "sqlite":
        return True  # every server is
    with reading(engine) as connection:
        return bool(connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal")


def _optuna_url(url: sa.URL) -> str:
    # Optuna runs str.format on it.
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")


@contextmanager
def schema_lock(url: sa.URL, timeout_seconds: float = 60) -> Iterator[None]:
    """Hold the lock under which tables are made; it is freed when its holder dies.

    A file beside an SQLite file, an advisory lock in PostgreSQL (on a connection and in a transaction of its own, so
    that it also works through a pooler).

    Raises:
        StorageError: where another process holds it for too long.
    """
    busy = StorageError(
        f"{shown(url)}: another process holds the lock 'schema' for over {timeout_seconds:g} s: stop it, or try again"
    )
    if url.get_backend_name() == "sqlite":
        from filelock import FileLock, Timeout

        try:
            held = FileLock(f"{sqlite_file(url)}-schema.lock", timeout=timeout_seconds).acquire()
        except Timeout:
            raise busy from None
        except OSError as error:
            raise StorageError(
                f"{shown(url)}: cannot make a lock file beside it ({error.strerror}): "
                f"give this user write permission on its folder"
            ) from None
        with held:
            yield
        return
    key = int.from_bytes(hashlib.sha256(b"budgettune/schema").digest()[:8], "big", signed=True)
    engine = _new_engine(url, sa.NullPool)
    waits = pauses(timeout_seconds)
    while True:
        with translated(shown(url)), engine.begin() as connection:
            if connection.execute(sa.select(sa.func.pg_try_advisory_xact_lock(key))).scalar():
                yield
                return
        # Whoever waits holds no connection: through a pooler the lock's holder may need the last one.
        if (pause_seconds := next(waits, None)) is None:
            raise busy
        time.sleep(pause_seconds)
