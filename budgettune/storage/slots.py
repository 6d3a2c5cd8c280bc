"""What decisions need to know of a study's trials, read in a few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from budgettune.records import TAKEN, Slot, SlotRow
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    KINDS_ATTRIBUTE,
    SPEC_ATTRIBUTE,
    is_finite,
    plain_text,
    study_user_attributes,
    trial_heartbeats,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
    utc_in,
)
from budgettune.storage.trials import failure_pair, is_whole, parse_json, read_attributes, stopping_note, whole_number
from budgettune.storage.writes import set_study_attribute

LOOKED_AT = 50  # open rows, to see whether any is of a cell
SLOT_ATTRIBUTES = ("cell", "repeat", "attempt", "failure", "extra", "late_of", "stopping")


@dataclass(frozen=True)
class Tally:
    """What tells, without its rows, whether a study may need mending.

    Attributes:
        rows: trials of the study.
        ended: those that ended without a result, and leave their slots to others.
        overdue: running ones without a sign of life for a lease, with none at all, or with one from the future.
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
        is_running, sa.or_(beat.is_(None), beat < utc_in(-lease_seconds), beat > utc_in(lease_seconds))
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
    query = sa.select(trials.c.trial_id).where(
        trials.c.study_id == study_id, trials.c.state.in_(["WAITING", "RUNNING"])
    )
    with reading(engine) as connection:
        ids = list(connection.execute(query.limit(LOOKED_AT)).scalars())
        found = read_attributes(connection, ids, ("cell", "repeat"))
    return any(is_whole(row.get("cell")) and is_whole(row.get("repeat")) for row in found.values())


def slot_rows(engine: sa.Engine, study_id: int) -> list[SlotRow]:
    """Return what decisions need to know of every trial of a cell."""
    with reading(engine) as connection:
        return read_slot_rows(connection, study_id)


def read_slot_rows(connection: sa.Connection, study_id: int) -> list[SlotRow]:
    """Return the same inside a transaction."""
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
    rows = (
        _slot_row(trial_id, number, state, attributes[trial_id], trial_id in drawn, accuracy, _seconds(*spans))
        for trial_id, number, state, accuracy, *spans in connection.execute(_states_and_times(study_id))
    )
    return [row for row in rows if row is not None]


def _states_and_times(study_id: int) -> sa.Select[Any]:
    """Return what selects every trial's id, number, state, accuracy, seconds, start and last sign of life."""
    heartbeats, seconds, accuracy = trial_heartbeats, trial_values.alias("seconds"), trial_values.alias("accuracy")
    return (
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            plain_text(trials.c.state),
            accuracy.c.value,
            seconds.c.value,
            plain_text(trials.c.datetime_start),
            plain_text(heartbeats.c.heartbeat),
        )
        .select_from(trials)
        .outerjoin(seconds, _is_value(seconds, 0))
        .outerjoin(accuracy, _is_value(accuracy, 1))
        .outerjoin(heartbeats, heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id)
    )


def _is_value(values: sa.FromClause, objective: int) -> sa.ColumnElement[bool]:
    of_trial = values.c.trial_id == trials.c.trial_id
    return sa.and_(of_trial, values.c.objective == objective, is_finite(values.c.value))


def _seconds(on_the_clock: float | None, start: str | None, last_sign: str | None) -> float:
    """Return the seconds that a trial took so far."""
    if on_the_clock is not None:
        return on_the_clock
    try:
        return max(0.0, (datetime.fromisoformat(str(last_sign)) - datetime.fromisoformat(str(start))).total_seconds())
    except ValueError:  # it has not begun, or another tool runs it
        return 0.0


def stopping_notes(engine: sa.Engine, study_id: int) -> list[Mapping[str, Any]]:
    """Return what rows say of trials that were stopped early, or that ran on as controls; in their order."""
    attribute = trial_user_attributes
    query = (
        sa.select(attribute.c.value_json)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, attribute.c.key == "stopping")
        .order_by(trials.c.number)
    )
    with reading(engine) as connection:
        notes = [stopping_note(parse_json(text)) for text in connection.execute(query).scalars()]
    return [note for note in notes if note is not None]


