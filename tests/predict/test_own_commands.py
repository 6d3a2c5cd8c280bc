"""The answer for own training code by its commands, on a study that has really run."""

import json
import re
import sqlite3
from pathlib import Path

import pytest

import budgettune as bt
from budgettune import api
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.studies import read_probes
from budgettune.worker.options import WorkerOptions

SPEC = {
    "name": "own",
    "train": {"loop": "tests.support.own_training:train", "epochs": 4},
    "params": {"x": 1.0, "step_seconds": 0.002},
    "search": {"params.step_seconds": [0.002, 0.004], "params.x": [1.0, 2.0, 4.0, 8.0]},
    "objective": {"name": "distance", "direction": "minimize"},
}
WIDER = {"params.step_seconds": [0.002, 0.004, 0.008], "params.x": [1.0, 2.0, 4.0, 8.0]}
TRUST = ["--allow-import", "tests"]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return the database file of a study of 8 cells."""
    file = tmp_path_factory.mktemp("own") / "own.db"
    study = api.create_study(StudySpec.from_document(SPEC), storage=f"sqlite:///{file}")
    options = WorkerOptions(device="cpu", threads=1, allow_import=frozenset(["tests"]))
    assert api.run_worker(study, options).completed == 8
    return file


@pytest.fixture
def run(run, real, tmp_path, monkeypatch):
    """Run a command on a copy of the finished study."""
    source, copy = sqlite3.connect(real), sqlite3.connect(tmp_path / "copy.db")
    with source, copy:
        source.backup(copy)
    source.close()
    copy.close()
    monkeypatch.setenv("BUDGETTUNE_STORAGE", f"sqlite:///{tmp_path / 'copy.db'}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return run


@pytest.mark.slow
def test_the_answer_is_in_the_words_and_units_of_its_objective(run):
    status, text, _ = run("recommend", "--budget", "0.2s")
    assert status == 0
    document = json.loads(run("recommend", "--budget", "0.2s", "--format", "json")[1])
    choice = document["choice"]
    expected = f"{choice['distance']:.4g} ({choice['distance_low']:.4g} to {choice['distance_high']:.4g})"
    assert re.search(rf"^  distance +{re.escape(expected)}$", text, re.MULTILINE)
    assert "accuracy" not in text
    assert "%" not in re.sub(r"\d+% (to end|of what)|with (over )?\d+%", "", text)
    assert "calibrated on 8 held-out configurations" in text
    assert choice["params"] == {"params.x": 1.0, "params.step_seconds": 0.002}
    assert choice["epochs"] > 4
    header, row = run("recommend", "--budget", "0.2s", "--format", "csv")[1].strip().splitlines()
    assert dict(zip(header.split(","), row.split(","), strict=True))["distance"] == str(choice["distance"])


def test_training_the_answer_ends_within_a_step_of_the_budget(run, tmp_path):
    out = tmp_path / "m.pkl"
    status, _, err = run("train", "--budget", "0.25s", "--out", out, "--device", "cpu", "--threads", "1", *TRUST)
    assert status == 0
    assert re.search(r"until 0.25s are over, about \d+ epochs; predicted distance [\d.e-]+ \(", err)
    study = bt.load_study("own")
    _, params = api.recommended(study, 0.25)
    result = api.train(study, params, device="cpu", threads=1, allow_import={"tests"}).result
    assert abs(result.train_seconds - 0.25) < 0.0045 + 3 * result.step_ms_median / 1e3


@pytest.mark.slow
def test_an_epoch_of_what_never_ran_is_probed_and_nothing_else_is_kept(run):
    study = api.create_study(StudySpec.from_document({**SPEC, "name": "wider", "search": WIDER}))
    options = WorkerOptions(device="cpu", threads=1, trials=8, allow_import=frozenset(["tests"]))
    api.run_worker(study, options)
    said = run("recommend", "wider", "--budget", "1s")[1]
    assert "params.step_seconds 0.008 never ran: 4 configurations without a measured step are left out, of 12" in said
    before = api.trial_records(study)
    status, text, err = run("recommend", "wider", "--budget", "1s", "--probe", "1m", "--threads", "1", *TRUST)
    assert status == 0
    assert api.trial_records(study) == before
    (probes,) = read_probes(study.engine, study.study_id).values()
    assert len(probes) == len(re.findall(r"probe \d+ of", err)) > 0
    assert all(probe.ms_mean > 5 * 8 for probe in probes)
    assert "without a measured step" not in text


def test_an_epoch_of_a_program_is_probed_where_it_is_allowed(run, monkeypatch):
    program = Path(__file__).parents[1] / "support" / "own_program.py"
    monkeypatch.setenv("PYTHONPATH", str(program.parents[2]))
    train, search = {"command": ["python", str(program)], "epochs": 3}, {"params.x": [1.0]}
    document = {**SPEC, "name": "program", "train": train, "search": search}
    study = api.create_study(StudySpec.from_document(document))
    ask = ("recommend", "program", "--budget", "1s", "--probe", "1m", "--device", "cpu", "--threads", "1")
    assert "--allow-command" in run(*ask)[2]
    assert not read_probes(study.engine, study.study_id)
    run(*ask, "--allow-command", f"python {program}")
    ((probe,),) = read_probes(study.engine, study.study_id).values()
    assert probe.ms_mean > 0
