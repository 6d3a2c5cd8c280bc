"""Pages that follow their studies: each is built once for all visitors, when trials have ended since the last time."""

from __future__ import annotations

import base64
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from budgettune.dashboard.shared_view import Refreshed, RefreshPace
from budgettune.errors import StudyNotFound
from budgettune.records import OPEN
from budgettune.report.build import served_page
from budgettune.report.page import Served, script_sources, states_sentence
from budgettune.storage.answers import ended_mark, state_counts
from budgettune.storage.connection import Engine, open_engine
from budgettune.storage.studies import all_studies, find_study
from budgettune.web.reply import Reply, compressed, page_reply, plain_page, refusal

FOLDER = Path(__file__).parent
MOST_PAGES = 50
"""Studies whose pages are kept, a few MB each."""
LOOK_SECONDS = 1.0
"""Between two looks at how a study stands, however many visitors ask."""
BUILD_SHARE = 1 / 8
"""Of one core's time, at a low priority, that building a page again and again may take."""
LOOK_SHARE = 1 / 10  # of one core's time that looking may take
FIRST_PATIENCE_SECONDS = 5.0
"""For which a visitor waits for the first page of a study."""
PATIENCE_SECONDS = 0.3
"""For which a visitor waits for a newer page; the next look brings it."""
WAIT = "This page is being made, and comes by itself. It takes seconds, for a large study half a minute."
FOREVER = "private, max-age=31536000, immutable"  # a file's name has the hash of what is in it

Run = Callable[..., Any]


class Standing(NamedTuple):
    """How a study stands at one moment."""

    mark: str  # another one once a trial has ended
    states: dict[str, int]
    sentence: str
    is_over: bool  # whether nothing waits or runs


class _Page(NamedTuple):
    mark: str | None  # None before the first
    reply: Reply


def standing(engine: Engine, study_id: int) -> Standing:
    mark = ended_mark(engine, study_id)  # first: a trial that ends meanwhile makes the next mark another one
    own, foreign = state_counts(engine, study_id), state_counts(engine, study_id, of_cells=False)
    counts = {state: number + (0 if state in OPEN else foreign[state]) for state, number in own.items()}
    sentence = states_sentence(counts, sum(foreign[state] for state in OPEN))
    return Standing(mark, counts, sentence, not any(own[state] for state in OPEN))


def built(url: str, study: str, served: Served) -> Reply:
    """Return the page of a study, or the refusal; it takes seconds, and is called in a process of its own."""
    try:
        engine = open_engine(url)
        return page_reply(served_page(engine, find_study(engine, study).study_id, served))
    except Exception as error:
        return refusal(error, is_page=True)


