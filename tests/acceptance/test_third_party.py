"""What other people's tools make of our database."""

import json
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from budgettune.spec.study_spec import load_spec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from budgettune.study.pareto import pareto_front
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions


@pytest.fixture
def study(storage_url):
    spec = load_spec("digits").with_overrides(
        ["train.epochs=1", "search={scale = [1.0, 2.0], batch_size = [200, 400]}"]
    )
    study = create_study(spec, storage_url)
    run_worker(storage_url, study.name, WorkerOptions(device="cpu", trials=3))
    return study


def optuna_command(*words):
    program = Path(sys.executable).with_name("optuna")
    done = subprocess.run([program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_optunas_command_line_shows_our_trials_and_our_front(study):
    words = ("--storage", study.url, "--study-name", study.name, "-f", "json")
    trials = json.loads(optuna_command("trials", *words))
    assert [trial["state"] for trial in trials].count("COMPLETE") == 3
    best = {trial["number"] for trial in json.loads(optuna_command("best-trials", *words))}
    assert best == {record.number for record in pareto_front(study.engine, study.study_id)}


def test_optunas_library_reads_objectives_params_and_distributions(study):
    loaded = optuna.load_study(study_name=study.name, storage=study.storage)
    assert loaded.metric_names == ["train_seconds", "validation_accuracy"]
    assert [direction.name for direction in loaded.directions] == ["MINIMIZE", "MAXIMIZE"]
    frame = [(trial.number, trial.values) for trial in loaded.get_trials(states=[optuna.trial.TrialState.COMPLETE])]
    ours = trial_records(study.engine, study.study_id, states=["COMPLETE"])
    assert frame == [(record.number, [record.train_seconds, record.validation_accuracy]) for record in ours]
    waiting = loaded.get_trials(states=[optuna.trial.TrialState.WAITING])[0]
    assert set(waiting.params) == set(waiting.distributions) == {"scale", "batch_size"}
    assert {trial.number for trial in loaded.best_trials} == {
        record.number for record in pareto_front(study.engine, study.study_id)
    }
