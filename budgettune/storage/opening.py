"""From a URL to a database that many workers can share: SQLite on one box, PostgreSQL on many.

Optuna's tables are used as they are. Optuna itself is imported only where its own storage object is asked for, so that
reading answers starts fast.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import sqlalchemy as sa

from budgettune.errors import StorageError
from budgettune.storage.connection import (
    driver_named,
    engine_of,
    engine_options,
    new_engine,
    parse_url,
    reading,
    shown,
    sqlite_file,
    tuned,
    writing,
)
from budgettune.storage.driver_errors import redact, translated
from budgettune.storage.locks import exclusive

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

__all__ = ["DEFAULT_URL", "exclusive", "open_engine", "open_storage", "reading", "redact", "storage_url", "writing"]

DEFAULT_URL = "sqlite:///budgettune.db"
SCHEMA_REVISION = "v3.2.0.a"
"""Optuna's tables as they are since 3.2; the SQL here is written for them."""


def storage_url(explicit: str | None = None) -> str:
    """Return the database to use: the one named, else BUDGETTUNE_STORAGE, else OPTUNA_STORAGE, else a local file."""
    return explicit or os.environ.get("BUDGETTUNE_STORAGE") or os.environ.get("OPTUNA_STORAGE") or DEFAULT_URL


def open_engine(url: str, *, create: bool = False) -> sa.Engine:
    """Return an engine on a database that holds Optuna's tables, without importing Optuna.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        create: make the file and the tables where they are missing.

    Raises:
        StorageError: where the database cannot be reached, is not Optuna's, or has another version of its tables.
    """
    parsed = parse_url(url)
    with _sensible(parsed):
        if create:
            _create_schema(parsed)
        else:
            _require_file(parsed)
        engine = engine_of(parsed)
        if not create:
            _require_schema(engine)
        return engine


def open_storage(url: str, *, create: bool = False, read_only: bool = False) -> RDBStorage:
    """Return Optuna's storage on a database, safe for many workers at once.

    Args:
        url: as for `open_engine`.
        create: make the file and the tables where they are missing.
        read_only: let the database itself refuse every write.

    Raises:
        StorageError: as for `open_engine`.
    """
    open_engine(url, create=create)
    return _rdb_storage(parse_url(url), read_only=read_only)


@contextmanager
def _sensible(url: sa.URL) -> Iterator[None]:
    """Refuse a URL that a driver or the file system chokes on: an option without sense, a name that is too long."""
    try:
        yield
    except (OSError, TypeError, ValueError) as error:
        raise StorageError(f"{shown(url)}: cannot be opened ({error}): check the URL and its options") from None


def _require_file(url: sa.URL) -> None:
    """Refuse an SQLite file that is not there, because connecting would make an empty one."""
    if url.get_backend_name() == "sqlite":
        file = sqlite_file(url)
        if file is not None and not file.exists():
            raise StorageError(
                f"{shown(url)}: no such file: make it with `budgettune study create`, or check --storage"
            )


def _revision(engine: sa.Engine) -> str | None:
    """Return the version of Optuna's tables, None where there are none (or only a part of them)."""
    with reading(engine) as connection:
        inspector = sa.inspect(connection)
        if not (inspector.has_table("alembic_version") and inspector.has_table("studies")):
            return None
        return connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()


def _require_schema(engine: sa.Engine) -> None:
    revision = _revision(engine)
    if revision == SCHEMA_REVISION:
        return
    url = shown(engine.url)
    if revision is None:
        _refuse_foreign_file(engine)
        raise StorageError(f"{url}: holds no study yet: make one with `budgettune study create`")
    raise StorageError(
        f"{url}: its tables are of version {revision}, not {SCHEMA_REVISION}: "
        f"run `optuna storage upgrade --storage URL`, or install a newer budgettune"
    )


def _refuse_foreign_file(engine: sa.Engine) -> None:
    """Refuse an SQLite file of some other program; a PostgreSQL database may well hold other tables too."""
    if engine.dialect.name != "sqlite":
        return
    with reading(engine) as connection:
        tables = sa.inspect(connection).get_table_names()
    if tables and "studies" not in tables and "version_info" not in tables:
        names = ", ".join(sorted(tables)[:3])
        raise StorageError(f"{shown(engine.url)}: not an Optuna database (it holds {names}): name another file")


def _create_schema(url: sa.URL) -> None:
    """Make the tables where they are missing. One process does it, because several at once make most of them fail."""
    file = sqlite_file(url) if url.get_backend_name() == "sqlite" else None
    if file is not None and not file.parent.is_dir():
        raise StorageError(f"{shown(url)}: no folder {file.parent}: make it first, or name another file")
    engine = new_engine(url)
    try:
        if (file is None or file.exists()) and _revision(engine) == SCHEMA_REVISION and _is_write_ahead(engine):
            return
        with exclusive(url, "schema"):
            if _revision(engine) is None:
                _refuse_foreign_file(engine)
                _make_tables(url)
            _require_schema(engine)
            _write_ahead(engine)
    finally:
        engine.dispose()


def _make_tables(url: sa.URL) -> None:
    from optuna.storages import RDBStorage

    with translated(shown(url)):
        storage = RDBStorage(_optuna_url(url), engine_kwargs=engine_options(url))
        storage.engine.dispose()


def _is_write_ahead(engine: sa.Engine) -> bool:
    if engine.dialect.name != "sqlite":
        return True  # every server is
    with reading(engine) as connection:
        return bool(connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal")


def _write_ahead(engine: sa.Engine) -> None:
    """Let readers and one writer work side by side; the file remembers it."""
    if engine.dialect.name == "sqlite":
        with translated(shown(engine.url)), engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")


def _rdb_storage(url: sa.URL, *, read_only: bool) -> RDBStorage:
    from optuna.storages import RDBStorage

    with driver_named(url), translated(shown(url)):
        storage = RDBStorage(_optuna_url(url), engine_kwargs=engine_options(url), skip_table_creation=True)
    tuned(storage.engine, read_only=read_only)
    return storage


def _optuna_url(url: sa.URL) -> str:
    # Optuna runs str.format on it.
    return url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
