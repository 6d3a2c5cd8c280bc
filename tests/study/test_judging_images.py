"""Validation images may choose among trials, and test images then only report: stored, named in documents, and said."""

import csv
import io
import json
from dataclasses import replace

import optuna
import pytest
import torch

import budgettune as bt
from budgettune.records import TrialRecord, TrialResult, trial_attributes
from budgettune.spec.objective import Aim, JudgingImages
from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.storage.studies import read_aim
from budgettune.study.handle import create_study
from budgettune.training.data.load import load_data
from budgettune.training.trainer import train
from budgettune.web.app import Answers
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from tests.support.studies import grid, records, result
from tests.support.wsgi import Visitor

VALIDATION = "data={evaluate_on = 'validation', validation_fraction = 0.25}"
ON_TEST = "chosen and reported on the same 360 test images: the best of many looks better than it is; "
ON_VALIDATION = "chosen by 359 validation images; test accuracy is of 360 images that chose nothing"


def contrary(spec):
    """Return dark and bright images whose labels are the other way round in the test set."""
    labels = torch.arange(60) % 2
    images = (labels * 200 + 20).to(torch.uint8).reshape(60, 1, 1, 1).repeat(1, 1, 8, 8)
    return images, labels, images[:20], 1 - labels[:20]


@pytest.fixture(scope="module")
def spec():
    return StudySpec.from_document(
        {
            "name": "contrary",
            "data": {"name": f"{__name__}:contrary", "evaluate_on": "validation", "augment": False},
            "model": {"widths": [8, 8, 8], "blocks": 1},
            "train": {"epochs": 8, "batch_size": 18, "lr": 0.01},
            "search": {"scale": [1.0]},
        }
    )


@pytest.fixture
def chosen(sqlite_url):
    """Return a study of two trials that validation images judge: the better of them is worse on test images."""
    study = create_study(grid("chosen", {"scale": [1.0, 1.4]}).with_overrides([VALIDATION]), sqlite_url)
    for seconds, value, on_test in ((10.0, 0.8, 0.75), (20.0, 0.9, 0.7)):
        study.complete(study.claim(), judged(seconds, value, on_test))
    return study


def judged(seconds=10.0, value=0.9, on_test=0.7):
    """Return what training gave where validation images judged."""
    return replace(result(seconds, value), step_ms_mad=0.1, judged_on="validation", on_test=on_test)


def test_a_trial_is_judged_by_validation_images_and_reports_test_images_once(spec, sqlite_url):
    study = create_study(spec, sqlite_url)
    options = WorkerOptions(device="cpu", threads=1, allow_import=frozenset(["tests"]))
    assert run_worker(sqlite_url, None, options).completed == 1
    [record] = bt.trial_records(study)
    assert (record.value, record.validation_accuracy, record.test_accuracy) == (1.0, 1.0, 0.0)
    assert record.curve[-1].value == 1.0
    seen = optuna.load_study(study_name=study.name, storage=study.storage)
    assert seen.metric_names == ["train_seconds", "validation_accuracy"]
    assert (seen.trials[0].values[1], seen.trials[0].user_attrs["test_accuracy"]) == (1.0, 0.0)


def test_a_trial_that_is_stopped_early_asks_nothing_of_test_images(spec):
    data = load_data(spec.data, trust=Trust(["tests"]))
    stopped = train(spec, {"scale": 1.0}, seed=1, data=data, ends_early=lambda record: record.epoch == 1).result
    assert (stopped.judged_on, stopped.on_test, stopped.epochs) == ("validation", None, 2)


def test_images_to_test_are_in_memory_only_where_validation_images_judge():
    assert load_data(DataSpec(name="digits")).test is None
    data = load_data(load_spec("digits").data)
    assert [len(part) for part in (data.train, data.held_out, data.test)] == [1078, 359, 360]
    assert torch.equal(data.test.images, load_data(DataSpec(name="digits")).held_out.images)


