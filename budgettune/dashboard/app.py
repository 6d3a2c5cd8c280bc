"""optuna-dashboard behind a cache and a guard: read-only unless told otherwise, with a password, for many visitors.

Optuna's own server re-reads the whole study at each poll. Here a poll reads what has changed since the last one
(`live_storage`), and one view of each study serves all visitors (`shared_view`), with figures of ours (`figures`).
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from waitress import create_server, wasyncore
from waitress.channel import HTTPChannel
from waitress.task import ErrorTask

from budgettune.dashboard.access import ANSWERS, Guard, is_loopback_address
from budgettune.dashboard.figures import FigureMaker, LiveFigures
from budgettune.dashboard.passwords import Lockout, Passwords
from budgettune.dashboard.prefix import Prefixed, checked_prefix
from budgettune.dashboard.shared_view import SharedViews
from budgettune.errors import UsageError
from budgettune.records import TrialRecord
from budgettune.spec.objective import Aim
from budgettune.storage.connection import open_engine, open_storage
from budgettune.storage.studies import all_studies
from budgettune.storage.trials import parse_json, trial_records
from budgettune.text import one_line, variable

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    AnswersMaker = Callable[[str, str, bool], WSGIApplication]

PASSWORD_VARIABLE = "BUDGETTUNE_DASHBOARD_PASSWORD"
PROXY_VARIABLE = "BUDGETTUNE_DASHBOARD_PROXY"
THREADS = 32
"""Most of a thread's time goes into waiting for a first look at a study, or for its turn to check a password."""
MOST_CONNECTIONS = 250
QUIET_SECONDS = 15
"""For a request to arrive, from its first byte to its last, and for which an open connection may be silent."""
LARGEST_HEADER_BYTES = 16_384
LARGEST_BODY_BYTES = 2**20

log = logging.getLogger(__name__)


def make_app(
    url: str,
    *,
    passwords: Passwords | None = None,
    allow_write: bool = False,
    lockout: Lockout | None = None,
    figures: FigureMaker | None = None,
    answers: AnswersMaker | None = None,
    prefix: str = "",
) -> WSGIApplication:
    """Return the guarded dashboard of a database as a WSGI callable, for a server of your own.

    Args:
        url: of the storage.
        passwords: who may come in; None for everybody who reaches it under a loopback name.
        allow_write: let visitors change and delete.
        lockout: one of its own where None.
        figures: from the trials of a study of ours (without curves, phases and machines) and what it wants of them to
            plotly figures, which its page shows among its own and which follow the study.
        answers: makes what answers under `/answers` and `/api/answers`, from the URL of the storage, the prefix, and
            whether there are passwords.
        prefix: path under which browsers see all of it, such as /tune; your server hands it over as SCRIPT_NAME.

    Raises:
        StorageError: where there is no such database, or it is not ours.
        UsageError: where the prefix is no path.
    """
    import optuna_dashboard

    from budgettune.dashboard.live_storage import LiveStorage

    storage = open_storage(url, read_only=not allow_write)
    ours = None if figures is None else LiveFigures(partial(_records, url), figures).of
    app: WSGIApplication = SharedViews(optuna_dashboard.wsgi(LiveStorage(storage)), ours)
    if prefix := checked_prefix(prefix):
        app = prefixed = Prefixed(app, prefix, Path(optuna_dashboard.__file__).parent)
        if not prefixed.is_possible:
            log.warning("this version of optuna-dashboard works at the root of a name only: its page is left out")
    if answers is not None:
        app = _mounted(answers(url, prefix, passwords is not None), app)
    lockout = Lockout() if lockout is None else lockout
    return Guard(app=app, passwords=passwords, allow_write=allow_write, lockout=lockout)


