"""Small studies, made results, and what tests do with both."""

import math

import numpy as np
import sqlalchemy as sa

from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import writing
from budgettune.storage.schema import trial_heartbeats, utc_in
from budgettune.storage.trials import trial_records

SEARCH = {"scale": [1.0, 1.4], "prune_rate": [0.0, 0.3]}
RANGES = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "batch_size": {"low": 16, "high": 64, "step": 8}}


SPEC = StudySpec.from_document({"name": "ours", "search": {"scale": [1.0, 1.4], "prune_rate": [0.0, 0.3]}})


def grid(name="study", search=SEARCH, **sampler):
    return StudySpec.from_document({"name": name, "search": search, "sampler": sampler})


def sampled(sampler="tpe", search=None, name="study", **options):
    search = search or {**RANGES, "scale": [1.0, 1.2]}
    return StudySpec.from_document({"name": name, "search": search, "sampler": {"name": sampler, **options}})


def machine(device_name="cpu"):
    return MachineInfo(hostname="box", device="cpu", device_name=device_name, threads=2)


def result(train_seconds=10.0, test_accuracy=0.9, device_name="cpu"):
    """Return what training gave, with a number that no JSON has."""
    epochs = [
        EpochRecord(epoch=epoch, train_seconds=5.0 * (epoch + 1), steps=4, samples=64, loss=0.5, value=0.8)
        for epoch in range(2)
    ]
    return TrialResult(
        train_seconds=train_seconds,
        value=test_accuracy,
        keep_fraction=0.75,
        epochs=2,
        steps=8,
        samples=128,
        parameters=1_000,
        multiply_adds=2_000,
        step_ms_median=1.5,
        step_ms_mad=math.nan,
        peak_memory_mb=100.0,
        final_lr=0.0,
        seed=1,
        precision="fp32",
        weights_sha256="abc",
        curve=tuple(epochs),
        phases=PhaseSeconds(plan=0.1, step=9.0, observe=0.2),
        machine=machine(device_name),
    )


RESULT = result(2.0, 0.5)


def let_lease_run_out(study):
    """Make the last sign of life of every running trial an hour old."""
    with writing(study.engine) as connection:
        connection.execute(sa.update(trial_heartbeats).values(heartbeat=utc_in(-3600)))


def records(study):
    return trial_records(study.engine, study.study_id)


def work_off(study, **values):
    while (claim := study.claim()) is not None:
        assert study.complete(claim, result(**values))


def curve(seconds, error, *, epochs=10, start=0.9, noise=0.0, rng=None):
    """Return a curve whose error falls evenly in its logarithm, from `start` to its last point."""
    errors = np.exp(np.linspace(math.log(start), math.log(error), epochs + 1)[1:])
    if noise:
        errors[:-1] *= np.exp(rng.normal(0.0, noise, epochs - 1))
    ends = np.linspace(0.0, seconds, epochs + 1)[1:]
    return tuple(
        EpochRecord(epoch=epoch, train_seconds=float(end), steps=1, samples=1, loss=1.0, value=float(1.0 - each))
        for epoch, (end, each) in enumerate(zip(ends, errors, strict=True))
    )


def statements_of(study, call):
    """Return how many statements a call sends."""
    sent = []

    def note(_connection, _cursor, statement, *_):
        sent.append(statement)

    sa.event.listen(study.engine, "before_cursor_execute", note)
    call()
    sa.event.remove(study.engine, "before_cursor_execute", note)
    return len([statement for statement in sent if not statement.startswith("BEGIN")])


def lost_claim(study):
    claim = study.claim()
    let_lease_run_out(study)
    assert study.reconcile().lost == 1
    return claim
