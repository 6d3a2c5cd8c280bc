"""Studies without training: plausible results, and whole studies of them written in bulk. No torch."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from budgettune.cells import Queued, Slot
from budgettune.planning import trial_keys
from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, TrialResult, trial_attributes
from budgettune.rows import NewTrial, insert_trials, lock_study
from budgettune.sampling import search_space, stored_params
from budgettune.slots import note_machine_kind
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


def axes(cells: int) -> dict[str, list[Any]]:
    """Return the lists of a grid over three params, of that many cells (a multiple of 40)."""
    return {
        "scale": [1.0, 2.0, 3.0, 4.0],
        "prune_rate": [rate / 20 for rate in range(10)],
        "train.batch_size": list(range(1, cells // 40 + 1)),
    }


def grid(name: str, cells: int) -> StudySpec:
    """Return a study file with that grid."""
    document = {"name": name, "data": {"name": "cifar10"}, "pruning": {"strategy": "random"}, "search": axes(cells)}
    return StudySpec.from_document(document)


def objectives(rng: random.Random) -> tuple[float, float]:
    """Return training seconds and accuracy: slower trials are more accurate, with noise."""
    seconds = rng.uniform(20, 200)
    return seconds, 0.9 - 6 / seconds + rng.gauss(0, 0.01)


def result(rng: random.Random) -> TrialResult:
    """Return what training might have given, with a curve of 30 epochs."""
    seconds, accuracy = objectives(rng)
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
    with writing(study.engine) as connection:
        note_machine_kind(connection, study.study_id, MACHINE.key)
    # Few documents and many points: the documents are most of the bytes, and their contents do not matter.
    documents = [trial_attributes(result(rng)) for _ in range(100)]
    for first in range(0, trials, TRIALS_PER_TRANSACTION):
        cells = range(first, min(first + TRIALS_PER_TRANSACTION, trials))
        new = [_complete(study.spec, cell, documents[cell % len(documents)], rng) for cell in cells]
        with writing(study.engine) as connection:
            lock_study(connection, study.study_id)
            insert_trials(connection, study.study_id, new)
    return study


def _complete(spec: StudySpec, cell: int, documents: Mapping[str, Any], rng: random.Random) -> NewTrial:
    params = {
        "scale": rng.uniform(1.0, 1.4),
        "prune_rate": rng.uniform(0.0, 0.5),
        "batch_size": rng.randrange(100, 1_001, 100),
    }
    attributes = {**trial_keys(spec, Queued(Slot(cell, repeat=0), attempt=1)), **documents}
    return NewTrial("COMPLETE", attributes, stored_params(search_space(spec), params), values=objectives(rng))
