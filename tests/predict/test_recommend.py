"""What a study recommends: the answer, its doubts, how it is asked for, probes, and training to a deadline."""

import json
import re
import sqlite3
from dataclasses import replace
from itertools import product

import pytest
import torch

import budgettune as bt
from budgettune import api
from budgettune.errors import DataError, NothingFits, UsageError
from budgettune.predict.predictor import LONGEST_FACTOR, SAMPLE, candidate_workloads
from budgettune.predict.recommend import Ask, recommend
from budgettune.predict.workload import Workloads
from budgettune.records import StepProbe
from budgettune.storage.studies import PROBES_PREFIX, add_probes, read_probes
from budgettune.text import format_duration
from budgettune.training.profile.probe import probe_images
from budgettune.worker import probing
from budgettune.worker.options import WorkerOptions
from budgettune.worker.probing import probe_here, probe_study
from tests.support.simulated import MACHINE, World, simulated_spec

# --- The answer, on trials whose truth is known ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return World(simulated_spec())


@pytest.fixture(scope="module")
def trials(world):
    return [trial for trial in world.table(repeats=2) if trial.number % 5 == 0]


def truth(world, answer):
    return world.accuracy(world.workloads.of(answer.choice.params), answer.choice.epochs)


@pytest.mark.parametrize("factor", [0.4, 1.0, 2.5])
def test_the_answer_is_nearly_as_good_as_knowing_everything_and_keeps_the_budget(world, trials, factor):
    budget = factor * sorted(trial.train_seconds for trial in trials)[len(trials) // 2]
    answer = recommend(world.spec, trials, Ask(budget, 0.9))
    workload = world.workloads.of(answer.choice.params)
    assert world.train_seconds(workload, answer.choice.epochs) <= budget
    assert answer.choice.chance_in_time >= 0.9
    possible = [
        max((e for e in range(1, 49) if world.train_seconds(one, e) <= budget), default=0)
        for one in map(world.workloads.of, world.spec.cells())
    ]
    oracle = max(
        world.accuracy(world.workloads.of(cell), epochs)
        for cell, epochs in zip(world.spec.cells(), possible, strict=True)
        if epochs
    )
    assert oracle - truth(world, answer) < 0.015
    assert answer.choice.seconds_low < answer.choice.seconds < answer.choice.seconds_high
    assert answer.choice.accuracy_low < answer.choice.accuracy < answer.choice.accuracy_high


def test_more_confidence_never_takes_more_time(world, trials):
    budget = sorted(trial.train_seconds for trial in trials)[len(trials) // 2]
    answers = [recommend(world.spec, trials, Ask(budget, confidence)) for confidence in (0.5, 0.9, 0.999)]
    chances = [answer.choice.chance_in_time for answer in answers]
    assert all(chance >= answer.confidence for chance, answer in zip(chances, answers, strict=True))


def test_the_best_that_ran_stands_beside_it(world, trials):
    budget = sorted(trial.train_seconds for trial in trials)[len(trials) // 2]
    answer = recommend(world.spec, trials, Ask(budget))
    within = [trial for trial in trials if trial.train_seconds <= budget]
    assert answer.observed == max(within, key=lambda trial: trial.test_accuracy)


def test_what_lies_outside_of_what_ran_is_named(world, trials):
    small = [trial for trial in trials if trial.params["scale"] < 1.5]
    slow = max(trial.train_seconds for trial in trials)
    answer = recommend(world.spec, small, Ask(20 * slow))
    said = " ".join(answer.extrapolated)
    assert re.search(r"\d+ epochs are [\d,]+ sample visits; trials of 12 epochs ran", said)
    assert f"are {LONGEST_FACTOR:g} times the longest that ran" in " ".join(answer.notes)
    if answer.choice.params["scale"] >= 1.5:
        assert "lies outside 0.5 to 1, which ran" in said
        assert "was never timed" in said


def test_a_choice_among_what_ran_is_no_extrapolation(world):
    every = world.table(repeats=1)
    seconds = sorted(trial.train_seconds for trial in every)
    answer = recommend(world.spec, every, Ask(seconds[40], 0.5))
    assert not [text for text in answer.extrapolated if "sample visits" not in text]


def test_the_next_trial_costs_time_and_is_worth_something(world, trials):
    answer = recommend(world.spec, trials[:8], Ask(2.0))
    assert answer.next_trial.gain > 0
    assert answer.next_trial.prediction.seconds < 2.0


@pytest.mark.parametrize("count", [0, 5])
def test_too_little_evidence_is_said(world, trials, count):
    words = (
        rf"trials {count} \(at least 6 needed\), different configurations among them {count} \(at least 4\): "
        r"let `budgettune worker` run what is open, or make a study of more trials; `budgettune best"
    )
    with pytest.raises(UsageError, match=words):
        recommend(world.spec, trials[:count], Ask(2.0))


def test_repeats_of_one_configuration_are_too_little(world):
    repeats = [world.trial(number, world.spec.cells()[0], number) for number in range(8)]
    with pytest.raises(UsageError, match=r"trials 8 .*different configurations among them 1 \(at least 4\)"):
        recommend(world.spec, repeats, Ask(2.0))


def test_a_budget_that_nothing_fits_names_one_that_would(world, trials):
    with pytest.raises(NothingFits, match=r"nothing in the search space trains within 0.001s .* try a budget of"):
        recommend(world.spec, trials, Ask(0.001))


@pytest.mark.parametrize("confidence", [0.3, 1.0])
def test_a_confidence_that_means_nothing_is_refused(confidence):
    with pytest.raises(UsageError, match="give a probability from"):
        Ask(1.0, confidence)


def test_times_of_other_machines_tell_of_accuracy_only(world, trials):
    abroad = [replace(trial, device_name="Other", train_seconds=1000.0) for trial in trials[:10]]
    mixed = [*abroad, *trials[10:]]
    answer = recommend(world.spec, mixed, Ask(2.0))
    assert answer.device_name == MACHINE.key
    assert f"10 of {len(mixed)} trials ran elsewhere" in " ".join(answer.notes)
    with pytest.raises(UsageError, match="nothing of study 'simulated' was timed on 'Third'"):
        recommend(world.spec, mixed, Ask(2.0), device_name="Third")


def test_a_machine_that_was_only_probed_is_predicted(world, trials):
    slow = [replace(probe, ms_mean=3 * probe.ms_mean) for probe in world.probes()]
    here = recommend(world.spec, trials, Ask(6.0, 0.5))
    there = recommend(world.spec, trials, Ask(18.0, 0.5), device_name="Slow", probes={"Slow": slow})
    assert there.observed is None
    assert there.basis.probe_seconds == pytest.approx(0.5 * len(slow))
    assert there.choice.params == here.choice.params
    assert there.choice.epochs == pytest.approx(here.choice.epochs, rel=0.15)


def test_what_failed_for_good_is_not_recommended(world, trials):
    best = recommend(world.spec, trials, Ask(2.0)).choice.params
    kept = [trial for trial in trials if trial.params != best]
    failed = replace(trials[0], number=999, params=best, state="FAIL", failure="non-finite-loss: diverged", curve=())
    assert recommend(world.spec, [*kept, failed], Ask(2.0)).choice.params != best


def test_a_search_space_of_ranges_is_answered_too():
    rates, batches = {"low": 0.0, "high": 0.4}, {"low": 32, "high": 256, "log": True}
    world = World(simulated_spec(scale=[0.5, 1.0], prune_rate=rates, batch_size=batches))
    values = product((0.5, 1.0), (0.1, 0.35), (40, 200))
    points = [dict(zip(("scale", "prune_rate", "batch_size"), each, strict=True)) for each in values]
    answer = recommend(world.spec, [world.trial(n, point) for n, point in enumerate(points)], Ask(3.0))
    assert 0 <= answer.choice.params["prune_rate"] <= 0.4
    assert 32 <= answer.choice.params["batch_size"] <= 256


def test_a_large_study_is_answered_from_a_sample():
    batches = {"low": 16, "high": 600}
    world = World(simulated_spec(scale=[0.5, 1.0], prune_rate=[0.0, 0.3], batch_size=batches))
    points = [
        {"scale": 0.5 + 0.5 * (n % 2), "prune_rate": 0.3 * (n % 3 == 0), "batch_size": 16 + n} for n in range(400)
    ]
    answer = recommend(world.spec, [world.trial(n, point) for n, point in enumerate(points)], Ask(3.0))
    assert answer.basis.trials == 400
    assert answer.basis.step_times == 200


def test_a_grid_of_many_cells_is_sampled():
    rates = [0.01 * number for number in range(40)]
    spec = simulated_spec(scale=[0.5, 1.0], prune_rate=rates, batch_size=list(range(32, 256)))
    found = candidate_workloads(Workloads(spec, []), [])
    assert len(spec.cells()) > 10 * SAMPLE > 9 * len(found) > 8 * SAMPLE


@pytest.mark.parametrize("ranges", [{}, {"train.lr": {"low": 1e-4, "high": 1e-2, "log": True}}])
def test_axes_that_depend_on_others_are_predicted_where_they_are_active(ranges):
    """A weight decay whose default has no place on the logarithm of its axis, and a prune rate for two strategies."""
    dropping = ["random", "stale-quantile"]
    spec = simulated_spec(
        **{
            "pruning.strategy": ["full", *dropping],
            "prune_rate": {"values": [0.15, 0.3], "when": {"pruning.strategy": dropping}},
            "train.optimizer": ["sgd", "adam"],
            "train.weight_decay": {"values": [1e-4, 1e-3, 1e-2], "when": {"train.optimizer": "sgd"}},
            "scale": [0.5, 1.0, 2.0],
            **ranges,
        }
    )
    world = World(spec)
    ran = [cell | dict.fromkeys(ranges, 1e-3) for cell in spec.cells()[::3]]
    answer = recommend(spec, [world.trial(number, params) for number, params in enumerate(ran)], Ask(3.0))
    assert spec.is_complete(answer.choice.params)
    assert all(spec.is_complete(one.params) for one in candidate_workloads(Workloads(spec, []), []))


def test_a_model_by_name_is_answered_from_its_measured_steps():
    axes = {"batch_size": [32, 64, 128, 256], "prune_rate": [0.0, 0.3], "train.lr": [1e-3, 3e-3]}
    world = World(simulated_spec(**axes))
    spec = world.spec.with_overrides(["model.name=timm:resnet10t"])
    ran = [
        cell
        for cell in spec.cells()
        if cell["batch_size"] != 32 and (cell["train.lr"] > 2e-3 or not cell["prune_rate"])
    ]
    trials = [world.trial(number, cell) for number, cell in enumerate(ran)]
    answer = recommend(spec, trials, Ask(3.0))
    assert answer.choice.step_is_measured
    assert answer.choice.params["batch_size"] != 32
    assert "batch_size 32 never ran: 4 configurations without a measured step are left out" in " ".join(answer.notes)
    later = world.trial(99, answer.choice.params | {"train.epochs": answer.choice.epochs}, 7)
    assert answer.choice.seconds_low < later.train_seconds < answer.choice.seconds_high


# --- Asked for on a real study --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return the database file of a study of digits: 8 of its 12 cells ran, nothing at scale 3."""
    file = tmp_path_factory.mktemp("real") / "studies.db"
    settings = ["train.epochs=3", "pruning.strategy=random"]
    handle = api.create_study("digits", storage=f"sqlite:///{file}", overrides=settings)
    summary = api.run_worker(handle, WorkerOptions(device="cpu", threads=1, trials=8))
    assert summary.completed == 8
    return file


@pytest.fixture
def url(real, tmp_path):
    """Return the URL of a copy of that database."""
    source, copy = sqlite3.connect(real), sqlite3.connect(tmp_path / "copy.db")
    with source, copy:
        source.backup(copy)
    source.close()
    copy.close()
    return f"sqlite:///{tmp_path / 'copy.db'}"


@pytest.fixture
def run(run, url, monkeypatch):
    """Run a command on the finished study."""
    monkeypatch.setenv("BUDGETTUNE_STORAGE", url)
    return run


@pytest.mark.slow
def test_the_command_its_json_and_python_give_the_same_answer(run, url):
    status, text, _ = run("recommend", "--budget", "20s", "--confidence", "0.8")
    assert status == 0
    document = json.loads(run("recommend", "--budget", "20s", "--confidence", "0.8", "--format", "json")[1])
    answer = bt.recommend("digits", "20s", confidence=0.8, storage=url)
    assert document == json.loads(json.dumps(answer.to_json()))
    assert (document["judged_on"], document["objective"]["name"]) == ("validation", "validation accuracy")
    assert "chosen by 359 validation images" in text
    choice = answer.choice
    assert f"scale {choice.params['scale']:g}, " in text
    assert f"for {choice.epochs} epochs" in text
    assert f"{choice.accuracy:.2%} ({choice.accuracy_low:.2%} to {choice.accuracy_high:.2%})" in text
    assert f"best that ran  trial {answer.observed.number} " in text
    assert "8 trials of 8 configurations, 0 repeats; 4 step times" in text
    assert "assumed, not measured" in text
    (row,) = run("recommend", "--budget", "20s", "--confidence", "0.8", "--format", "csv")[1].strip().splitlines()[1:]
    assert str(choice.epochs) in row.split(",")


def test_errors_end_in_what_to_do_next(run):
    status, out, err = run("recommend", "--budget", "0.001s")
    assert (status, out) == (1, "")
    assert "try a budget of at least that" in err
    assert run("train", "--budget", "5s", "--trial", "0")[0] == 2
    assert "give one of --trial N, --set key=value and --budget 60s" in run("train")[2]


def test_a_probe_times_what_never_ran_once_and_its_cost_is_shown(run, url):
    before = bt.recommend("digits", "20s", storage=url)
    status, text, err = run("recommend", "--budget", "20s", "--probe", "1h", "--threads", "1")
    assert status == 0
    assert len(re.findall(r"probe \d of 2: 24/48/96 × 3, batch (?:64|256), fp32 adam", err)) == 2
    assert "6 step times, " in text
    after = bt.recommend("digits", "20s", storage=url)
    assert after.basis.step_times == before.basis.step_times + 2
    assert after.basis.probe_seconds > 0 == before.basis.probe_seconds
    assert f"{format_duration(after.basis.probe_seconds)} of them probes" in text
    assert "probe 1" not in run("recommend", "--budget", "20s", "--probe", "1h", "--threads", "1")[2]


def test_steps_that_several_processes_train_are_not_probed(url):
    handle = api.load_study(storage=url)
    spec = handle.spec.with_overrides(["train.processes=2"])
    with pytest.raises(UsageError, match="2 train a trial of this study: leave --probe out"):
        probe_here(handle.engine, handle.study_id, spec, limit_seconds=1.0)


def test_probes_are_kept_by_kind_of_machine_and_those_of_others_are_left_alone(url):
    handle = api.load_study(storage=url)
    probe = StepProbe(params={"scale": 3.0}, step="s", ms_mean=2.0, ms_error=0.1, steps=5, seconds=0.3)
    add_probes(handle.engine, handle.study_id, "This", [probe])
    add_probes(handle.engine, handle.study_id, "This", [replace(probe, ms_mean=3.0), replace(probe, step="t")])
    add_probes(handle.engine, handle.study_id, "That", [probe])
    found = read_probes(handle.engine, handle.study_id)
    assert {kind: [(one.step, one.ms_mean) for one in probes] for kind, probes in found.items()} == {
        "This": [("s", 3.0), ("t", 2.0)],
        "That": [("s", 2.0)],
    }


PROBE = '[{"params": {}, "step": %s, "ms_mean": %s, "ms_error": %s, "steps": 5, "seconds": 0.1}]'
NO_PROBES = [
    PROBE % each
    for each in (('"s"', "NaN", 0), ('"s"', 2, "NaN"), ('"s"', "Infinity", 0), ("[]", 2, 0), ('"s"', 2, -1))
]


@pytest.mark.parametrize("text", ['"no list"', '[1, {"x": 2}]', '[{"params": {}, "step": "s"}]', "{", *NO_PROBES])
def test_what_others_wrote_in_place_of_probes_is_left_out(url, text, tmp_path):
    handle = api.load_study(storage=url)
    with sqlite3.connect(tmp_path / "copy.db") as database:
        database.execute(
            "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (?, ?, ?)",
            (handle.study_id, PROBES_PREFIX + "This", text),
        )
    database.close()
    assert read_probes(handle.engine, handle.study_id) == {"This": []}


def test_a_probe_that_is_told_to_stop_begins_no_other(url):
    handle = api.load_study(storage=url)
    said = []
    found = probe_study(
        handle.engine,
        handle.study_id,
        handle.spec,
        torch.device("cpu"),
        limit_seconds=3600,
        should_stop=lambda: bool(said),
        say=said.append,
    )
    assert len(found) == len(said) == 1


def test_a_probe_whose_images_do_not_fit_is_left_out(url, monkeypatch):
    handle = api.load_study(storage=url)
    fits, said = iter([False]), []

    def images(spec, count, device):
        if not next(fits, True):
            raise DataError("no room")
        return probe_images(spec, count, device)

    monkeypatch.setattr(probing, "probe_images", images)
    study = (handle.engine, handle.study_id, handle.spec, torch.device("cpu"))
    found = probe_study(*study, limit_seconds=3600, should_stop=lambda: len(said) > 2, say=said.append)
    assert (len(found), said[1]) == (1, "left out: no room")


def test_a_worker_probes_before_its_first_trial_where_the_study_asks_for_it(sqlite_url):
    settings = ["train.epochs=1", "pruning.strategy=random", "search={batch_size = [64, 256]}", "predict.probe=1h"]
    handle = api.create_study("digits", storage=sqlite_url, overrides=settings)
    api.run_worker(handle, WorkerOptions(device="cpu", threads=1, trials=1))
    (probes,) = read_probes(handle.engine, handle.study_id).values()
    assert sorted(probe.params["batch_size"] for probe in probes) == [64, 256]


def test_training_what_is_recommended_ends_on_time_with_the_learning_rate_at_zero(run, tmp_path):
    status, out, err = run("train", "--budget", "3s", "--out", tmp_path / "m.pt", "--device", "cpu", "--threads", "1")
    assert status == 0
    predicted = r"predicted accuracy [\d.]+% \([\d.]+% to [\d.]+%\) on validation images"
    assert re.search(rf"until 3.0s are over, about \d+ epochs?; {predicted}", err)
    document = torch.load(tmp_path / "m.pt", weights_only=True)
    result = document["result"]
    assert document["params"]["train.budget"] == 3.0
    assert result["train_seconds"] == pytest.approx(3.0, abs=0.03 * result["step_ms_median"])
    assert result["final_lr"] == 0
    on_test, judged = result["test_accuracy"], result["validation_accuracy"]
    assert f"accuracy {on_test:.2%} on test images, {judged:.2%} on validation images, after" in out
