"""The studies of a database, each in a line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from budgettune import query
from budgettune.cells import Cells
from budgettune.errors import SpecError, StudyNotFound
from budgettune.records import TrialRecord
from budgettune.slots import slot_rows
from budgettune.spec import StudySpec
from budgettune.storage import open_engine

LONGEST_IDLE = timedelta(seconds=60)
"""Between the end of a trial and the next beginning: longer means that no worker was there."""


@dataclass(frozen=True)
class StudySummary:
    """A study in a line.

    Attributes:
        cells: cells × repeats that it wants; None for a sampled study without an end, or a spec that cannot be read.
        states: trials in each state.
        devices: kinds of machine that its times come from.
        train_seconds: spent on the clock by all finished trials.
        seconds_left: estimate at the present number of workers (one, where none runs); None where nothing tells.
    """

    name: str
    cells: int | None
    states: dict[str, int]
    devices: tuple[str, ...]
    train_seconds: float
    seconds_left: float | None


def study_names(url: str) -> list[str]:
    """Return the names of our studies in order of creation.

    Raises:
        StudyNotFound: where there is none.
    """
    names = [row.name for row in query.studies(open_engine(url)) if row.spec_json is not None]
    if not names:
        raise StudyNotFound("there is no study yet: make one with `budgettune study create`")
    return names


def list_studies(url: str) -> list[StudySummary]:
    """Return every study in order of creation, with its state and an estimate of the time left."""
    engine = open_engine(url)
    return [_summary(engine, row) for row in query.studies(engine) if row.spec_json is not None]


def study_summary(engine: sa.Engine, name: str) -> StudySummary:
    """Return one study with its state and an estimate of the time left.

    Raises:
        StudyNotFound: where there is none of that name.
    """
    return _summary(engine, query.find_study(engine, name))


def trials_per_hour(latest: Sequence[TrialRecord]) -> float | None:
    """Return how many trials end in an hour, by those that ended last: since the last time that nothing ran.

    Args:
        latest: complete trials, latest first.

    Returns:
        None where no trial tells when it began and ended.
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


def _summary(engine: sa.Engine, row: query.StudyRow) -> StudySummary:
    states = query.state_counts(engine, row.study_id)
    seconds = query.train_seconds(engine, row.study_id)
    try:
        cells = Cells(StudySpec.from_json(row.spec_json or ""), slot_rows(engine, row.study_id))
        wanted, left = cells.wanted_count(), cells.left_count()
    except (SpecError, ValueError):
        wanted, left = None, None
    return StudySummary(
        name=row.name,
        cells=wanted,
        states=states,
        devices=tuple(query.device_names(engine, row.study_id)),
        train_seconds=sum(seconds),
        seconds_left=_seconds_left(seconds, left, workers=states["RUNNING"]),
    )


def _seconds_left(train_seconds: Sequence[float], left: int | None, workers: int) -> float | None:
    if left == 0:
        return 0.0
    if left is None or not train_seconds:
        return None
    return statistics.median(train_seconds) * left / max(1, workers)
