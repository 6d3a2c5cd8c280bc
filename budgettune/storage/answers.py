"""Answers by SQL on Optuna's tables: the best under a budget, points, counts. No Optuna, no torch.

Other programs may write to the same tables. What is not as we write it (a missing value, a text where a number
belongs) is left out of the answer, never an error.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from budgettune.errors import NothingWithinBudget, UsageError
from budgettune.records import TrialRecord
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    SPEC_ATTRIBUTE,
    STATES,
    attribute_values,
    is_objective,
    is_of_a_cell,
    plain_text,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
)
from budgettune.storage.studies import aim_of, allowed_trials, study_attribute
from budgettune.storage.trials import parse_json, read_measures, records_of, whole_number


def state_counts(engine: sa.Engine, study_id: int, *, of_cells: bool = True) -> dict[str, int]:
    """Return the number of trials in each state, zeros included: of cells, or those that another program added."""
    state, is_counted = plain_text(trials.c.state), is_of_a_cell() if of_cells else sa.not_(is_of_a_cell())
    query = sa.select(state, sa.func.count()).where(trials.c.study_id == study_id, is_counted).group_by(state)
    with reading(engine) as connection:
        counts = {str(row[0]): int(row[1]) for row in connection.execute(query)}
    return {name: counts.get(name, 0) for name in STATES}


def ended_mark(engine: sa.Engine, study_id: int) -> str:
    """Return a text that is another one once a trial has ended since; what waits and runs does not change it."""
    state = plain_text(trials.c.state)
    ended_at = plain_text(sa.func.max(trials.c.datetime_complete))
    columns = (state, sa.func.count(), sa.func.max(trials.c.trial_id), ended_at)
    query = (
        sa.select(*columns).where(trials.c.study_id == study_id, state.not_in(("RUNNING", "WAITING"))).group_by(state)
    )
    with reading(engine) as connection:
        rows = sorted(tuple(map(str, row)) for row in connection.execute(query))
    return hashlib.sha256(repr((study_id, rows)).encode()).hexdigest()[:16]


def latest_trials(engine: sa.Engine, study_id: int, limit: int, *, documents: bool = False) -> list[TrialRecord]:
    """Return the complete trials that ended last, latest first; with curve, phases and machine where asked for."""
    query = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE")
        .order_by(trials.c.datetime_complete.desc(), trials.c.number.desc())
        .limit(limit)
    )
    with reading(engine) as connection:
        return records_of(connection, list(connection.execute(query).scalars()), documents=documents)


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
        return [name for name in connection.execute(query).scalars() if isinstance(name, str)]


def measure_names(engine: sa.Engine, study_id: int) -> list[str]:
    """Return the names of all numbers that trials of a study reported beside its objective, sorted."""
    query = attribute_values(study_id, "measures").distinct()
    with reading(engine) as connection:
        found = [read_measures(parse_json(text)) for text in connection.execute(query).scalars()]
    return sorted({name for each in found for name in each})


def best_under_budget(
    engine: sa.Engine,
    study_id: int,
    budget_seconds: float,
    *,
    top: int = 1,
    device_name: str | None = None,
    clean_only: bool = False,
) -> list[TrialRecord]:
    """Return the best finished trials that train within a budget, `top` at most: the most accurate, by the usual aim.

    Ties go to the faster trial, then to the lower number. Here and below `device_name` takes only times of that kind of
    machine, `clean_only` those that nothing is known to have disturbed; and where the study has limits, trials beyond
    them are left out.

    Raises:
        NothingWithinBudget: where no finished trial is that fast.
    """
    if top < 1:
        raise UsageError(f"top must be at least 1, not {top}")
    with reading(engine) as connection:
        aim, (seconds, value, query) = aim_of(connection, study_id), _finished(study_id, device_name, clean_only)
        score = value.c.value.desc() if aim.objective.direction == "maximize" else value.c.value
        affordable = query.where(seconds.c.value <= budget_seconds).order_by(score, seconds.c.value, trials.c.number)
        left_out = 0
        if not aim.limits:
            ids = list(connection.execute(affordable.limit(top)).scalars())
            fastest = query.with_only_columns(sa.func.min(seconds.c.value))
            fastest_seconds = None if ids else connection.execute(fastest).scalar()
        else:
            allowed = allowed_trials(connection, study_id, aim)
            ids = [found for found in connection.execute(affordable).scalars() if found in allowed][:top]
            rows = connection.execute(query.with_only_columns(trials.c.trial_id, seconds.c.value)).all()
            fastest_seconds = min((taken for found, taken in rows if found in allowed), default=None)
            left_out = len(rows)
        if not ids:
            raise NothingWithinBudget(budget_seconds, fastest_seconds, left_out)
        return records_of(connection, ids)


def repeated_results(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> dict[int, list[tuple[float, float]]]:
    """Return (train_seconds, score) of every finished trial that counts, by cell.

    Nothing where the study asks for one trial per cell: nothing is repeated then.
    """
    cells, extras = trial_user_attributes.alias("cells"), trial_user_attributes.alias("extras")
    with reading(engine) as connection:
        spec = study_attribute(connection, study_id, SPEC_ATTRIBUTE)
        sampler = spec.get("sampler") if isinstance(spec, dict) else None
        if not isinstance(sampler, dict) or sampler.get("repeats", 1) == 1:
            return {}

        def with_cells(query: sa.Select[Any]) -> sa.Select[Any]:
            query = query.join(cells, sa.and_(cells.c.trial_id == trials.c.trial_id, cells.c.key == "cell"))
            query = query.outerjoin(extras, sa.and_(extras.c.trial_id == trials.c.trial_id, extras.c.key == "extra"))
            return query.add_columns(cells.c.value_json, extras.c.value_json)

        results: dict[int, list[tuple[float, float]]] = {}
        for taken, score, _, cell_json, extra_json in _scored(
            connection, study_id, device_name, clean_only, with_cells
        ):
            cell = whole_number(parse_json(cell_json))
            if cell is not None and parse_json(extra_json) is not True:
                results.setdefault(cell, []).append((taken, score))
        return results


def score_points(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[tuple[float, float]]:
    """Return (train_seconds, score) of every finished trial; the usual score is its accuracy."""
    with reading(engine) as connection:
        return [(row[0], row[1]) for row in _scored(connection, study_id, device_name, clean_only)]


def front_rows(
    connection: sa.Connection, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[tuple[float, float, int, int]]:
    """Return (train_seconds, -score, number, trial id) of every finished trial, sorted."""

    def with_numbers(query: sa.Select[Any]) -> sa.Select[Any]:
        return query.add_columns(trials.c.number)

    rows = _scored(connection, study_id, device_name, clean_only, with_numbers)
    return sorted((taken, -score, number, trial_id) for taken, score, trial_id, number in rows)


def left_out_count(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> int:
    """Return how many finished trials no answer names because of the study's limits."""
    with reading(engine) as connection:
        aim = aim_of(connection, study_id)
        if not aim.limits:
            return 0
        allowed = allowed_trials(connection, study_id, aim)
        ids = connection.execute(_finished(study_id, device_name, clean_only)[2]).scalars()
        return sum(trial_id not in allowed for trial_id in ids)


