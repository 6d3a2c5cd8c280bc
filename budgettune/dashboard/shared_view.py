"""One view of each study for all visitors of a dashboard.

The page polls `/api/studies/ID?after=N` and gets the trials from the N-th on, N being those that can no longer
change. optuna-dashboard computes every such answer anew: the front, the search space and JSON of all it sends. Here one
view per study is kept as the page itself keeps its own, by asking for what comes after the trials that it knows, and
every visitor is answered from it.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar
from urllib.parse import parse_qs
from wsgiref.util import setup_testing_defaults

from budgettune.dashboard.access import READING

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

STUDY_PATH = re.compile(r"/api/studies/(\d{1,18})/?")
AFTER = re.compile(r"\d{1,18}")
OPEN_STATES = ("Running", "Waiting")
PATIENCE_SECONDS = 0.3
"""For which a poll waits for what is new; a large study's comes with the next poll."""

Value = TypeVar("Value")
Figures = Callable[[int, int], list[dict[str, str]]]
"""From a study's id and its number of finished trials to entries of `plotly_graph_objects`."""


@dataclass
class RefreshPace:
    """Says when work is due again: after a rest of so many times what it took (the first time apart)."""

    share: float = 1 / 20  # of one core's time that the work may take
    shortest_seconds: float = 1.0  # of a rest
    clock: Callable[[], float] = time.monotonic
    _due_at: float = field(default=float("-inf"), init=False)
    _has_worked: bool = field(default=False, init=False)

    @property
    def is_due(self) -> bool:
        return self.clock() >= self._due_at

    def rest(self, began: float) -> None:
        """Note that work ends now which began at some moment of the clock."""
        ended = self.clock()
        # The first time loads libraries and reads everything: it says nothing about the next.
        rest_seconds = (ended - began) * (1 / self.share - 1) if self._has_worked else 0.0
        self._has_worked = True
        self._due_at = ended + max(self.shortest_seconds, rest_seconds)


@dataclass(eq=False)
class Refreshed(Generic[Value]):
    """A value that is made by a thread, one at a time, when somebody asks and it is due.

    Who asks gets the latest value without waiting long for the next; only the first of all is waited for.

    Args:
        make: from the value before (None at first) to the next.
        pace: says when the next is due.
        patience_seconds: for which somebody who has a value to go on with waits for a newer one.
        value: to begin with, where there is one.
    """

    make: Callable[[Value | None], Value]
    pace: RefreshPace
    patience_seconds: float
    value: Value | None = None
    _error: Exception | None = field(default=None, init=False)
    _thread: threading.Thread | None = field(default=None, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def get(self) -> Value:
        """Return the latest value.

        Raises:
            Exception: what making it raised last, until making it works again.
        """
        with self._lock:
            thread = self._thread
            if thread is None and self.pace.is_due:
                thread = threading.Thread(target=self._refresh, name="refresh", daemon=True)
                thread.start()  # or not, where the box lets this process have no thread more just now
                self._thread = thread
        if thread is not None:
            thread.join(None if self.value is None else self.patience_seconds)
        if (error := self._error) is not None:  # read once: the thread may take it away
            raise error
        assert self.value is not None  # the first was waited for
        return self.value

    def _refresh(self) -> None:
        began = self.pace.clock()
        try:
            self.value, self._error = self.make(self.value), None
        except Exception as error:
            self._error = error
        with self._lock:
            self.pace.rest(began)
            self._thread = None


class _NotAnswered(Exception):
    """What is behind the view answered with something else than a study: the status and the body."""


class _Snapshot(NamedTuple):
    """A study's page at one moment."""

    trials: list[bytes]  # JSON of each
    final_count: int  # how many of them, from the first on, can no longer change
    rest: bytes  # JSON object of all else

    def after(self, number: int) -> bytes:
        return b'{"trials": [' + b",".join(self.trials[number:]) + b"], " + self.rest[1:]


@dataclass(eq=False)
class SharedViews:
    """A WSGI callable around optuna-dashboard's; `pace` makes the pace of one study's view."""

    app: WSGIApplication
    figures: Figures | None = None  # more figures of a study
    pace: Callable[[], RefreshPace] = RefreshPace
    _views: dict[int, Refreshed[_Snapshot]] = field(default_factory=dict, init=False)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request: from the view where it is a poll of a study, else from the dashboard."""
        match = STUDY_PATH.fullmatch(environ.get("PATH_INFO", ""))
        after = parse_qs(environ.get("QUERY_STRING", "")).get("after", ["0"])[-1]
        if environ["REQUEST_METHOD"] != "GET" or match is None or not AFTER.fullmatch(after):
            answer = self.app(environ, start_response)
            if environ["REQUEST_METHOD"] not in READING:
                self._views = {}  # somebody may have changed anything
            return answer
        try:
            status, body = "200 OK", self._body(int(match[1]), int(after))
        except _NotAnswered as refusal:
            status, body = refusal.args
        start_response(status, [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
        return [body]

    def _body(self, study_id: int, after: int) -> bytes:
        views = self._views
        make = partial(_snapshot, self.app, self.figures, study_id)
        snapshot = views.setdefault(study_id, Refreshed(make, self.pace(), PATIENCE_SECONDS))
        try:
            return snapshot.get().after(after)
        except _NotAnswered:
            views.pop(study_id, None)  # kept only for studies that are there
            raise


def _snapshot(app: WSGIApplication, figures: Figures | None, study_id: int, old: _Snapshot | None) -> _Snapshot:
    """Return the study as it is now; of the trials that could no longer change, only the last is asked for again."""
    start = max(old.final_count - 1, 0) if old is not None else 0
    document = json.loads(_ask(app, study_id, start))
    states = [trial["state"] for trial in document["trials"]]
    fresh = [json.dumps(trial).encode() for trial in document.pop("trials")]
    if old is not None and old.final_count and old.trials[start] != next(iter(fresh), None):
        return _snapshot(app, figures, study_id, None)  # it was deleted, and another made under the same id
    final = next((place for place, state in enumerate(states) if state in OPEN_STATES), len(states))
    if figures is not None:
        finished = start + sum(state not in OPEN_STATES for state in states)
        document["plotly_graph_objects"] += figures(study_id, finished)
    known = old.trials[:start] if old is not None else []
    return _Snapshot(known + fresh, start + final, json.dumps(document).encode())


def _ask(app: WSGIApplication, study_id: int, after: int) -> bytes:
    environ: dict[str, Any] = {
        "PATH_INFO": f"/api/studies/{study_id}",
        "QUERY_STRING": f"after={after}",
        "HTTP_ACCEPT_ENCODING": "",  # optuna-dashboard fails on a request without it
    }
    setup_testing_defaults(environ)
    seen: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        seen.append(status)
        return lambda data: None

    body = b"".join(app(environ, start_response))
    if not seen[0].startswith("200"):
        raise _NotAnswered(seen[0], body)
    return body
