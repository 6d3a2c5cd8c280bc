"""Configurations to choose among: the cells of a grid, or a sample that fills a search space evenly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from budgettune.errors import SpecError
from budgettune.predict.workload import Workload, Workloads
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec import RangeSpec, Scalar, StudySpec

SAMPLE = 1_000
"""Points of a search space with ranges; what ran is added to them."""


def candidates(workloads: Workloads, records: Sequence[TrialRecord]) -> list[Workload]:
    """Return what may be recommended: the search space and what ran, without what is known to fail.

    Args:
        workloads: of the study.
        records: of all its trials.
    """
    spec = workloads.spec
    has_ranges = any(isinstance(axis, RangeSpec) for axis in spec.search.values())
    points = _sample(spec) if has_ranges else spec.cells()
    ran = [record.params for record in records if record.state == "COMPLETE"]
    failures = [record for record in records if record.state == "FAIL"]
    broken = [(workload, record.failure or "") for record in failures if (workload := _made(workloads, record.params))]
    made = [workload for params in [*points, *ran] if (workload := _made(workloads, params)) is not None]
    return [workload for workload in dict.fromkeys(made) if not _fails(workload, broken)]


def unmeasured(
    spec: StudySpec, records: Sequence[TrialRecord], probes: Iterable[StepProbe], device_name: str
) -> list[Workload]:
    """Return one candidate for each step that nobody has timed on a kind of machine.

    Args:
        spec: of the study.
        records: of its trials, in any state.
        probes: taken on that kind of machine.
        device_name: of it.
    """
    workloads = Workloads(spec, records)
    timed = {probe.step for probe in probes}
    timed |= {
        workload.step
        for record in records
        if record.state == "COMPLETE"
        and record.device_name == device_name
        and (workload := _made(workloads, record.params)) is not None
    }
    distinct = {workload.step: workload for workload in candidates(workloads, records)}
    return [workload for step, workload in distinct.items() if step not in timed]


def _made(workloads: Workloads, params: Mapping[str, Any]) -> Workload | None:
    """Return the workload of a point, None where its settings cannot work together."""
    try:
        return workloads.of(params)
    except SpecError:
        return None


def _fails(workload: Workload, broken: Iterable[tuple[Workload, str]]) -> bool:
    """Whether a trial has shown that this cannot be trained: it diverged, or it needs more memory than there is."""
    return any(
        (failure.startswith("non-finite-loss") and workload is failed)
        or (
            failure.startswith("out-of-memory")
            and workload.network == failed.network
            and workload.kind == failed.kind
            and workload.batch >= failed.batch
        )
        for failed, failure in broken
    )


def _sample(spec: StudySpec) -> list[dict[str, Scalar]]:
    """Return points of an additive recurrence that fill any number of dimensions evenly (Roberts 2018, *The
    Unreasonable Effectiveness of Quasirandom Sequences*: steps are powers of the generalised golden ratio).
    """
    ratio = 2.0
    for _ in range(64):
        ratio = (1 + ratio) ** (1 / (len(spec.search) + 1))
    steps = ratio ** -np.arange(1.0, len(spec.search) + 1)
    places = (0.5 + np.arange(1, SAMPLE + 1)[:, None] * steps) % 1.0
    return [
        {name: _value(axis, place) for (name, axis), place in zip(spec.search.items(), row, strict=True)}
        for row in places.tolist()
    ]


def _value(axis: tuple[Scalar, ...] | RangeSpec, place: float) -> Scalar:
    """Return what lies at a place in [0, 1) of an axis."""
    if not isinstance(axis, RangeSpec):
        return axis[int(place * len(axis))]
    if axis.is_int:
        return _whole(axis, place)
    if axis.step is not None:
        count = math.floor((axis.high - axis.low) / axis.step + 1e-9) + 1
        return axis.low + int(place * count) * axis.step
    return _between(axis, float(axis.low), float(axis.high), place)


def _whole(axis: RangeSpec, place: float) -> int:
    step, low, high = int(axis.step or 1), int(axis.low), int(axis.high)
    if not axis.log:
        return low + int(place * ((high - low) // step + 1)) * step
    return min(high, max(low, round(_between(axis, low - 0.5, high + 0.5, place))))


def _between(axis: RangeSpec, low: float, high: float, place: float) -> float:
    return math.exp(math.log(low) + place * math.log(high / low)) if axis.log else low + place * (high - low)

