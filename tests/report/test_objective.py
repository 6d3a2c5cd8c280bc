"""Reports of studies with an objective of their own: its name, its better side, its limits, and what own code lacks."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.support.synthetic import BOX, make_records
from budgettune import api
from budgettune.errors import NothingToDraw
from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, TrialRecord
from budgettune.report import front_figures, picture
from budgettune.report.figures import FIGURES, draw
from budgettune.report.page import answers, build_page, contents, front_rows
from budgettune.report.runs import curves_of, phase_bars, repeat_spreads
from budgettune.report.search import hypervolume_history, importances
from budgettune.report.tradeoff import label_indices, value_map
from budgettune.report.view import overview
from budgettune.report.wording import Wording
from budgettune.spec.objective import Aim, ObjectiveSpec
from budgettune.study.pareto import hypervolume
from budgettune.text import format_duration
from tests.report.test_page import Elements
from tests.support.mirrored import mirrored_pair

NAME = "bits per byte"
LESS = Aim(objective=ObjectiveSpec(name=NAME, direction="minimize"))
MORE = Aim(objective=ObjectiveSpec(name=NAME, direction="maximize"))
OF_TRIALS = [figure for figure in FIGURES.values() if figure.about == "trials"]


def own_records(count=60, repeats=2, sign=1.0, **more):
    """Return trials of own code, which reports bits per byte (or its negative) and tells nothing else."""
    search = {"scale": [1.0, 1.2, 1.4, 1.6], "prune_rate": [0.0, 0.1, 0.2, 0.3]}
    return [_own(record, sign, **more) for record in make_records(count, repeats=repeats, search=search)]


def _own(record, sign, **more):
    params = {"params.width": round(32 * record.params["scale"]), "params.lr": 0.01 + record.params["prune_rate"]}
    bits = [sign * (4.0 - 2 * epoch.value) for epoch in record.curve]
    curve = tuple(
        EpochRecord(epoch=epoch.epoch, train_seconds=epoch.train_seconds, value=value)
        for epoch, value in zip(record.curve, bits, strict=True)
    )
    facts = dict.fromkeys(("keep_fraction", "steps", "parameters", "multiply_adds", "peak_memory_mb"))
    asides = {"load": 1.0, "tokenise": 0.5}
    phases = PhaseSeconds(step=record.train_seconds, build=0.2, evaluate=0.3, asides=asides)
    values = {"params": params, "value": bits[-1], "curve": curve, "phases": phases}
    return replace(record, **facts | values | more)


def page_of(records, aim=LESS, **options):
    return Elements(build_page(contents("study", records, aim=aim, **options)))


def said(figure, view):
    """Return a sentence without the signs of numbers."""
    return re.sub(r"-(?=\d)", "", figure.say(view, figure.values(view)))


@pytest.fixture(scope="module")
def pair():
    """Return a study that minimises, and one that maximises the negative."""
    return tuple(overview(own_records(sign=sign), aim=aim) for sign, aim in ((1.0, LESS), (-1.0, MORE)))


# --- The mirror -----------------------------------------------------------------------------------------------------


def test_the_front_and_the_answers_are_the_same_trials(pair):
    less, more = pair
    assert [trial.number for trial in less.front] == [trial.number for trial in more.front]
    assert len(less.front) > 3
    found = [[(one.seconds, one.number) for one in answers(view, "s")] for view in pair]
    assert found[0] == found[1]
    assert [one.value for one in answers(less, "s")] == [-one.value for one in answers(more, "s")]
    values = [one.value for one in answers(less, "s")]
    assert values == sorted(values, reverse=True)  # more seconds buy fewer bits
    assert less.best.value == min(trial.value for trial in less.trials)
    assert [row["trial"] for row in front_rows(less)] == [row["trial"] for row in front_rows(more)]


def test_what_figures_hold_is_mirrored(pair):
    less, more = pair
    assert label_indices(less) == label_indices(more)
    assert [spread.label for spread in repeat_spreads(less)] == [spread.label for spread in repeat_spreads(more)]
    first, other = (curves_of(view) for view in pair)
    assert [(p.seconds, p.value, p.number) for p in first.front] == [
        (p.seconds, -p.value, p.number) for p in other.front
    ]
    assert value_map(less).best(less.words)[:2] == value_map(more).best(more.words)[:2]
    assert np.nanmin(value_map(less).mean) == value_map(less).best(less.words)[2]
    shares, others = ([one.shares for one in importances(view).objectives] for view in pair)
    for one, mirrored in zip(shares, others, strict=True):
        assert one == pytest.approx(mirrored, abs=1e-6)
    grown, mirrored = (hypervolume_history(view) for view in pair)
    assert [step.volume for step in grown.steps] == pytest.approx([step.volume for step in mirrored.steps])
    assert grown.reference == pytest.approx((mirrored.reference[0], -mirrored.reference[1]))


def test_every_sentence_is_mirrored_and_names_the_objective(pair):
    for figure in OF_TRIALS:
        if figure.is_of_pruning:
            continue
        less, more = (said(figure, view) for view in pair)
        assert less == more.replace("above", "below")
        assert "accura" not in less


def test_the_page_holds_the_same_trials_and_mirrored_values(pair):
    pages = [page_of(view.trials, view.aim) for view in pair]
    sliders = [page.data["page-data"]["views"]["machine0"] for page in pages]
    for name in ("unitSeconds", "low", "high", "budget"):
        assert sliders[0][name] == sliders[1][name]
    for less, more in zip(*(slider["answers"] for slider in sliders), strict=True):
        assert less["value"] == -more["value"]
        assert (less["number"], less["seconds"], less["command"]) == (more["number"], more["seconds"], more["command"])
        assert less["text"] == f"{NAME} {less['value']:.4g}"
    assert [page.data["page-data"]["objective"] for page in pages] == [
        {"name": NAME, "direction": "minimize"},
        {"name": NAME, "direction": "maximize"},
    ]


# --- Its name and its better side -----------------------------------------------------------------------------------


def test_nothing_on_the_page_speaks_of_accuracy(pair):
    for view in pair:
        page = page_of(view.trials, view.aim)
        text = " ".join(page.words) + " ".join(value for _, each in page.tags for value in each.values())
        everything = (text + json.dumps(page.data)).lower()
        assert "accura" not in everything.replace("machine0-accuracies", "")  # a figure's name for `--figure`
        assert f"Every trial: time against {NAME}" in text
        assert "Bits per byte while training" in text


def test_axes_have_their_own_unit_and_say_where_less_is_better(pair):
    less, more = (FIGURES["front"](view) for view in pair)
    assert less.layout.yaxis.title.text == f"{NAME} (less is better)"
    assert more.layout.yaxis.title.text == NAME
    assert less.layout.yaxis.tickformat is None
    assert less.layout.yaxis.hoverformat == ".4~g"
    stairs = next(trace for trace in less.data if trace.name == "Pareto front")
    assert list(stairs.y) == pytest.approx([trial.value for trial in pair[0].front])
    labels = [next((t.textposition for t in figure.data if t.meta == "labels"), None) for figure in (less, more)]
    assert labels == [None, None]  # two parameters: none is left to stand beside a marker
    assert FIGURES["accuracies"](pair[0]).data[0].reversescale
    assert Wording(LESS.objective).of(FIGURES["front"].guide).startswith("One marker per finished trial; down and")
    assert Wording().of(FIGURES["front"].guide).startswith("One marker per finished trial; up and to the left")


def test_labels_stand_on_the_better_side_of_a_marker_where_a_trial_has_the_parameter():
    records = own_records()
    third = [replace(r, params={**r.params, **({"params.z": r.number} if r.number % 2 else {})}) for r in records]
    view = overview(third, aim=LESS)
    assert view.label is not None
    assert label_indices(view)
    assert all(third[index].number % 2 for index in label_indices(view))
    (labels,) = (trace for trace in draw("front", view).data if trace.meta == "labels")
    assert labels.textposition == "bottom left"
    assert "-" not in labels.text


def test_the_usual_study_is_spoken_of_as_ever():
    words = Wording()
    assert [words.of(figure.title) for figure in OF_TRIALS if "{" in figure.title] == [
        "Every trial: time against accuracy",
        "Accuracy while training",
        "What gives accuracy",
    ]
    assert (words.said(0.9123), words.distance(0.0123), words.axis_title) == ("91.23%", "1.2 points", "test accuracy")
    assert words.distances(0.01, 0.02) == "1 and 2 points"
    own = Wording(LESS.objective)
    assert (own.said(2.34567), own.distance(0.0123)) == (f"{NAME} 2.346", "0.012")
    assert own.distances(0.01, 0.02) == "0.01 and 0.02"


def test_the_dashboards_front_is_that_of_the_objective(pair):
    (figure,) = front_figures(pair[0].trials, LESS)
    assert figure.layout.title.text == f"Training time against {NAME}"


@pytest.mark.browser
@pytest.mark.slow
def test_a_picture_names_the_objective(pair):
    pytest.importorskip("kaleido", reason="pip install 'budgettune[pictures]' and a Chromium run this test")
    drawing = picture(draw("front", pair[0]), "svg").decode()
    assert f"{NAME} (less is better)" in drawing
    assert "accuracy" not in drawing


# --- Limits ---------------------------------------------------------------------------------------------------------


def limited(limit=500.0):
    """Return trials that use ten units of memory for each second, and an aim that limits them."""
    records = [replace(r, measures={"memory": 10 * r.train_seconds, "joules": 7.0}) for r in own_records()]
    return records, replace(LESS, limits={"memory": limit})


def test_trials_beyond_a_limit_are_marked_and_on_no_front():
    records, aim = limited(limit=800.0)
    view = overview(records, aim=aim)
    beyond = {trial.number for trial in records if trial.measures["memory"] > 800}
    assert 0 < len(beyond) < len(records)
    assert not beyond & {trial.number for trial in view.front}
    assert {point.number for point in curves_of(view).front}.isdisjoint(beyond)
    figure = draw("front", view)
    (crosses,) = (t for t in figure.data if t.meta == "trials" and t.marker.symbol == "x-thin")
    assert len(crosses.x) == len(beyond)
    assert all("(limit 800)" in text for text in crosses.hovertext)
    assert sum(len(trace.x) for trace in figure.data if trace.meta == "trials") == len(records)
    assert any(trace.name == "cross: beyond a limit" for trace in figure.data)
    sentence = FIGURES["front"].say(view, FIGURES["front"].values(view))
    assert f"{len(beyond)} trials are beyond the limits of the study (memory 800)" in sentence
    history = hypervolume_history(view)
    points = [(t.train_seconds, -t.value) for t in records if t.number not in beyond]
    reference = (history.reference[0], -history.reference[1])
    assert history.steps[-1].volume == pytest.approx(hypervolume(points, reference))


def test_measures_stand_in_the_table_in_the_answer_and_where_one_hovers():
    records, aim = limited(limit=1e6)
    view = overview(records, aim=aim)
    row = front_rows(view)[0]
    assert list(row)[:5] == ["trial", "time", NAME, "memory", "joules"]
    assert row["joules"] == "7"
    assert dict(answers(view, "s")[0].facts)["joules"] == "7"
    assert "<br>joules 7<br>" in next(t for t in draw("front", view).data if t.meta == "trials").hovertext[0]


def test_a_trial_that_does_not_tell_what_is_limited_is_beyond_it():
    records, aim = limited(limit=1e6)
    view = overview([*records[:-1], replace(records[-1], measures={})], aim=aim)
    assert not view.is_within_limits[-1]
    assert "memory not told (limit 1e+06)" in str(draw("front", view).to_plotly_json())


def test_a_study_without_a_trial_within_the_limits_says_so_and_has_no_slider():
    records, aim = limited(limit=1.0)
    page = page_of(records, aim)
    assert "No finished trial is within the limits of the study (memory 1)." in " ".join(page.words)
    assert page.data["page-data"]["views"] == {}
    assert not [tag for tag, attributes in page.tags if tag == "form"]
    assert "0 of 60 trials are on the front" in " ".join(page.words)
    with pytest.raises(NothingToDraw, match="within the limits"):
        draw("answer", records, aim=aim)


# --- Own code -------------------------------------------------------------------------------------------------------


def test_what_own_code_does_not_tell_is_on_no_page():
    page = page_of(own_records())
    text = " ".join(page.words)
    for absent in ("Samples left out", "kept", "parameters:", "optimiser", "choosing samples", "prune"):
        assert absent not in text.replace("Which parameters matter", "")
    assert "what the training code has put on the clock" in text
    assert "--out model.pkl" in page.data["page-data"]["views"]["machine0"]["answers"][0]["command"]


def test_params_are_named_without_their_table(pair):
    assert [axis.label for axis in pair[0].axes] == ["width", "lr"]
    assert "params." not in json.dumps(page_of(pair[0].trials).data)


def test_asides_are_bars_off_the_clock_by_their_names(pair):
    few = overview(own_records(6, repeats=1), aim=LESS)
    names = [bar.name for bar in draw("phases", few).data]
    assert names == [
        "what trial.clock() counts",
        "before the first epoch (off the clock)",
        "evaluation (off the clock)",
        "load (off the clock)",
        "tokenise (off the clock)",
    ]
    sentence = FIGURES["phases"].say(few, phase_bars(few))
    assert sentence.startswith("On the clock were ")
    assert sentence.endswith("off it 12.0s, most of it load (6.0s).")
    some = [replace(r, phases=PhaseSeconds(step=1.0)) if r.number % 2 else r for r in own_records(60)]
    assert sum(bar.trials * bar.seconds.asides["load"] for bar in phase_bars(overview(some))) == pytest.approx(30)


def test_axes_that_are_absent_in_some_trials_are_left_out_there():
    records = own_records(20)
    some = [
        replace(r, params={**r.params, "params.momentum": 0.1 * (1 + r.number % 3)}) if r.number < 10 else r
        for r in records
    ]
    view = overview(some, aim=LESS)
    texts = {
        text.partition("<br>")[0]: text
        for trace in draw("front", view).data
        if trace.meta == "trials"
        for text in trace.hovertext
    }
    assert "momentum 0." in texts["trial 3"]
    assert "momentum" not in texts["trial 13"]
    assert all(("momentum" in dict(one.facts)) == (one.number < 10) for one in answers(view, "s"))
    assert page_of(some).data["machine0-front"]


def test_reports_at_the_end_only_ask_for_more():
    records = [replace(record, curve=record.curve[-1:]) for record in own_records(4)]
    with pytest.raises(NothingToDraw, match=r"Bits per byte was .* a report after each epoch draws curves"):
        curves_of(overview(records, aim=LESS))


def test_a_machine_of_own_code_has_no_column_for_what_it_does_not_use():
    bare = MachineInfo(
        hostname="box", device="cpu", device_name=BOX.device_name, cpu="Abacus", threads=4, python="3.11"
    )
    found = contents("s", [replace(record, machine=bare) for record in own_records(4)], aim=LESS)
    assert "torch" not in found.machines[0]
    assert found.machines[0]["Python"] == "3.11"


def test_an_objective_beyond_shares_and_a_single_value_are_drawn():
    one = TrialRecord(number=0, state="COMPLETE", params={}, train_seconds=1.0, value=-1234.5678)
    page = page_of([one], MORE)
    assert f"trial 0: {NAME} -1235 in 1.0s" in " ".join(page.words)


# --- From a database ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [{}, {"memory": {"limit": 1200}}])
@pytest.mark.slow
def test_the_reports_of_mirrored_studies_give_the_same_answers_as_best(tmp_path, limits):
    with mirrored_pair(lambda name: f"sqlite:///{tmp_path / name}.db", constraints=limits) as pair:
        pages = []
        for study in pair:
            api.write_report(study, tmp_path / "page.html")
            pages.append(Elements((tmp_path / "page.html").read_text(encoding="utf-8")))
        front = [record.number for record in api.pareto_front(pair[0])]
        volume, reference = api.hypervolume_of(pair[0])
    found = [page.data["page-data"]["views"]["machine0"]["answers"] for page in pages]
    assert [one["number"] for one in found[0]] == front == [one["number"] for one in found[1]]
    assert [one["value"] for one in found[0]] == [-one["value"] for one in found[1]]
    assert ("beyond the limits" in " ".join(pages[0].words)) == bool(limits)
    said = f"{volume:.4g} seconds × validation loss against "
    assert all(f"{said}{format_duration(reference[0])}" in " ".join(page.words) for page in pages)
    expected = [page.data["machine0-recommended"]["data"] for page in pages]
    assert "accura" not in json.dumps(expected)
    assert [trace.get("name") for trace in expected[0]] == [trace.get("name") for trace in expected[1]]
    lines = [next(trace for trace in traces if trace["name"] == "recommended") for traces in expected]
    assert lines[0]["hovertext"] == lines[1]["hovertext"]  # the same configurations, for as many epochs
    assert lines[0]["y"] == pytest.approx([-value for value in lines[1]["y"]])