def _mounted(answers: WSGIApplication, app: WSGIApplication) -> WSGIApplication:
    """Return a callable that asks one for answers, and the other for all else."""

    def both(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        is_ours = ANSWERS.fullmatch(environ.get("PATH_INFO", ""))
        return (answers if is_ours else app)(environ, start_response)

    return both


def _records(url: str, study_id: int) -> tuple[list[TrialRecord], Aim]:
    """Return the trials of a study and what it wants of them; no trials of one that another program made."""
    engine = open_engine(url)
    study = next((row for row in all_studies(engine) if row.study_id == study_id), None)
    if study is None or study.spec_json is None:
        return [], Aim()
    return trial_records(engine, study_id, documents=False), Aim.of(parse_json(study.spec_json))


def serve(
    url: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    password_file: Path | str | None = None,
    allow_write: bool = False,
    trusted_proxy: str | None = None,
    figures: FigureMaker | None = None,
    answers: AnswersMaker | None = None,
    prefix: str = "",
    ready: Callable[[str], object] = lambda address: None,
    until: Callable[[], object] | None = None,
) -> None:
    """Serve the dashboard of a database.

    Args:
        url: of the storage.
        host: address to listen on; any but a loopback one needs a password.
        port: 0 takes a free one.
        password_file: lines of `user:password`; else the same from the variable BUDGETTUNE_DASHBOARD_PASSWORD.
        allow_write: let visitors change and delete.
        trusted_proxy: address of a proxy that says in X-Forwarded-For who visits, `*` for whoever connects; else from
            the variable BUDGETTUNE_DASHBOARD_PROXY.
        figures: as for `make_app`.
        answers: likewise.
        prefix: path under which browsers see the dashboard; a proxy in front may keep it or take it away.
        ready: told the address of the page.
        until: returns when the dashboard is to end; never where None.

    Raises:
        UsageError: where the address needs a password or cannot be had, or the password file or proxy cannot work.
        StorageError: where there is no such database, or it is not ours.
    """
    passwords = find_passwords(password_file)
    if passwords is None and not _is_loopback_host(host):
        raise UsageError(
            f"{host} can be reached by others: give --password-file F (lines of user:password) or set "
            f"{PASSWORD_VARIABLE}, or stay on 127.0.0.1"
        )
    proxy = _proxy_address(trusted_proxy or variable(PROXY_VARIABLE))
    app = make_app(url, passwords=passwords, allow_write=allow_write, figures=figures, answers=answers, prefix=prefix)
    with listen(app, host, port, trusted_proxy=proxy, prefix=prefix) as address:
        ready(address)
        (until or threading.Event().wait)()


def find_passwords(password_file: Path | str | None) -> Passwords | None:
    """Return the passwords of a file, else of the environment, else None."""
    if password_file is not None:
        return Passwords.from_file(Path(password_file))
    lines = variable(PASSWORD_VARIABLE)
    return Passwords.from_lines(lines.splitlines(), PASSWORD_VARIABLE) if lines else None


def _is_loopback_host(host: str) -> bool:
    """Whether all addresses of a name stay on this box; an empty name or a wildcard is everybody's."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM) if host else []
    except OSError:
        return False
    return bool(found) and all(is_loopback_address(str(entry[4][0])) for entry in found)


def _proxy_address(text: str | None) -> str | None:
    if text is None or text == "*":
        return text
    try:
        return str(ipaddress.ip_address(text))  # as the operating system spells those who connect
    except ValueError:
        raise UsageError(
            f"trusted proxy {text!r} is not an address: give the one that it connects from, such as 127.0.0.1, "
            f"or * where nobody else can connect"
        ) from None


# --- The web server ----------------------------------------------------------------------------------------------


@contextmanager
def listen(
    app: WSGIApplication, host: str, port: int, *, trusted_proxy: str | None = None, prefix: str = ""
) -> Iterator[str]:
    """Answer requests to a WSGI callable in threads of their own; yield the address.

    Paths work with the prefix and without it: a proxy in front may keep it or take it away.

    Raises:
        UsageError: where the address cannot be had.
    """
    listener = _bound(host, port)
    from_proxy = {"trusted_proxy_headers": {"x-forwarded-for", "x-forwarded-proto"}} if trusted_proxy else {}
    channels: dict[int, Any] = {}
    server = create_server(
        app,
        channels,
        sockets=[listener],
        threads=THREADS,
        connection_limit=MOST_CONNECTIONS + 2,  # the listener and waitress's own pipe are counted
        channel_timeout=QUIET_SECONDS,
        cleanup_interval=1,
        max_request_header_size=LARGEST_HEADER_BYTES,
        max_request_body_size=LARGEST_BODY_BYTES + 1,
        ident="BudgetTune",
        log_socket_errors=False,  # visitors who leave are none of the operator's business
        asyncore_use_poll=True,
        trusted_proxy=trusted_proxy,
        url_prefix=checked_prefix(prefix),
        **from_proxy,
    )
    server.channel_class = _Connection
    # An IPv6 socket spells those who come by IPv4 otherwise than a trusted proxy is spelled.
    server.fix_addr = lambda address: (address[0].removeprefix("::ffff:"), *address[1:])
    logging.getLogger("waitress").addFilter(_in_one_line)
    thread = threading.Thread(target=server.run, name="budgettune-dashboard", daemon=True)
    thread.start()
    shown = f"[{host}]" if ":" in host else host or "localhost"
    try:
        yield f"http://{shown}:{listener.getsockname()[1]}{checked_prefix(prefix)}/"
    finally:
        # In the server's thread: first connections; then, once no thread is left that may wake it, itself.
        server.trigger.pull_trigger(lambda: [each.close() for each in [*server.active_channels.values()]])
        server.task_dispatcher.shutdown(timeout=1)
        with suppress(OSError):  # a thread that is left woke it, and it has ended already
            server.trigger.pull_trigger(partial(wasyncore.close_all, channels))
        thread.join()


class _BadRequest(ErrorTask):
    """The answer to what is no request, or too large a one."""

    def execute(self) -> None:
        error = self.request.error
        if error.code != 500:  # a page that failed is logged by waitress
            reason = one_line(error.body)[:300]
            log.warning("refused a request from %s: %d %s", self.channel.addr[0], error.code, reason)
        super().execute()


class _Connection(HTTPChannel):
    """A visitor's connection, which is silent for as long as a request of it has not come to its end.

    waitress counts from the latest byte: who drips them would never be cut off.
    """

    error_task_class = _BadRequest
    last_activity: float

    def close(self) -> None:
        """End with all that is half sent, and whoever waits to send more, also where the server ends."""
        self.handle_close()

    def handle_read(self) -> None:
        latest = self.last_activity
        is_incomplete = self.request is not None
        super().handle_read()
        if is_incomplete and self.request is not None:
            self.last_activity = latest


def _in_one_line(record: logging.LogRecord) -> bool:
    """Make what waitress logs printable: it may repeat what somebody sent."""
    record.msg, record.args = one_line(record.getMessage()), ()
    return True


def _bound(host: str, port: int) -> socket.socket:
    try:
        if port not in range(65_536):
            raise OSError(errno.EINVAL, "there is no such port")
        family = socket.getaddrinfo(host or "0.0.0.0", None, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128, dualstack_ipv6=family == socket.AF_INET6)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            advice = f"port {port} on {host} is taken: choose another with --port, or --port 0 for a free one"
            raise UsageError(advice) from None
        reason = str(error.strerror).partition(" (while")[0]  # Python adds the address to what the system says
        raise UsageError(f"cannot listen on {host}, port {port}: {reason}: choose another --host or --port") from None
