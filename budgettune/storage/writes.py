"""Rows of a study inside a transaction that the caller holds: add, lock, stamp, end.

Two locks order all changes. Whoever adds a trial to a study holds the study's row (as Optuna does, for the numbers of
trials); whoever ends a trial holds the trial's row; the study's comes first. SQLite has one writer at a time anyway.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from budgettune.storage.schema import (
    CONSTRAINTS_ATTRIBUTE,
    plain_text,
    studies,
    study_user_attributes,
    trial_heartbeats,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
    utc_in,
)

MANY_ROWS = 100
ROWS_PER_STATEMENT = 10_000
LARGEST_NUMBER = 1_000_000_000  # of a trial that we may go on from; another program may have written any


@dataclass(frozen=True)
class StoredParam:
    """A param as Optuna stores it: a choice by its index, and the distribution as JSON."""

    param_name: str
    param_value: float
    distribution_json: str


@dataclass(frozen=True)
class NewTrial:
    """A row to add.

    Attributes:
        attributes: user attributes; values are JSON.
        params_of: trial whose params are copied, beside `params`.
        values: of both objectives, for a row that is complete from the start.
        excesses: by how much it is beyond each limit of the study, for the same.
    """

    state: str
    attributes: Mapping[str, Any]
    params: tuple[StoredParam, ...] = ()
    params_of: int | None = None
    values: tuple[float, float] | None = None
    excesses: Sequence[float] = ()


def lock_study(connection: sa.Connection, study_id: int) -> bool:
    """Keep all others from adding trials until the transaction ends; false where the study is gone."""
    query = sa.select(studies.c.study_id).where(studies.c.study_id == study_id).with_for_update()
    return connection.execute(query).scalar() is not None


def insert_trials(connection: sa.Connection, study_id: int, new_trials: Sequence[NewTrial]) -> list[tuple[int, int]]:
    """Add trials and return their ids and numbers, in order. The caller holds the study's lock."""
    if not new_trials:
        return []
    first = _next_number(connection, study_id)
    rows = [{"study_id": study_id, "number": first + i, "state": new.state} for i, new in enumerate(new_trials)]
    _insert(connection, trials, rows)
    # Not by number: a row of another program may have any.
    added = (
        sa.select(trials.c.trial_id, trials.c.number)
        .where(trials.c.study_id == study_id)
        .order_by(trials.c.trial_id.desc())
        .limit(len(new_trials))
    )
    keys = [(trial_id, number) for trial_id, number in connection.execute(added)][::-1]
    pairs = [(trial_id, new) for (trial_id, _), new in zip(keys, new_trials, strict=True)]
    _stamp_new(connection, study_id, pairs)
    _insert(connection, trial_params, [row for trial_id, new in pairs for row in _param_rows(trial_id, new.params)])
    _copy_params(connection, pairs)
    attributes = [row for trial_id, new in pairs for row in _attribute_rows(trial_id, new.attributes)]
    _insert(connection, trial_user_attributes, attributes)
    values = [row for trial_id, new in pairs if new.values for row in _value_rows(trial_id, new.values)]
    _insert(connection, trial_values, values)
    for trial_id, new in pairs:
        _set_excesses(connection, trial_id, new.excesses)
    return keys


def _next_number(connection: sa.Connection, study_id: int) -> int:
    """Return the number of trials, as Optuna does; where some were deleted, one more than the largest number."""
    query = sa.select(sa.func.count(), sa.func.max(trials.c.number).filter(trials.c.number < LARGEST_NUMBER))
    count, largest = connection.execute(query.where(trials.c.study_id == study_id)).one()
    return max(int(count), -1 if largest is None else int(largest) + 1)


