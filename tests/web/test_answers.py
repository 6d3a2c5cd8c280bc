"""The answers over HTTP: what `--format json` prints, pages of now, and a refusal for everything else."""

import gzip
import json
import re
import threading

import pytest
import sqlalchemy as sa

from benchmarks.support.synthetic import BOX, make_study
from budgettune.dashboard.app import make_app
from budgettune.dashboard.passwords import Passwords
from budgettune.dashboard.shared_view import RefreshPace
from budgettune.errors import StorageBusy
from budgettune.storage.connection import open_engine, writing
from budgettune.storage.schema import study_user_attributes
from budgettune.study.handle import create_study, delete_study
from budgettune.web import pages as live_pages
from budgettune.web import recommending
from budgettune.web.app import Answers
from budgettune.web.pages import Pages
from budgettune.web.questions import QUESTIONS
from budgettune.web.recommending import MOST_WAITING, Question, Recommendations
from budgettune.web.reply import Reply, refusal
from tests.support.studies import grid, result
from tests.support.wsgi import Visitor, quoted

HARD_NAMES = [
    "a/b/best",
    "häß ☃ 100%",
    "a?b#c&d=e+f",
    "<script>alert(1)</script>",
    "..a",
    "/at/both/ends/",
    "best",
    "..",
    "back\\slash\nand line",
]


def here(function, *arguments):
    """Call a function where the server would have another process do it."""
    return function(*arguments)


@pytest.fixture(autouse=True)
def no_hurry(monkeypatch):
    """Let the first page of a study take its time: the box may be busy."""
    monkeypatch.setattr(live_pages, "FIRST_PATIENCE_SECONDS", 300.0)


def answers_of(url, **how):
    return Answers(url, build=here, think=here, **how)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """Return a database with a study of 24 finished trials, and one with a hard name."""
    url = f"sqlite:///{tmp_path_factory.mktemp('web')}/study.db"
    make_study(url, 24, epochs=3)
    for name in HARD_NAMES:
        create_study(grid(name), url)
    return url


@pytest.fixture(scope="module")
def guarded(url):
    """Return the answers as the dashboard serves them, with their guard before them."""
    return make_app(url, answers=lambda url, prefix, _: answers_of(url, prefix=prefix))


@pytest.fixture(scope="module")
def visit(guarded):
    return Visitor(guarded)


@pytest.mark.parametrize(
    ("question", "command"),
    [
        ("best?budget=2h&top=3", ["best", "synthetic", "--budget", "2h", "--top", 3]),
        ("best?budget=2h&clean_only=true", ["best", "synthetic", "--budget", "2h", "--clean-only"]),
        ("front", ["front", "synthetic"]),
        (f"front?device_name={BOX.key.replace(' ', '+')}", ["front", "synthetic", "--device-name", BOX.key]),
        ("recommend?budget=1h", ["recommend", "synthetic", "--budget", "1h"]),
        ("recommend?budget=1h&confidence=0.6", ["recommend", "synthetic", "--budget", "1h", "--confidence", 0.6]),
        ("show", ["study", "show", "synthetic"]),
    ],
)
def test_an_answer_is_what_the_command_prints(visit, run, monkeypatch, url, question, command):
    monkeypatch.setenv("BUDGETTUNE_STORAGE", url)
    status, printed, _ = run(*command, "--format", "json")
    reply = visit(f"/api/answers/synthetic/{question}")
    assert (reply.status, status) == (200, 0)
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.headers["Cache-Control"] == "no-store"
    assert reply.text == printed


@pytest.mark.parametrize("name", HARD_NAMES)
def test_studies_of_any_name_are_found_with_their_slashes_escaped_or_not(visit, name):
    for path in {quoted(name), quoted(name).replace("%2F", "/")}:
        assert visit(f"/api/answers/{path}/show").json()["name"] == name
        assert visit(f"/answers/{path}").status == 200
    listed = visit("/answers").text
    assert name in {study["name"] for study in visit("/api/answers").json()}
    assert "<script>alert" not in listed
    addresses = re.findall(r'href="/answers/([^"]+)"', listed)
    assert quoted(name).replace("%2F", "/") in addresses


