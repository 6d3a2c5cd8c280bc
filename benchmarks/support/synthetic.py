"""Trials and studies of any size without training, for tests and benchmarks: a made-up law, and noise. No torch.

Time grows with the scale's square and falls with what is pruned; accuracy saturates; each trial has noise of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from budgettune.records import (
    NUMERIC_ATTRIBUTES,
    EpochRecord,
    MachineInfo,
    PhaseSeconds,
    Slot,
    TrialRecord,
    TrialResult,
    trial_attributes,
)
from budgettune.spec.axes import RangeSpec
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import writing
from budgettune.storage.studies import add_machine_key
from budgettune.storage.writes import NewTrial, StoredParam, insert_trials
from budgettune.study.handle import StudyHandle, create_study
from budgettune.study.ledger import Queued
from budgettune.study.sampling import search_space, storing

ROWS_PER_TRANSACTION = 1_000
BOX = MachineInfo(
    hostname="box", device="cpu", device_name="Abacus 9000", cpu="Abacus 9000", cores=8, threads=4, memory_mb=32_000,
    platform="Linux", python="3.11.7", torch="2.14.1",
)  # fmt: skip


PAPER_SEARCH = {
    "scale": [1.0, 1.1, 1.2, 1.3, 1.4],
    "prune_rate": [0.0, 0.1, 0.2, 0.3],
    "batch_size": [50, 100, 200, 400],
}


def result(
    rng: random.Random, params: Mapping[str, Any] | None = None, *, epochs: int = 30, machine: MachineInfo = BOX
) -> TrialResult:
    """Return what training might have given; one in ten was disturbed."""
    params = params or {}
    scale, prune = float(params.get("scale", 1.0)), float(params.get("prune_rate", 0.0))
    batch = float(params.get("batch_size", 128))
    keep = 1 - prune
    seconds = 60 * scale**2 * keep * (1 + 20 / batch) * rng.lognormvariate(0, 0.03)
    best = 0.95 - 0.12 / scale**2 - 0.08 * prune**2 - 0.02 * abs(math.log(batch / 150)) + rng.gauss(0, 0.004)
    curve = tuple(
        EpochRecord(
            epoch=epoch,
            train_seconds=seconds * (epoch + 1) / epochs,
            steps=10,
            samples=round(1000 * keep),
            loss=2.0 * math.exp(-3 * epoch / epochs),
            value=best * (1 - 0.8 * math.exp(-4 * (epoch + 1) / epochs)),
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
    return TrialResult(
        train_seconds=seconds,
        value=best * (1 - 0.8 * math.exp(-4)),
        keep_fraction=keep,
        epochs=epochs,
        steps=10 * epochs,
        samples=round(1000 * keep) * epochs,
        parameters=round(270_000 * scale**2),
        multiply_adds=round(40e6 * scale**2),
        step_ms_median=100 * seconds / epochs,
        step_ms_mad=0.1,
        peak_memory_mb=800 * scale,
        final_lr=0.0,
        seed=rng.randrange(2**31),
        precision="bf16",
        weights_sha256=f"{rng.getrandbits(256):064x}",
        curve=curve,
        phases=phases,
        machine=machine,
        batch_shapes=(128,),
        architecture={"widths": [16, 32, 64], "blocks": 3},
        status="disturbed" if rng.random() < 0.1 else "clean",
        evidence={"steal": 0.0, "sentinel": 1.01},
    )


# --- Records --------------------------------------------------------------------------------------------------------


def make_records(
    trials: int,
    *,
    search: Mapping[str, Any] = PAPER_SEARCH,
    epochs: int = 10,
    repeats: int = 1,
    machines: Sequence[MachineInfo] = (BOX,),
    seed: int = 0,
) -> list[TrialRecord]:
    """Return complete trials of random points; the machines take turns."""
    rng = random.Random(seed)
    spec = StudySpec.from_document({"name": "law", "search": search, "sampler": {"name": "random"}})
    points = [_point(spec, rng) for _ in range(-(-trials // repeats))]
    return [
        _record(number, points[number // repeats], number % repeats, machines[number % len(machines)], rng, epochs)
        for number in range(trials)
    ]


def _point(spec: StudySpec, rng: random.Random) -> dict[str, Any]:
    return {name: _value(axis, rng) for name, axis in spec.search.items()}


def _value(axis: Any, rng: random.Random) -> Any:
    if not isinstance(axis, RangeSpec):
        return rng.choice(axis)
    low, high = (math.log(end) if axis.log else end for end in (axis.low, axis.high))
    value = rng.uniform(low, high)
    value = math.exp(value) if axis.log else value
    return round(value) if axis.is_int else min(max(value, axis.low), axis.high)


def _record(
    number: int, params: Mapping[str, Any], repeat: int, machine: MachineInfo, rng: random.Random, epochs: int
) -> TrialRecord:
    made = result(rng, params, epochs=epochs, machine=machine)
    same = ("train_seconds", "value", "seed", "status", "curve", "phases", "machine")
    numbers = {name: getattr(made, name) for name in NUMERIC_ATTRIBUTES if hasattr(made, name)}
    return TrialRecord(
        number=number,
        state="COMPLETE",
        params=params,
        cell=number,
        repeat=repeat,
        attempt=1,
        device_name=machine.key,
        prune_seconds=made.phases.pruning,
        completed_at=f"2026-01-01T{number // 3600:02d}:{number // 60 % 60:02d}:{number % 60:02d}+00:00",
        **{name: getattr(made, name) for name in same},
        **numbers,
    )


# --- Studies --------------------------------------------------------------------------------------------------------


def make_study(
    url: str,
    trials: int,
    *,
    search: Mapping[str, Any] = PAPER_SEARCH,
    epochs: int = 30,
    machines: Sequence[MachineInfo] = (BOX,),
) -> StudyHandle:
    """Create a study in which that many sampled trials are complete, through the package's own rows."""
    document = {"name": "synthetic", "search": search, "sampler": {"name": "random", "trials": trials}}
    study = create_study(StudySpec.from_document(document), url)
    space, rng = search_space(study.spec), random.Random(trials)
    with writing(study.engine) as connection:
        add_machine_key(connection, study.study_id, machines[0].key)
    for first in range(0, trials, ROWS_PER_TRANSACTION):
        points = [_point(study.spec, rng) for _ in range(first, min(first + ROWS_PER_TRANSACTION, trials))]
        rows = []
        for cell, params in enumerate(points, start=first):
            made = result(rng, params, epochs=epochs, machine=machines[cell % len(machines)])
            rows.append(complete_row(study.spec, cell, made, storing(space)(params)))
        with writing(study.engine) as connection:
            insert_trials(connection, study.study_id, rows)
    return study


def complete_row(spec: StudySpec, cell: int, made: TrialResult, params: tuple[StoredParam, ...]) -> NewTrial:
    """Return the row of a complete trial, as a worker leaves it."""
    attributes = Queued(Slot(cell, repeat=0), attempt=1).row_keys(spec) | trial_attributes(made)
    return NewTrial("COMPLETE", attributes, params, values=(made.train_seconds, made.test_accuracy))
