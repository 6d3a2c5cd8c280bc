"""An SQLite file as a connection finds it: one that may be written, or one that can only be read.

A file in write-ahead mode has two more beside it while it is open: `-wal` with the latest changes, and `-shm`, which
SQLite makes even to read. A user who may not make them cannot read in SQLite's own way; one who may, but may not write
the file, would leave a `-shm` that keeps the file's owner from writing. So for who cannot write there are three cases:

- both are there (somebody writes, or was killed): SQLite reads with what it finds;
- only the changes are there: a copy is read;
- nothing is there: nobody writes, and the file is read as it is, without locks. Once somebody begins to write, the next
  connection sees it, and what was read meanwhile is refused.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import weakref
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import sqlalchemy as sa

from budgettune.errors import StorageError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection

WRITE_AHEAD = b"\x02"  # the 19th byte of a file
COPYING_TRIES = 3
Stamp = tuple[int, int, int] | None


def sqlite_file(url: sa.URL) -> Path | None:
    """Return the file of an SQLite URL, None for a database in memory."""
    name = url.database or ""
    in_memory = not name or name.removeprefix("file:").startswith(":memory:") or url.query.get("mode") == "memory"
    return None if in_memory else _file_of(name)


def _file_of(name: str) -> Path:
    """Return the file of a name as SQLite takes it, which may be a URI."""
    return Path(unquote(name.removeprefix("file:").partition("?")[0])) if name.startswith("file:") else Path(name)


class SqliteConnection(sqlite3.Connection):
    """Reads where it cannot write, too; closed with its last reference, so that nobody has to dispose of an engine.

    Args:
        database: name of the file, as SQLite takes it.
        may_create: make the file where there is none; else that is a StorageError.
        options: as of the base class.
    """

    def __init__(self, database: str, *, may_create: bool = False, **options: Any) -> None:
        self._file = _file_of(database).resolve()  # what SQLite makes stands beside the file, not beside a link to it
        self._stamps: tuple[Stamp, Stamp] | None = None  # of file and changes, where they are read without locks
        self._place = _place(self._file)
        if self._place is None and not may_create:
            raise StorageError(
                f"{self._file}: the file is gone: put it back, or make a study with `budgettune study create`"
            )
        if not _needs_another_way(self._file):
            super().__init__(database, **options)
            return
        self._stamps = self._stamps_now()
        name = f"file:{quote(str(self._file))}?mode=ro&immutable=1" if self._stamps[1] is None else str(self._copied())
        super().__init__(name, **{**options, "uri": True})
        self.execute("PRAGMA query_only=ON")  # what is written to a copy would be lost

    def __del__(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it never opened
            self.close()

    def is_outdated(self) -> bool:
        """Whether there is another file by now, or none, or one that was written while it is read without locks."""
        if self._place not in (None, _place(self._file)):
            return True
        return self._stamps is not None and self._stamps != self._stamps_now()

    def is_disturbed(self) -> bool:
        """Whether what was read may be wrong, because the file itself was written meanwhile."""
        return self._stamps is not None and self._stamps[0] != _stamp(self._file)

    def _stamps_now(self) -> tuple[Stamp, Stamp]:
        return _stamp(self._file), _stamp(_beside(self._file, "-wal"))

    def _copied(self) -> Path:
        """Return a copy of the file and its changes, removed with this connection."""
        folder = tempfile.mkdtemp(prefix="budgettune-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for _ in range(COPYING_TRIES):
            self._stamps = self._stamps_now()
            for file in (self._file, _beside(self._file, "-wal")):
                shutil.copyfile(file, Path(folder) / file.name)
            if self._stamps == self._stamps_now():
                break
        return Path(folder) / self._file.name


def _needs_another_way(file: Path) -> bool:
    """Whether SQLite, as this user, cannot read a file, or only by making files that its owner cannot use."""
    if all(map(_may_write, (file, file.parent))) or all(_beside(file, end).exists() for end in ("-wal", "-shm")):
        return False
    try:
        with file.open("rb") as content:
            return content.read(20)[18:19] == WRITE_AHEAD
    except OSError:
        return False  # SQLite says what is wrong with it


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def _beside(file: Path, end: str) -> Path:
    return file.with_name(file.name + end)


def _place(file: Path) -> tuple[int, int] | None:
    """Return what tells a file from a later one of its name; None where there is none."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def _stamp(file: Path) -> Stamp:
    """Return what differs once a file was written; None where it is missing or empty."""
    try:
        facts = file.stat()
    except OSError:
        return None
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns) if facts.st_size else None


def tune(engine: sa.Engine, *, read_only: bool) -> None:
    """Set what makes concurrent work on a file safe, on every connection of an engine."""
    sa.event.listen(engine, "connect", _on_connect)
    sa.event.listen(engine, "checkout", _on_checkout)
    sa.event.listen(engine, "begin", _on_begin)
    if read_only:
        sa.event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA query_only=ON"))


def _on_connect(connection: DBAPIConnection, _record: object) -> None:
    # The driver's own BEGIN is deferred: two workers read the same WAITING row before either writes.
    connection.isolation_level = None
    # One text that is no UTF-8, from whatever program, must not make all studies of the file unreadable.
    connection.text_factory = partial(str, encoding="utf-8", errors="replace")
    connection.execute("PRAGMA synchronous=NORMAL")


def _on_checkout(connection: DBAPIConnection, _record: object, _proxy: object) -> None:
    if isinstance(connection, SqliteConnection) and connection.is_outdated():
        raise sa.exc.DisconnectionError  # a new one is made in its place


def _on_begin(connection: sa.Connection) -> None:
    read_only = connection.get_execution_options().get("budgettune_read", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def was_disturbed(connection: sa.Connection) -> bool:
    """Whether somebody wrote a file while it was read without locks."""
    return isinstance(raw := connection.connection.dbapi_connection, SqliteConnection) and raw.is_disturbed()
