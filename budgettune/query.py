"""Answers by SQL on Optuna's tables: records, the best under a budget, the Pareto front. No Optuna, no torch.

Other programs may write to the same tables. What is not as we write it (a missing value, a text where a number
belongs) is left out of the answer, never an error.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from budgettune.errors import NothingWithinBudget, StudyNotFound, UsageError
from budgettune.records import NUMERIC_ATTRIBUTES, EpochRecord, MachineInfo, PhaseSeconds, TrialRecord
from budgettune.storage import reading
from budgettune.tables import (
    METRIC_NAMES_ATTRIBUTE,
    SPEC_ATTRIBUTE,
    STATES,
    is_finite,
    plain_text,
    study_system_attributes,
    study_user_attributes,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
)
from budgettune.tables import studies as studies_table

IDS_PER_STATEMENT = 500
DOCUMENTS = ("curve", "phases", "machine")
_PLAIN_ATTRIBUTES = ("cell", "repeat", "attempt", "seed", "status", "device_name", "failure", *NUMERIC_ATTRIBUTES)
_WHOLE_NUMBERS = ("cell", "repeat", "attempt", "seed", "epochs", "steps", "parameters", "multiply_adds")
_REAL_NUMBERS = tuple(name for name in NUMERIC_ATTRIBUTES if name not in _WHOLE_NUMBERS)


@dataclass(frozen=True)
class StudyRow:
    """A study as the database has it.

    Attributes:
        spec_json: the study file; None for a study of another program.
    """

    study_id: int
    name: str
    spec_json: str | None
    metric_names: tuple[str, ...]


# --- Studies --------------------------------------------------------------------------------------------------------


def studies(engine: sa.Engine) -> list[StudyRow]:
    """Return every study of the database in order of creation, those of other programs too."""
    with reading(engine) as connection:
        rows = connection.execute(
            sa.select(studies_table.c.study_id, studies_table.c.study_name).order_by(studies_table.c.study_id)
        ).all()
        specs = _study_attribute(connection, study_user_attributes, SPEC_ATTRIBUTE)
        metrics = _study_attribute(connection, study_system_attributes, METRIC_NAMES_ATTRIBUTE)
    return [StudyRow(key, name, _spec_json(specs.get(key)), _names(metrics.get(key))) for key, name in rows]


def _study_attribute(connection: sa.Connection, table: sa.Table, key: str) -> dict[int, Any]:
    rows = connection.execute(sa.select(table.c.study_id, table.c.value_json).where(table.c.key == key))
    return {study_id: parse_json(text) for study_id, text in rows}


def _spec_json(value: Any) -> str | None:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict) else None


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, list) else ()


def find_study(engine: sa.Engine, name: str | None = None) -> StudyRow:
    """Return the study of that name, or the only one.

    Raises:
        StudyNotFound: where there is none, where there are several and no name is given, or another program made it.
    """
    found = studies(engine)
    ours = [row for row in found if row.spec_json is not None]
    names = ", ".join(row.name for row in ours[:20])
    if name is None:
        if len(ours) == 1:
            return ours[0]
        hint = f"name one of: {names}" if ours else "make one with `budgettune study create`"
        raise StudyNotFound(f"the storage holds {len(ours)} studies: {hint}")
    row = next((row for row in found if row.name == name), None)
    if row is not None and row.spec_json is not None:
        return row
    fault = "was made by another program" if row is not None else "is not in the storage"
    hint = f"name one of: {names}" if ours else "make one with `budgettune study create`"
    raise StudyNotFound(f"study {name!r} {fault}: {hint}")


# --- Counts ---------------------------------------------------------------------------------------------------------


def state_counts(engine: sa.Engine, study_id: int) -> dict[str, int]:
    """Return the number of trials in each state, zeros included."""
    state = plain_text(trials.c.state)
    query = sa.select(state, sa.func.count()).where(trials.c.study_id == study_id).group_by(state)
    with reading(engine) as connection:
        counts = {str(row[0]): int(row[1]) for row in connection.execute(query)}
    return {name: counts.get(name, 0) for name in STATES}


def waiting_trial_ids(engine: sa.Engine, study_id: int, limit: int) -> list[int]:
    """Return the trials that wait for a worker, oldest first."""
    query = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING")
        .order_by(trials.c.number)
        .limit(limit)
    )
    with reading(engine) as connection:
        return list(connection.execute(query).scalars())


def train_seconds(engine: sa.Engine, study_id: int) -> list[float]:
    """Return the training times of all finished trials, in seconds."""
    seconds, _, query = _finished(study_id)
    with reading(engine) as connection:
        return list(connection.execute(query.with_only_columns(seconds.c.value)).scalars())


def device_names(engine: sa.Engine, study_id: int) -> list[str]:
    """Return the kinds of machine that a study's times come from, sorted."""
    attribute = trial_user_attributes
    query = (
        sa.select(attribute.c.value_json)
        .distinct()
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(trials.c.study_id == study_id, attribute.c.key == "device_name")
    )
    with reading(engine) as connection:
        names = [parse_json(text) for text in connection.execute(query).scalars()]
    return sorted(name for name in names if isinstance(name, str))


