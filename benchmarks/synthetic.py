"""Studies without training: plausible results, and whole studies of them written in bulk. No torch."""

from __future__ import annotations

import random
from collections.abc import Iterator

from budgettune.cells import Queued, Slot
from budgettune.planning import trial_keys
from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, TrialResult, trial_attributes
from budgettune.rows import NewTrial, insert_trials, lock_study
from budgettune.sampling import search_space, stored_params
from budgettune.spec import StudySpec
from budgettune.storage import writing
from budgettune.study import StudyHandle, create_study

EPOCHS = 30
TRIALS_PER_TRANSACTION = 2_000
SEARCH = {
    "scale": {"low": 1.0, "high": 1.4},
    "prune_rate": {"low": 0.0, "high": 0.5},
    "batch_size": {"low": 100, "high": 1000, "step": 100},
}
MACHINE = MachineInfo(
    hostname="box",
    device="cpu",
    device_name="Abacus",
    cpu="Abacus 2",
    cores=2,
    threads=2,
    memory_mb=24_000,
    platform="Linux",
    python="3.11",
    torch="2.14",
)


def grid(name: str, cells: int) -> StudySpec:
    """Return a study file whose grid has that many cells of three params."""
    search = {"train.batch_size": list(range(1, cells + 1)), "scale": [1.0], "prune_rate": [0.0]}
    return StudySpec.from_document({"name": name, "data": {"name": "cifar10"}, "search": search})


def result(rng: random.Random) -> TrialResult:
    """Return what training might have given: slower trials are more accurate, with noise; a curve of 30 epochs."""
    seconds = rng.uniform(20, 200)
    accuracy = 0.9 - 6 / seconds + rng.gauss(0, 0.01)
    curve = tuple(
        EpochRecord(
            epoch=epoch,
            train_seconds=seconds * (epoch + 1) / EPOCHS,
            steps=100,
            samples=12_800,
            loss=2.3 / (epoch + 1),
            accuracy=accuracy * (epoch + 1) / EPOCHS,
        )
        for epoch in range(EPOCHS)
    )
    return TrialResult(
        train_seconds=seconds,
        test_accuracy=accuracy,
        keep_fraction=0.76,
        epochs=EPOCHS,
        steps=100 * EPOCHS,
        samples=12_800 * EPOCHS,
        parameters=270_000,
        multiply_adds=41_000_000,
        step_ms_median=10 * seconds / EPOCHS,
        step_ms_mad=0.1,
        peak_memory_mb=900.0,
        final_lr=0.0,
        seed=0,
        precision="bf16",
        weights_sha256=f"{rng.getrandbits(256):064x}",
        curve=curve,
        phases=PhaseSeconds(plan=0.01, data=seconds / 10, step=0.9 * seconds, observe=0.01, load=1.0),
        machine=MACHINE,
        batch_shapes=(128,),
        architecture={"widths": [16, 32, 64], "blocks": 3},
        status="clean",
        evidence={"steal": 0.0, "sentinel": 1.01},
    )


def finished_study(url: str, trials: int) -> StudyHandle:
    """Create a study in which that many sampled trials are complete, through the package's own rows."""
    document = {"name": f"{trials} trials", "search": SEARCH, "sampler": {"name": "random", "trials": trials}}
    study = create_study(StudySpec.from_document(document), url)
    rng = random.Random(trials)
    for first in range(0, trials, TRIALS_PER_TRANSACTION):
        new = list(_complete(study.spec, range(first, min(first + TRIALS_PER_TRANSACTION, trials)), rng))
        with writing(study.engine) as connection:
            lock_study(connection, study.study_id)
            insert_trials(connection, study.study_id, new)
    return study


def _complete(spec: StudySpec, cells: range, rng: random.Random) -> Iterator[NewTrial]:
    space = search_space(spec)
    for cell in cells:
        params = {
            "scale": rng.uniform(1.0, 1.4),
            "prune_rate": rng.uniform(0.0, 0.5),
            "batch_size": rng.randrange(100, 1_001, 100),
        }
        got = result(rng)
        attributes = {**trial_keys(spec, Queued(Slot(cell, repeat=0), attempt=1)), **trial_attributes(got)}
        values = (got.train_seconds, got.test_accuracy)
        yield NewTrial("COMPLETE", attributes, stored_params(space, params), values=values)