def _scored(
    connection: sa.Connection,
    study_id: int,
    device_name: str | None,
    clean_only: bool,
    more: Callable[[sa.Select[Any]], sa.Select[Any]] = lambda query: query,
) -> Iterator[Sequence[Any]]:
    """Yield (train_seconds, score, trial id, and more columns) of every finished trial within the study's limits."""
    aim, (seconds, value, query) = aim_of(connection, study_id), _finished(study_id, device_name, clean_only)
    allowed = allowed_trials(connection, study_id, aim) if aim.limits else None
    columns = query.with_only_columns(seconds.c.value, value.c.value, trials.c.trial_id)
    for taken, reached, trial_id, *others in connection.execute(more(columns)):
        if allowed is None or trial_id in allowed:
            yield taken, aim.objective.score(reached), trial_id, *others


def _finished(
    study_id: int, device_name: str | None = None, clean_only: bool = False
) -> tuple[sa.FromClause, sa.FromClause, sa.Select[Any]]:
    """Return the two columns of values and a query for the ids of complete trials whose values are both finite."""
    seconds, reached = trial_values.alias("seconds"), trial_values.alias("reached")
    is_complete = sa.and_(trials.c.study_id == study_id, trials.c.state == "COMPLETE", trials.c.number.is_not(None))
    query = sa.select(trials.c.trial_id).where(is_complete)
    for objective, values in enumerate((seconds, reached)):
        query = query.join(values, is_objective(values, objective))
    for key, value in {"device_name": device_name, "status": "clean" if clean_only else None}.items():
        if value is not None:
            attribute = trial_user_attributes.alias(key)
            of_trial = sa.and_(attribute.c.trial_id == trials.c.trial_id, attribute.c.key == key)
            query = query.join(attribute, of_trial).where(attribute.c.value_json == json.dumps(value))
    return seconds, reached, query
