"""Trials of Optuna's tables as `TrialRecord`s.

What is not as we write it (another program's attribute, a text where a number belongs) is left out of the record.
"""

from __future__ import annotations

import itertools
import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import from_json

from budgettune.records import (
    COUNT_ATTRIBUTES,
    NUMERIC_ATTRIBUTES,
    ON_TEST,
    EpochRecord,
    MachineInfo,
    PhaseSeconds,
    StoppingNote,
    TrialRecord,
    finite_number,
)
from budgettune.spec.objective import Aim
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    SPEC_ATTRIBUTE,
    is_finite,
    plain_text,
    study_user_attributes,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
)

T = TypeVar("T")

IDS_PER_STATEMENT = 500
AS_WRITTEN = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, defer_build=True)
DOCUMENTS: dict[str, TypeAdapter[Any]] = {
    "curve": TypeAdapter(tuple[EpochRecord, ...], config=AS_WRITTEN),
    "phases": TypeAdapter(PhaseSeconds | None, config=AS_WRITTEN),
    "machine": TypeAdapter(MachineInfo | None, config=AS_WRITTEN),
}
"""User attributes that are most of a study's bytes; what is not as we write it is not read."""
_WHOLE_NUMBERS = ("cell", "repeat", "attempt", "seed", *COUNT_ATTRIBUTES)
_REAL_NUMBERS = tuple(name for name in NUMERIC_ATTRIBUTES if name not in _WHOLE_NUMBERS)
_PLAIN_ATTRIBUTES = (
    *_WHOLE_NUMBERS,
    *_REAL_NUMBERS,
    "status",
    "device_name",
    "failure",
    "extra",
    "stopping",
    "measures",
    ON_TEST,
)
# Beside those of today the ranges of Optuna before 3.0; it still reads them, and so must we.
_INTEGERS = ("IntDistribution", "IntUniformDistribution", "IntLogUniformDistribution")
_FLOATS = ("FloatDistribution", "UniformDistribution", "LogUniformDistribution", "DiscreteUniformDistribution")
_NUMBERS: dict[str, type[int] | type[float]] = {**dict.fromkeys(_INTEGERS, int), **dict.fromkeys(_FLOATS, float)}


def trial_records(
    engine: sa.Engine,
    study_id: int,
    *,
    states: Collection[str] | None = None,
    numbers: Collection[int] | None = None,
    leave_out: Collection[int] = (),
    documents: bool = True,
) -> list[TrialRecord]:
    """Return the trials of a study by number, of the given states and numbers (None for all).

    `leave_out` are numbers too. The documents (curve, phases and machine) are most of the bytes.
    """
    query = sa.select(trials.c.trial_id, trials.c.number).where(trials.c.study_id == study_id).order_by(trials.c.number)
    if states is not None:
        query = query.where(plain_text(trials.c.state).in_(list(states)))
    if numbers is not None:
        query = query.where(trials.c.number.in_(list(numbers)))
    with reading(engine) as connection:
        ids = [trial_id for trial_id, number in connection.execute(query) if number not in leave_out]
        return records_of(connection, ids, documents=documents)


def record_batches(engine: sa.Engine, study_id: int, *, documents: bool = True) -> Iterator[list[TrialRecord]]:
    """Yield all trials of a study by number, some hundreds at a time: a study may be larger than memory."""
    query = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id).order_by(trials.c.number)
    with reading(engine) as connection:
        yield from _batches(connection, list(connection.execute(query).scalars()), documents)


def records_of(connection: sa.Connection, trial_ids: Sequence[int], *, documents: bool = True) -> list[TrialRecord]:
    """Return the records of trials, in the order of their ids."""
    return list(itertools.chain.from_iterable(_batches(connection, trial_ids, documents)))


def _batches(connection: sa.Connection, trial_ids: Sequence[int], documents: bool) -> Iterator[list[TrialRecord]]:
    times = (plain_text(trials.c.datetime_start), plain_text(trials.c.datetime_complete))
    query = sa.select(trials.c.trial_id, trials.c.number, plain_text(trials.c.state), *times)
    judged_on = _judged_on(connection, trial_ids[0]) if trial_ids else None
    for begin in range(0, len(trial_ids), IDS_PER_STATEMENT):
        ids = trial_ids[begin : begin + IDS_PER_STATEMENT]
        rows = {row[0]: row for row in connection.execute(query.where(trials.c.trial_id.in_(ids)))}
        params, values = read_params(connection, ids), _values(connection, ids)
        attributes = read_attributes(connection, ids, (*_PLAIN_ATTRIBUTES, *(DOCUMENTS if documents else ())))
        yield [
            _record(rows[key], params[key], values[key], attributes[key], judged_on)
            for key in ids
            if key in rows and isinstance(rows[key][1], int)
        ]


def _judged_on(connection: sa.Connection, trial_id: int) -> Literal["validation"] | None:
    """Return what records of a trial's study say of the images that judge."""
    spec = study_user_attributes
    query = sa.select(spec.c.value_json).join(trials, trials.c.study_id == spec.c.study_id)
    text = connection.execute(query.where(trials.c.trial_id == trial_id, spec.c.key == SPEC_ATTRIBUTE)).scalar()
    return Aim.of(parse_json(text)).judged_on


