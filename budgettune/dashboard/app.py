"""optuna-dashboard behind a cache and a guard: read-only unless told otherwise, with a password, for many visitors.

Optuna's own server re-reads the whole study at each poll. Here a poll reads what has changed since the last one
(`live_storage`), and one view of each study serves all visitors (`shared_view`), with figures of ours (`live_figures`).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from budgettune.dashboard.access import Guard, is_loopback_address
from budgettune.dashboard.figures import FigureMaker, LiveFigures
from budgettune.dashboard.passwords import Lockout, Passwords
from budgettune.dashboard.shared_view import SharedViews
from budgettune.dashboard.webserver import listen
from budgettune.errors import UsageError
from budgettune.records import TrialRecord
from budgettune.storage.connection import open_engine, open_storage
from budgettune.storage.driver_errors import redact
from budgettune.storage.studies import all_studies
from budgettune.storage.trials import trial_records

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

PASSWORD_VARIABLE = "BUDGETTUNE_DASHBOARD_PASSWORD"


def make_app(
    url: str,
    *,
    passwords: Passwords | None = None,
    allow_write: bool = False,
    lockout: Lockout | None = None,
    figures: FigureMaker | None = None,
) -> WSGIApplication:
    """Return the guarded dashboard of a database as a WSGI callable, for a server of your own.

    Args:
        url: of the storage.
        passwords: who may come in; None for everybody who reaches it under a loopback name.
        allow_write: let visitors change and delete.
        lockout: makes those who guess wait; one of its own where None.
        figures: from the trials of a study of ours (without curves, phases and machines) to plotly figures, which its
            page shows among its own and which follow the study.

    Raises:
        StorageError: where there is no such database, or it is not ours.
    """
    import optuna_dashboard

    from budgettune.dashboard.live_storage import LiveStorage

    storage = open_storage(url, read_only=not allow_write)
    ours = None if figures is None else LiveFigures(partial(_records, url), figures).of
    views = SharedViews(optuna_dashboard.wsgi(LiveStorage(storage)), ours)
    return Guard(views, passwords=passwords, allow_write=allow_write, lockout=lockout)


def _records(url: str, study_id: int) -> list[TrialRecord]:
    """Return the trials of a study; none of one that another program made."""
    engine = open_engine(url)
    is_ours = any(row.study_id == study_id and row.spec_json is not None for row in all_studies(engine))
    return trial_records(engine, study_id, documents=False) if is_ours else []


def serve(
    url: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    password_file: Path | str | None = None,
    allow_write: bool = False,
    ready: Callable[[str], None] | None = None,
    figures: FigureMaker | None = None,
) -> int:
    """Serve the dashboard of a database until SIGINT or SIGTERM; return that signal's number.

    Args:
        url: of the storage.
        host: address to listen on; any but a loopback one needs a password.
        port: 0 takes a free one.
        password_file: lines of `user:password`; else the same from the variable BUDGETTUNE_DASHBOARD_PASSWORD.
        allow_write: let visitors change and delete.
        ready: told the address of the page; None writes it to standard error.
        figures: as for `make_app`.

    Raises:
        UsageError: where the address needs a password or cannot be had, or the password file cannot work.
        StorageError: where there is no such database, or it is not ours.
    """
    passwords = find_passwords(password_file)
    if passwords is None and not _is_loopback_host(host):
        raise UsageError(
            f"{host} can be reached by others: give --password-file F (lines of user:password) or set "
            f"{PASSWORD_VARIABLE}, or stay on 127.0.0.1"
        )
    app = make_app(url, passwords=passwords, allow_write=allow_write, figures=figures)
    with listen(app, host, port) as (server, address), _signals() as stopped:
        thread = threading.Thread(target=server.serve_forever, name="budgettune-dashboard", daemon=True)
        thread.start()
        (ready or _announce(url))(address)
        number = stopped()
        server.shutdown()
        thread.join()
    return number


def find_passwords(password_file: Path | str | None) -> Passwords | None:
    """Return the passwords of a file, else of the environment, else None."""
    if password_file is not None:
        return Passwords.from_file(Path(password_file))
    lines = os.environ.get(PASSWORD_VARIABLE)
    return Passwords.from_lines(lines.splitlines(), PASSWORD_VARIABLE) if lines else None


def _is_loopback_host(host: str) -> bool:
    """Whether all addresses of a name stay on this box; an empty name or a wildcard is everybody's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except OSError:
        return False
    return bool(found) and all(is_loopback_address(str(entry[4][0])) for entry in found)


def _announce(url: str) -> Callable[[str], None]:
    def announce(address: str) -> None:
        sys.stderr.write(f"Dashboard of {redact(url)} on {address} (Ctrl-C ends it)\n")
        sys.stderr.flush()

    return announce


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Catch SIGINT and SIGTERM; yield a call that waits for one. Only a main thread can catch them."""
    caught: list[int] = []
    event = threading.Event()

    def handler(number: int, _frame: object) -> None:
        caught.append(number)
        event.set()

    def wait() -> int:
        event.wait()
        return caught[0]

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield wait
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
