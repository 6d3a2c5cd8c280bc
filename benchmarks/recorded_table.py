"""A study's finished trials as one compressed file: what `predict.py` reads, and how it is made from a database."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from budgettune import api, query
from budgettune.errors import UsageError
from budgettune.probes import add_probes, read_probes
from budgettune.records import MachineInfo, StepProbe, TrialRecord
from budgettune.spec import StudySpec


@dataclass(frozen=True)
class Table:
    """Trials of every cell of a grid, each with several seeds, and a probe of every step.

    Attributes:
        machine: that all of it ran on.
    """

    spec: StudySpec
    machine: MachineInfo
    trials: tuple[TrialRecord, ...]
    probes: tuple[StepProbe, ...]


def write(table: Table, file: Path) -> None:
    """Write a table; what tells of the box (host name, folders) stays out."""
    spec = table.spec.to_document()
    spec["data"].pop("root", None)
    document = {
        "spec": spec,
        "machine": asdict(table.machine) | {"hostname": "", "device_uuid": None},
        "trials": [_plain(trial) for trial in table.trials],
        "probes": [probe.to_json() for probe in table.probes],
    }
    file.write_bytes(lzma.compress(json.dumps(document).encode(), preset=9))


def _plain(trial: TrialRecord) -> dict[str, Any]:
    return trial.to_json() | {"machine": None}


def read(file: Path) -> Table:
    """Return the table that `write` wrote."""
    document = json.loads(lzma.decompress(file.read_bytes()))
    return Table(
        spec=StudySpec.from_document(document["spec"]),
        machine=MachineInfo(**document["machine"]),
        trials=tuple(TrialRecord.from_json(trial) for trial in document["trials"]),
        probes=tuple(StepProbe(**probe) for probe in document["probes"]),
    )


def of_study(study: str, storage: str | None) -> Table:
    """Return a finished study as a table.

    Raises:
        UsageError: where a cell or repeat is missing, or times come from more than one kind of machine.
    """
    handle = api.load_study(study, storage=storage)
    trials = [trial for trial in api.trial_records(handle) if trial.state == "COMPLETE" and not trial.extra]
    wanted = len(handle.spec.cells()) * handle.spec.sampler.repeats
    kinds = query.device_names(handle.engine, handle.study_id)
    if len(trials) != wanted or len(kinds) != 1:
        raise UsageError(f"{len(trials)} of {wanted} trials on {len(kinds)} kinds of machine: finish the study on one")
    machine = trials[0].machine
    assert machine is not None  # every finished trial has one
    probes = read_probes(handle.engine, handle.study_id).get(kinds[0], [])
    return Table(handle.spec, machine, tuple(trials), tuple(probes))


def probe(study: str, storage: str | None, threads: int) -> Sequence[StepProbe]:
    """Probe every step of a study, those that trials have timed too, and keep the probes with it."""
    import torch

    from budgettune.predict.candidates import candidates
    from budgettune.predict.workload import Workloads
    from budgettune.probing import probe_steps
    from budgettune.training.device import Device

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    handle = api.load_study(study, storage=storage)
    distinct = {one.step: one for one in candidates(Workloads(handle.spec, []), [])}
    found = probe_steps(list(distinct.values()), device, say=lambda line: print(line, flush=True))
    add_probes(handle.engine, handle.study_id, Device(device).machine().key, found)
    return found
