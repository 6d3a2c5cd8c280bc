"""What decisions need to know of a study's trials, read in a few statements."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from budgettune.records import KEPT_EPOCHS, TAKEN, Slot, SlotRow, StoppingNote
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    is_objective,
    is_of_a_cell,
    plain_text,
    trial_heartbeats,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
    utc_in,
)
from budgettune.storage.studies import aim_of, allowed_trials
from budgettune.storage.trials import failure_pair, parse_json, read_attributes, read_params, whole_number

LOOKED_AT = 50  # open rows, to see whether any is of a cell
SLOT_ATTRIBUTES = ("cell", "repeat", "attempt", "failure", "extra", "late_of", "stopping", KEPT_EPOCHS)


@dataclass(frozen=True)
class Tally:
    """What tells, without its rows, whether a study may need mending.

    Attributes:
        ended: rows that ended without a result, and leave their slots to others.
        overdue: running ones of cells without a sign of life for a lease, without any, or with one from the future.
    """

    rows: int
    ended: int
    overdue: int

    def nothing_came_open_since(self, earlier: Tally) -> bool:
        """Whether no slot can have come open since an earlier tally."""
        return not self.overdue and self.ended == earlier.ended and self.rows >= earlier.rows


def tally(engine: sa.Engine, study_id: int, lease_seconds: float) -> Tally:
    """Count a study's trials in one statement that locks nothing."""
    heartbeats, is_running = trial_heartbeats, trials.c.state == "RUNNING"
    both = trials.outerjoin(heartbeats, sa.and_(heartbeats.c.trial_id == trials.c.trial_id, is_running))
    beat = heartbeats.c.heartbeat
    is_overdue = sa.and_(
        is_running, sa.or_(beat.is_(None), beat < utc_in(-lease_seconds), beat > utc_in(lease_seconds)), is_of_a_cell()
    )
    ended, overdue = (
        sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)
        for condition in (plain_text(trials.c.state).not_in(TAKEN), is_overdue)
    )
    query = sa.select(sa.func.count(), ended, overdue).select_from(both).where(trials.c.study_id == study_id)
    with reading(engine) as connection:
        return Tally(*map(int, connection.execute(query).one()))


def has_open_row(engine: sa.Engine, study_id: int) -> bool:
    """Whether a trial of a cell waits or runs; false may also mean that none of the first few open rows is one."""
    is_open = sa.and_(trials.c.study_id == study_id, trials.c.state.in_(["WAITING", "RUNNING"]))
    with reading(engine) as connection:
        ids = list(connection.execute(sa.select(trials.c.trial_id).where(is_open).limit(LOOKED_AT)).scalars())
        found = read_attributes(connection, ids, ("cell", "repeat"))
    return any(type(row.get("cell")) is type(row.get("repeat")) is int for row in found.values())


def slot_rows(connection: sa.Connection, study_id: int) -> list[SlotRow]:
    """Return what decisions need to know of every trial of a cell."""
    attribute = trial_user_attributes
    pairs = (
        sa.select(attribute.c.trial_id, attribute.c.key, attribute.c.value_json)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, attribute.c.key.in_(SLOT_ATTRIBUTES))
    )
    with_params = (
        sa.select(trial_params.c.trial_id)
        .distinct()
        .join(trials, trials.c.trial_id == trial_params.c.trial_id)
        .where(trials.c.study_id == study_id)
    )
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in connection.execute(pairs):
        attributes[trial_id][key] = parse_json(text)
    drawn = set(connection.execute(with_params).scalars())
    aim = aim_of(connection, study_id)
    allowed = allowed_trials(connection, study_id, aim) if aim.limits else None
    rows: list[SlotRow] = []
    for trial_id, number, state, value, *times in connection.execute(_states_and_times(study_id)):
        facts = attributes[trial_id]
        cell, repeat = whole_number(facts.get("cell")), whole_number(facts.get("repeat"))
        if cell is None or repeat is None or whole_number(number) is None:
            continue  # not of a cell
        note = StoppingNote.read(facts.get("stopping"))
        is_stopped = state == "PRUNED" and note is not None and note.stopped
        is_allowed = allowed is None or trial_id in allowed
        row = SlotRow(
            trial_id=trial_id,
            number=number,
            state=state,
            slot=Slot(cell, repeat),
            attempt=whole_number(facts.get("attempt")) or 1,
            has_params=trial_id in drawn,
            failure=failure_pair(facts.get("failure")),
            extra=facts.get("extra") is True,
            late_of=whole_number(facts.get("late_of")),
            seconds=note.train_seconds if note is not None and is_stopped else _seconds(*times),
            is_stopped=is_stopped,
            kept_epochs=whole_number(facts.get(KEPT_EPOCHS)) or 0,
            score=aim.objective.score(value) if value is not None and is_allowed else None,
        )
        rows.append(row)
    return rows


def _states_and_times(study_id: int) -> sa.Select[Any]:
    """Return what selects every trial's id, number, state, value, seconds, start and last sign of life."""
    heartbeats, seconds, reached = trial_heartbeats, trial_values.alias("seconds"), trial_values.alias("reached")
    return (
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            plain_text(trials.c.state),
            reached.c.value,
            seconds.c.value,
            plain_text(trials.c.datetime_start),
            plain_text(heartbeats.c.heartbeat),
        )
        .select_from(trials)
        .outerjoin(seconds, is_objective(seconds, 0))
        .outerjoin(reached, is_objective(reached, 1))
        .outerjoin(heartbeats, heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id)
    )


def _seconds(on_the_clock: float | None, start: str | None, last_sign: str | None) -> float:
    if on_the_clock is not None:
        return on_the_clock
    try:
        return max(0.0, (datetime.fromisoformat(str(last_sign)) - datetime.fromisoformat(str(start))).total_seconds())
    except ValueError:  # it has not begun, or another tool runs it
        return 0.0


def waiting_params(engine: sa.Engine, study_id: int, after_id: int, limit: int) -> dict[int, dict[str, Any]]:
    """Return the params of the trials of cells that wait, by id from `after_id` on, oldest first."""
    is_waiting = sa.and_(trials.c.study_id == study_id, trials.c.state == "WAITING", trials.c.trial_id > after_id)
    query = sa.select(trials.c.trial_id).where(is_waiting, is_of_a_cell()).order_by(trials.c.trial_id).limit(limit)
    with reading(engine) as connection:
        ids = list(connection.execute(query).scalars())
        params = read_params(connection, ids)
        return {trial_id: params[trial_id] for trial_id in ids}


def has_kept_epochs(engine: sa.Engine, study_id: int) -> bool:
    """Whether a trial of a study is known to have been kept half-trained."""
    attribute = trial_user_attributes
    query = (
        sa.select(attribute.c.trial_id)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, attribute.c.key == KEPT_EPOCHS)
        .limit(1)
    )
    with reading(engine) as connection:
        return connection.execute(query).first() is not None
