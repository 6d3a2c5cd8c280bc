"""One view of a study for all visitors, and our figures on it."""

import json
import threading
import time

import optuna
import optuna_dashboard
import plotly.graph_objects as go
import pytest

from budgettune.dashboard import app as dashboard
from budgettune.dashboard import figures as live_figures
from budgettune.dashboard.figures import LiveFigures
from budgettune.dashboard.live_storage import LiveStorage
from budgettune.dashboard.shared_view import Refreshed, RefreshPace, SharedViews
from budgettune.errors import StorageError
from budgettune.report import front_figures
from budgettune.spec.objective import Aim
from budgettune.storage.connection import open_storage
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from tests.support.mirrored import mirrored_pair
from tests.support.studies import RESULT, SPEC


class Study:
    """Stands for optuna-dashboard with one study: trials by state, and what it was asked."""

    def __init__(self, *states):
        self.states = list(states)
        self.asked = []
        self.began = "monday"
        self.may_answer = threading.Event()
        self.may_answer.set()

    def __call__(self, environ, start_response):
        path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
        self.asked.append(f"{environ['REQUEST_METHOD']} {path} {query}")
        assert self.may_answer.wait(20)
        if path != "/api/studies/1":
            start_response("404 Not Found", [])
            return [b'{"reason": "none"}']
        after = int(query.partition("=")[2] or 0)
        trials = [{"number": n, "state": s, "began": self.began} for n, s in enumerate(self.states)]
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"name": "s", "trials": trials[after:], "plotly_graph_objects": []}).encode()]


def poll(app, query="after=0", path="/api/studies/1", method="GET"):
    """Return the status and the answer to one request."""
    statuses = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
    body = b"".join(app(environ, lambda status, headers, exc_info=None: statuses.append(status)))
    return statuses[0], json.loads(body)


def states(app, after=0):
    """Return the states of a study's trials as one poll shows them."""
    status, document = poll(app, f"after={after}")
    assert status == "200 OK"
    return [trial["state"] for trial in document["trials"]]


@pytest.fixture
def now():
    """Return the time that views live by, as a list of one."""
    return [0.0]


@pytest.fixture
def paced(now):
    """Return what puts a shared view around a study."""
    return lambda app, **more: SharedViews(app, pace=lambda: RefreshPace(clock=lambda: now[0]), **more)


def test_all_visitors_share_one_look_until_the_next_is_due(paced, now):
    study = Study("Complete", "Running")
    app = paced(study)
    for after in (0, 1, 0, 2, 9):
        assert states(app, after) == ["Complete", "Running"][after:]
    assert study.asked == ["GET /api/studies/1 after=0"]
    now[0] = 1.5
    study.states = ["Complete", "Complete", "Waiting"]
    assert states(app, 1) == ["Complete", "Waiting"]
    assert len(study.asked) == 2


def test_trials_that_can_no_longer_change_are_not_asked_for_again(paced, now):
    study = Study("Complete", "Fail", "Pruned", "Running", "Complete")
    app = paced(study)
    states(app)
    now[0] += 2
    study.states[3] = "Complete"
    assert states(app) == ["Complete", "Fail", "Pruned", "Complete", "Complete"]
    now[0] += 2
    assert states(app, 3) == ["Complete", "Complete"]
    assert [asked.rpartition("=")[2] for asked in study.asked] == ["0", "2", "4"]  # the last settled one, and after it


def test_a_study_made_anew_under_the_same_number_is_shown_from_its_beginning(paced, now):
    study = Study("Complete", "Complete")
    app = paced(study)
    states(app)
    study.states, study.began = ["Waiting"], "tuesday"
    now[0] += 2
    assert states(app) == ["Waiting"]
    study.states, study.began = ["Complete", "Complete", "Complete"], "wednesday"
    now[0] += 2
    assert states(app) == ["Complete"] * 3


def test_a_crowd_that_arrives_at_once_costs_one_look(paced):
    study = Study(*["Complete"] * 50)
    app, seen = paced(study), []
    study.may_answer.clear()
    threads = [threading.Thread(target=lambda: seen.append(len(states(app)))) for _ in range(20)]
    for thread in threads:
        thread.start()
    study.may_answer.set()
    for thread in threads:
        thread.join()
    assert seen == [50] * 20
    assert len(study.asked) == 1