def param_names(engine: sa.Engine, study_id: int) -> list[str]:
    """Return the names of all params of a study, in order of their first use."""
    query = (
        sa.select(trial_params.c.param_name)
        .join(trials, trials.c.trial_id == trial_params.c.trial_id)
        .where(trials.c.study_id == study_id)
        .group_by(trial_params.c.param_name)
        .order_by(sa.func.min(trial_params.c.param_id))
    )
    with reading(engine) as connection:
        return list(connection.execute(query).scalars())


# --- Answers --------------------------------------------------------------------------------------------------------


def best_under_budget(
    engine: sa.Engine,
    study_id: int,
    budget_seconds: float,
    *,
    top: int = 1,
    device_name: str | None = None,
    clean_only: bool = False,
) -> list[TrialRecord]:
    """Return the most accurate finished trials that train within a budget.

    Ties go to the faster trial, then to the lower number.

    Args:
        engine: from `open_engine`.
        study_id: from `find_study`.
        budget_seconds: of training on the clock.
        top: how many at most.
        device_name: take only times from that kind of machine.
        clean_only: take only times that nothing is known to have disturbed.

    Raises:
        NothingWithinBudget: where no finished trial is that fast.
    """
    if top < 1:
        raise UsageError(f"top must be at least 1, not {top}")
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    affordable = (
        query.where(seconds.c.value <= budget_seconds)
        .order_by(accuracy.c.value.desc(), seconds.c.value, trials.c.number)
        .limit(top)
    )
    with reading(engine) as connection:
        ids = list(connection.execute(affordable).scalars())
        if not ids:
            fastest = connection.execute(query.with_only_columns(sa.func.min(seconds.c.value))).scalar()
            raise NothingWithinBudget(budget_seconds, fastest)
        return _records(connection, ids)


