"""`/answers` and `/api/answers` as a WSGI callable, read-only, for the dashboard's server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import budgettune
from budgettune.storage.answers import ended_mark
from budgettune.storage.connection import Engine, open_engine
from budgettune.storage.studies import find_study
from budgettune.study.handle import StudyHandle
from budgettune.web import documents
from budgettune.web.aside import Aside
from budgettune.web.pages import Pages, Run
from budgettune.web.questions import QUESTIONS, openapi, read_query
from budgettune.web.recommending import Question, Recommendations
from budgettune.web.reply import ALLOWED, Asked, Reply, json_reply, refusal, send

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

# The question is what stands behind the last slash, and the study's name all before it: a name may hold slashes.
API = re.compile(rf"/api/answers/(.+)/({'|'.join(QUESTIONS)})", re.DOTALL)
PAGE = re.compile(r"/answers/(.+)", re.DOTALL)
FILE = re.compile(r"/answers-static/([\w.]+)")


@dataclass(eq=False)
class Answers:
    """The answers of a database as a WSGI callable.

    Args:
        url: of the storage.
        prefix: path of the server, as browsers see it, such as /tune.
        has_password: whether who asks needs one, for the OpenAPI document.
        build: calls what builds a page, in a process of its own unless told otherwise.
        think: calls what recommends, likewise.
    """

    url: str
    prefix: str = ""
    has_password: bool = False
    build: Run = field(default_factory=lambda: Aside("budgettune-pages"))
    think: Run = field(default_factory=lambda: Aside("budgettune-recommend"))

    def __post_init__(self) -> None:
        self.engine: Engine = open_engine(self.url)
        self.pages = Pages(self.url, self.engine, self.prefix, self.build)
        self.recommendations = Recommendations(self.think)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "").encode("latin-1").decode("utf-8", "replace")
        method = environ["REQUEST_METHOD"]
        try:
            if method == "OPTIONS":
                reply = Reply(204, headers=(("Allow", ALLOWED),))
            elif method not in ("GET", "HEAD"):
                raise Asked(405, "read-only", "answers are read: ask with GET")
            else:
                reply = self._reply(path, environ)
        except Exception as error:
            reply = refusal(error, is_page=path.startswith("/answers/") or path == "/answers")
        return send(reply, environ, start_response)

    def _reply(self, path: str, environ: WSGIEnvironment) -> Reply:
        query = environ.get("QUERY_STRING", "")
        if match := API.fullmatch(path):
            study, question = match.groups()
            values = read_query(query, QUESTIONS[question].parameters)
            if question == "standing":
                return self._standing(study)
            ask: Callable[..., Reply] = getattr(self, f"_{question}")
            return ask(self._handle(study), **values)
        if path.rstrip("/") == "/answers":
            return self.pages.index()
        if match := PAGE.fullmatch(path):
            return self.pages.page(match[1])
        if match := FILE.fullmatch(path):
            return self._file(match[1], environ)
        if path.rstrip("/") in ("/api/answers", "/api/answers/openapi.json"):
            read_query(query, ())
            if path.rstrip("/") == "/api/answers":
                return json_reply([{"name": name, "states": now.states} for name, now in self.pages.standings()])
            return json_reply(openapi(budgettune.__version__, self.prefix, has_password=self.has_password))
        raise Asked(404, "no-such-path", f"there is no such path: a study answers to {', '.join(QUESTIONS)}")

    def _handle(self, study: str) -> StudyHandle:
        row = find_study(self.engine, study)
        return StudyHandle(row.read_spec(), self.url, row.study_id, self.engine)

    def _best(self, study: StudyHandle, budget: float, **how: Any) -> Reply:
        answer = documents.best(study, budget, **how)
        return json_reply(documents.best_document(answer), answer.all_notes)

    def _front(self, study: StudyHandle, **how: Any) -> Reply:
        answer, volume = documents.front(study, **how)
        return json_reply(documents.front_document(answer, volume), answer.all_notes)

    def _show(self, study: StudyHandle) -> Reply:
        return json_reply(documents.show_document(study))

    def _recommend(
        self, study: StudyHandle, budget: float, confidence: float = 0.9, device_name: str | None = None
    ) -> Reply:
        question = Question(self.url, study.name, device_name, budget, confidence)
        return self.recommendations.of(question, ended_mark(self.engine, study.study_id))

    def _standing(self, study: str) -> Reply:
        now = self.pages.standing(study)
        return json_reply({**now._asdict(), "page": self.pages.latest_mark(study)})

    def _file(self, name: str, environ: WSGIEnvironment) -> Reply:
        file = self.pages.file(name)
        if file is None:
            raise Asked(404, "no-such-path", "there is no such file: load the page again")
        tag = dict(file.headers)["ETag"]
        is_known = tag in environ.get("HTTP_IF_NONE_MATCH", "")
        return Reply(304, headers=file.headers) if is_known else file
