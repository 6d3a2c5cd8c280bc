"""What decisions need to know of a study's trials, read in a few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from budgettune.cells import TAKEN, Slot, SlotRow
from budgettune.storage import reading
from budgettune.tables import (
    SPEC_ATTRIBUTE,
    plain_text,
    study_user_attributes,
    trial_heartbeats,
    trial_params,
    trial_user_attributes,
    trials,
    utc_in,
)
from budgettune.trial_rows import failure_pair, is_whole, parse_json, read_attributes, whole_number

LOOKED_AT = 50  # open rows, to see whether any is of a cell
SLOT_ATTRIBUTES = ("cell", "repeat", "attempt", "failure", "extra", "late_of")


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

    def is_as_good_as(self, earlier: Tally) -> bool:
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
    own = sa.select(trials.c.trial_id, trials.c.number, plain_text(trials.c.state)).where(trials.c.study_id == study_id)
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
    found = connection.execute(own).all()
    rows = (_slot_row(row[0], row[1], row[2], attributes[row[0]], row[0] in drawn) for row in found)
    return [row for row in rows if row is not None]


def machine_kind(engine: sa.Engine, study_id: int) -> str | None:
    """Return the kind of machine that a study's times come from: the spec's, else the first finished trial's."""
    with reading(engine) as connection:
        return read_machine_kind(connection, study_id)


def read_machine_kind(connection: sa.Connection, study_id: int) -> str | None:
    """Return the same inside a transaction."""
    table, attribute = study_user_attributes, trial_user_attributes
    spec = sa.select(table.c.value_json).where(table.c.study_id == study_id, table.c.key == SPEC_ATTRIBUTE)
    asked = _asked_kind(parse_json(connection.execute(spec).scalar()))
    if asked is not None:
        return asked
    first = (
        sa.select(attribute.c.value_json)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE", attribute.c.key == "device_name")
        .order_by(trials.c.datetime_complete, trials.c.number)
        .limit(1)
    )
    name = parse_json(connection.execute(first).scalar())
    return name if isinstance(name, str) else None


def _asked_kind(spec: Any) -> str | None:
    machine = spec.get("machine") if isinstance(spec, dict) else None
    name = machine.get("device_name") if isinstance(machine, dict) else None
    return name if isinstance(name, str) else None


def _slot_row(
    trial_id: int, number: int, state: str, attributes: Mapping[str, Any], has_params: bool
) -> SlotRow | None:
    """Return None for a row that is not of a cell."""
    cell, repeat = whole_number(attributes.get("cell")), whole_number(attributes.get("repeat"))
    if cell is None or repeat is None or whole_number(number) is None:
        return None
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
    )