@dataclass(eq=False)
class Pages:
    """The pages of a database, and the files that they ask for.

    Args:
        url: of the storage.
        engine: on it.
        prefix: path of the server, as browsers see it.
        run: calls a function, elsewhere or here.
    """

    url: str
    engine: Engine
    prefix: str
    run: Run
    pace: Callable[[], RefreshPace] = lambda: RefreshPace(share=BUILD_SHARE, shortest_seconds=LOOK_SECONDS)
    _standings: dict[str, Refreshed[Standing]] = field(default_factory=dict, init=False)
    _pages: OrderedDict[str, Refreshed[_Page]] = field(default_factory=OrderedDict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def standing(self, study: str) -> Standing:
        """Return how a study stands.

        Raises:
            StudyNotFound: where there is no such study.
        """
        with self._lock:
            known = self._standings.get(study)
        if known is None:
            self._study_id(study)  # kept only for studies that are there
            pace = RefreshPace(share=LOOK_SHARE, shortest_seconds=LOOK_SECONDS)
            new = Refreshed(partial(self._look, study), pace, PATIENCE_SECONDS)
            with self._lock:
                known = self._standings.setdefault(study, new)
        return known.get()

    def standings(self) -> list[tuple[str, Standing]]:
        """Return how each study stands, by name; without those that are deleted meanwhile."""
        found = []
        for row in all_studies(self.engine):
            if row.spec_json is not None:
                with suppress(StudyNotFound):
                    found.append((row.name, self.standing(row.name)))
        return found

    def latest_mark(self, study: str) -> str | None:
        """Return the mark of the latest page of a study, None where none is built, and see that it is refreshed."""
        with self._lock:
            if (page := self._pages.get(study)) is None:
                return None
            self._pages.move_to_end(study)
        page.patience_seconds = PATIENCE_SECONDS  # who asks here has a page, and asks again
        return page.get().mark

    def page(self, study: str) -> Reply:
        """Return the latest page of a study, and see that it is refreshed.

        The first takes a while: who waits for long gets one that says so, and that makes room for it.

        Raises:
            StudyNotFound: where there is no such study.
        """
        self._study_id(study)
        with self._lock:
            page = self._pages.get(study)
            if page is None:
                waiting = plain_page(study, notice=WAIT, served=self._served([self._files[-1]], self._settings(study)))
                page = Refreshed(partial(self._build, study), self.pace(), FIRST_PATIENCE_SECONDS, _Page(None, waiting))
                self._pages[study] = page
            self._pages.move_to_end(study)
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)
        latest = page.get()
        if latest.mark is not None:
            page.patience_seconds = PATIENCE_SECONDS
        return latest.reply

    def _look(self, study: str, _: Standing | None) -> Standing:
        return standing(self.engine, self._study_id(study))

    def _build(self, study: str, old: _Page | None) -> _Page:
        mark = ended_mark(self.engine, self._study_id(study))
        if old is not None and old.mark == mark and old.reply.status == 200:
            return old
        served = self._served(self._files, self._settings(study, mark))
        return _Page(mark, self.run(built, self.url, study, served))

    def _study_id(self, study: str) -> int:
        try:
            return find_study(self.engine, study).study_id
        except StudyNotFound:
            with self._lock:
                self._standings.pop(study, None)
                self._pages.pop(study, None)
            raise

    def index(self) -> Reply:
        """Return the page that lists the studies."""
        rows = [
            {
                "name": name,
                "address": f"{self.prefix}/answers/{quote(name, safe='/')}",
                "sentence": now.sentence,
            }
            for name, now in self.standings()
        ]
        served = self._served([self._files[-1]], {"page": f"{self.prefix}/answers"})
        return plain_page("Answers", rows=rows, served=served, prefix=self.prefix)

    # --- Files that pages ask for -----------------------------------------------------------------------------------

    def _settings(self, study: str, mark: str = "") -> dict[str, str]:
        """Return what the script of a study's page needs to know."""
        name = quote(study, safe="/")
        return {"page": f"{self.prefix}/answers/{name}", "api": f"{self.prefix}/api/answers/{name}", "mark": mark}

    def _served(self, files: list[tuple[str, Reply]], settings: dict[str, str]) -> Served:
        addresses = ((f"{self.prefix}/answers-static/{name}", _integrity(file.body)) for name, file in files)
        return Served(tuple(addresses), settings)

    def file(self, name: str) -> Reply | None:
        """Return one of the files that pages ask for, None where there is no such."""
        return dict(self._files).get(name)

    @cached_property
    def _files(self) -> list[tuple[str, Reply]]:
        page, plotly = script_sources()
        live = (FOLDER / "live.js").read_text(encoding="utf-8")
        named = [("page", page), ("plotly", plotly), ("live", live)]
        return [_file(name, source.encode()) for name, source in named]


def _file(name: str, body: bytes) -> tuple[str, Reply]:
    digest = hashlib.sha256(body).hexdigest()[:16]
    headers = (("Cache-Control", FOREVER), ("ETag", f'"{digest}"'))
    return f"{name}.{digest}.js", compressed(Reply(200, body, "text/javascript; charset=utf-8", headers))


def _integrity(body: bytes) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(body).digest()).decode()
