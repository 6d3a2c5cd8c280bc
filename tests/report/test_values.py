"""What a report says, checked against plain passes over the trials."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.support.synthetic import BOX, make_records, make_study
from budgettune.errors import NothingToDraw, NothingWithinBudget, UsageError
from budgettune.records import EpochRecord, TrialRecord
from budgettune.report.axes import grouped, searched_axes
from budgettune.report.page import answers, contents, front_rows
from budgettune.report.runs import MOST_BARS, MOST_CURVES, curves_of, phase_bars, pruning_done, repeat_spreads
from budgettune.report.search import hypervolume_history, importances
from budgettune.report.tradeoff import label_indices, value_map
from budgettune.report.view import finished, of_machine, overview, shown_indices
from budgettune.spec.axes import RangeSpec
from budgettune.storage.answers import best_under_budget
from budgettune.storage.trials import trial_records
from budgettune.study.pareto import hypervolume, pareto_front

# Few values, so that ties are common.
SIXTHS = st.integers(0, 6).map(lambda n: n / 6)
POINTS = st.lists(st.tuples(st.integers(1, 6).map(float), SIXTHS), min_size=1, max_size=25)


def trial(number=0, seconds=1.0, accuracy=0.5, **more):
    facts = {"state": "COMPLETE", "params": {}, "train_seconds": seconds, "value": accuracy}
    return TrialRecord(number=number, **{**facts, **more})


def trials_at(points):
    return [trial(number, *point) for number, point in enumerate(points)]


def trials_with(name, values):
    return [trial(number, params={name: value}) for number, value in enumerate(values)]


# --- The front and the answers --------------------------------------------------------------------------------------


@given(POINTS)
def test_the_front_is_what_no_other_trial_beats(points):
    def beats(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    expected = {n for n, point in enumerate(points) if not any(beats(other, point) for other in points)}
    assert {record.number for record in overview(trials_at(points)).front} == expected


@given(POINTS, st.floats(0.5, 7))
def test_the_answer_at_a_budget_is_the_most_accurate_trial_that_fits(points, budget_seconds):
    view = overview(trials_at(points))
    fitting = [(-accuracy, seconds, n) for n, (seconds, accuracy) in enumerate(points) if seconds <= budget_seconds]
    found = [answer for answer in answers(view, "s") if answer.seconds <= budget_seconds]
    assert (found[-1].number if found else None) == (min(fitting)[2] if fitting else None)


def test_the_answers_are_those_of_best(sqlite_url):
    with make_study(sqlite_url, 40) as study:
        records = trial_records(study.engine, study.study_id)
        assert len(records) == 40
        found = answers(overview(records), "synthetic")
        for budget_seconds in np.geomspace(30, 200, 40):
            fitting = [answer.number for answer in found if answer.seconds <= budget_seconds]
            try:
                best = best_under_budget(study.engine, study.study_id, budget_seconds)[0].number
            except NothingWithinBudget:
                best = None
            assert (fitting[-1] if fitting else None) == best
        front = pareto_front(study.engine, study.study_id)
        assert [record.number for record in overview(records).front] == [record.number for record in front]


def test_an_answer_tells_its_configuration_its_clock_and_its_repeats():
    records = make_records(6, repeats=3)
    answer = answers(overview(records), "it's")[-1]
    facts = dict(answer.facts)
    chosen = records[answer.number]
    assert facts["scale"] == f"{chosen.params['scale']:.4g}"
    assert facts["clock"].startswith(chosen.status)
    assert facts["repeats"].startswith("3, mean ")
    assert answer.command == f"budgettune train 'it'\"'\"'s' --trial {answer.number} --out model.pt"
    assert "ran once" in dict(answers(overview(records[:1]), "s")[0].facts)["repeats"]


def test_what_is_not_finished_is_left_out():
    open_ones = [TrialRecord(number=9, state=state, params={}) for state in ("RUNNING", "WAITING", "FAIL")]
    assert finished([*open_ones, trial(1)]) == (trial(1),)
    assert finished([trial(1, status="disturbed"), trial(2, status="clean")], clean_only=True)[0].number == 2
    with pytest.raises(NothingToDraw, match="budgettune worker"):
        overview(open_ones)


def test_times_of_two_kinds_of_machine_are_refused_until_one_is_chosen():
    records = [trial(0, device_name="A"), trial(1, device_name="B"), trial(2, device_name="B"), trial(3)]
    with pytest.raises(UsageError, match="3 kinds of machine"):
        overview(records)
    assert [record.number for record in of_machine(records, "B")] == [1, 2]
    with pytest.raises(UsageError, match="choose one of B; A; unknown machine"):
        of_machine(records, "C")


def test_the_front_as_a_table_stays_short():
    view = overview(trials_at([(float(n), n / 1000) for n in range(500)]))
    assert len(view.front) == 500
    assert len(front_rows(view)) <= 60


# --- Axes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "kind", "levels"),
    [
        ([2, 1, 1], "numeric", (1, 2)),
        ([1e-4, 1e-1], "log", (1e-4, 1e-1)),
        ([0.0, 1000.0], "numeric", (0.0, 1000.0)),
        (["sgd", "adam", "sgd"], "categorical", ("sgd", "adam")),
        ([True, False], "categorical", ("yes", "no")),
        ([1, "auto"], "categorical", ("1", "auto")),
        ([math.nan, 1.0], "categorical", ("nan", "1")),
    ],
)
def test_an_axis_is_what_its_values_are(values, kind, levels):
    (axis,) = searched_axes(trials_with("x", values))
    assert (axis.kind, axis.levels) == (kind, levels)


def test_a_search_space_knows_order_and_logarithms():
    assert searched_axes(trials_with("x", [1.0, 2.0]), {"x": RangeSpec(low=1.0, high=9.0, log=True)})[0].kind == "log"
    assert searched_axes(trials_with("x", [1.0, 900.0]), {"x": RangeSpec(low=1.0, high=900.0)})[0].kind == "numeric"
    assert searched_axes(trials_with("x", ["b", "a"]), {"x": ("a", "b", "c")})[0].levels == ("a", "b")


def test_what_did_not_vary_is_no_axis_and_equal_endings_keep_their_full_names():
    records = [trial(n, params={"a.depth": n, "b.depth": n, "train.lr": 0.1, "model.scale": n + 1}) for n in range(2)]
    assert [axis.label for axis in searched_axes(records)] == ["a.depth", "b.depth", "scale"]


def test_places_and_ticks_of_each_kind():
    log = searched_axes(trials_with("x", [10.0 ** (n / 3 - 4) for n in range(12)]))[0]
    assert log.code(0.01) == pytest.approx(-2)
    assert log.ticks() == ([-4.0, -3.0, -2.0, -1.0, 0.0], ["0.0001", "0.001", "0.01", "0.1", "1"])
    words = searched_axes(trials_with("x", ["a", "b"]))[0]
    assert words.code("b") == 1
    assert math.isnan(words.code("c"))
    assert words.ticks() == ([0.0, 1.0], ["a", "b"])
    many = searched_axes(trials_with("x", list(range(20))))[0]
    assert many.ticks() is None
    assert math.isnan(many.code(None))


@given(st.lists(st.one_of(st.none(), st.floats(-5, 5)), min_size=2, max_size=40), st.integers(2, 7))
def test_every_trial_is_in_one_group_and_intervals_keep_their_order(values, most):
    records = [trial(n, params={} if value is None else {"x": value}) for n, value in enumerate(values)]
    for axis in searched_axes(records):
        groups = grouped(axis, records, most)
        assert len(groups.labels) <= most + 1
        assert all(0 <= member < len(groups.labels) for member in groups.members)
        pairs = list(zip(values, groups.members, strict=True))
        in_order = [member for _, member in sorted(pair for pair in pairs if pair[0] is not None)]
        assert in_order == sorted(in_order)
        assert {member for value, member in pairs if value is None} <= {len(groups.labels) - 1}


def test_rare_categories_become_one_group():
    groups = grouped(searched_axes(records := trials_with("x", [*"aaabbc", *"defg"]))[0], records, 3)
    assert groups.labels == ("a", "b", "other")
    assert [len(groups.indices(group)) for group in range(3)] == [3, 2, 5]


def test_the_papers_parameters_play_the_papers_parts():
    view = overview(make_records(20))
    assert (view.marker.name, view.colour.name, view.label.name) == ("scale", "prune_rate", "batch_size")
    search = {"train.optimizer": ["sgd", "adam"], "train.lr": {"low": 1e-4, "high": 1e-1, "log": True}}
    other = overview(make_records(20, search=search))
    assert (other.colour.name, other.marker.name, other.label) == ("train.lr", "train.optimizer", None)
    batches = overview(make_records(20, search={"batch_size": [64, 128]}))
    assert (batches.colour.name, batches.marker, batches.label) == ("batch_size", None, None)
    two = overview(make_records(20, search={"batch_size": [64, 128], "scale": [1.0, 2.0]}))
    assert (two.colour.name, two.marker.name, two.label) == ("batch_size", "scale", None)
    assert overview([trial()]).colour is None


@pytest.mark.parametrize(("slowest", "unit", "is_log"), [(9, "s", False), (400, "min", True), (20_000, "h", True)])
def test_time_has_the_unit_and_the_scale_that_suit_it(slowest, unit, is_log):
    view = overview(trials_at([(3.0, 0.5), (float(slowest), 0.6)]))
    assert (view.unit.name, view.time_is_log) == (unit, is_log)


def test_labels_hide_neither_points_nor_each_other():
    view = overview(make_records(200))
    chosen = label_indices(view)
    assert chosen
    x = (view.seconds - view.seconds.min()) / np.ptp(view.seconds)
    y = (view.values - view.values.min()) / np.ptp(view.values)
    for index in chosen:
        inside = (x > x[index] - 0.07) & (x < x[index]) & (y > y[index]) & (y < y[index] + 0.04)
        assert not inside.any()


def test_a_sample_keeps_the_front():
    view = overview(make_records(300))
    shown = shown_indices(view, 50)
    assert len(shown) == len(set(shown)) == 50
    assert {record.number for record in view.front} <= {view.trials[index].number for index in shown}
    assert len(shown_indices(view, 300)) == 300


# --- How trials trained ---------------------------------------------------------------------------------------------


def test_the_front_of_curves_is_what_no_point_on_any_curve_beats():
    records = make_records(60)
    values = curves_of(overview(records))
    points = {(e.train_seconds, e.accuracy, record.number, e.epoch) for record in records for e in record.curve}
    best = {p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q[:2] != p[:2] for q in points)}
    assert {(p.seconds, p.value, p.number, p.epoch) for p in values.front} == best
    assert values.total == 60
    assert len(values.best) + len(values.others) == MOST_CURVES
    ends = {overview(records).front[0].number, overview(records).front[-1].number}
    assert ends <= {record.number for record in values.best}


def test_curves_without_points_on_the_way_say_what_would_bring_them():
    last_only = EpochRecord(epoch=3, train_seconds=1.0, steps=1, samples=1, loss=1.0, value=0.5)
    with pytest.raises(NothingToDraw, match="evaluate_every"):
        curves_of(overview([trial(curve=(last_only,), keep_fraction=1.0)]))


def test_bars_are_trials_or_means_of_groups():
    few, many = make_records(MOST_BARS), make_records(MOST_BARS + 1)
    assert [bar.trials for bar in phase_bars(overview(few))] == [1] * MOST_BARS
    bars = phase_bars(overview(many))
    assert sum(bar.trials for bar in bars) == len(many)
    first = [record.phases.step for record in many if record.params["scale"] == 1.0]
    assert bars[0].label == "scale 1"
    assert bars[0].seconds.step == pytest.approx(statistics.fmean(first))
    with pytest.raises(NothingToDraw, match="phases"):
        phase_bars(overview([trial()]))


def test_spread_is_the_mean_and_deviation_over_repeats():
    records = [replace(record, params={"x": record.number // 3}) for record in make_records(9, repeats=3)]
    found = {spread.label: spread for spread in repeat_spreads(overview(records))}
    accuracy = [record.test_accuracy for record in records[:3]]
    assert found["x 0"].value == pytest.approx(statistics.fmean(accuracy))
    assert found["x 0"].value_deviation == pytest.approx(statistics.stdev(accuracy))
    assert [spread.repeats for spread in found.values()] == [3, 3, 3]
    assert sorted(map(len, overview(records).configurations.values())) == [3, 3, 3]
    with pytest.raises(NothingToDraw, match="--repeats 3"):
        repeat_spreads(overview(records[::3]))


def test_realised_pruning_is_what_was_not_kept():
    done = pruning_done(overview(make_records(30)))
    assert done.realised == pytest.approx(done.asked)
    with pytest.raises(NothingToDraw, match="not searched"):
        pruning_done(overview(trials_at([(1.0, 0.5)])))
    with pytest.raises(NothingToDraw, match="samples it kept"):
        pruning_done(overview(trials_with("prune_rate", [0.0, 0.5])))


# --- How the search went --------------------------------------------------------------------------------------------


@given(POINTS)
def test_the_hypervolume_grows_to_that_of_the_front(points):
    history = hypervolume_history(overview(trials_at(points)))
    for step in history.steps:
        assert step.volume == pytest.approx(hypervolume(points[: step.trials], history.reference))
        assert step.compute_seconds == pytest.approx(sum(seconds for seconds, _ in points[: step.trials]))
    assert history.steps[-1].trials == len(points)


def test_the_order_of_the_history_is_that_of_completion():
    later, earlier = (f"2026-01-0{day}T00:00:00+00:00" for day in (2, 1))
    records = [trial(0, 2.0, 0.5, completed_at=later), trial(1, 1.0, 0.9, completed_at=earlier)]
    first = hypervolume_history(overview(records)).steps[0]
    assert (first.trials, first.compute_seconds) == (1, 1.0)


def test_importance_tells_what_matters_from_what_does_not():
    records = [replace(record, params={**record.params, "nothing": record.number % 7}) for record in make_records(80)]
    found = importances(overview(records))
    names = [axis.name for axis in found.axes]
    time, accuracy = (dict(zip(names, each.shares, strict=True)) for each in found.objectives)
    assert max(time, key=time.get) == "scale"
    assert time["nothing"] < 0.05 < time["scale"]
    assert accuracy["nothing"] < 0.05 < accuracy["scale"]
    assert all(each.explained > 0.5 for each in found.objectives)


def test_importance_wants_enough_configurations():
    with pytest.raises(NothingToDraw, match="fewer than 10"):
        importances(overview(make_records(40, repeats=5)))
    with pytest.raises(NothingToDraw, match="no parameter varied"):
        importances(overview(trials_at([(1.0, 0.5)] * 20)))


def test_cells_of_the_map_are_means():
    records = make_records(60)
    view = overview(records)
    cells = value_map(view)
    assert cells.count.sum() == 60
    chosen = [r.test_accuracy for r in records if r.params["scale"] == 1.0 and r.params["prune_rate"] == 0.3]
    assert cells.mean[3, 0] == pytest.approx(statistics.fmean(chosen))
    across, _, mean = cells.best(view.words)
    assert (across, mean) == ("1.4", pytest.approx(np.nanmax(cells.mean)))


# --- The whole study ------------------------------------------------------------------------------------------------


def test_contents_keep_machines_apart_and_host_names_to_themselves():
    other = replace(BOX, device="cuda", device_name="Volta", hostname="secret-host")
    records = make_records(30, machines=(BOX, BOX, other))
    failed = [TrialRecord(number=40 + n, state="FAIL", params={}, failure="out-of-memory: 8 GiB") for n in range(3)]
    found = contents("s", [*records, *failed])
    assert [len(view.trials) for view in found.views] == [20, 10]
    assert found.failures == (("out-of-memory: 8 GiB", 3),)
    assert found.states == {"COMPLETE": 30, "FAIL": 3}
    assert "secret-host" not in str(found.machines)
    assert [row["machine"] for row in found.machines] == ["Abacus 9000 x4", "Volta"]
    assert [len(view.trials) for view in contents("s", records, device_name="Volta").views] == [10]
    clean = contents("s", records, clean_only=True)
    assert {record.status for view in clean.views for record in view.trials} == {"clean"}
    assert contents("s", failed).views == ()


def test_kinds_of_machine_beyond_the_shown_ones_are_named():
    machines = [replace(BOX, device_name=f"kind {n}") for n in range(9)]
    found = contents("s", make_records(18, machines=machines))
    assert len(found.views) == 6
    assert len(found.left_out) == 3
