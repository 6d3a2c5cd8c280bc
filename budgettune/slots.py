"""What decisions need to know of a study's trials, read in a few statements."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from budgettune.cells import Slot, SlotRow
from budgettune.storage import reading
from budgettune.tables import (
    SPEC_ATTRIBUTE,
    is_finite,
    plain_text,
    study_user_attributes,
    trial_heartbeats,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
)
from budgettune.trial_rows import failure_pair, parse_json, whole_number

SLOT_ATTRIBUTES = ("cell", "repeat", "attempt", "failure", "extra", "late_of")


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
        _slot_row(trial_id, number, state, attributes[trial_id], trial_id in drawn, _seconds(*spans))
        for trial_id, number, state, *spans in connection.execute(_states_and_times(study_id))
    )
    return [row for row in rows if row is not None]


def _states_and_times(study_id: int) -> sa.Select[Any]:
    """Return what selects id, number, state, seconds on the clock, start and last sign of life of every trial."""
    values, heartbeats = trial_values, trial_heartbeats
    on_the_clock = sa.and_(values.c.trial_id == trials.c.trial_id, values.c.objective == 0, is_finite(values.c.value))
    return (
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            plain_text(trials.c.state),
            values.c.value,
            plain_text(trials.c.datetime_start),
            plain_text(heartbeats.c.heartbeat),
        )
        .select_from(trials)
        .outerjoin(values, on_the_clock)
        .outerjoin(heartbeats, heartbeats.c.trial_id == trials.c.trial_id)
        .where(trials.c.study_id == study_id)
    )


def _seconds(on_the_clock: float | None, start: str | None, last_sign: str | None) -> float:
    """Return the seconds that a trial took so far."""
    if on_the_clock is not None:
        return on_the_clock
    try:
        return max(0.0, (datetime.fromisoformat(str(last_sign)) - datetime.fromisoformat(str(start))).total_seconds())
    except ValueError:  # it has not begun, or another tool runs it
        return 0.0


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
    trial_id: int, number: int, state: str, attributes: Mapping[str, Any], has_params: bool, seconds: float
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
        seconds=seconds,
    )
