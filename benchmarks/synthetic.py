"""Studies of any size in seconds, for tests and benchmarks: complete trials with curves, phases and a made-up law.

Time grows with the scale's square and falls with what is pruned; accuracy saturates; each trial has noise of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, TrialResult, trial_attributes
from budgettune.rows import NewTrial, insert_trials
from budgettune.sampling import search_space, stored_params
from budgettune.spec import RangeSpec, StudySpec
from budgettune.storage import writing
from budgettune.study import StudyHandle, create_study

ROWS_PER_TRANSACTION = 500
BOX = MachineInfo(
    hostname="box", device="cpu", device_name="Abacus 9000", cpu="Abacus 9000", cores=8, threads=4, memory_mb=32_000,
    platform="Linux", python="3.11.7", torch="2.14.1",
)  # fmt: skip


def make_study(
    url: str,
    trials: int,
    *,
    search: Mapping[str, Any] | None = None,
    epochs: int = 10,
    repeats: int = 1,
    name: str = "synthetic",
    machines: Sequence[MachineInfo] = (BOX,),
    seed: int = 0,
) -> StudyHandle:
    """Create a study that holds complete trials of random points (the paper's axes where `search` is None).

    Every tenth trial or so is disturbed; the machines take turns.
    """
    document = {"name": name, "search": search or PAPER_SEARCH, "train": {"epochs": epochs}}
    document["sampler"] = {"name": "random", "repeats": repeats}
    study = create_study(StudySpec.from_document(document), url)
    rng = random.Random(seed)
    points = [_point(study.spec, rng) for _ in range(-(-trials // repeats))]
    rows = [
        _row(study.spec, number // repeats, number % repeats, points[number // repeats], machines, rng, epochs)
        for number in range(trials)
    ]
    for begin in range(0, trials, ROWS_PER_TRANSACTION):
        with writing(study.engine) as connection:
            insert_trials(connection, study.study_id, rows[begin : begin + ROWS_PER_TRANSACTION])
    return study


PAPER_SEARCH = {
    "scale": [1.0, 1.1, 1.2, 1.3, 1.4],
    "prune_rate": [0.0, 0.1, 0.2, 0.3],
    "batch_size": [50, 100, 200, 400],
}


def _point(spec: StudySpec, rng: random.Random) -> dict[str, Any]:
    return {name: _value(axis, rng) for name, axis in spec.search.items()}


def _value(axis: Any, rng: random.Random) -> Any:
    if not isinstance(axis, RangeSpec):
        return rng.choice(axis)
    low, high = (math.log(end) if axis.log else end for end in (axis.low, axis.high))
    value = rng.uniform(low, high)
    value = math.exp(value) if axis.log else value
    return round(value) if axis.is_int else min(max(value, axis.low), axis.high)


def _row(
    spec: StudySpec,
    cell: int,
    repeat: int,
    params: Mapping[str, Any],
    machines: Sequence[MachineInfo],
    rng: random.Random,
    epochs: int,
) -> NewTrial:
    result = _result(params, machines[(cell + repeat) % len(machines)], rng, epochs)
    keys = {"cell": cell, "repeat": repeat, "attempt": 1, "seed": result.seed}
    return NewTrial(
        "COMPLETE",
        {**keys, **trial_attributes(result)},
        params=stored_params(search_space(spec), params),
        values=(result.train_seconds, result.test_accuracy),
    )


def _result(params: Mapping[str, Any], machine: MachineInfo, rng: random.Random, epochs: int) -> TrialResult:
    scale, prune = float(params.get("scale", 1.0)), float(params.get("prune_rate", 0.0))
    batch = float(params.get("batch_size", 128))
    keep = 1 - 0.8 * prune
    seconds = 60 * scale**2 * keep * (1 + 20 / batch) * rng.lognormvariate(0, 0.03)
    best = 0.95 - 0.12 / scale**2 - 0.08 * prune**2 - 0.02 * abs(math.log(batch / 150)) + rng.gauss(0, 0.004)
    accuracy = [best * (1 - 0.8 * math.exp(-4 * (epoch + 1) / epochs)) for epoch in range(epochs)]
    curve = tuple(
        EpochRecord(
            epoch=epoch,
            train_seconds=seconds * (epoch + 1) / epochs,
            steps=10,
            samples=round(1000 * keep),
            loss=2.0 * math.exp(-3 * epoch / epochs),
            accuracy=value,
        )
        for epoch, value in enumerate(accuracy)
    )
    return TrialResult(
        train_seconds=seconds,
        test_accuracy=accuracy[-1],
        keep_fraction=keep,
        epochs=epochs,
        steps=10 * epochs,
        samples=round(1000 * keep) * epochs,
        parameters=round(270_000 * scale**2),
        multiply_adds=round(40e6 * scale**2),
        step_ms_median=100 * seconds / epochs,
        step_ms_mad=1.0,
        peak_memory_mb=800 * scale,
        final_lr=0.0,
        seed=rng.randrange(2**31),
        precision="fp32",
        weights_sha256="0" * 64,
        curve=curve,
        phases=PhaseSeconds(
            plan=0.01 * seconds,
            data=0.12 * seconds,
            step=0.85 * seconds,
            observe=0.01 * seconds,
            load=1.5,
            build=0.2,
            warmup=1.0,
            evaluate=0.1 * seconds,
        ),
        machine=machine,
        status="disturbed" if rng.random() < 0.1 else "clean",
    )
