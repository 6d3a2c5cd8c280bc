"""Database URLs: which one, what is in it, and how it is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

import sqlalchemy as sa

from budgettune.errors import StorageError
from budgettune.storage.sqlite_file import sqlite_file
from budgettune.text import one_line, redact, variable

DEFAULT_URL = "sqlite:///budgettune.db"
SQLITE_OPTIONS = frozenset(("cache", "immutable", "mode", "nolock", "psow", "timeout", "uri", "vfs"))
ENCODED = "@ as %40, / as %2F, : as %3A, ? as %3F, # as %23, % as %25"


def storage_url(explicit: str | None = None) -> str:
    """Return the database to use: the one named, else BUDGETTUNE_STORAGE, else OPTUNA_STORAGE, else a local file."""
    named = explicit or variable("BUDGETTUNE_STORAGE") or variable("OPTUNA_STORAGE") or ""
    return named.strip(" \t\"'") or DEFAULT_URL  # `docker run --env-file` keeps quotes


def parse_url(url: str) -> sa.URL:
    """Return the URL with the driver that we use.

    Raises:
        StorageError: where it names no database that we can use; with nothing of a password, wherever that ends.
    """
    if one_line(url) != url:
        raise StorageError("the database URL holds control characters: leave them out")
    if re.fullmatch(r"[\w./\\ -]+", url):
        raise StorageError(f"{url}: not a database URL: write sqlite:///{url}, or postgresql://USER@HOST/DATABASE")
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        parsed = None
    backend = "" if parsed is None else parsed.drivername.lower().partition("+")[0]
    if parsed is None or (backend != "sqlite" and _has_stray_at(url)):
        raise StorageError(
            f"the database URL cannot be read: write sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE, "
            f"with {ENCODED} in user and password"
        )
    if backend not in ("sqlite", "postgresql", "postgres"):
        raise StorageError(f"{backend}: not a database that works here: use SQLite (one box) or PostgreSQL (many)")
    if bare := [each for each in without_login(url).partition("?")[2].split("&") if each and "=" not in each]:
        raise StorageError(
            f"{shown(parsed)}: options stand behind the ?, and {bare[0]} has no value: write ? in a name as %3F"
        )
    return _file(parsed) if backend == "sqlite" else _server(parsed)


def _file(url: sa.URL) -> sa.URL:
    if url.host:
        name = "/".join(filter(None, (url.host, url.database)))
        raise StorageError(f"{shown(url)}: write three slashes: sqlite:///{name}")
    if sqlite_file(url) is None:
        raise StorageError(f"{shown(url)}: lives in one process only: name a file, for example sqlite:///budgettune.db")
    known = SQLITE_OPTIONS if "uri" in url.query else SQLITE_OPTIONS & {"timeout"}
    if unknown := sorted(url.query.keys() - known):
        raise StorageError(
            f"{shown(url)}: SQLite takes no {', '.join(unknown)} here: leave it out, or write "
            f"sqlite:///file:FILE?mode=ro&uri=true"
        )
    name = url.database or ""
    if name.startswith("~") and not Path(Path(name).parts[0]).exists():  # no shell saw it
        url = url.set(database=os.path.expanduser(name))  # noqa: PTH111  (leaves it where there is no home)
    return url.set(drivername=url.drivername.lower())


def _server(url: sa.URL) -> sa.URL:
    driver = url.drivername.lower()
    url = url.set(drivername="postgresql+psycopg" if driver in ("postgresql", "postgres") else driver)
    if url.host and "%" in url.host:  # a socket's folder, as libpq takes it: SQLAlchemy wants it among the options
        url = url.set(host="").update_query_dict({"host": unquote(url.host)})
    return url


def _has_stray_at(url: str) -> bool:
    """Whether an @ stands behind the one that ends user and password, so that they end elsewhere than they seem to."""
    place, _, query = without_login(url).partition("?")
    if "@" not in query:
        return "@" in place
    from psycopg.pq import Conninfo

    known = {option.keyword.decode() for option in Conninfo.get_defaults()}
    return "@" in place or any("@" in each and each.partition("=")[0] not in known for each in query.split("&"))


def without_login(url: str) -> str:
    """Return a server's URL without user and password, which end where SQLAlchemy sees their end."""
    return re.sub(r"^([^:/]*://)[^:/]*(?::[^@]*)?@", r"\1", url)


def split_password(url: str) -> tuple[str, str | None]:
    """Return a server's URL without its password, and the password; None where it has none."""
    parsed = parse_url(url)
    bare = re.sub(r"^([^:/]*://[^:/]*):[^@]*@", r"\1@", url)
    place, mark, query = bare.partition("?")
    options = [option for option in query.split("&") if option.partition("=")[0] not in ("password", "sslpassword")]
    password = parsed.query.get("password", parsed.password)
    return place + mark * bool(options) + "&".join(options), None if password is None else str(password)


def shown(url: sa.URL) -> str:
    """Return a URL for people, without its password."""
    return redact(url.render_as_string(hide_password=True))
