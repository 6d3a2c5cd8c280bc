"""A study that minimises a number and one that maximises its negative give mirrored answers, whoever is asked."""

import csv
import io
import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from budgettune import api
from budgettune.records import TrialRecord
from budgettune.spec.objective import Aim
from budgettune.study.early_stop import Finished, Progress, Rival
from budgettune.study.export import export
from budgettune.study.front import cells_to_repeat
from budgettune.study.handle import create_study
from budgettune.worker.early_stop_judge import FinishedTrials, TrialJudge
from tests.support.mirrored import KEY, losses_of, mirrored_pair, negated, own_result, own_spec, work_off_mirrored

BUDGETS = (2.1, 5.0, 12.0, 1e6)
TIMES = ("started_at", "completed_at")


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(request, tmp_path):
    """Return the study that minimises and the one that maximises, of equal names in two databases."""
    with mirrored_pair(url_of(request, tmp_path)) as studies:
        yield studies


def url_of(request, tmp_path):
    """Return what gives each direction a database of its own."""

    def url(direction):
        if request.param == "sqlite":
            return f"sqlite:///{tmp_path / direction}.db"
        from benchmarks.support import local_postgresql

        database = local_postgresql.new_database(request.getfixturevalue("postgresql_server"))
        address = database.__enter__()
        request.addfinalizer(lambda: database.__exit__(None, None, None))
        return address

    return url


def untimed(documents):
    return [{name: value for name, value in each.items() if name not in TIMES} for each in documents]


def test_optuna_sees_the_direction_and_the_name(pair):
    import optuna

    for study, direction in zip(pair, ("MINIMIZE", "MAXIMIZE"), strict=True):
        seen = optuna.load_study(study_name=study.name, storage=study.storage)
        assert [each.name for each in seen.directions] == ["MINIMIZE", direction]
        assert seen.metric_names == ["train_seconds", KEY]


def test_the_best_under_any_budget_is_the_same_trial(pair):
    for budget in BUDGETS:
        less, more = (api.best_under_budget(study, budget, top=4) for study in pair)
        assert [(one.number, one.value) for one in less] == [(one.number, -one.value) for one in more]
        affordable = [one for one in api.trial_records(pair[0]) if one.train_seconds <= budget]
        assert less[0].value == min(one.value for one in affordable)


def test_the_front_its_hypervolume_and_its_certainty_are_the_same(pair):
    less, more = map(api.pareto_front, pair)
    assert [(one.number, one.value) for one in less] == [(one.number, -one.value) for one in more]
    assert len(less) > 3
    (volume, reference), (other_volume, other_reference) = map(api.hypervolume_of, pair)
    assert volume == pytest.approx(other_volume) and volume > 0
    assert reference == pytest.approx((other_reference[0], -other_reference[1]))
    values = [one.value for one in api.trial_records(pair[0])]
    assert reference[1] == pytest.approx(max(values) + 0.1 * (max(values) - min(values)))
    sure, other = map(api.certainty, pair)
    assert sure.front_chances == pytest.approx(other.front_chances)
    assert any(0.0 < chance < 1.0 for chance in sure.front_chances.values())
    for cell, (low, high) in sure.intervals.items():
        assert (low, high) == pytest.approx(tuple(-end for end in reversed(other.intervals[cell])))
        own = [one.value for one in api.trial_records(pair[0]) if one.cell == cell]
        assert low < sum(own) / len(own) < high


def test_exports_differ_by_the_sign_of_the_value_alone(pair, tmp_path):
    texts = {}
    for form in ("json", "csv"):
        files = [tmp_path / f"{study.spec.objective.direction}.{form}" for study in pair]
        for study, file in zip(pair, files, strict=True):
            export(study.engine, study.study_id, form, file)
        texts[form] = [file.read_text(encoding="utf-8") for file in files]
    less, more = (untimed(json.loads(text)) for text in texts["json"])
    assert negated(less) == more
    assert "test_accuracy" not in less[0]
    assert less[0]["curve"][-1][KEY] == less[0][KEY] > 0
    less, more = (untimed(csv.DictReader(io.StringIO(text))) for text in texts["csv"])
    assert [{**row, KEY: f"-{row[KEY]}"} for row in less] == more
    assert list(less[0])[:4] == ["number", "state", "train_seconds", KEY]
    assert less[0]["memory"] == "100.0"