def test_answers_choose_by_validation_images_and_name_both(chosen, run):
    [best] = json.loads(run("best", "--budget", "1m", "--format", "json")[1])
    assert [best[key] for key in ("judged_on", "validation_accuracy", "test_accuracy")] == ["validation", 0.9, 0.7]
    front = json.loads(run("front", "--format", "json")[1])["front"]
    assert [trial["test_accuracy"] for trial in front] == [0.75, 0.7]
    reply = Visitor(Answers(chosen.url))("/api/answers/chosen/best?budget=60s")
    assert (reply.json(), reply.headers["Budgettune-Note"]) == ([best], f"C{ON_VALIDATION[1:]}.")
    for words in (["front", "--format", "csv"], ["study", "export"]):
        rows = list(csv.DictReader(io.StringIO(run(*words)[1])))
        told = [(row["judged_on"], row["validation_accuracy"], row["test_accuracy"]) for row in rows]
        assert told == [("validation", "0.8", "0.75"), ("validation", "0.9", "0.7")]
    exported = json.loads(run("study", "export", "--format", "json")[1])
    assert [TrialRecord.from_json(each) for each in exported] == bt.trial_records(chosen)


def test_tables_and_the_report_say_which_images_judged(chosen, run, tmp_path):
    for words in (["best", "--budget", "1m"], ["front"]):
        lines = run(*words)[1].splitlines()
        assert lines[0].split()[:4] == ["trial", "time", "accuracy", "test"]
        assert "20.0s  90.00%    70.00%" in "\n".join(lines)
        assert lines[-1] == ON_VALIDATION
    bt.write_report(chosen, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"C{ON_VALIDATION[1:]}." in page
    assert '["test accuracy","70.00%"]' in page
    assert '"text":"validation accuracy"' in page


def test_a_study_that_test_images_judge_says_so_and_its_documents_are_as_before(sqlite_url, run):
    study = create_study(grid("plain", {"scale": [1.0]}), sqlite_url)
    study.complete(study.claim(), result())
    assert run("best", "--budget", "1m")[1].splitlines()[-1].startswith(ON_TEST)
    newer = {"judged_on", "on_test", "validation_accuracy"}
    [best] = json.loads(run("best", "--budget", "1m", "--format", "json")[1])
    [exported] = json.loads(run("study", "export", "--format", "json")[1])
    assert not newer & {*best, *exported, *result().to_json(), *trial_attributes(result())}
    assert not newer & set(run("study", "export")[1].splitlines()[0].split(","))
    assert best["test_accuracy"] == exported["test_accuracy"] == 0.9
    assert "test_accuracy" not in trial_attributes(result())


def test_a_row_from_before_has_no_test_accuracy_where_validation_images_judged(sqlite_url):
    study = create_study(grid("old", {"scale": [1.0]}).with_overrides([VALIDATION]), sqlite_url)
    study.complete(study.claim(), result())
    [record] = records(study)
    assert (record.value, record.validation_accuracy, record.test_accuracy) == (0.9, 0.9, None)


@pytest.mark.parametrize("on_test", [0.7, None])
def test_a_result_comes_back_from_json_with_the_names_of_its_images(on_test):
    document = json.loads(json.dumps(judged(on_test=on_test).to_json()))
    assert (document["judged_on"], document["validation_accuracy"]) == ("validation", 0.9)
    assert document["test_accuracy"] == on_test
    assert TrialResult.from_json(document) == judged(on_test=on_test)


def images_of(*overrides, base="digits"):
    spec = load_spec(base).with_overrides(overrides)
    assert Aim.of(spec.to_document()) == spec.aim
    return spec.aim.images


def test_which_images_judge_is_known_without_reading_them(sqlite_url):
    assert images_of().sentence == ON_VALIDATION
    assert images_of(base="fashion-mnist") == JudgingImages(part="validation", count=6_000, test_count=10_000)
    assert images_of(base="paper").sentence.startswith("chosen and reported on the same 10,000 test images: ")
    folder = images_of("data.name=folder", "data.root=pictures")
    assert folder.sentence == "chosen by validation images; test accuracy is of images that chose nothing"
    assert images_of("search={'data.validation_fraction' = [0.1, 0.2]}").count is None
    study = create_study(load_spec("digits"), sqlite_url)
    assert read_aim(study.engine, study.study_id) == study.spec.aim


def test_nothing_is_said_where_nothing_is_known_of_the_images():
    assert images_of("search={'data.evaluate_on' = ['test', 'validation']}") is None
    own = StudySpec.from_document({"name": "own", "train": {"loop": f"{__name__}:contrary"}})
    assert own.aim.images is None
    assert Aim.of(own.to_document()) == own.aim
    assert Aim.of({"data": {"evaluate_on": "a later word"}}).images is None
