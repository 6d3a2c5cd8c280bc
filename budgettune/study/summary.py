"""The studies of a database, each in a line."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache

from budgettune.errors import StorageError, StudyNotFound
from budgettune.records import MachineInfo, TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.answers import score_points, state_counts
from budgettune.storage.connection import Engine, open_engine, reading
from budgettune.storage.patience import READING_PATIENCE_SECONDS, asking_again
from budgettune.storage.slots import slot_rows
from budgettune.storage.studies import Prospect, StudyRow, all_studies, machine_keys, search_prospect
from budgettune.study.ledger import GivenUp, Ledger
from budgettune.text import format_duration, warn_once

logger = logging.getLogger(__name__)

# Between the end of a trial and the next beginning: longer means that no worker was there.
LONGEST_IDLE = timedelta(seconds=60)

BESIDE_THE_KEY = {
    "processor": ("cpu", ""),
    "driver": ("driver", ""),
    "power limit": ("power_limit_w", " W"),
    "clock limit": ("sm_clock_limit_mhz", " MHz"),
}
"""Of boxes with one machine key, what else a GPU's times depend on: the field of `MachineInfo`, and its unit."""


@dataclass(frozen=True)
class StudySummary:
    """A study in a line."""

    name: str
    cells: int | None  # cells × repeats that it wants; None for a sampled study without an end, or with a fault
    states: dict[str, int]  # trials of cells in each
    devices: tuple[str, ...]  # kinds of machine that its times come from
    train_seconds: float  # spent on the clock by all finished trials
    seconds_left: float | None  # at the present number of workers (one, where none runs); None where nothing tells
    given_up: tuple[GivenUp, ...] = ()
    fault: str | None = None  # why this budgettune cannot work on it, None where it can
    failure: str | None = None  # the latest, where some have failed and none has finished
    foreign: dict[str, int] = field(default_factory=dict)  # trials that another program added, by state; no zeros
    prospect: Prospect | None = None  # of the search, where a point of the objective has a price


def prospect_note(spec: StudySpec, prospect: Prospect) -> str:
    """Say how near a search is to its end by the price of a point."""
    point = "point" if spec.objective.is_accuracy else spec.objective.name
    price = spec.sampler.worth or 0.0
    trial = f"the next {'trial' if spec.sampler.first_repeats == 1 else 'point'}"
    gain = f"{prospect.gain:.2g} {point}{'s' if spec.objective.is_accuracy else ''}"
    seconds, worth = format_duration(prospect.seconds), format_duration(prospect.gain * price)
    of_price = f"worth {worth} at {format_duration(price)} a {point}"
    if prospect.has_ended:
        return f"the search has ended: {trial} was expected to gain {gain} for {seconds}, {of_price}"
    return f"{trial} is expected to gain {gain} for {seconds}, {of_price}: the search ends once none is worth its time"


def foreign_note(study: str, foreign: Mapping[str, int]) -> str | None:
    """Return in a sentence which trials of another program nobody counts, None where there are none."""
    counts = ", ".join(f"{count} {state.lower()}" for state, count in foreign.items() if count)
    if not counts:
        return None
    return (
        f"study {study!r}: not counted are trials of another program ({counts}): of those that wait, a sampled study "
        f"runs what fits its search until it has its trials, and a grid runs its own cells only"
    )


def machine_note(machines: Sequence[MachineInfo]) -> str | None:
    """Return in a sentence how boxes of one kind differ in what a GPU's times depend on, too; None where none does."""
    differing: list[str] = []
    for key in sorted({machine.key for machine in machines}):
        alike, mixed = [machine for machine in machines if machine.key == key], []
        for fact, (name, unit) in BESIDE_THE_KEY.items():
            values = sorted({f"{getattr(machine, name)}{unit}" for machine in alike if getattr(machine, name)})
            mixed += [f"{fact} ({', '.join(values)})"] if len(values) > 1 else []
        differing += [f"those of {key} differ in {', '.join(mixed)}"] if mixed else []
    if not differing:
        return None
    return f"these times come from boxes that are not quite alike: {'; '.join(differing)}"


