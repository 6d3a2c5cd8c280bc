"""Configurations to choose among: the cells of a grid, or points drawn from a large search space."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from budgettune.predict.workload import Workload, Workloads
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import IMAGE_SHAPES, RangeSpec, Scalar, is_code

SAMPLE = 1_000
"""Points of a search space with ranges or more cells than that; what ran is added to them."""

LASTING = ("non-finite-loss", "out-of-memory")
"""Failures that would come again."""


def candidates(workloads: Workloads, records: Sequence[TrialRecord]) -> list[Workload]:
    """Return what may be recommended: the search space and what ran, without what is known to fail.

    Args:
        workloads: of the study.
        records: of all its trials.
    """
    spec = workloads.spec
    has_ranges = any(isinstance(axis, RangeSpec) for axis in spec.search.values())
    points = _sample(spec) if has_ranges or spec.cell_count() > SAMPLE else spec.cells()
    ran = [record.params for record in records if record.state == "COMPLETE"]
    broken = [record.params for record in records if (record.failure or "").startswith(LASTING)]
    failing = {workloads.find(params) for params in broken} - {workloads.find(params) for params in ran}
    found = dict.fromkeys(workloads.find(params) for params in [*points, *ran])
    return [workload for workload in found if workload is not None and workload not in failing]


def unmeasured(
    spec: StudySpec, records: Sequence[TrialRecord], probes: Iterable[StepProbe], device_name: str
) -> list[Workload]:
    """Return one candidate for each step that nobody has timed on a kind of machine and that a probe can time.

    Nothing of a set or a model of your own: a probe trains on random images, and knows the shapes of the built-in sets
    only; steps are told apart by the arithmetic of the package's own networks.

    Args:
        spec: of the study.
        records: of its trials, in any state.
        probes: taken on that kind of machine.
        device_name: of it.
    """
    if spec.data.name not in IMAGE_SHAPES or is_code(spec.model.name):
        return []
    workloads = Workloads(spec, records)
    ran = [one.params for one in records if one.state == "COMPLETE" and one.device_name == device_name]
    timed = {probe.step for probe in probes}
    timed |= {workload.step for params in ran if (workload := workloads.find(params)) is not None}
    distinct = {workload.step: workload for workload in candidates(workloads, records)}
    return [workload for step, workload in distinct.items() if step not in timed]


def _sample(spec: StudySpec) -> list[dict[str, Scalar]]:
    places = np.random.default_rng(0).random((SAMPLE, len(spec.search)))
    return [
        {name: _value(axis, place) for (name, axis), place in zip(spec.search.items(), row, strict=True)}
        for row in places.tolist()
    ]


def _value(axis: tuple[Scalar, ...] | RangeSpec, place: float) -> Scalar:
    """Return what lies at a place in [0, 1) of an axis."""
    if not isinstance(axis, RangeSpec):
        return axis[int(place * len(axis))]
    step = axis.step or (1 if axis.is_int and not axis.log else None)
    if step is not None:
        return axis.low + int(place * (math.floor((axis.high - axis.low) / step + 1e-9) + 1)) * step
    if not axis.log:
        return axis.low + place * (axis.high - axis.low)
    value = math.exp(math.log(axis.low) + place * math.log(axis.high / axis.low))
    return round(value) if axis.is_int else value
