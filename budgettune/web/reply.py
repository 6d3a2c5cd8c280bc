"""What is sent back: a status, headers and a body; and which one an error becomes."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from budgettune.errors import (
    BudgetTuneError,
    NothingFits,
    NothingWithinBudget,
    SpecUnreadable,
    StorageError,
    StudyNotFound,
    UsageError,
)
from budgettune.report.page import FOLDER as REPORT_FOLDER
from budgettune.report.page import Served, data_block
from budgettune.text import one_line, warn_once
from budgettune.web.documents import json_text

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ALLOWED = "GET, HEAD, OPTIONS"
RETRY_SECONDS = 5
"""After which a visitor may ask again where something is away or busy."""
LEAST_COMPRESSED = 1_000  # bytes
PAGE_POLICY = (
    # No script but files of this address, none in the page; plotly.js puts style elements into it, and hands pictures
    # of a figure over as data.
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, undefined=StrictUndefined
)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reply:
    """An answer to a request."""

    status: int
    body: bytes = b""
    kind: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    compressed: bytes | None = field(default=None, repr=False)  # the same body, for who takes gzip


class Busy(BudgetTuneError):
    """More is asked for than is answered at once."""


class Asked(Exception):
    """A request that cannot be answered as it is; the kind is a short word for programs."""

    def __init__(self, status: int, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.kind = kind


def json_reply(document: Any, notes: Iterable[str] = ()) -> Reply:
    """Return a document as `--format json` prints it, and what the command says beside it in headers."""
    said = " ".join(one_line(note) for note in notes).encode("ascii", "backslashreplace").decode()
    headers = (("Budgettune-Note", said),) if said else ()
    return compressed(Reply(200, json_text(document).encode(), headers=headers))


def page_reply(text: str, status: int = 200) -> Reply:
    policy = (("Content-Security-Policy", PAGE_POLICY),)
    return compressed(Reply(status, text.encode(), "text/html; charset=utf-8", policy))


def plain_page(
    title: str,
    *,
    notice: str | None = None,
    rows: Sequence[Mapping[str, str]] | None = None,
    served: Served | None = None,
    prefix: str = "",
    status: int = 200,
) -> Reply:
    """Return a page without figures: the list of the studies in rows, or a sentence."""
    style = Markup((REPORT_FOLDER / "page.css").read_text(encoding="utf-8"))
    values = {"title": title, "notice": notice, "rows": rows, "served": served, "prefix": prefix}
    text = TEMPLATES.get_template("plain.html").render(style=style, data_block=data_block, **values)
    return page_reply(text, status)


def compressed(reply: Reply) -> Reply:
    if len(reply.body) < LEAST_COMPRESSED:
        return reply
    return replace(reply, compressed=gzip.compress(reply.body, 6, mtime=0))


def refusal(error: Exception, *, is_page: bool = False) -> Reply:
    """Return what an error is to a visitor: a status, a word for programs, and a sentence without anything secret."""
    status, kind, reason = _told(error)
    headers: tuple[tuple[str, str], ...] = (("Retry-After", str(RETRY_SECONDS)),) if status == 503 else ()
    headers += (("Allow", ALLOWED),) if status == 405 else ()
    if is_page:
        page = plain_page(f"{status} {HTTPStatus(status).phrase}", notice=reason, status=status)
        return replace(page, headers=page.headers + headers)
    return Reply(status, json_text({"kind": kind, "reason": reason}).encode(), headers=headers)


def _told(error: Exception) -> tuple[int, str, str]:
    if isinstance(error, Asked):
        return error.status, error.kind, str(error)
    if isinstance(error, StudyNotFound):
        return 404, "no-such-study", str(error)
    if isinstance(error, NothingWithinBudget | NothingFits):
        return 409, "nothing-within-budget", str(error)
    if isinstance(error, SpecUnreadable):
        return 409, "unreadable-study", str(error)
    if isinstance(error, UsageError):  # parameters were checked before: it is the study that has no such thing
        return 409, "cannot-answer", str(error)
    if isinstance(error, Busy):
        return 503, "busy", str(error)
    if isinstance(error, StorageError):
        # Its sentence names the database's address, which is none of a visitor's business.
        warn_once(log, str(error))
        return 503, "database-away", "the database does not answer just now: ask again in a moment"
    log.error("a request failed", exc_info=error)
    return 500, "failed", "this failed; the log of the dashboard says why"


def send(reply: Reply, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
    """Answer a WSGI request."""
    body, headers = reply.body, [("Content-Type", reply.kind), *reply.headers]
    if reply.compressed is not None:
        headers.append(("Vary", "Accept-Encoding"))
        if "gzip" in environ.get("HTTP_ACCEPT_ENCODING", ""):
            body = reply.compressed
            headers.append(("Content-Encoding", "gzip"))
    if reply.status in (204, 304):
        headers = list(reply.headers)
        body = b""
    else:
        headers.append(("Content-Length", str(len(body))))
    start: Callable[[str, list[tuple[str, str]]], object] = start_response
    start(f"{reply.status} {HTTPStatus(reply.status).phrase}", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