@pytest.mark.parametrize("form", ["table", "json", "csv"])
@pytest.mark.parametrize(
    "words", [("best", "--budget", "12s", "--top", "5"), ("front",), ("study", "show"), ("study", "list")]
)
def test_commands_print_the_same_but_for_the_sign(run, tmp_path, form, words):
    with mirrored_pair(lambda direction: f"sqlite:///{tmp_path / direction}.db"):
        printed = []
        for direction in ("minimize", "maximize"):
            status, out, err = run(*words, "--format", form, "--storage", f"sqlite:///{tmp_path / direction}.db")
            assert status == 0, err
            printed.append(out)
    assert "accuracy" not in printed[0].replace("test accuracy", "")
    if form == "table":
        assert mirrored_words(printed[0]) == mirrored_words(printed[1])
        assert ("validation loss" in printed[0]) == (words[0] != "study")
    elif form == "csv":
        less, more = (untimed(csv.DictReader(io.StringIO(text))) for text in printed)
        assert mirrored_rows(less) == mirrored_rows(more)
    else:
        less, more = map(json.loads, printed)
        assert flat(less) == pytest.approx(flat(more), nan_ok=True)


def mirrored_words(text):
    """Return the words of lines without the signs of numbers, and an interval's ends in order of size."""
    return [
        sorted(word.lstrip("-").replace("minimize", "maximize") for word in line.split()) for line in text.splitlines()
    ]


def mirrored_rows(rows):
    """Return rows without signs, and without which end of an interval is low."""
    ends = (f"{KEY}_low", f"{KEY}_high")
    return [
        {name: str(value).lstrip("-") for name, value in row.items() if name not in ends}
        | {"ends": sorted(str(row[name]).lstrip("-") for name in ends if name in row)}
        for row in rows
    ]


def flat(value, path=""):
    """Return all numbers of JSON values without their signs, by where they are; intervals by their ends' sizes."""
    if isinstance(value, dict):
        low, high = (f"{KEY}_{end}" for end in ("low", "high"))
        if isinstance(value.get(low), float):
            value = {**value, **dict(zip((low, high), sorted((abs(value[low]), abs(value[high]))), strict=True))}
        return {key: each for name, item in value.items() for key, each in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list):
        return {key: each for place, item in enumerate(value) for key, each in flat(item, f"{path}/{place}").items()}
    return {path: abs(value)} if isinstance(value, (int, float)) else {}


# --- What is decided while a study runs -----------------------------------------------------------------------------


def test_further_repeats_go_to_the_same_cells():
    results = {}
    for cell, params in enumerate(own_spec().cells()):
        ends = [losses_of(params, repeat) for repeat in range(2)]
        results[cell] = [(seconds, -losses[-1]) for seconds, losses in ends]
    chosen = cells_to_repeat(results, 5, is_share=False)
    assert chosen
    scaled = {cell: [(seconds, 1e6 * score - 3e6) for seconds, score in each] for cell, each in results.items()}
    assert cells_to_repeat(scaled, 5, is_share=False) == chosen  # the unit of an objective is nobody's business


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_an_aim_reads_what_the_database_holds(direction):
    spec = own_spec(direction, constraints={"memory": {"limit": 8}})
    assert Aim.of(json.loads(spec.to_json())) == spec.aim
    for other in (None, "text", {"objective": 3}, {"constraints": {"memory": {"limit": "much"}}}):
        assert Aim.of(other) == Aim()


