"""The page as a file: complete in itself, inert against what a database may hold, small enough; and the command."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from benchmarks.support.synthetic import BOX, PAPER_SEARCH, make_records, make_study
from budgettune import api
from budgettune.records import StoppingNote, TrialRecord
from budgettune.report.figures import FIGURES
from budgettune.report.page import build_page, contents
from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import create_study

HOSTILE = """</script><script>alert(1)</script><img src=x onerror=alert(1)>'"&lt;<!--${machines} `x`"""


class Elements(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.data, self.words = [], [], {}, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.tags[-1] if self.tags else ("", {})
        if tag == "script" and "type" in attributes:
            self.data[attributes["id"]] = json.loads(data)
        elif tag == "script":
            self.scripts.append(data)
        else:
            self.words.append(data)

    def handle_endtag(self, tag):
        self.tags.append((f"/{tag}", {}))


def page_of(records, name="study", **options):
    return build_page(contents(name, records, PAPER_SEARCH, **options))


def test_the_page_is_complete_in_itself():
    page = Elements(page_of(make_records(30)))
    assert len(page.scripts) == 2
    assert sum("plotly.js v" in script for script in page.scripts) == 1
    outside = [
        value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href", "action")
    ]
    assert outside == ["data:,"]
    assert "data-figure" in str(page.tags)


def test_its_policy_lets_its_own_scripts_run_and_nothing_else():
    page = Elements(page_of(make_records(30)))
    (policy,) = (a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    assert allowed == [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in page.scripts]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy


def test_every_figure_has_a_sentence_and_its_data():
    page = Elements(page_of(make_records(80, repeats=2)))
    plots = [attributes for tag, attributes in page.tags if attributes.get("class") == "plot"]
    assert [plot["data-figure"] for plot in plots] == [
        f"machine0-{figure.name}" for figure in FIGURES.values() if figure.about == "trials"
    ]
    for plot in plots:
        assert len(plot["aria-label"]) > 40
        assert page.data[plot["data-figure"]]["data"]


def test_hostile_names_are_text_and_nothing_more():
    records = [
        replace(record, params={HOSTILE: str(record.number % 2) + HOSTILE, "scale": record.params["scale"]})
        for record in make_records(20, machines=[replace(BOX, device_name=HOSTILE, cpu=HOSTILE), BOX])
    ]
    failed = TrialRecord(number=99, state="FAIL", params={}, failure=HOSTILE)
    page = Elements(page_of([*records, failed], name=HOSTILE))
    clean = Elements(page_of(make_records(20, machines=[replace(BOX, device_name="other"), BOX]), name="study"))
    assert page.scripts == clean.scripts
    assert not [tag for tag, attributes in page.tags if tag == "img" or "onerror" in attributes]
    assert sum(HOSTILE in word for word in page.words) >= 3  # heading, title, failure: as written
    assert page.data["page-data"]["views"]["machine0"]["answers"][0]["command"].startswith("budgettune train ")


def test_a_study_without_finished_trials_says_what_to_do():
    page = page_of([TrialRecord(number=n, state="WAITING", params={}, cell=n) for n in range(3)])
    assert "3 trials: 3 waiting." in page
    assert "run <code>budgettune worker</code>" in page
    assert len(page) < 50_000
    assert "No trials yet." in page_of([])


def test_each_kind_of_machine_has_its_own_figures_and_a_banner_says_so():
    records = make_records(30, machines=[BOX, BOX, replace(BOX, device_name="Other")])
    page = Elements(page_of(records))
    assert any("2 kinds of machine" in word for word in page.words)
    views = [attributes for tag, attributes in page.tags if attributes.get("class") == "view"]
    assert [("hidden" in view) for view in views] == [False, True]
    numbers = [{a["number"] for a in page.data["page-data"]["views"][view["id"]]["answers"]} for view in views]
    assert not numbers[0] & numbers[1]
    assert "This study holds times" not in page_of(records, device_name="Other x4")


def test_clean_only_says_so_and_shows_no_disturbed_time():
    page = page_of(make_records(40), clean_only=True)
    assert "nothing is known to have disturbed" in page
    assert "hollow" not in page.split("</style>")[1].split("plotly.js")[0]


def test_ten_thousand_trials_stay_below_ten_megabytes():
    page = page_of(make_records(10_000, epochs=4))
    assert len(page.encode()) < 10_000_000
    front = Elements(page).data["machine0-front"]
    drawn = sum(_length(trace) for trace in front["data"] if trace.get("meta") == "trials")
    assert drawn == 10_000


def _length(trace):
    return len(trace["hovertext"])


# --- The command ----------------------------------------------------------------------------------------------------


def test_the_command_writes_the_page(run, sqlite_url, tmp_path):
    make_study(sqlite_url, 12).close()
    status, out, err = run("report", "--budget", "1m30s")
    assert (status, out, err) == (0, "", "report.html written\n")
    page = Elements((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.data["page-data"]["views"]["machine0"]["budget"] == 90
    api.write_report("synthetic", tmp_path / "again.html", storage=sqlite_url, budget="90s")
    assert Elements((tmp_path / "again.html").read_text(encoding="utf-8")).data == page.data


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device-name", "Babbage"], "choose one of Abacus 9000 x4"),
        (["--format", "png"], "--figure NAME goes with --format png or svg"),
        (["--figure", "front"], "--figure NAME goes with --format png or svg"),
        (["--figure", "pie", "--format", "svg"], "choose one of answer, front"),
        (["--figure", "panels", "--format", "svg", "--out", "no/such/folder.svg"], "error"),
        (["--out", "no/such/folder.html"], "cannot be written"),
        (["nobody"], "study 'nobody' is not in the storage"),
    ],
)
def test_what_cannot_work_is_one_line(run, sqlite_url, words, message):
    make_study(sqlite_url, 3).close()
    status, out, err = run("report", *words)
    assert (status, out) == (1, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err


def test_a_picture_never_mixes_machines(run, sqlite_url):
    make_study(sqlite_url, 6, machines=[BOX, replace(BOX, device_name="Other")]).close()
    assert "choose one with --device-name" in run("report", "--format", "svg", "--figure", "front")[2]


def test_any_machine_is_every_machine(run, sqlite_url):
    make_study(sqlite_url, 12).close()
    assert run("report", "--device-name", "any")[0] == 0
    assert "choose one of" in run("report", "--device-name", "another")[2]


def test_a_study_that_has_only_begun_is_reported(run, sqlite_url):
    create_study(load_spec("digits"), sqlite_url).close()
    assert run("report")[0] == 0
    assert "no trial is finished yet" in run("report", "--format", "svg", "--figure", "front")[2]


def note(stopped, train_seconds=2.0, expected_seconds=10.0, wrong=None):
    return StoppingNote(stopped=stopped, wrong=wrong, train_seconds=train_seconds, expected_seconds=expected_seconds)


def test_seconds_that_stopping_saved_are_added_up_and_shown():
    notes = [note(True), note(False, wrong=False), note(True, 3.0, 2.5)]
    page = Elements(page_of(make_records(30), stopping=notes))
    assert "2 trials were stopped early: 8.0s of 13.0s (62%) saved, as forecast" in " ".join(page.words)
    trained, saved = page.data["stopping"]["data"]
    assert [base64.b64decode(each["y"]["bdata"]) for each in (trained, saved)] == [
        np.array(seconds, dtype=np.float32).tobytes() for seconds in ([0, 2, 5], [0, 8, 8])
    ]


def test_controls_alone_are_told_and_not_drawn():
    page = Elements(page_of(make_records(30), stopping=[note(False, wrong=True)]))
    assert "of 1 controls 1 would have been stopped wrongly" in " ".join(page.words)
    assert "stopping" not in page.data


def test_a_study_that_judged_no_trial_does_not_speak_of_stopping():
    assert "stopped early" not in " ".join(Elements(page_of(make_records(30))).words)
