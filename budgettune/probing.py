"""Time the steps of a study that nobody has timed on this kind of machine, and keep what they took with the study."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

import torch

from budgettune import query
from budgettune.predict.candidates import unmeasured
from budgettune.predict.probe import probe_steps
from budgettune.probes import add_probes, read_probes
from budgettune.records import StepProbe
from budgettune.spec import StudySpec
from budgettune.training.device import Device

if TYPE_CHECKING:
    import sqlalchemy as sa


def probe_study(
    engine: sa.Engine,
    study_id: int,
    spec: StudySpec,
    device: torch.device,
    *,
    limit_seconds: float,
    allow_import: Collection[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> tuple[str, list[StepProbe]]:
    """Probe what neither a finished trial nor a probe of this kind of machine has timed.

    Args:
        engine: from `open_engine`.
        study_id: from `find_study`.
        spec: of the study.
        device: to train on; the threads are those that the process has.
        limit_seconds: after which no further probe begins.
        allow_import: packages that code named in the spec may come from.
        say: told what happens, a line at a time.

    Returns:
        The kind of machine, and the new probes.

    Raises:
        DataError: where images that are not built in cannot be read.
        StudyNotFound: where the study was deleted meanwhile.
    """
    kind = Device(device).machine().key
    records = query.trial_records(engine, study_id, documents=False)
    known = read_probes(engine, study_id).get(kind, [])
    workloads = unmeasured(spec, records, known, kind)
    found = probe_steps(workloads, device, limit_seconds=limit_seconds, allow_import=allow_import, say=say)
    if found:
        add_probes(engine, study_id, kind, found)
    return kind, found