REFUSED = [
    (400, "bad-request", "/api/answers/synthetic/best"),
    (400, "bad-request", "/api/answers/synthetic/best?budget="),
    (400, "bad-request", "/api/answers/synthetic/best?budget=0s"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=-1"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=inf"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=1s1h"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=60s&budget=70s"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=60s&top=0"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=60s&top=99999999999999999999"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=60s&clean_only=yes"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=60s&bugdet=60s"),
    (400, "bad-request", "/api/answers/synthetic/best?budget=%ff"),
    (409, "cannot-answer", "/api/answers/synthetic/best?budget=60s&device_name=nothing"),
    (400, "bad-request", "/api/answers/synthetic/recommend?budget=60s&confidence=1"),
    (400, "bad-request", "/api/answers/synthetic/recommend?budget=60s&confidence=nan"),
    (400, "bad-request", "/api/answers/synthetic/show?x=1"),
    (400, "bad-request", "/api/answers?x=1"),
    (400, "bad-request", "/api/answers/%ff/show"),
    (404, "no-such-study", "/api/answers/nothing/show"),
    (404, "no-such-path", "/api/answers/synthetic/delete"),
    (404, "no-such-path", "/api/answers/synthetic"),
    (404, "not-found", "/api/answersX"),
    (404, "no-such-path", "/answers-static/page.js"),
    (409, "nothing-within-budget", "/api/answers/synthetic/best?budget=1ms"),
    (409, "nothing-within-budget", "/api/answers/synthetic/recommend?budget=1ms"),
    (409, "cannot-predict", "/api/answers/best/recommend?budget=60s"),
    (409, "nothing-within-budget", "/api/answers/best/best?budget=60s"),
]


@pytest.mark.parametrize(("status", "kind", "address"), REFUSED)
def test_what_cannot_be_answered_is_refused_in_json(visit, caplog, status, kind, address):
    reply = visit(address)
    assert (reply.status, reply.json()["kind"]) == (status, kind)
    assert reply.json()["reason"].isprintable()
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("allow_write", [False, True])
def test_answers_are_read_only_even_where_the_dashboard_may_be_written(url, allow_write):
    visit = Visitor(make_app(url, answers=lambda url, *_: answers_of(url), allow_write=allow_write))
    for path in ("/api/answers", "/api/answers/synthetic/show", "/answers/synthetic", "/answers-static/x.js"):
        for method in ("POST", "PUT", "PATCH", "DELETE", "TRACE"):
            reply = visit(path, method)
            assert reply.status == 405
            assert "GET" in reply.headers["Allow"]
        assert visit(path, "OPTIONS").headers["Allow"] == "GET, HEAD, OPTIONS"
    assert visit("/api/answers/synthetic/show", "HEAD").body == b""


def test_a_password_stands_before_answers_and_pages(url):
    made = {"answers": lambda url, *_: answers_of(url), "passwords": Passwords.from_lines(["ada:one"], "test")}
    app = make_app(url, **made)
    for path in ("/api/answers", "/answers", "/api/answers/synthetic/show", "/api/answers/openapi.json"):
        assert Visitor(app)(path).status == 401
        assert Visitor(app, login="ada:one")(path).status == 200
    assert Visitor(make_app(url, answers=made["answers"]), host="rebound.example")("/answers").status == 403


def test_a_note_of_the_command_is_a_header(sqlite_url):
    study = create_study(grid(), sqlite_url)
    for device_name in ("cpu", "Ünother"):
        assert study.complete(study.claim(), result(device_name=device_name), allow_mixed=True)
    reply = Visitor(answers_of(sqlite_url))("/api/answers/study/front")
    assert "the study also holds" in reply.headers["Budgettune-Note"]
    assert "Chosen and reported on the same 360 test images" in reply.headers["Budgettune-Note"]
    assert reply.headers["Budgettune-Note"].isascii()


def test_a_database_that_is_away_is_503_without_its_address(url, monkeypatch, caplog):
    visit = Visitor(answers_of(url))

    def away(*_):
        raise StorageBusy("postgresql://anna:***@db.example/budgettune: the server has no connection left")

    monkeypatch.setattr("budgettune.web.app.find_study", away)
    monkeypatch.setattr("budgettune.web.pages.find_study", away)
    for path in ("/api/answers/synthetic/show", "/answers/synthetic"):
        reply = visit(path)
        assert reply.status == 503
        assert reply.headers["Retry-After"] == "5"
        assert "db.example" not in reply.text
    assert "no connection left" in caplog.text


def test_a_fault_of_ours_is_logged_and_tells_its_visitor_nothing(url, monkeypatch, caplog):
    monkeypatch.setattr(Answers, "_show", lambda self, study: 1 / 0)
    reply = Visitor(answers_of(url))("/api/answers/synthetic/show")
    assert reply.status == 500
    assert "ZeroDivisionError" not in reply.text
    assert caplog.records[-1].exc_info[0] is ZeroDivisionError


