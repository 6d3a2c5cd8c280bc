"""Studies of any size in seconds, for tests and benchmarks: complete trials with curves, phases and a made-up law.

Time grows with the scale's square and falls with what is pruned; accuracy saturates; each trial has noise of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from budgettune.records import NUMERIC_ATTRIBUTES, EpochRecord, MachineInfo, PhaseSeconds, TrialRecord
from budgettune.rows import NewTrial, StoredParam, insert_trials
from budgettune.sampling import search_space, stored_params
from budgettune.spec import RangeSpec, StudySpec
from budgettune.storage import writing
from budgettune.study import StudyHandle, create_study

ROWS_PER_TRANSACTION = 500
BOX = MachineInfo(
    hostname="box", device="cpu", device_name="Abacus 9000", cpu="Abacus 9000", cores=8, threads=4, memory_mb=32_000,
    platform="Linux", python="3.11.7", torch="2.14.1",
)  # fmt: skip


PAPER_SEARCH = {
    "scale": [1.0, 1.1, 1.2, 1.3, 1.4],
    "prune_rate": [0.0, 0.1, 0.2, 0.3],
    "batch_size": [50, 100, 200, 400],
}


def make_study(
    url: str, records: Sequence[TrialRecord], search: Mapping[str, Any] = PAPER_SEARCH, name: str = "synthetic"
) -> StudyHandle:
    """Create a study that holds the records that `make_records` made."""
    document = {"name": name, "search": search, "sampler": {"name": "random"}}
    study = create_study(StudySpec.from_document(document), url)
    space = search_space(study.spec)
    rows = [_row(record, stored_params(space, record.params)) for record in records]
    for begin in range(0, len(rows), ROWS_PER_TRANSACTION):
        with writing(study.engine) as connection:
            insert_trials(connection, study.study_id, rows[begin : begin + ROWS_PER_TRANSACTION])
    return study


def make_records(
    trials: int,
    *,
    search: Mapping[str, Any] = PAPER_SEARCH,
    epochs: int = 10,
    repeats: int = 1,
    machines: Sequence[MachineInfo] = (BOX,),
    seed: int = 0,
) -> list[TrialRecord]:
    """Return complete trials of random points, one in ten of them disturbed; the machines take turns."""
    rng = random.Random(seed)
    axes = StudySpec.from_document({"name": "law", "search": search, "sampler": {"name": "random"}}).search
    points = [{name: _value(axis, rng) for name, axis in axes.items()} for _ in range(-(-trials // repeats))]
    return [
        _record(number, points[number // repeats], number % repeats, machines[number % len(machines)], rng, epochs)
        for number in range(trials)
    ]


def _value(axis: Any, rng: random.Random) -> Any:
    if not isinstance(axis, RangeSpec):
        return rng.choice(axis)
    low, high = (math.log(end) if axis.log else end for end in (axis.low, axis.high))
    value = rng.uniform(low, high)
    value = math.exp(value) if axis.log else value
    return round(value) if axis.is_int else min(max(value, axis.low), axis.high)


def _row(record: TrialRecord, params: tuple[StoredParam, ...]) -> NewTrial:
    names = ("cell", "repeat", "attempt", "seed", "status", "device_name", *NUMERIC_ATTRIBUTES)
    documents = {name: record.to_json()[name] for name in ("curve", "phases", "machine")}
    attributes = {name: getattr(record, name) for name in names} | documents
    return NewTrial("COMPLETE", attributes, params=params, values=(record.train_seconds, record.test_accuracy))


def _record(
    number: int, params: Mapping[str, Any], repeat: int, machine: MachineInfo, rng: random.Random, epochs: int
) -> TrialRecord:
    scale, prune = float(params.get("scale", 1.0)), float(params.get("prune_rate", 0.0))
    batch = float(params.get("batch_size", 128))
    keep = 1 - 0.8 * prune
    seconds = 60 * scale**2 * keep * (1 + 20 / batch) * rng.lognormvariate(0, 0.03)
    best = 0.95 - 0.12 / scale**2 - 0.08 * prune**2 - 0.02 * abs(math.log(batch / 150)) + rng.gauss(0, 0.004)
    curve = tuple(
        EpochRecord(
            epoch=epoch,
            train_seconds=seconds * (epoch + 1) / epochs,
            steps=10,
            samples=round(1000 * keep),
            loss=2.0 * math.exp(-3 * epoch / epochs),
            accuracy=best * (1 - 0.8 * math.exp(-4 * (epoch + 1) / epochs)),
        )
        for epoch in range(epochs)
    )
    phases = PhaseSeconds(
        plan=0.01 * seconds,
        data=0.12 * seconds,
        step=0.85 * seconds,
        observe=0.01 * seconds,
        load=1.5,
        build=0.2,
        warmup=1.0,
        evaluate=0.1 * seconds,
    )
    return TrialRecord(
        number=number,
        state="COMPLETE",
        params=params,
        train_seconds=seconds,
        test_accuracy=curve[-1].accuracy,
        cell=number,
        repeat=repeat,
        attempt=1,
        seed=rng.randrange(2**31),
        status="disturbed" if rng.random() < 0.1 else "clean",
        keep_fraction=keep,
        epochs=epochs,
        steps=10 * epochs,
        parameters=round(270_000 * scale**2),
        multiply_adds=round(40e6 * scale**2),
        prune_seconds=phases.pruning,
        step_ms_median=100 * seconds / epochs,
        peak_memory_mb=800 * scale,
        device_name=machine.key,
        completed_at=f"2026-01-01T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
        curve=curve,
        phases=phases,
        machine=machine,
    )