@pytest.mark.parametrize("form", ["table", "json"])
def test_trials_are_stopped_early_after_the_same_epoch_for_the_same_reason(run, tmp_path, form):
    notes, printed = [], []
    for direction, sign in (("minimize", 1.0), ("maximize", -1.0)):
        url = f"sqlite:///{tmp_path / direction}.db"
        with create_study(
            own_spec(direction, stopping={"rule": "dominance", "control": 0.0, "confidence": 0.8}), url
        ) as study:
            found = {}
            rivals = FinishedTrials(study, None, clock=itertools.count(step=60).__next__)
            while (claim := study.claim()) is not None:
                seconds, losses = losses_of(claim.params, claim.repeat)
                judge = TrialJudge(study.spec, claim, rivals.known)
                whole = own_result(seconds, [sign * loss for loss in losses])
                ended = next((n for n, epoch in enumerate(whole.curve, 1) if judge.ends_early(epoch)), len(losses))
                result = judge.with_note(replace(whole, curve=whole.curve[:ended]))
                assert study.complete(claim, result)
                found[claim.number] = result.stopping
            assert study.verify().whole
            notes.append(found)
        printed.append(run("study", "show", "--format", form, "--storage", url)[1])
    less, more = notes
    assert sum(note is not None for note in less.values()) >= 2
    assert less.keys() == more.keys()
    for number, note in less.items():
        other = more[number]
        assert (note is None) == (other is None)
        if note is not None:
            assert (note.epoch, note.rival) == (other.epoch, other.rival)
            assert note.expected_accuracy == pytest.approx(-other.expected_accuracy)
            assert note.most_accuracy == pytest.approx(-other.most_accuracy)
            assert note.most_accuracy <= note.expected_accuracy
            assert "%" not in note.reason
    assert mirrored_words(printed[0]) == mirrored_words(printed[1])


def test_forecasts_of_losses_hold_as_often_as_asked_for():
    """Losses fall to ends of their own, about which the best of the others says little."""
    rng = np.random.default_rng(1)
    objective = own_spec().objective
    held = []
    for _ in range(300):
        ends, starts = 1.0 + np.exp(rng.normal(-1.0, 0.5, 31)), rng.uniform(3.0, 5.0, 31)
        curves = [
            end + start * np.exp(-0.5 * np.arange(1, 9)) * np.exp(rng.normal(0, 0.05, 8)) * (np.arange(8) < 7)
            for end, start in zip(ends, starts, strict=True)
        ]
        made = [own_result(10.0, each.tolist()) for each in curves]
        rivals = [
            Rival.of(
                TrialRecord(number=n, state="COMPLETE", params={}, train_seconds=10.0, value=r.value, curve=r.curve),
                objective,
            )
            for n, r in enumerate(made[:30])
        ]
        progress = Progress.of(made[30].curve[:5], epochs=8, budget_seconds=None, objective=objective)
        finished = Finished(rivals, is_share=False)
        ahead = finished.forecast(progress)
        held.append(-made[30].value <= finished.law.score((ahead.level - 1.28 * ahead.level_deviation)[0, 0]))
    assert np.mean(held) > 0.85


def test_a_diverged_rival_and_equal_ones_are_no_trouble():
    objective = own_spec().objective

    def rivals(losses):
        made = [own_result(10.0, [3.0, 2.0, loss]) for loss in losses]
        return [
            Rival.of(
                TrialRecord(number=n, state="COMPLETE", params={}, train_seconds=10.0, value=r.value, curve=r.curve),
                objective,
            )
            for n, r in enumerate(made)
        ]

    poor = Progress.of(own_result(90.0, [9.0, 8.9]).curve, epochs=3, budget_seconds=None, objective=objective)
    for losses in ([1.0] * 9, [0.0] * 9, [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1e30]):
        finished = Finished(rivals(losses), is_share=False)
        ahead = finished.forecast(poor)
        assert math.isfinite(finished.law.score(ahead.level[0, 0]))
        assert ahead.level_deviation[0, 0] > 0
        assert finished.limit(0.8) >= 0


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "cost"])
@pytest.mark.slow
def test_samplers_draw_the_same_points(tmp_path, sampler):
    drawn = []
    search = {"params.rank": {"low": 1.0, "high": 32.0, "log": True}, "params.rate": {"low": 0.0, "high": 1.0}}
    for direction, sign in (("minimize", 1.0), ("maximize", -1.0)):
        spec = own_spec(direction, search=search, sampler={"name": sampler, "trials": 16, "seed": 2})
        with create_study(spec, f"sqlite:///{tmp_path / direction}.db") as study:
            work_off_mirrored(study, sign)
            drawn.append([tuple(record.params.values()) for record in api.trial_records(study)])
    assert len(set(drawn[0])) == 16
    assert drawn[0] == [pytest.approx(point) for point in drawn[1]]