def _record(
    row: Sequence[Any],
    params: dict[str, Any],
    values: dict[int, float],
    attributes: dict[str, Any],
    judged_on: Literal["validation"] | None,
) -> TrialRecord:
    _, number, state, started_at, completed_at = row
    note, failure = StoppingNote.read(attributes.get("stopping")), failure_pair(attributes.get("failure"))
    numbers: dict[str, Any] = {name: whole_number(attributes.get(name)) for name in _WHOLE_NUMBERS}
    numbers |= {name: finite_number(attributes.get(name)) for name in _REAL_NUMBERS}
    return TrialRecord(
        number=number,
        state=state,
        params=params,
        train_seconds=values.get(0),
        value=values.get(1),
        failure=None if failure is None else ": ".join(filter(None, failure)),
        status=_text(attributes.get("status")),
        device_name=_text(attributes.get("device_name")),
        extra=attributes.get("extra") is True,
        stopped=note.reason if note is not None and note.stopped else None,
        started_at=_moment(started_at),
        completed_at=_moment(completed_at),
        curve=attributes.get("curve") or (),
        phases=attributes.get("phases"),
        machine=attributes.get("machine"),
        measures=read_measures(attributes.get("measures")),
        judged_on=judged_on,
        on_test=finite_number(attributes.get(ON_TEST)) if judged_on else None,
        **numbers,
    )


def read_measures(value: Any) -> dict[str, float]:
    """Return the numbers of a stored attribute, by name."""
    named = value.items() if isinstance(value, Mapping) else ()
    return {name: number for name, each in named if (number := finite_number(each)) is not None}


def stopping_notes(engine: sa.Engine, study_id: int) -> dict[int, StoppingNote]:
    """Return by number what rows say of trials that were stopped early, or that ran on as controls; in their order."""
    attribute = trial_user_attributes
    query = (
        sa.select(trials.c.number, attribute.c.value_json)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, attribute.c.key == "stopping")
        .order_by(trials.c.number)
    )
    with reading(engine) as connection:
        notes = {number: StoppingNote.read(parse_json(text)) for number, text in connection.execute(query)}
    return {number: note for number, note in notes.items() if note is not None}


def read_params(connection: sa.Connection, trial_ids: Sequence[int]) -> defaultdict[int, dict[str, Any]]:
    """Return the params of trials as they were sampled, by trial id."""
    table = trial_params
    query = sa.select(table.c.trial_id, table.c.param_name, table.c.param_value, table.c.distribution_json)
    params: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, name, value, distribution in connection.execute(
        query.where(table.c.trial_id.in_(trial_ids)).order_by(table.c.param_id)
    ):
        if not isinstance(name, str):
            continue
        try:
            params[trial_id][name] = _external(value, distribution)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
            continue
    return params


def _external(value: Any, distribution_json: str) -> Any:
    """Return a param as the user knows it; a choice is stored as its index, a whole number as a float."""
    kind = _distribution(distribution_json)
    if isinstance(kind, dict):
        return kind[int(value)]
    number = kind(value)
    if not math.isfinite(number):
        raise ValueError("not a value of any range")
    return number


@lru_cache(maxsize=4096)
def _distribution(distribution_json: str) -> dict[int, Any] | type[int] | type[float]:
    document = json.loads(distribution_json)
    if document["name"] == "CategoricalDistribution":
        return dict(enumerate(document["attributes"]["choices"]))
    return _NUMBERS[document["name"]]


def _values(connection: sa.Connection, trial_ids: Sequence[int]) -> defaultdict[int, dict[int, float]]:
    query = sa.select(trial_values.c.trial_id, trial_values.c.objective, trial_values.c.value)
    values: defaultdict[int, dict[int, float]] = defaultdict(dict)
    for trial_id, objective, value in connection.execute(
        query.where(trial_values.c.trial_id.in_(trial_ids), is_finite(trial_values.c.value))
    ):
        values[trial_id][objective] = value
    return values


def read_attributes(
    connection: sa.Connection, trial_ids: Sequence[int], names: Collection[str]
) -> defaultdict[int, dict[str, Any]]:
    """Return some user attributes of trials, by trial id: JSON values, and DOCUMENTS as what they hold.

    What is not JSON, and a document that is not as we write it, is None.
    """
    table = trial_user_attributes
    query = sa.select(table.c.trial_id, table.c.key, table.c.value_json)
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in connection.execute(
        query.where(table.c.trial_id.in_(trial_ids), table.c.key.in_(list(names)))
    ):
        attributes[trial_id][key] = read_json(DOCUMENTS[key], text) if key in DOCUMENTS else parse_json(text)
    return attributes


def parse_json(text: Any) -> Any:
    """Return the value of a JSON text, None where it is none."""
    try:
        return from_json(text)
    except (TypeError, ValueError):
        pass
    try:  # Python's own takes halves of a character too; it is slower
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def read_json(adapter: TypeAdapter[T], text: Any) -> T | None:
    """Return what a JSON text holds, None where it is not as we write it."""
    try:
        return adapter.validate_json(text)
    except ValidationError:
        return None


def whole_number(value: Any) -> int | None:
    """Return a value where it is a whole number, else None."""
    return value if type(value) is int else None  # not a bool


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _moment(text: Any) -> str | None:
    """Return a stored UTC time as ISO 8601."""
    try:
        return datetime.fromisoformat(f"{text}+00:00").isoformat()
    except ValueError:
        return None


def failure_pair(value: Any) -> tuple[str, str] | None:
    """Return the kind and the message of a stored failure."""
    if isinstance(value, Mapping):
        return _text(value.get("kind")) or "unknown", _text(value.get("message")) or ""
    return ("unknown", value) if isinstance(value, str) else None