def test_a_study_of_another_version_is_refused_and_still_has_a_page(sqlite_url):
    study = make_study(sqlite_url, 6)
    with writing(study.engine) as connection:
        newer = json.dumps({**study.spec.to_document(), "telepathy": True})
        is_spec = study_user_attributes.c.key == "budgettune:spec"
        changed = connection.execute(sa.update(study_user_attributes).where(is_spec).values(value_json=newer))
        assert changed.rowcount == 1
    visit = Visitor(answers_of(sqlite_url))
    assert visit("/api/answers/synthetic/show").json()["kind"] == "unreadable-study"
    assert visit("/answers/synthetic").status == 200


# --- The OpenAPI document -----------------------------------------------------------------------------------------


def test_the_openapi_document_is_valid_and_every_answer_is_as_it_says(visit):
    jsonschema_rs = pytest.importorskip("jsonschema_rs", reason="pip install 'budgettune[test]' brings it")
    document = visit("/api/answers/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    asks = {"best": "?budget=2h", "recommend": "?budget=1h"}
    for name in QUESTIONS:
        operation = document["paths"][f"/api/answers/{{study}}/{name}"]["get"]
        for study, statuses in (("synthetic", {200}), ("best", {200, 409})):
            reply = visit(f"/api/answers/{study}/{name}{asks.get(name, '')}")
            assert reply.status in statuses
            schema = operation["responses"][str(reply.status)]["content"]["application/json"]["schema"]
            validator = jsonschema_rs.validator_for({**schema, "components": document["components"]})
            assert list(validator.iter_errors(reply.json())) == []
    for schema in document["components"]["schemas"].values():
        jsonschema_rs.meta.validate({**schema, "components": document["components"]})


def test_the_document_tells_of_the_password_and_the_prefix(url):
    visit = Visitor(answers_of(url, prefix="/tune", has_password=True))
    document = visit("/api/answers/openapi.json").json()
    assert document["servers"] == [{"url": "/tune"}]
    assert document["security"] == [{"password": []}]


# --- Pages ----------------------------------------------------------------------------------------------------------


def test_a_page_has_no_script_in_it_and_its_files_are_kept_for_ever(visit):
    page = visit("/answers/synthetic")
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    assert "unsafe-eval" not in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    inline = re.findall(r"<script(?![^>]*application/json)(?![^>]* src=)", page.text)
    assert inline == []
    assert len(page.body) < 1_000_000
    files = re.findall(r'<script src="([^"]+)" integrity="sha256-[^"]+"', page.text)
    assert [file.split("/")[-1].split(".")[0] for file in files] == ["page", "plotly", "live"]
    for file in files:
        loaded = visit(file)
        assert loaded.status == 200
        assert "immutable" in loaded.headers["Cache-Control"]
        assert visit(file, if_none_match=loaded.headers["ETag"]).status == 304
        packed = visit(file, accept_encoding="gzip")
        assert gzip.decompress(packed.body) == loaded.body


def test_a_page_is_built_again_when_a_trial_has_ended_and_not_before(sqlite_url):
    study = create_study(grid(), sqlite_url)
    builds = []

    def build(function, *arguments):
        builds.append(arguments)
        return function(*arguments)

    always = lambda: RefreshPace(share=1.0, shortest_seconds=0.0)  # noqa: E731
    pages = Pages(sqlite_url, study.engine, "", build, pace=always)
    first = pages.page("study")
    assert pages.page("study").body == first.body
    claim = study.claim()
    pages.page("study")
    assert len(builds) == 1, "a trial that runs changes no figure"
    assert study.complete(claim, result())
    wait_until(lambda: pages.latest_mark("study") != builds[0][2].settings["mark"])
    assert "1 finished" in pages.page("study").body.decode()
    assert len(builds) == 2


def test_a_page_that_could_not_be_built_is_built_again(sqlite_url):
    study = make_study(sqlite_url, 3)
    replies = iter([refusal(StorageBusy("away"), is_page=True), Reply(200, b"the page")])
    always = lambda: RefreshPace(share=1.0, shortest_seconds=0.0)  # noqa: E731
    pages = Pages(sqlite_url, study.engine, "", lambda *_: next(replies), pace=always)
    assert pages.page("synthetic").status == 503
    assert pages.latest_mark("synthetic"), "who waits for the page is told to ask for it, and that it failed"
    wait_until(lambda: pages.page("synthetic").body == b"the page")


def test_a_page_that_is_open_stays_when_others_make_room(sqlite_url, monkeypatch):
    monkeypatch.setattr(live_pages, "MOST_PAGES", 2)
    study = create_study(grid("a"), sqlite_url)
    for name in ("b", "c"):
        create_study(grid(name), sqlite_url)
    pages = Pages(sqlite_url, study.engine, "", lambda *_: Reply(200, b"the page"))
    pages.page("a"), pages.page("b")
    assert pages.latest_mark("a")
    pages.page("c")
    assert pages.latest_mark("a")
    assert pages.latest_mark("b") is None


def test_visitors_get_the_last_page_while_one_builds_the_next(sqlite_url):
    study = create_study(grid(), sqlite_url)
    is_slow, may_end = threading.Event(), threading.Event()

    def build(function, *arguments):
        if is_slow.is_set():
            may_end.wait(60)
        return Reply(200, f"page {arguments[2].settings['mark']}".encode())

    always = lambda: RefreshPace(share=1.0, shortest_seconds=0.0)  # noqa: E731
    pages = Pages(sqlite_url, study.engine, "", build, pace=always)
    first = pages.page("study").body
    is_slow.set()
    assert study.complete(study.claim(), result())
    assert pages.page("study").body == pages.page("study").body == first
    may_end.set()
    wait_until(lambda: pages.page("study").body != first)


def test_who_waits_long_for_a_first_page_gets_one_that_comes_by_itself(url, monkeypatch):
    monkeypatch.setattr(live_pages, "FIRST_PATIENCE_SECONDS", 0.05)
    may_end = threading.Event()
    answers = Answers(
        url, think=here, build=lambda function, *arguments: (may_end.wait(60), here(function, *arguments))[1]
    )
    visit = Visitor(answers)
    waiting = visit("/answers/synthetic").text
    assert "comes by itself" in waiting
    assert visit("/api/answers/synthetic/standing").json()["page"] is None
    may_end.set()
    wait_until(lambda: visit("/api/answers/synthetic/standing").json()["page"])
    assert "machine0-front" in visit("/answers/synthetic").text


@pytest.mark.parametrize("odd", ["sometime", "2026-02-20 09:00:00+02:00", b"\xff"])
def test_times_that_another_program_wrote_break_no_answer(sqlite_url, odd):
    study = make_study(sqlite_url, 3)
    with writing(study.engine) as connection:
        connection.exec_driver_sql("UPDATE trials SET datetime_start = ?, datetime_complete = ?", (odd, odd))
        connection.exec_driver_sql("DELETE FROM trial_values WHERE trial_id = 1")  # whose seconds those would tell
        connection.exec_driver_sql(
            "INSERT INTO trial_heartbeats (trial_id, heartbeat) VALUES (1, '2026-02-20 08:00:00')"
        )
    visit = Visitor(answers_of(sqlite_url))
    paths = [f"/api/answers/synthetic/{question}" for question in ("standing", "show", "front", "best?budget=9h")]
    assert [visit(path).status for path in ("/answers", "/answers/synthetic", *paths)] == [200] * 6


def test_a_study_that_is_gone_is_404(sqlite_url):
    make_study(sqlite_url, 3)
    visit = Visitor(answers_of(sqlite_url))
    assert visit("/answers/synthetic").status == 200
    delete_study(sqlite_url, "synthetic")
    assert visit("/answers/synthetic").status == 404
    assert visit("/api/answers").json() == []


def test_a_list_is_without_what_was_deleted_meanwhile(sqlite_url, monkeypatch):
    make_study(sqlite_url, 3)
    create_study(grid("gone"), sqlite_url).close()
    visit = Visitor(answers_of(sqlite_url))
    found = live_pages.all_studies(open_engine(sqlite_url))
    delete_study(sqlite_url, "gone")
    monkeypatch.setattr(live_pages, "all_studies", lambda engine: found)
    assert [study["name"] for study in visit("/api/answers").json()] == ["synthetic"]
    page = visit("/answers")
    assert page.status == 200
    assert "gone" not in page.text


def test_standing_follows_the_trials(sqlite_url, monkeypatch):
    monkeypatch.setattr(live_pages, "LOOK_SECONDS", 0.0)
    study = create_study(grid(), sqlite_url)
    visit = Visitor(answers_of(sqlite_url))
    before = visit("/api/answers/study/standing").json()
    assert (before["is_over"], before["states"]["WAITING"]) == (False, 4)
    claim = study.claim()
    wait_until(lambda: visit("/api/answers/study/standing").json()["states"]["RUNNING"] == 1)
    assert visit("/api/answers/study/standing").json()["mark"] == before["mark"]
    assert study.complete(claim, result())
    wait_until(lambda: visit("/api/answers/study/standing").json()["mark"] != before["mark"])


# --- Recommendations ------------------------------------------------------------------------------------------------


def ask(number=1.0):
    return Question("sqlite:///x.db", "study", None, number, 0.9)


class Thinker:
    """Answers with the mark; the first thought ends when it is let."""

    def __init__(self, **settings):
        self.thought, self.may_end, self.threads, self.replies = [], threading.Event(), [], []
        self.recommendations = Recommendations(self.think, **settings)

    def think(self, _, question, mark):
        self.thought.append((question.budget_seconds, mark))
        self.may_end.wait(60)
        return Reply(200, mark.encode())

    def ask(self, number, mark):
        """Ask in a thread, and return once it waits."""
        waiting = self.recommendations._waiting
        of = self.recommendations.of
        thread = threading.Thread(target=lambda: self.replies.append(of(ask(number), mark).body))
        self.threads.append(thread)
        thread.start()
        wait_until(lambda: self.recommendations._waiting == waiting + 1)

    def end(self):
        self.may_end.set()
        for thread in self.threads:
            thread.join()


def test_many_who_ask_the_same_are_answered_by_one_thought():
    thinker = Thinker()
    for _ in range(8):
        thinker.ask(1.0, "mark")
    thinker.end()
    assert thinker.replies == [b"mark"] * 8
    assert thinker.recommendations.of(ask(), "mark").body == b"mark"
    assert thinker.thought == [(1.0, "mark")]


def test_who_asks_while_trials_end_waits_for_one_thought_more_not_for_one_per_moment():
    thinker = Thinker()
    thinker.ask(1.0, "0")
    wait_until(lambda: thinker.thought)
    for moment in range(1, 9):
        thinker.ask(float(moment % 2), str(moment))
    thinker.end()
    assert sorted(thinker.replies) == [b"0"] + [b"8"] * 8
    assert thinker.thought == [(1.0, "0"), (1.0, "8"), (0.0, "8")]


def test_who_would_wait_for_long_gets_the_answer_of_before_or_is_told_to_come_again():
    thinker = Thinker(patience_seconds=0.05)
    of = thinker.recommendations.of
    with pytest.raises(recommending.Busy, match="ask again"):
        of(ask(), "0")
    thinker.may_end.set()
    wait_until(lambda: ask() in thinker.recommendations._kept)
    assert of(ask(), "0") == Reply(200, b"0")
    thinker.may_end.clear()
    older = of(ask(), "1")
    assert (older.status, older.body) == (200, b"0")
    assert {"Retry-After", "Budgettune-Note"} <= dict(older.headers).keys()
    thinker.may_end.set()
    wait_until(lambda: of(ask(), "1") == Reply(200, b"1"))


def test_questions_that_gather_are_no_more_than_may_wait():
    thinker = Thinker(patience_seconds=0.001)
    for number in range(MOST_WAITING + 1):  # the first is being thought about, and none of those who asked still waits
        with pytest.raises(recommending.Busy, match="learning"):
            thinker.recommendations.of(ask(float(number)), "mark")
        wait_until(lambda: thinker.thought)
    with pytest.raises(recommending.Busy, match="too many"):
        thinker.recommendations.of(ask(99), "mark")
    thinker.may_end.set()
    wait_until(lambda: len(thinker.thought) == MOST_WAITING + 1)


def test_beyond_so_many_who_wait_the_next_is_told_to_come_again():
    thinker = Thinker()
    for number in range(MOST_WAITING):
        thinker.ask(float(number), "mark")
    with pytest.raises(recommending.Busy):
        thinker.recommendations.of(ask(99), "mark")
    thinker.end()
    assert thinker.recommendations.of(ask(99), "mark").status == 200


def test_where_no_thread_can_be_started_the_next_one_tries_again(monkeypatch):
    recommendations = Recommendations(lambda *_: Reply(200))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", lambda _: next(iter([])))
        with pytest.raises(StopIteration):
            recommendations.of(ask(), "mark")
    assert recommendations.of(ask(), "mark").status == 200
    assert recommendations._waiting == 0


def test_a_failure_is_not_kept():
    answers = iter([OSError("gone"), Reply(503), Reply(200)])

    def think(*_):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    recommendations = Recommendations(think)
    assert [recommendations.of(ask(), "mark").status for _ in range(4)] == [500, 503, 200, 200]


def wait_until(condition):
    for _ in range(600):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("never so")