def machine_kind(engine: sa.Engine, study_id: int) -> str | None:
    """Return the kind of machine that a study's times come from: the spec's, else the first finished trial's."""
    with reading(engine) as connection:
        return read_machine_kind(connection, study_id)


def read_machine_kind(connection: sa.Connection, study_id: int) -> str | None:
    """Return the same inside a transaction."""
    asked = _asked_kind(_study_attribute(connection, study_id, SPEC_ATTRIBUTE))
    return asked if asked is not None else next(iter(read_machine_kinds(connection, study_id)), None)


def machine_kinds(engine: sa.Engine, study_id: int) -> list[str]:
    """Return every kind of machine that a study's times come from, in order of its first result."""
    with reading(engine) as connection:
        return read_machine_kinds(connection, study_id)


def read_machine_kinds(connection: sa.Connection, study_id: int) -> list[str]:
    """Return the same inside a transaction.

    Workers keep the list with the study. To find it in the trials takes a page of the disk for each of them.
    """
    noted = _study_attribute(connection, study_id, KINDS_ATTRIBUTE)
    if isinstance(noted, list):
        return [name for name in noted if isinstance(name, str)]
    attribute = trial_user_attributes
    query = (
        sa.select(attribute.c.value_json)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE", attribute.c.key == "device_name")
        .group_by(attribute.c.value_json)
        .order_by(sa.func.min(trials.c.datetime_complete), sa.func.min(trials.c.number))
    )
    return [name for name in map(parse_json, connection.execute(query).scalars()) if isinstance(name, str)]


def note_machine_kind(connection: sa.Connection, study_id: int, name: str) -> None:
    """Add a kind to the list that a study keeps. The caller holds the study's lock."""
    kinds = read_machine_kinds(connection, study_id)
    if name not in kinds or _study_attribute(connection, study_id, KINDS_ATTRIBUTE) is None:
        set_study_attribute(connection, study_id, KINDS_ATTRIBUTE, list(dict.fromkeys([*kinds, name])))


def _study_attribute(connection: sa.Connection, study_id: int, key: str) -> Any:
    table = study_user_attributes
    query = sa.select(table.c.value_json).where(table.c.study_id == study_id, table.c.key == key)
    return parse_json(connection.execute(query).scalar())


def has_repeats(engine: sa.Engine, study_id: int) -> bool:
    """Whether a study asks for more than one trial per cell."""
    with reading(engine) as connection:
        spec = _study_attribute(connection, study_id, SPEC_ATTRIBUTE)
    sampler = spec.get("sampler") if isinstance(spec, dict) else None
    return isinstance(sampler, dict) and sampler.get("repeats", 1) != 1


def _asked_kind(spec: Any) -> str | None:
    machine = spec.get("machine") if isinstance(spec, dict) else None
    name = machine.get("device_name") if isinstance(machine, dict) else None
    return name if isinstance(name, str) else None


def _slot_row(
    trial_id: int,
    number: int,
    state: str,
    attributes: Mapping[str, Any],
    has_params: bool,
    accuracy: float | None,
    seconds: float,
) -> SlotRow | None:
    """Return None for a row that is not of a cell."""
    cell, repeat = whole_number(attributes.get("cell")), whole_number(attributes.get("repeat"))
    if cell is None or repeat is None or whole_number(number) is None:
        return None
    note = stopping_note(attributes.get("stopping"))
    is_stopped = state == "PRUNED" and note is not None and note["stopped"]
    return SlotRow(
        trial_id=trial_id,
        number=number,
        state=state,
        slot=Slot(cell, repeat),
        attempt=whole_number(attributes.get("attempt")) or 1,
        has_params=has_params,
        failure=failure_pair(attributes.get("failure")),
        extra=attributes.get("extra") is True,
        late_of=whole_number(attributes.get("late_of")),
        seconds=note["train_seconds"] if note is not None and is_stopped else seconds,
        is_stopped=is_stopped,
        accuracy=accuracy,
    )
