"""A study's finished trials as one compressed file: how it is made from a database, and how `predict.py` reads it."""

from __future__ import annotations

import json
import lzma
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from budgettune import api
from budgettune.errors import UsageError
from budgettune.predict.run_time import TimeModel
from budgettune.predict.workload import Workload, Workloads
from budgettune.records import MachineInfo, StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import reading
from budgettune.storage.studies import add_probes, machine_keys, read_probes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


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
    with reading(handle.engine) as connection:
        kinds = machine_keys(connection, handle.study_id)
    if len(trials) != wanted or len(kinds) != 1:
        raise UsageError(f"{len(trials)} of {wanted} trials on {len(kinds)} kinds of machine: finish the study on one")
    machine = trials[0].machine
    assert machine is not None  # every finished trial has one
    probes = read_probes(handle.engine, handle.study_id).get(kinds[0], [])
    return Table(handle.spec, machine, tuple(trials), tuple(probes))


def probe(study: str, storage: str | None, threads: int) -> Sequence[StepProbe]:
    """Probe every step of a study, those that trials have timed too, and keep the probes with it."""
    import torch

    from budgettune.predict.predictor import candidate_workloads
    from budgettune.training.device import Device
    from budgettune.worker.probing import probe_steps

    torch.set_num_threads(threads)
    device = torch.device("cpu")
    handle = api.load_study(study, storage=storage)
    distinct = {one.step: one for one in candidate_workloads(Workloads(handle.spec, []), [])}
    probes = probe_steps(list(distinct.values()), device, say=lambda line: print(line, flush=True))
    add_probes(handle.engine, handle.study_id, Device(device).machine().key, probes)
    return probes


class Grid:
    """A table as cells with the runs of each.

    Args:
        table: every cell with equally many runs.

    Attributes:
        cells: in the order of the grid.
        seconds: float64[cells, runs].
        accuracies: float64[cells, runs].
    """

    def __init__(self, table: Table) -> None:
        self.table, self.workloads = table, Workloads(table.spec, table.trials)
        by_cell: dict[Workload, list[TrialRecord]] = defaultdict(list)
        for trial in table.trials:
            by_cell[self.workloads.of(trial.params)].append(trial)
        self.cells, self._runs = list(by_cell), list(by_cell.values())
        self.seconds = np.array([[run.train_seconds for run in runs] for runs in self._runs], dtype=float)
        self.accuracies = np.array([[run.test_accuracy for run in runs] for runs in self._runs], dtype=float)

    def draw(self, cells: Ints, rng: np.random.Generator) -> list[TrialRecord]:
        """Return one run of each of some cells."""
        return [self._runs[cell][rng.integers(len(self._runs[cell]))] for cell in cells.tolist()]

    @cached_property
    def future(self) -> Floats:
        """Seconds that a run of each cell may take another day: float64[cells, chances].

        Runs of a cell were recorded one after the other, so they share what the machine did in those minutes. Here a
        cell's time is what all runs of its step say, times what any run lay off such a time.
        """
        times = TimeModel(self.workloads, self.table.trials).of(self.cells)
        epochs = len(self.table.trials[0].curve)
        steady = np.array([[time.at(epochs).median_seconds] for time in times])
        return steady * (self.seconds / steady).reshape(1, -1)

    @cached_property
    def noise_ceiling(self) -> float:
        """Share of the variance of cells' mean accuracies that is not their seeds'."""
        seeds = self.accuracies.var(axis=1, ddof=1).mean() / self.accuracies.shape[1]
        return float(1 - seeds / self.accuracies.mean(1).var(ddof=1))
