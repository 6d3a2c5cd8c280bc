"""What visitors of a dashboard may see and do, and who has to wait: checks of each request, in front of a WSGI app."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import json
import logging
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from budgettune.dashboard.passwords import Lockout, Passwords
from budgettune.text import one_line

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

READING = ("GET", "HEAD", "OPTIONS")
WRITING = ("POST", "PUT", "PATCH", "DELETE")
# What optuna-dashboard's page needs to read, and answers of ours. A list of what is allowed, so that a route which a
# later version adds (artifacts, migration, a profiler) stays shut until somebody has looked at it.
READABLE = re.compile(
    r"/|/dashboard(/.*)?|/favicon\.ico|/static/.+|/csv/\d+|/api/meta|/api/studies"
    r"|/api/studies/\d+(/param_importances|/plot/\w+)?"
    r"|/answers(/.+)?|/api/answers(/.+)?|/answers-static/[\w.]+",
    re.DOTALL,
)
ANSWERS = re.compile(r"/(api/)?answers(-static)?(/.*)?", re.DOTALL)
"""What is only read, whoever asks: it says itself how."""
LARGEST_CREDENTIALS = 4_096
SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
STRICTEST_POLICY = "default-src 'none'; frame-ancestors 'none'"

log = logging.getLogger(__name__)


class _Refused(Exception):
    """A request that ends here: its status line, the reason and headers."""

    def __init__(self, status: str, reason: str, **headers: str) -> None:
        super().__init__(reason)
        self.status = status
        self.kind = status.partition(" ")[2].lower().replace(" ", "-")  # a word for programs
        self.headers = [(name.replace("_", "-"), value) for name, value in headers.items()]


@dataclass(frozen=True, kw_only=True, eq=False)
class Guard:
    """A WSGI callable that lets through what a visitor may see."""

    app: WSGIApplication
    passwords: Passwords | None  # None for everybody who reaches it under a loopback name
    allow_write: bool  # whether visitors may change and delete
    lockout: Lockout

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        start = _with_security_headers(environ, start_response)
        try:
            if environ.get("PATH_INFO") == "/healthz" and environ["REQUEST_METHOD"] in READING:
                return _answer(environ, start, "200 OK", {"status": "ok"})
            self._check(environ)
        except _Refused as refused:
            # repr and one_line keep control characters of a hostile path or proxy out of the log.
            request = f"{environ['REQUEST_METHOD'][:10]!r} {environ.get('PATH_INFO', '')[:200]!r}"
            log.warning("refused %s from %s: %s", request, one_line(environ.get("REMOTE_ADDR", "")[:64]), refused)
            return _answer(
                environ, start, refused.status, {"kind": refused.kind, "reason": str(refused)}, refused.headers
            )
        environ.setdefault("HTTP_ACCEPT_ENCODING", "")  # optuna-dashboard fails on a request without it
        return self.app(environ, start)

    def _check(self, environ: WSGIEnvironment) -> None:
        path = _path_of(environ)
        is_of_answers = ANSWERS.fullmatch(path)  # behind which stand names of studies, of any characters, and no files
        if not is_of_answers and (".." in path.split("/") or "\\" in path or not path.isprintable()):
            raise _Refused("400 Bad Request", "there is no such path")
        if self.passwords is None:
            _check_host(environ)
        else:
            self._check_password(environ, self.passwords)
        method = environ["REQUEST_METHOD"]
        if method in READING:
            if not READABLE.fullmatch(path.rstrip("/") or "/"):
                raise _Refused("404 Not Found", "there is no such page")
        elif is_of_answers:
            raise _Refused("405 Method Not Allowed", "answers are read: ask with GET", Allow=", ".join(READING))
        elif method not in WRITING:
            raise _Refused("405 Method Not Allowed", "unknown method", Allow=", ".join(READING))
        elif not self.allow_write:
            raise _Refused("403 Forbidden", "this dashboard is read-only: start it with --allow-write to change things")
        else:
            _check_same_site(environ)

    def _check_password(self, environ: WSGIEnvironment, passwords: Passwords) -> None:
        address = environ.get("REMOTE_ADDR", "")
        wait = self.lockout.wait_seconds(address)
        if wait > 0:  # before the password is looked at: a right guess must not shine through
            seconds = str(int(wait) + 1)
            raise _Refused("429 Too Many Requests", f"too many wrong passwords: wait {seconds} s", Retry_After=seconds)
        header = environ.get("HTTP_AUTHORIZATION")
        challenge = 'Basic realm="BudgetTune", charset="UTF-8"'
        if not header:
            raise _Refused("401 Unauthorized", "this dashboard asks for a password", WWW_Authenticate=challenge)
        credentials = _credentials(header)
        if credentials is None or not passwords.check(*credentials):
            self.lockout.failed(address)
            raise _Refused("401 Unauthorized", "wrong user or password", WWW_Authenticate=challenge)


def _path_of(environ: WSGIEnvironment) -> str:
    """Return the path as text: names of studies in it may be of any language."""
    try:
        path: str = environ.get("PATH_INFO", "")
        return path.encode("latin-1").decode()  # WSGI hands bytes over as Latin-1
    except UnicodeError:
        raise _Refused("400 Bad Request", "there is no such path") from None


def _credentials(header: str) -> tuple[str, str] | None:
    """Return the user and password of an Authorization header, None where it is not one (RFC 7617)."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic" or len(encoded) > LARGEST_CREDENTIALS:
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    return (user, password) if colon else None


def _check_host(environ: WSGIEnvironment) -> None:
    """Refuse foreign names where there is no password: a hostile page can point its own name at this address."""
    name = urlsplit(f"//{environ.get('HTTP_HOST', '')}").hostname or ""
    if name != "localhost" and not name.endswith(".localhost") and not is_loopback_address(name):
        raise _Refused("403 Forbidden", "without a password this dashboard answers to localhost only: set a password")


def _check_same_site(environ: WSGIEnvironment) -> None:
    """Refuse writes that another site makes a visitor's browser send: it adds the password by itself."""
    site, origin = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_ORIGIN")
    foreign = (
        site not in ("same-origin", "none")
        if site is not None  # old browsers, and plain HTTP, send the origin only; programs send neither
        else origin is not None and urlsplit(origin).netloc != environ.get("HTTP_HOST")
    )
    if foreign:
        raise _Refused("403 Forbidden", "writes from other sites are refused")


def is_loopback_address(name: str) -> bool:
    """Whether a text is an address that never leaves this box."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _with_security_headers(environ: WSGIEnvironment, start_response: StartResponse) -> StartResponse:
    static = environ.get("PATH_INFO", "").startswith("/static/")

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Callable[[bytes], object]:
        present = {name.lower() for name, _ in headers}
        extra = {**SECURITY_HEADERS, "Content-Security-Policy": STRICTEST_POLICY}
        if not static:
            extra["Cache-Control"] = "no-store"
        headers = headers + [(name, value) for name, value in extra.items() if name.lower() not in present]
        return start_response(status, headers, exc_info)

    return start


def _answer(
    environ: WSGIEnvironment,
    start: StartResponse,
    status: str,
    document: dict[str, str],
    headers: Iterable[tuple[str, str]] = (),
) -> list[bytes]:
    body = json.dumps(document).encode() + b"\n"
    start(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body))), *headers])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