def test_a_slow_look_keeps_no_poll_waiting(paced, now):
    study = Study("Running")
    app = paced(study)
    states(app)
    now[0] += 2
    study.states = ["Complete"]
    study.may_answer.clear()
    assert states(app) == ["Running"]  # what was known; the look goes on
    study.may_answer.set()
    deadline = time.monotonic() + 10
    while states(app) != ["Complete"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert states(app) == ["Complete"]


def test_the_longer_a_look_takes_the_longer_until_the_next():
    now = [0.0]
    pace = RefreshPace(share=1 / 20, clock=lambda: now[0])
    began, now[0] = 0.0, 2.0
    pace.rest(began)  # the first look of all loads libraries: it does not count
    now[0] = 3.0
    assert pace.is_due
    pace.rest(1.0)
    now[0] = 3.0 + 37
    assert not pace.is_due
    now[0] = 3.0 + 39
    assert pace.is_due


def test_what_is_not_a_poll_of_a_study_reaches_the_dashboard(paced):
    study = Study("Complete")
    app = paced(study)
    assert poll(app, "", "/api/studies")[0] == "404 Not Found"
    poll(app, "after=x", "/api/nothing")
    poll(app, "", "/api/studies/1", method="HEAD")
    assert study.asked == ["GET /api/studies ", "GET /api/nothing after=x", "HEAD /api/studies/1 "]


def test_a_study_that_is_gone_is_said_to_be_gone_and_forgotten(paced, now):
    study = Study("Complete")
    app = paced(study)
    assert poll(app, path="/api/studies/2") == ("404 Not Found", {"reason": "none"})
    assert poll(app, path="/api/studies/2")[0] == "404 Not Found"
    assert len(study.asked) == 2
    assert states(app) == ["Complete"]


def test_after_a_write_everything_is_read_anew(paced):
    study = Study("Complete")
    app = paced(study)
    states(app)
    study.states = ["Fail"]
    poll(app, path="/api/studies/2", method="PUT")
    assert states(app) == ["Fail"]


def test_a_view_answers_what_optuna_dashboard_answers(sqlite_url):
    study = create_study(SPEC, sqlite_url)
    study.complete(study.claim(), RESULT)
    study.fail(study.claim(), "error", "it broke")
    study.claim()
    inner = optuna_dashboard.wsgi(LiveStorage(open_storage(sqlite_url, read_only=True)))
    app = SharedViews(inner)
    for after in range(6):
        assert poll(app, f"after={after}") == poll(inner, f"after={after}")


# --- Figures -----------------------------------------------------------------------------------------------------


def front(records, aim):
    """Return one figure: time against accuracy of every complete trial."""
    done = [record for record in records if record.state == "COMPLETE"]
    x, y = [record.train_seconds for record in done], [record.test_accuracy for record in done]
    return [go.Figure(go.Scatter(x=x, y=y, mode="markers"))]


def shown(app, study_id):
    """Return the figures on a study's page."""
    entries = poll(app, "after=0", f"/api/studies/{study_id}")[1]["plotly_graph_objects"]
    return [json.loads(entry["graph_object"]) for entry in entries]


def test_our_figures_stand_on_the_page_of_our_studies_and_nothing_is_written(sqlite_url):
    study = create_study(SPEC, sqlite_url)
    for _ in range(2):
        study.complete(study.claim(), RESULT)
    optunas = open_storage(sqlite_url)
    foreign = optuna.create_study(storage=optunas, directions=["minimize", "maximize"])
    foreign.add_trial(optuna.trial.create_trial(values=[1.0, 0.5]))
    before = optunas.get_study_system_attrs(study.study_id)
    app = _unguarded(dashboard.make_app(sqlite_url, figures=front))
    (figure,) = shown(app, study.study_id)
    assert figure["data"][0]["x"] == [2.0, 2.0]
    assert shown(app, foreign._study_id) == []
    assert optunas.get_study_system_attrs(study.study_id) == before


def test_a_study_of_own_code_names_its_objective_its_direction_its_limits_and_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(live_figures, "PATIENCE_SECONDS", 60.0)
    numbers = []
    limits = {"memory": {"limit": 1200}}
    with mirrored_pair(lambda name: f"sqlite:///{tmp_path / name}.db", constraints=limits) as pair:
        for study in pair:
            app = _unguarded(dashboard.make_app(study.url, figures=front_figures))
            detail = poll(app, "after=0", f"/api/studies/{study.study_id}")[1]
            direction, better = study.spec.objective.direction, "less" if study is pair[0] else "more"
            assert detail["objective_names"] == ["train_seconds", "validation_loss"]
            assert detail["directions"] == ["minimize", direction]
            assert f"`validation_loss` ({better} is better)" in detail["note"]["body"]
            assert "Trained by `mine:train`. Trials beyond a limit are no answers: `memory` at most 1200." in str(
                detail
            )
            assert "accuracy" not in detail["note"]["body"]
            beyond = {trial["number"] for trial in detail["trials"] if trial["constraints"][0] > 0}
            assert beyond == {r.number for r in trial_records(study.engine, 1) if r.measures["memory"] > 1200}
            [figure] = [json.loads(each["graph_object"]) for each in detail["plotly_graph_objects"]]
            assert figure["layout"]["yaxis"]["title"]["text"].startswith("validation loss")
            drawn = [each for each in figure["data"] if each.get("meta") == "trials"]
            [crosses] = [each for each in drawn if each["marker"]["symbol"] == "x-thin"]
            assert len(crosses["hovertext"]) == len(beyond)
            numbers.append([trial["number"] for trial in detail["best_trials"]])
    assert numbers[0] == numbers[1]


def _unguarded(app):
    """Return a callable that asks under a local name."""
    return lambda environ, start: app({**environ, "HTTP_HOST": "localhost", "REMOTE_ADDR": "127.0.0.1"}, start)


@pytest.fixture
def figures(now, monkeypatch):
    """Return what makes figures of a list of trials, paced by the test's clock, and how often it did."""
    monkeypatch.setattr(live_figures, "PATIENCE_SECONDS", 20.0)
    made = []

    def make(records, aim):
        made.append(len(records))
        return [go.Figure(layout={"title": str(len(records))})]

    def around(records):
        pace = lambda: RefreshPace(shortest_seconds=10.0, clock=lambda: now[0])  # noqa: E731
        return LiveFigures(lambda study_id: (records, Aim()), make, pace=pace)

    return around, made


def test_figures_are_made_again_only_for_new_finished_trials_and_not_too_often(figures, now):
    around, made = figures
    records = ["one"]
    live = around(records)
    first = live.of(1, 1)
    assert [entry["id"] for entry in first] == ["budgettune-0"]
    now[0] = 100.0
    assert live.of(1, 1) == first
    assert made == [1]
    records.append("two")
    assert live.of(1, 2) == first  # it was looked at just now
    now[0] = 111.0
    assert live.of(1, 2) != first
    assert made == [1, 2]


def test_a_figure_that_fails_is_logged_and_leaves_the_page_standing(now, caplog, monkeypatch):
    monkeypatch.setattr(live_figures, "PATIENCE_SECONDS", 20.0)
    live = LiveFigures(lambda study_id: (["one"], Aim()), lambda records, aim: 1 / 0)
    assert live.of(7, 1) == []
    assert "figures of study 7 could not be made" in caplog.text


def test_a_slow_figure_keeps_no_page_waiting():
    go_on = threading.Event()
    live = LiveFigures(lambda study_id: (["one"], Aim()), lambda records, aim: go_on.wait(20) and [])
    assert live.of(1, 1) == []
    assert not go_on.is_set()
    go_on.set()


def test_an_error_that_passes_while_it_is_raised_is_still_that_error():
    errors = iter([StorageError("away"), None])

    class Passing(Refreshed):
        _error = property(lambda self: next(errors), lambda self, error: None)

    with pytest.raises(StorageError, match="away"):
        Passing(lambda _: 1, RefreshPace(), 0.0, value=1).get()


def test_where_no_thread_can_be_started_the_next_visitor_tries_again(monkeypatch):
    def none_left(thread):
        raise RuntimeError("can't start new thread")

    view = Refreshed(lambda _: 1, RefreshPace(), 0.0)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="new thread"):
        patch.setattr(threading.Thread, "start", none_left)
        view.get()
    assert view.get() == 1