def readable_studies(engine: Engine) -> list[StudyRow]:
    """Return our studies in order of creation; those that cannot be read are left out, with a warning.

    Raises:
        StudyNotFound: where there is none.
        StorageError: where there are some, and none of them can be read.
    """
    rows = [row for row in all_studies(engine) if row.spec_json is not None]
    if not rows:
        raise StudyNotFound("there is no study yet: make one with `budgettune study create`")
    faults = {row: _read(row)[1] for row in rows}
    if None not in faults.values():
        raise StorageError(str(faults[rows[0]]))
    for fault in filter(None, faults.values()):
        warn_once(logger, f"left out: {fault}")  # and not at every look of a worker that waits
    return [row for row, fault in faults.items() if fault is None]


@lru_cache(maxsize=64)  # of a worker that looks again and again
def _read(row: StudyRow) -> tuple[StudySpec | None, str | None]:
    """Return a study's spec, or why it cannot be read."""
    try:
        return row.read_spec(), None
    except StorageError as error:
        return None, str(error)


def list_studies(url: str) -> list[StudySummary]:
    """Return every study in order of creation, with its state and an estimate of the time left."""

    def summaries() -> list[StudySummary]:
        engine = open_engine(url)
        rows = [row for row in all_studies(engine) if row.spec_json is not None]
        return [summary_of(engine, row.study_id, row.name, *_read(row)) for row in rows]

    return asking_again(summaries, READING_PATIENCE_SECONDS)


def trials_per_hour(latest: Sequence[TrialRecord]) -> float | None:
    """Return how many trials end in an hour, by those that ended since the last time that nothing ran.

    Takes complete trials, latest first; None where none tells when it began and ended.
    """
    spans = [
        (datetime.fromisoformat(record.started_at), datetime.fromisoformat(record.completed_at))
        for record in latest
        if record.started_at and record.completed_at
    ]
    taken = 0
    began = spans[0][0] if spans else None
    for started, ended in spans:
        if began is None or ended < began - LONGEST_IDLE:
            break
        began, taken = min(began, started), taken + 1
    seconds = (spans[0][1] - began).total_seconds() if began else 0.0
    return 3600 * taken / seconds if seconds > 0 else None


def summary_of(
    engine: Engine, study_id: int, name: str, spec: StudySpec | None, fault: str | None = None
) -> StudySummary:
    states = state_counts(engine, study_id)
    foreign = {state: count for state, count in state_counts(engine, study_id, of_cells=False).items() if count}
    seconds = [taken for taken, _ in score_points(engine, study_id)]
    with reading(engine) as connection:
        rows = slot_rows(connection, study_id)
        prospect = None if spec is None else search_prospect(connection, study_id, spec)
        is_spent = prospect is not None and prospect.has_ended
        ledger = None if spec is None else Ledger(spec, rows, is_spent=is_spent)
        devices = sorted(machine_keys(connection, study_id))
    seconds_left, left = None, None if ledger is None else ledger.left_count()
    if left == 0:
        seconds_left = 0.0
    elif left is not None and seconds:
        seconds_left = statistics.median(seconds) * left / max(1, states["RUNNING"])
    failed = max((row for row in rows if row.failure and row.uses_attempt), key=lambda row: row.number, default=None)
    has_finished = any(row.is_done for row in rows)
    return StudySummary(
        name=name,
        cells=None if ledger is None else ledger.wanted_count(),
        states=states,
        devices=tuple(devices),
        train_seconds=sum(seconds),
        seconds_left=seconds_left,
        given_up=() if ledger is None else ledger.given_up(),
        fault=fault,
        failure=None if failed is None or has_finished else ": ".join(filter(None, failed.failure or ())),
        foreign=foreign,
        prospect=prospect,
    )
