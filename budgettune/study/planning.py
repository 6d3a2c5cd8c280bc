"""From what a study needs to the rows that it gets."""

from __future__ import annotations

from collections.abc import Sequence

from budgettune.spec.study_spec import StudySpec
from budgettune.storage.writes import NewTrial
from budgettune.study.ledger import Cells, Queued


def trial_keys(spec: StudySpec, queued: Queued) -> dict[str, int]:
    """Return the user attributes that say which cell, repeat and attempt a trial is."""
    cell, repeat = queued.slot
    return {"cell": cell, "repeat": repeat, "attempt": queued.attempt, "seed": spec.trial_seed(cell, repeat)}


def new_trials(spec: StudySpec, queue: Sequence[Queued]) -> list[NewTrial]:
    """Return the waiting rows of slots; the params of a grid cell come from the spec, others from an earlier trial."""
    if not queue:
        return []
    if spec.sampler.name != "grid":
        return [NewTrial("WAITING", trial_keys(spec, each), params_of=each.source) for each in queue]
    from budgettune.study.sampling import grid_params

    params = grid_params(spec)
    return [NewTrial("WAITING", trial_keys(spec, each), params=params[each.slot.cell]) for each in queue]


def first_trials(spec: StudySpec) -> list[NewTrial]:
    """Return the rows that a study begins with."""
    return new_trials(spec, Cells(spec, ()).to_queue())
