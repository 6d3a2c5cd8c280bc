"""optuna-dashboard's page under a path such as /tune, which it does not know of itself.

Its page and its script name `/static`, `/dashboard`, `/api` and `/csv` from the root. They do so in few places, which
are found by their text: where another version has others, its page is not offered under a path, rather than broken.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from budgettune.errors import UsageError

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

# Not a path of ours: what a proxy has taken away already would be taken away once more.
PREFIX = re.compile(
    r"(?!/(?:answers|answers-static|api|csv|dashboard|static)(?:/|$))(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+"
)
SCRIPT_IN_PAGE = 'src="/static/bundle.js"'
ROOT_IN_SCRIPT = 'url_prefix:"/dashboard"'
"""Where the script says under which path its own pages are; others follow from it."""
REQUESTS_IN_SCRIPT = re.compile(r"\$\{this\.baseURL\}(?=/api/)")
DOWNLOADS_IN_SCRIPT = re.compile(r"`(?=/csv/\$\{)")
OTHERS_IN_SCRIPT = re.compile(r"""["'`]/(?:api|static|dashboard|csv)\b""")
"""Any path from the root; all must be one of those above."""


def checked_prefix(text: str) -> str:
    """Return a path without a slash at its end, empty for the root.

    Raises:
        UsageError: where it is none that works everywhere.
    """
    prefix = text.rstrip("/")
    if prefix and not PREFIX.fullmatch(prefix):
        raise UsageError(
            f"prefix {text!r} is no path, or one of the dashboard's own: write it like /tune, of letters, digits, "
            f"- _ . and ~"
        )
    return prefix


@dataclass(eq=False)
class Prefixed:
    """A WSGI callable around optuna-dashboard's whose page works under a path.

    Args:
        app: optuna-dashboard.
        prefix: the path, as browsers see it.
        folder: of the installed optuna-dashboard.
    """

    app: WSGIApplication
    prefix: str
    folder: Path

    def __post_init__(self) -> None:
        """Read what is rewritten; `is_possible` says whether it is as it must be."""
        page = (self.folder / "index.html").read_text(encoding="utf-8")
        script = (self.folder / "public" / "bundle.js").read_text(encoding="utf-8")
        icon = f'<link rel="icon" href="{self.prefix}/favicon.ico">'  # browsers look for it at the root of a name
        page_here = page.replace(SCRIPT_IN_PAGE, f'src="{self.prefix}/static/bundle.js"')
        self._page = page_here.replace("<head>", f"<head>{icon}", 1).encode()
        others = len(OTHERS_IN_SCRIPT.findall(script))
        downloads = len(DOWNLOADS_IN_SCRIPT.findall(script))
        self.is_possible = (
            page.count(SCRIPT_IN_PAGE) == script.count(ROOT_IN_SCRIPT) == 1
            and bool(REQUESTS_IN_SCRIPT.search(script))
            and downloads > 0
            and others == 1 + downloads
        )

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "").rstrip("/")
        is_own = path == "" or path == "/dashboard" or path.startswith("/dashboard/")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD") or not (is_own or path == "/static/bundle.js"):
            return self.app(environ, start_response)
        if path == "" or (is_own and not self.is_possible):
            page = "/dashboard" if self.is_possible else "/answers"
            start_response("302 Found", [("Location", self.prefix + page), ("Content-Type", "text/plain")])
            return []
        if path == "/static/bundle.js":
            return self._send_script(environ, start_response)
        headers = [("Content-Type", "text/html; charset=utf-8"), ("Content-Length", str(len(self._page)))]
        start_response("200 OK", [*headers, ("Content-Security-Policy", POLICY)])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self._page]

    def _send_script(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        plain, packed = self._script
        tag = f'"{hashlib.sha256(packed).hexdigest()[:16]}"'
        headers = [("ETag", tag), ("Cache-Control", "no-cache"), ("Vary", "Accept-Encoding")]
        if tag in environ.get("HTTP_IF_NONE_MATCH", ""):
            start_response("304 Not Modified", headers)
            return []
        takes_gzip = "gzip" in environ.get("HTTP_ACCEPT_ENCODING", "")
        body = packed if takes_gzip else plain
        headers += [("Content-Encoding", "gzip")] if takes_gzip else []
        headers += [("Content-Type", "text/javascript; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("200 OK", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    @cached_property
    def _script(self) -> tuple[bytes, bytes]:
        script = (self.folder / "public" / "bundle.js").read_text(encoding="utf-8")
        script = script.replace(ROOT_IN_SCRIPT, f'url_prefix:"{self.prefix}/dashboard"')
        script = REQUESTS_IN_SCRIPT.sub(lambda found: found[0] + self.prefix, script)
        script = DOWNLOADS_IN_SCRIPT.sub(lambda found: found[0] + self.prefix, script)
        return script.encode(), gzip.compress(script.encode(), 6, mtime=0)


POLICY = (  # optuna-dashboard's own; one of its figures evaluates text
    "default-src 'self';img-src 'self' data: blob:;frame-src 'self';object-src 'none';connect-src 'self';"
    "style-src 'self' data: 'unsafe-inline';script-src 'self' 'unsafe-eval'"
)
