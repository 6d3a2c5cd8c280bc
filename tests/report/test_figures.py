"""Figures as plotly values: what they draw of which studies, and what they refuse to draw."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import budgettune as bt
from benchmarks.support.synthetic import make_records
from budgettune.errors import BudgetTuneError, NothingToDraw, UsageError
from budgettune.records import OFF_CLOCK, ON_CLOCK, EpochRecord, PhaseSeconds, TrialRecord
from budgettune.report import figures, picture
from budgettune.report.page import build_page, contents
from budgettune.report.view import overview

OTHER_SEARCH = {
    "train.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "train.optimizer": ["sgd", "adam", "adamw"],
    "model.blocks": {"low": 1, "high": 40},
    "data.augment": [True, False],
}


def points(figure):
    return sum(len(trace.x) for trace in figure.data if trace.meta == "trials")


OF_TRIALS = {name for name, figure in figures.FIGURES.items() if figure.about == "trials"}


def said(name, records):
    """Return the sentence of a figure."""
    figure, view = figures.FIGURES[name], overview(records)
    return figure.say(view, figure.values(view))


def drawn(records):
    """Return the names of the figures that can be drawn; the others say in a sentence why not."""
    names = set()
    for name in OF_TRIALS:
        try:
            figures.draw(name, records)
        except NothingToDraw as reason:
            assert str(reason).endswith((".", "first"))
        else:
            names.add(name)
    return names


def test_each_figure_has_a_heading_a_guide_and_a_name_of_its_own_in_the_package():
    for name, figure in figures.FIGURES.items():
        assert getattr(figures, name) is figure
        assert name in figures.__all__
        assert figure.title
        assert figure.guide.endswith(".")


def test_a_whole_study_draws_everything_and_every_finished_trial_is_a_point():
    records = [*make_records(80, repeats=2), TrialRecord(number=80, state="RUNNING", params={})]
    assert drawn(records) == OF_TRIALS
    for name in ("front", "panels", "times"):
        assert points(figures.draw(name, records)) == 80


def test_bars_of_phases_on_the_clock_add_up_to_the_training_time():
    names = [phase.name for phase in fields(PhaseSeconds) if phase.name != "asides"]
    assert {*ON_CLOCK, *OFF_CLOCK} == set(names)
    phases = PhaseSeconds(**{name: 2.0**place for place, name in enumerate(names)})
    record = replace(make_records(1)[0], phases=phases, train_seconds=phases.on_clock)
    bars = figures.draw("phases", [record]).data
    on_clock = [bar for bar in bars if "off the clock" not in bar.name]
    assert len(bars) == len(names)
    assert sum(bar.x[0] for bar in on_clock) == pytest.approx(record.train_seconds)
    assert len({(bar.marker.color, bar.marker.pattern.shape) for bar in bars}) == len(bars)
    pruning = sum(bar.x[0] for bar in on_clock if bar.name.startswith("pruning"))
    assert pruning == pytest.approx(phases.pruning)
    assert f"takes {phases.pruning / phases.on_clock:.2%}" in said("phases", [record])


def test_one_trial_draws_what_one_trial_can():
    assert drawn(make_records(1)) == {"answer", "front", "curves", "phases", "hypervolume"}


@pytest.mark.parametrize("count", [2, 12, 60])
def test_other_parameters_than_the_papers_are_drawn(count):
    records = make_records(count, search=OTHER_SEARCH)
    names = drawn(records)
    assert names >= {"answer", "front", "panels", "times", "accuracies"}
    assert points(figures.front(records)) == count
    for name in names:
        assert said(name, records).endswith(".")


def test_trials_that_lack_a_parameter_or_a_curve_are_points_all_the_same():
    records = make_records(20)
    bare = [replace(r, number=r.number + 20, params={}, curve=(), phases=None, keep_fraction=None) for r in records]
    assert points(figures.front([*records, *bare])) == 40
    assert points(figures.panels([*records, *bare])) == 40
    assert "front" in drawn(bare)


def test_larger_models_have_markers_with_more_vertices_and_disturbed_ones_are_hollow():
    records = make_records(80)
    by_shape = {}
    for trace in figures.front(records).data:
        if trace.meta == "trials":
            by_shape.setdefault(trace.marker.symbol.removesuffix("-open"), []).append(trace)
    assert list(by_shape) == ["triangle-up", "square", "pentagon", "hexagon", "octagon"]
    hollow = sum(len(t.x) for traces in by_shape.values() for t in traces if t.marker.symbol.endswith("-open"))
    assert hollow == sum(record.status == "disturbed" for record in records) > 0


def test_the_front_is_a_staircase_in_the_unit_of_the_axis():
    records = [replace(record, train_seconds=60 * record.train_seconds) for record in make_records(30)]
    figure = figures.front(records)
    line = next(trace for trace in figure.data if trace.name == "Pareto front")
    assert figure.layout.xaxis.title.text == "training time (min)"
    assert line.line.shape == "hv"
    assert list(line.x) == pytest.approx([record.train_seconds / 60 for record in overview(records).front])


def test_labels_beside_points_are_the_batch_sizes():
    figure = figures.front(make_records(30))
    (labels,) = (trace for trace in figure.data if trace.meta == "labels")
    assert set(labels.text) <= {"50", "100", "200", "400"}


def test_numbers_reach_the_browser_as_single_precision_at_most():
    for trace in figures.front(make_records(30)).data:
        if trace.meta == "trials":
            assert np.asarray(trace.x).dtype == np.asarray(trace.y).dtype == np.float32


def test_panels_beyond_the_sample_say_so():
    records = make_records(2_600)
    assert points(figures.front(records)) == 2_600
    assert points(figures.panels(records)) == 2_500
    assert "Drawn are 2,500 of 2,600 trials" in said("panels", records)


def test_texts_from_a_database_are_plain_in_plotly():
    records = make_records(12, search={"train.optimizer": ["sgd", "adam"], "train.batch_size": [10, 20]})
    named = [replace(r, params={"<b>%{x}</b>": r.params["train.optimizer"], "n": r.number}) for r in records]
    document = figures.front(named).to_json()
    assert "<b>" not in document
    assert "%{x}" not in document.replace("&#37;{x}", "")


ODD_SECONDS = st.sampled_from([0.0, 1e-9, 1.0, 2.0, 1e6])
ODD_ACCURACY = st.sampled_from([0.0, 0.5, 1.0, -3.0, 97.0])
ODD_EPOCHS = st.builds(
    EpochRecord,
    epoch=st.integers(0, 3),
    train_seconds=ODD_SECONDS,
    steps=st.just(1),
    samples=st.just(1),
    loss=st.just(1.0),
    value=st.one_of(st.none(), ODD_ACCURACY),
)
ODD_PARAMS = st.dictionaries(
    st.sampled_from(["scale", "prune_rate", "train.lr", "x.lr", "<b>"]),
    st.sampled_from([None, True, 0, 1, -2.5, 1e-9, 1e9, math.nan, math.inf, "", "sgd", "</script>"]),
)
ODD_RECORDS = st.builds(
    TrialRecord,
    number=st.integers(0, 9),
    state=st.sampled_from(["COMPLETE", "COMPLETE", "FAIL"]),
    params=ODD_PARAMS,
    train_seconds=ODD_SECONDS,
    value=ODD_ACCURACY,
    status=st.sampled_from([None, "clean", "disturbed", "odd"]),
    keep_fraction=st.sampled_from([None, 0.0, 0.5, 1.0]),
    curve=st.lists(ODD_EPOCHS, max_size=3).map(tuple),
    phases=st.sampled_from([None, PhaseSeconds(), PhaseSeconds(step=1.0)]),
)


@given(st.lists(ODD_RECORDS, max_size=15))
@settings(max_examples=40)
@pytest.mark.slow
def test_whatever_a_database_holds_becomes_a_page(records):
    page = build_page(contents("odd", records))
    assert page.count("<script") == page.count("</script>")
    assert "nan%" not in page


def test_mixed_machines_and_unknown_figures_are_refused():
    records = make_records(4)
    with pytest.raises(UsageError, match="2 kinds of machine"):
        figures.front([records[0], replace(records[1], device_name="other")])
    with pytest.raises(UsageError, match="choose one of answer, front"):
        figures.draw("pie", records)


def test_the_report_is_there_for_notebooks():
    assert bt.report.figures.front(make_records(3)).layout.title.text == "Training time against test accuracy"


def test_a_picture_without_what_it_needs_says_what_that_is(monkeypatch):
    figure = figures.front(make_records(3))

    def no_browser(*_args, **_settings):
        raise RuntimeError("\n\nKaleido requires Google Chrome to be installed.\n\nEither download …")

    monkeypatch.setattr(type(figure), "to_image", no_browser)
    with pytest.raises(BudgetTuneError) as caught:
        picture(figure, "png")
    assert "budgettune[pictures]" in str(caught.value)
    assert str(caught.value).endswith("(Kaleido requires Google Chrome to be installed)")
    assert "\n" not in str(caught.value)


@pytest.mark.browser
@pytest.mark.parametrize(("form", "beginning"), [("png", b"\x89PNG"), ("svg", b"<svg")])
@pytest.mark.slow
def test_a_picture_is_one(form, beginning):
    pytest.importorskip("kaleido", reason="pip install 'budgettune[pictures]' and a Chromium run this test")
    assert picture(figures.front(make_records(3)), form).startswith(beginning)
