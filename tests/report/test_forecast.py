"""What never ran, as values and figures: held-out trials are told nothing of themselves, and too little is said so."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.support.synthetic import PAPER_SEARCH, make_records, make_study
from budgettune.errors import NothingToDraw, UsageError
from budgettune.predict.held_out import coverage, held_out
from budgettune.report.figures import FIGURES, draw
from budgettune.report.forecast import forecast
from budgettune.report.view import overview
from budgettune.spec.study_spec import StudySpec

FORECASTS = [name for name, figure in FIGURES.items() if figure.about == "forecast"]
SPEC = StudySpec.from_document({"name": "law", "search": PAPER_SEARCH, "sampler": {"name": "random"}})


@pytest.fixture(scope="module")
def records():
    return make_records(40, repeats=2)


@pytest.fixture(scope="module")
def made(records):
    return forecast(overview(records, SPEC.search), SPEC, records)


def test_every_finished_trial_is_held_out_once_with_its_own_numbers(records):
    checks = held_out(SPEC, records)
    assert [one.number for one in checks] == [record.number for record in records]
    assert all(one.seconds == record.train_seconds for one, record in zip(checks, records, strict=True))
    predictions = [one.prediction for one in checks]
    assert all(one.seconds_low < one.seconds < one.seconds_high for one in predictions)
    assert all(one.accuracy_low < one.accuracy < one.accuracy_high for one in predictions)


def test_a_held_out_trial_says_nothing_of_itself(records):
    twice = [
        replace(record, train_seconds=2 * record.train_seconds) if record.cell in (0, 1) else record
        for record in records
    ]
    before, after = held_out(SPEC, records)[0], held_out(SPEC, twice)[0]
    assert after.seconds == 2 * before.seconds
    assert after.prediction.seconds == pytest.approx(before.prediction.seconds)


def test_coverage_counts_central_intervals():
    assert coverage([0.5, 0.3, 0.05, 0.99], 0.5) == 0.5
    assert np.isnan(coverage([], 0.5))


def test_the_path_grows_no_worse_with_the_budget_and_keeps_it(made):
    assert list(made.budgets) == sorted(made.budgets)
    accuracies = [one.accuracy for one in made.path]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(accuracies))
    assert all(one.chance_in_time >= 0.9 for one in made.path)
    for best, row in zip(made.path, made.surface, strict=True):
        assert max(one.accuracy for one in row if one is not None) == best.accuracy


@pytest.mark.parametrize("name", FORECASTS)
def test_each_figure_has_what_the_page_needs(made, name):
    figure = draw(name, made.view, SPEC.search, made)
    assert len(figure.data) >= 2
    panels = [name for name in figure.layout.to_plotly_json() if name.startswith("xaxis")]
    assert (figure.layout.meta or {}).get("panels", 1) == len(panels)  # a narrow page puts each in a row of its own
    assert FIGURES[name].say(made, FIGURES[name].values(made)).endswith(".")


def test_the_scatter_has_a_marker_for_each_trial(made, records):
    figure = FIGURES["predicted"](made)
    assert [len(trace.x) for trace in figure.data if trace.mode == "markers"] == [len(records), len(records)]


def test_too_little_is_a_reason_and_no_figure(records):
    few = records[:4]
    with pytest.raises(UsageError, match="too little"):
        held_out(SPEC, few)
    with pytest.raises(NothingToDraw, match="too little"):
        forecast(overview(few, SPEC.search), SPEC, few)
    with pytest.raises(NothingToDraw, match="spec"):
        draw("recommended", few)


def test_the_command_draws_them_on_the_page_or_says_why_not(run, sqlite_url, tmp_path):
    make_study(sqlite_url, 30).close()
    assert run("report")[0] == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert '<p class="guide"><code>budgettune recommend --budget</code> gives' in page
    assert all(f'data-figure="machine0-{name}"' in page for name in FORECASTS)
    few = f"sqlite:///{tmp_path / 'few.db'}"
    make_study(few, 3).close()
    assert run("report", "--storage", few)[0] == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "too little of study" in page
    assert 'data-figure="machine0-recommended"' not in page
