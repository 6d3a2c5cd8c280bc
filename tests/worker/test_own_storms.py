"""Storms over own training code: stopped, killed and out of memory again and again, it ends as if nothing had been."""

import itertools
import random
import signal
import time
from pathlib import Path

import pytest

from budgettune.spec.study_spec import StudySpec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from tests.support.processes import command, wait_until
from tests.support.studies import let_lease_run_out

pytestmark = pytest.mark.chaos

HERE = Path(__file__).parent
LOOP = {"loop": "tests.support.own_training:train", "epochs": 12}
PROGRAM = {"command": ["python", str(HERE.parent / "support" / "storm_program.py")], "epochs": 12}
SPEC = {
    "name": "storm",
    "train": LOOP,
    "params": {"step_seconds": 0.02},
    "search": {"params.x": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]},
    "objective": {"name": "distance", "direction": "minimize"},
    "sampler": {"max_attempts": 40},
}


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "spool"))
    monkeypatch.setenv("MARKER", str(tmp_path / "killed"))


def ended(study):
    """Return of each complete trial what must not depend on how often it was cut off."""
    storage = study.storage
    return {
        record.cell: (record.value, record.measures, [point.value for point in record.curve], kept["weights_sha256"])
        for record in trial_records(study.engine, study.study_id, states=["COMPLETE"])
        for kept in [
            storage.get_trial(storage.get_trial_id_from_study_id_trial_number(study.study_id, record.number)).user_attrs
        ]
    }


@pytest.mark.parametrize(("train", "misbehaves"), [(LOOP, ""), (LOOP, "die once"), (PROGRAM, "die once")])
def test_each_trial_counts_once_and_ends_as_without_a_storm(storage_url, tmp_path, train, misbehaves):
    calm = create_study(StudySpec.from_document({**SPEC, "name": "calm"}), f"sqlite:///{tmp_path / 'calm.db'}")
    run_worker(calm.url, "calm", WorkerOptions(device="cpu", threads=1, allow_import=frozenset(["tests"])))
    spec = {**SPEC, "train": train, "params": {**SPEC["params"], "misbehave": misbehaves}}
    study, chance = create_study(StudySpec.from_document(spec), storage_url), random.Random(2)
    allowed = ("--allow-import", "tests", "--allow-command", f"python {PROGRAM['command'][1]}")
    words = ("storm", *allowed, "--device", "cpu", "--checkpoint-every", "0s")
    deadline = time.monotonic() + 300
    for number in itertools.count():
        if study.is_finished():
            break
        assert time.monotonic() < deadline, study.counts()
        workers = [command(storage_url, *words) for _ in range(2)]
        wait_until(lambda: study.counts()["RUNNING"] > 0 or study.is_finished())
        time.sleep(chance.uniform(0.3, 2.0))
        for index, worker in enumerate(workers):
            worker.send_signal(signal.SIGKILL if (number + index) % 2 else signal.SIGTERM)
        said = [worker.communicate(timeout=60)[1] for worker in workers]
        assert train is PROGRAM or not any("Traceback" in text for text in said), said
        let_lease_run_out(study)
        study.reconcile()
    assert study.verify().whole
    assert ended(study) == ended(calm)
    failures = {(record.failure or "").partition(":")[0] for record in trial_records(study.engine, study.study_id)}
    assert failures >= {"interrupted", "lost"}
    assert not misbehaves or "out-of-memory" in failures
