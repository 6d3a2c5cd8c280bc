"""What a database driver says, as one line that a user can act on, with passwords left out."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import SQLAlchemyError

from budgettune.errors import StorageAway, StorageBusy, StorageError, StorageReadOnly

_NONE_LEFT = "the server has no connection left"
_NONE_LEFT_IN_POOLER = f"{_NONE_LEFT}: raise the limits of the pooler before it (max_client_conn, pool_size)"

# A pattern in the driver's message (lower case) -> what is wrong, and what to do. The first match counts.
_BUSY = (  # nothing was done, and may be in a moment: no connection came about, or others hold what it needs
    ("connections for role", f"{_NONE_LEFT} for this user: raise its limit (ALTER ROLE … CONNECTION LIMIT)"),
    (
        "connections for database",
        f"{_NONE_LEFT} for this database: raise its limit (ALTER DATABASE … CONNECTION LIMIT)",
    ),
    ("too many clients", f"{_NONE_LEFT}: raise max_connections, or put a pooler before it"),
    ("remaining connection slots", f"{_NONE_LEFT}: raise max_connections, or put a pooler before it"),
    ("could not fork", f"{_NONE_LEFT}: it can start no process for one more, so free some of its memory"),
    ("no more connections allowed", _NONE_LEFT_IN_POOLER),  # PgBouncer
    ("query_wait_timeout", _NONE_LEFT_IN_POOLER),
    ("max client", _NONE_LEFT_IN_POOLER),  # Supavisor: max clients reached, Max client connections reached
    ("server_login_retry", "the pooler cannot reach the server behind it: is that up, with connections left?"),
    ("queuepool limit", "this process uses all the connections that it may have: try again in a moment"),
    ("starting up", "the server is starting: try again in a moment"),
    ("not yet accepting connections", "the server is starting: try again in a moment"),
    ("recovery mode", "the server is recovering: try again in a moment"),
    ("lock timeout", "another process holds the study's rows for too long: stop it, or try again"),
    ("deadlock detected", "others change the same rows: try again in a moment"),
    ("could not serialize access", "others change the same rows: try again in a moment"),
)
_READ_ONLY = (
    (
        "attempt to write a readonly database",
        "the file is read-only: give this user write permission on it and its folder",
    ),
)
_AWAY = (
    ("connection refused", "the server does not answer: is it up, and are host and port right?"),
    ("no such file or directory", "the server does not answer: is it up, and are host and port right?"),
    ("timeout expired", "the server does not answer in time: is it up, and does a firewall stand between?"),
    ("connection timeout", "the server does not answer in time: is it up, and does a firewall stand between?"),
    ("shutting down", "the server is shutting down: try again when it is up"),
    ("terminating connection", "the server ended the connection: try again when it is up"),
    ("server closed the connection", "the server ended the connection: try again when it is up"),
    ("connection is lost", "the server ended the connection: try again when it is up"),
)
_REMEDIES = (
    ('database ".*" does not exist', "no such database: make it with `createdb`, or check its name in the URL"),
    ('role ".*" does not exist', "no such user: check the user in the URL"),
    ("does not exist", "holds no Optuna tables: make them with `budgettune study create`"),
    ("invalid connection option", "PostgreSQL has no such option: leave out what another program wants behind the ?"),
    ("(password|sasl) authentication failed", "wrong user or password: check them in the URL, or PGPASSWORD"),
    ("no password supplied", "a password is needed: put it into ~/.pgpass or the URL, or set PGPASSWORD"),
    ("no pg_hba.conf entry", "the server does not let this box in: ask its administrator for an entry in pg_hba.conf"),
    ("could not translate host name", "no such host: check the host name in the URL"),
    ("name or service not known", "no such host: check the host name in the URL"),
    ("failed to resolve host", "no such host: check the host name in the URL"),
    ("no space left", "the disk is full: free some space, then try again"),
    ("database or disk is full", "the disk is full: free some space, then try again"),
    ("permission denied", "no permission: grant this user rights on the database and its tables"),
    ("read-only transaction", "the server is read-only: use the primary's URL"),
    ("unable to open database file", "cannot open the file: check that it exists, and that this user may read it"),
    ("file is not a database", "not a database file: name another file, or remove this one"),
    ("file is encrypted", "not a database file: name another file, or remove this one"),
    ("disk image is malformed", "the file is damaged: restore it from a copy, or export with `sqlite3 FILE .recover`"),
    ("disk i/o error", "the disk cannot be read or written: check its space and health"),
    ("idle-in-transaction timeout", "this process paused in the middle of a transaction: try again"),
    ("database is locked", "another process keeps the file locked: stop it, or use PostgreSQL for many workers"),
    ("no such table", "holds no Optuna tables: make them with `budgettune study create`"),
    (r"\(0x00\)", "a text holds a NUL character, which the database cannot keep: leave it out"),
)


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn every failure of the database inside the block into a StorageError that names the URL and the next step."""
    try:
        yield
    except SQLAlchemyError as error:
        raise storage_error(url, error) from error
    except Exception as error:
        # Optuna wraps what SQLAlchemy raises. Its module is there already where its class was raised.
        optuna = sys.modules.get("optuna")
        if optuna is None or not isinstance(error, optuna.exceptions.StorageInternalError):
            raise
        raise storage_error(url, error.__cause__ or error) from error


def is_busy(error: BaseException) -> bool:
    """Whether a driver's error says that nothing was done, and that asking again helps."""
    return any(re.search(part, str(error).lower()) for part, _ in _BUSY)


def storage_error(url: str, error: BaseException) -> StorageError:
    said = " ".join(str(getattr(error, "orig", None) or error).split())
    for kind, remedies in (
        (StorageBusy, _BUSY),
        (StorageReadOnly, _READ_ONLY),
        (StorageAway, _AWAY),
        (StorageError, _REMEDIES),
    ):
        for part, remedy in remedies:
            if re.search(part, said.lower()):
                return kind(f"{url}: {remedy}")
    return StorageError(f"{url}: {said[:300]}: check the database, then try again")