def _insert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add rows that have the same columns, in their order."""
    if connection.dialect.name != "postgresql" or len(rows) < MANY_ROWS:
        if rows:
            connection.execute(sa.insert(table), rows)
        return
    for first in range(0, len(rows), ROWS_PER_STATEMENT):  # as columns: a message for each row takes ten times as long
        some = rows[first : first + ROWS_PER_STATEMENT]
        names = list(some[0])
        columns = {
            name: sa.literal([row[name] for row in some], postgresql.ARRAY(table.c[name].type)) for name in names
        }
        values = sa.select(*(sa.func.unnest(column).label(name) for name, column in columns.items()))
        connection.execute(sa.insert(table).from_select(names, values))


def _stamp_new(connection: sa.Connection, study_id: int, pairs: Sequence[tuple[int, NewTrial]]) -> None:
    """Give rows that do not wait their times, and those that run their first heartbeat."""
    for trial_id, new in pairs:
        if new.state == "RUNNING":
            set_state(connection, trial_id, "RUNNING", datetime_start=utc_in())
            beat(connection, trial_id)
    if any(new.state not in ("RUNNING", "WAITING") for _, new in pairs):
        added = sa.and_(trials.c.study_id == study_id, trials.c.trial_id >= pairs[0][0])
        ended = sa.and_(added, trials.c.state.not_in(["RUNNING", "WAITING"]))
        connection.execute(sa.update(trials).where(ended).values(datetime_start=utc_in(), datetime_complete=utc_in()))


def insert_params(connection: sa.Connection, trial_id: int, params: Sequence[StoredParam]) -> None:
    _insert(connection, trial_params, _param_rows(trial_id, params))


def _param_rows(trial_id: int, params: Sequence[StoredParam]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, **vars(param)} for param in params]


def _copy_params(connection: sa.Connection, pairs: Sequence[tuple[int, NewTrial]]) -> None:
    columns = (trial_params.c.param_name, trial_params.c.param_value, trial_params.c.distribution_json)
    for trial_id, new in pairs:
        if new.params_of is None:
            continue
        source = sa.select(sa.literal(trial_id), *columns).where(trial_params.c.trial_id == new.params_of)
        names = ["trial_id", *(column.name for column in columns)]
        connection.execute(sa.insert(trial_params).from_select(names, source.order_by(trial_params.c.param_id)))


def _attribute_rows(trial_id: int, attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"trial_id": trial_id, "key": key, "value_json": json_text(value)} for key, value in attributes.items()]


def json_text(value: Any) -> str:
    """Return a value as JSON; numbers that are not finite become null, because JSON has no word for them."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(finite(value))


def finite(value: Any) -> Any:
    """Return plain JSON values, with null for numbers that are not finite."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _value_rows(trial_id: int, values: Sequence[float]) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "objective": objective, "value": value, "value_type": "FINITE"}
        for objective, value in enumerate(values)
    ]


def insert(connection: sa.Connection, table: sa.Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT of the dialect in use, which knows what to do where a row is there already."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _upsert(connection: sa.Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]], *keys: str) -> None:
    """Add rows, or overwrite those that are there under the same keys."""
    statement = insert(connection, table).values([dict(row) for row in rows])
    changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
    connection.execute(statement.on_conflict_do_update(index_elements=list(keys), set_=changed))


def set_attributes(connection: sa.Connection, trial_id: int, attributes: Mapping[str, Any]) -> None:
    """Store user attributes of a trial in one statement."""
    _upsert(connection, trial_user_attributes, _attribute_rows(trial_id, attributes), "trial_id", "key")


def set_study_attribute(connection: sa.Connection, study_id: int, key: str, value: Any) -> None:
    row = {"study_id": study_id, "key": key, "value_json": json_text(value)}
    _upsert(connection, study_user_attributes, [row], "study_id", "key")


def _set_excesses(connection: sa.Connection, trial_id: int, excesses: Sequence[float]) -> None:
    """Say where Optuna's samplers look by how much a trial is beyond each limit; nothing where there is none."""
    if excesses:
        row = {"trial_id": trial_id, "key": CONSTRAINTS_ATTRIBUTE, "value_json": json_text(list(excesses))}
        _upsert(connection, trial_system_attributes, [row], "trial_id", "key")


def lock_trial(connection: sa.Connection, trial_id: int) -> str | None:
    """Keep all others from changing a trial until the transaction ends; return its state, None where it is gone."""
    query = sa.select(plain_text(trials.c.state)).where(trials.c.trial_id == trial_id).with_for_update()
    return connection.execute(query).scalar()


def set_state(connection: sa.Connection, trial_id: int, state: str, **times: Any) -> None:
    connection.execute(sa.update(trials).where(trials.c.trial_id == trial_id).values(state=state, **times))


def beat(connection: sa.Connection, trial_id: int) -> bool:
    """Renew the lease of a running trial by the database's clock; false where the trial runs no longer."""
    running = sa.select(trials.c.trial_id, utc_in()).where(trials.c.trial_id == trial_id, trials.c.state == "RUNNING")
    statement = insert(connection, trial_heartbeats).from_select(["trial_id", "heartbeat"], running)
    upsert = statement.on_conflict_do_update(
        index_elements=["trial_id"], set_={"heartbeat": statement.excluded.heartbeat}
    )
    return connection.execute(upsert.execution_options(preserve_rowcount=True)).rowcount > 0


def end_trial(
    connection: sa.Connection,
    trial_id: int,
    state: str,
    attributes: Mapping[str, Any],
    values: Sequence[float] | None = None,
    excesses: Sequence[float] = (),
) -> None:
    """Store what is left of a trial, then its last state. The caller holds the trial's lock."""
    set_attributes(connection, trial_id, attributes)
    if values is not None:
        _upsert(connection, trial_values, _value_rows(trial_id, values), "trial_id", "objective")
    _set_excesses(connection, trial_id, excesses)
    times = {"datetime_complete": utc_in(), "datetime_start": sa.func.coalesce(trials.c.datetime_start, utc_in())}
    set_state(connection, trial_id, state, **times)