def pareto_front(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[TrialRecord]:
    """Return the finished trials that no other beats in both time and accuracy, fastest first."""
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    points = query.add_columns(seconds.c.value, accuracy.c.value, trials.c.number)
    with reading(engine) as connection:
        rows = sorted(connection.execute(points).all(), key=lambda row: (row[1], -row[2], row[3]))
        return _records(connection, [row[0] for row in _undominated(rows)])


def _undominated(rows: Iterable[Any]) -> list[Any]:
    """Keep the rows (id, seconds, accuracy, …) that improve on all faster ones, and equals of those."""
    front: list[Any] = []
    for row in rows:
        if not front or row[2] > front[-1][2] or (row[1], row[2]) == (front[-1][1], front[-1][2]):
            front.append(row)
    return front


def objective_points(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[tuple[float, float]]:
    """Return (train_seconds, test_accuracy) of every finished trial."""
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    with reading(engine) as connection:
        rows = connection.execute(query.with_only_columns(seconds.c.value, accuracy.c.value))
        return [(row[0], row[1]) for row in rows]


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that points of (seconds, accuracy) dominate up to a reference point, exactly.

    Args:
        points: seconds count the less the better, accuracy the more; those that are not finite, or not better than
            the reference in both, add nothing.
        reference: (seconds, accuracy) that is worse than what matters.
    """
    worst_seconds, worst_accuracy = reference
    useful = sorted(
        (seconds, -accuracy)
        for seconds, accuracy in points
        if math.isfinite(seconds) and math.isfinite(accuracy) and seconds < worst_seconds and accuracy > worst_accuracy
    )
    area, height = 0.0, worst_accuracy
    for seconds, negated in useful:
        gain = max(0.0, -negated - height)
        area += gain * (worst_seconds - seconds)
        height += gain
    return area


def _finished(
    study_id: int, device_name: str | None = None, clean_only: bool = False
) -> tuple[sa.FromClause, sa.FromClause, sa.Select[Any]]:
    """Return the two columns of values and a query for the ids of complete trials whose values are both finite."""
    seconds, accuracy = trial_values.alias("seconds"), trial_values.alias("accuracy")
    query = sa.select(trials.c.trial_id).where(
        trials.c.study_id == study_id, trials.c.state == "COMPLETE", trials.c.number.is_not(None)
    )
    for objective, values in enumerate((seconds, accuracy)):
        query = query.join(
            values, sa.and_(values.c.trial_id == trials.c.trial_id, values.c.objective == objective)
        ).where(is_finite(values.c.value))
    wanted = {"device_name": device_name, "status": "clean" if clean_only else None}
    for key, value in wanted.items():
        if value is not None:
            attribute = trial_user_attributes.alias(key)
            query = query.join(
                attribute, sa.and_(attribute.c.trial_id == trials.c.trial_id, attribute.c.key == key)
            ).where(attribute.c.value_json == json.dumps(value))
    return seconds, accuracy, query


# --- Records --------------------------------------------------------------------------------------------------------


def trial_records(
    engine: sa.Engine,
    study_id: int,
    *,
    states: Collection[str] | None = None,
    numbers: Collection[int] | None = None,
    documents: bool = True,
) -> list[TrialRecord]:
    """Return the trials of a study by number.

    Args:
        engine: from `open_engine`.
        study_id: from `find_study`.
        states: only those, for example {"COMPLETE"}.
        numbers: only those.
        documents: with curve, phases and machine; they are most of the bytes.
    """
    query = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id).order_by(trials.c.number)
    if states is not None:
        query = query.where(plain_text(trials.c.state).in_(list(states)))
    if numbers is not None:
        query = query.where(trials.c.number.in_(list(numbers)))
    with reading(engine) as connection:
        return _records(connection, list(connection.execute(query).scalars()), documents=documents)


def record_batches(engine: sa.Engine, study_id: int, *, documents: bool = True) -> Iterator[list[TrialRecord]]:
    """Yield all trials of a study by number, some hundreds at a time: a study may be larger than memory."""
    query = sa.select(trials.c.trial_id).where(trials.c.study_id == study_id).order_by(trials.c.number)
    with reading(engine) as connection:
        ids = list(connection.execute(query).scalars())
        for begin in range(0, len(ids), IDS_PER_STATEMENT):
            yield _batch(connection, ids[begin : begin + IDS_PER_STATEMENT], documents)


def _records(connection: sa.Connection, trial_ids: Sequence[int], *, documents: bool = True) -> list[TrialRecord]:
    """Return the records of trials in the order of their ids."""
    records: list[TrialRecord] = []
    for begin in range(0, len(trial_ids), IDS_PER_STATEMENT):
        records += _batch(connection, trial_ids[begin : begin + IDS_PER_STATEMENT], documents)
    return records


def _batch(connection: sa.Connection, ids: Sequence[int], documents: bool) -> list[TrialRecord]:
    rows = connection.execute(
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            plain_text(trials.c.state),
            plain_text(trials.c.datetime_start),
            plain_text(trials.c.datetime_complete),
        ).where(trials.c.trial_id.in_(ids))
    )
    by_id = {row[0]: row for row in rows}
    params, values = read_params(connection, ids), _values(connection, ids)
    attributes = read_attributes(connection, ids, (*_PLAIN_ATTRIBUTES, *(DOCUMENTS if documents else ())))
    return [
        _record(by_id[key], params[key], values[key], attributes[key])
        for key in ids
        if key in by_id and isinstance(by_id[key][1], int)
    ]


def _record(
    row: Sequence[Any], params: dict[str, Any], values: dict[int, float], attributes: dict[str, Any]
) -> TrialRecord:
    _, number, state, started_at, completed_at = row
    return TrialRecord(
        number=number,
        state=state,
        params=params,
        train_seconds=values.get(0),
        test_accuracy=values.get(1),
        failure=failure_text(attributes.get("failure")),
        status=_text(attributes.get("status")),
        device_name=_text(attributes.get("device_name")),
        started_at=_moment(started_at),
        completed_at=_moment(completed_at),
        curve=_curve(attributes.get("curve")),
        phases=_document(PhaseSeconds, attributes.get("phases")),
        machine=_document(MachineInfo, attributes.get("machine")),
        **{name: whole_number(attributes.get(name)) for name in _WHOLE_NUMBERS},
        **{name: _number(attributes.get(name)) for name in _REAL_NUMBERS},  # type: ignore[arg-type]
    )


def read_params(connection: sa.Connection, trial_ids: Sequence[int]) -> defaultdict[int, dict[str, Any]]:
    """Return the params of trials as they were sampled, by trial id."""
    table = trial_params
    query = sa.select(table.c.trial_id, table.c.param_name, table.c.param_value, table.c.distribution_json)
    params: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, name, value, distribution in connection.execute(
        query.where(table.c.trial_id.in_(trial_ids)).order_by(table.c.param_id)
    ):
        try:
            params[trial_id][name] = _external(value, distribution)
        except (TypeError, ValueError, LookupError, OverflowError):
            continue
    return params


def _external(value: Any, distribution_json: str) -> Any:
    """Return a param as the user knows it; a choice is stored as its index, a whole number as a float."""
    name, choices = _distribution(distribution_json)
    if choices is not None:
        return choices[int(value)]
    return int(value) if name.startswith("Int") else float(value)


@lru_cache(maxsize=4096)
def _distribution(distribution_json: str) -> tuple[str, tuple[Any, ...] | None]:
    document = json.loads(distribution_json)
    choices = document["attributes"].get("choices") if document["name"] == "CategoricalDistribution" else None
    return document["name"], None if choices is None else tuple(choices)


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
    """Return some user attributes of trials, by trial id; what is not JSON is left out."""
    table = trial_user_attributes
    query = sa.select(table.c.trial_id, table.c.key, table.c.value_json)
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in connection.execute(
        query.where(table.c.trial_id.in_(trial_ids), table.c.key.in_(list(names)))
    ):
        attributes[trial_id][key] = parse_json(text)
    return attributes


# --- What another program may have put there --------------------------------------------------------------------------


def parse_json(text: Any) -> Any:
    """Return the value of a JSON text, None where it is none."""
    try:
        return json.loads(text)
    except (TypeError, ValueError, RecursionError):
        return None


def whole_number(value: Any) -> int | None:
    """Return a value where it is a whole number, else None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _number(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and math.isfinite(value) else None


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
        return str(value.get("kind", "unknown")), str(value.get("message", ""))
    return ("unknown", value) if isinstance(value, str) else None


def failure_text(value: Any) -> str | None:
    """Return a stored failure as `kind: message`."""
    pair = failure_pair(value)
    return None if pair is None else ": ".join(part for part in pair if part)


def _document(kind: type[Any], value: Any) -> Any:
    try:
        return kind(**value)
    except TypeError:
        return None


def _curve(value: Any) -> tuple[EpochRecord, ...]:
    try:
        return tuple(EpochRecord(**epoch) for epoch in value)
    except TypeError:
        return ()
