"""Every change of a study, each in one transaction: what a killed process leaves behind is the state before or after.

Two locks order the changes. Whoever adds a row to a study holds the study's row (as Optuna does, for the numbers of
trials), whoever ends a trial holds the trial's row; the study's comes first. SQLite has one writer at a time anyway.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from budgettune.cells import LOST, Slot, SlotRow
from budgettune.query import failure_pair, read_attributes, read_params, whole_number
from budgettune.storage import reading, writing
from budgettune.tables import (
    DIRECTIONS,
    METRIC_NAMES,
    METRIC_NAMES_ATTRIBUTE,
    SPEC_ATTRIBUTE,
    TABLES_OF_A_STUDY,
    TABLES_OF_A_TRIAL,
    plain_text,
    studies,
    study_directions,
    study_system_attributes,
    study_user_attributes,
    trial_heartbeats,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
    utc_in,
)

ROWS_PER_STATEMENT = 500
SLOT_ATTRIBUTES = ("cell", "repeat", "attempt", "failure", "extra")


@dataclass(frozen=True)
class TakenTrial:
    """A waiting row that is now ours."""

    trial_id: int
    number: int
    params: dict[str, Any]
    attributes: dict[str, Any]


# --- Studies --------------------------------------------------------------------------------------------------------


def insert_study(engine: sa.Engine, name: str, spec_json: str, new_trials: Sequence[NewTrial]) -> int:
    """Add a study with its first trials, all or nothing, and return its id.

    Raises:
        sqlalchemy.exc.IntegrityError: (inside StorageError, as its cause) where a study of that name is there.
    """
    with writing(engine) as connection:
        study_id: int = connection.execute(
            sa.insert(studies).values(study_name=name).returning(studies.c.study_id)
        ).scalar_one()
        directions = [
            {"study_id": study_id, "objective": objective, "direction": direction}
            for objective, direction in enumerate(DIRECTIONS)
        ]
        connection.execute(sa.insert(study_directions), directions)
        for table, key, value in (
            (study_user_attributes, SPEC_ATTRIBUTE, spec_json),
            (study_system_attributes, METRIC_NAMES_ATTRIBUTE, json.dumps(METRIC_NAMES)),
        ):
            connection.execute(sa.insert(table).values(study_id=study_id, key=key, value_json=value))
        insert_trials(connection, study_id, new_trials)
        return study_id


def delete_study(engine: sa.Engine, study_id: int) -> None:
    """Remove a study and everything that hangs on it, whatever its size; other studies stay."""
    own_trials = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id)
    with writing(engine) as connection:
        lock_study(connection, study_id)
        # A heartbeat in flight would add a row under a trial that is going away: it waits, then finds no trial.
        connection.execute(own_trials.with_for_update())
        for table in TABLES_OF_A_TRIAL:
            connection.execute(sa.delete(table).where(table.c.trial_id.in_(own_trials)))
        for table in (trials, *TABLES_OF_A_STUDY, studies):
            connection.execute(sa.delete(table).where(table.c.study_id == study_id))


# --- The life of a trial --------------------------------------------------------------------------------------------


def take_waiting(engine: sa.Engine, study_id: int) -> TakenTrial | None:
    """Turn the oldest waiting trial of a cell into a running one with its first heartbeat; None where none waits."""
    with writing(engine) as connection:
        passed_over = -1
        while (found := _next_waiting(connection, study_id, passed_over)) is not None:
            trial_id, number = found
            attributes = read_attributes(connection, [trial_id], ("cell", "repeat", "attempt", "seed"))[trial_id]
            if _slot(attributes) is not None:
                _set_state(connection, trial_id, "RUNNING", datetime_start=utc_in())
                _beat(connection, trial_id)
                return TakenTrial(trial_id, number, read_params(connection, [trial_id])[trial_id], attributes)
            passed_over = number
    return None


def _next_waiting(connection: sa.Connection, study_id: int, after_number: int) -> tuple[int, int] | None:
    """Lock the next waiting row that names a cell; rows that others have locked are being taken by them."""
    cell = sa.select(trial_user_attributes.c.trial_id).where(
        trial_user_attributes.c.trial_id == trials.c.trial_id, trial_user_attributes.c.key == "cell"
    )
    query = (
        sa.select(trials.c.trial_id, trials.c.number)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING", trials.c.number > after_number)
        .where(cell.exists())
        .order_by(trials.c.number)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    row = connection.execute(query).first()
    return None if row is None else (row[0], row[1])


def beat(engine: sa.Engine, trial_id: int) -> bool:
    """Renew the lease of a running trial by the database's clock; false where the trial runs no longer."""
    with writing(engine) as connection:
        return _beat(connection, trial_id)


def reap(connection: sa.Connection, study_id: int, lease_seconds: float) -> int:
    """Fail the running trials whose lease is over, and return how many. The caller holds the study's lock.

    Both ends of a lease are read off the database's clock. A trial without a heartbeat (another tool started it) and
    one whose heartbeat lies in the future (a clock was set back) get a lease that begins now.
    """
    running = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id, trials.c.state == "RUNNING")
    heartbeats = trial_heartbeats
    stale = running.join(heartbeats, heartbeats.c.trial_id == trials.c.trial_id).where(
        heartbeats.c.heartbeat < utc_in(-lease_seconds)
    )
    # Lock in order, and look again: a trial may end while we wait for its row.
    ids = list(connection.execute(stale.order_by(trials.c.trial_id).with_for_update(of=trials)).scalars())
    failure = {"kind": LOST, "message": f"its worker gave no sign of life for {lease_seconds:g} s"}
    for trial_id in ids:
        end_trial(connection, trial_id, "FAIL", {"failure": failure})
    _begin_leases(connection, running, lease_seconds)
    return len(ids)


def _begin_leases(connection: sa.Connection, running: sa.Select[Any], lease_seconds: float) -> None:
    heartbeats = trial_heartbeats
    silent = running.outerjoin(heartbeats, heartbeats.c.trial_id == trials.c.trial_id).where(
        sa.or_(heartbeats.c.heartbeat.is_(None), heartbeats.c.heartbeat > utc_in(lease_seconds))
    )
    for trial_id in list(connection.execute(silent).scalars()):
        _beat(connection, trial_id)


# --- Slots ----------------------------------------------------------------------------------------------------------


def slot_rows(engine: sa.Engine, study_id: int) -> list[SlotRow]:
    """Return what decisions need to know of every trial of a cell."""
    with reading(engine) as connection:
        return read_slot_rows(connection, study_id)


def read_slot_rows(connection: sa.Connection, study_id: int, cell: int | None = None) -> list[SlotRow]:
    """Return the same inside a transaction, for all cells or for one."""
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
