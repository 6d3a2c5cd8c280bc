"""Answers by SQL on Optuna's tables: the best under a budget, points, counts. No Optuna, no torch.

Other programs may write to the same tables. What is not as we write it (a missing value, a text where a number
belongs) is left out of the answer, never an error.
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from budgettune.errors import NothingWithinBudget, UsageError
from budgettune.records import TrialRecord
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    SPEC_ATTRIBUTE,
    STATES,
    is_objective,
    is_of_a_cell,
    plain_text,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
)
from budgettune.storage.studies import study_attribute
from budgettune.storage.trials import parse_json, records_of, whole_number


def state_counts(engine: sa.Engine, study_id: int, *, of_cells: bool = True) -> dict[str, int]:
    """Return the number of trials in each state, zeros included: of cells, or those that another program added."""
    state, is_counted = plain_text(trials.c.state), is_of_a_cell() if of_cells else sa.not_(is_of_a_cell())
    query = sa.select(state, sa.func.count()).where(trials.c.study_id == study_id, is_counted).group_by(state)
    with reading(engine) as connection:
        counts = {str(row[0]): int(row[1]) for row in connection.execute(query)}
    return {name: counts.get(name, 0) for name in STATES}


def latest_trials(engine: sa.Engine, study_id: int, limit: int) -> list[TrialRecord]:
    """Return the complete trials that ended last, latest first, without curve, phases and machine."""
    query = (
        sa.select(trials.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE")
        .order_by(trials.c.datetime_complete.desc(), trials.c.number.desc())
        .limit(limit)
    )
    with reading(engine) as connection:
        return records_of(connection, list(connection.execute(query).scalars()), documents=False)


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


def best_under_budget(
    engine: sa.Engine,
    study_id: int,
    budget_seconds: float,
    *,
    top: int = 1,
    device_name: str | None = None,
    clean_only: bool = False,
) -> list[TrialRecord]:
    """Return the most accurate finished trials that train within a budget, `top` at most.

    Ties go to the faster trial, then to the lower number. Here and below `device_name` takes only times of that kind of
    machine, `clean_only` those that nothing is known to have disturbed.

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
        return records_of(connection, ids)


def repeated_results(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> dict[int, list[tuple[float, float]]]:
    """Return (train_seconds, test_accuracy) of every finished trial that counts, by cell.

    Nothing where the study asks for one trial per cell: nothing is repeated then.
    """
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    cells, extras = trial_user_attributes.alias("cells"), trial_user_attributes.alias("extras")
    query = query.join(cells, sa.and_(cells.c.trial_id == trials.c.trial_id, cells.c.key == "cell"))
    query = query.outerjoin(extras, sa.and_(extras.c.trial_id == trials.c.trial_id, extras.c.key == "extra"))
    columns = (cells.c.value_json, extras.c.value_json, seconds.c.value, accuracy.c.value)
    results: dict[int, list[tuple[float, float]]] = {}
    with reading(engine) as connection:
        spec = study_attribute(connection, study_id, SPEC_ATTRIBUTE)
        sampler = spec.get("sampler") if isinstance(spec, dict) else None
        if not isinstance(sampler, dict) or sampler.get("repeats", 1) == 1:
            return {}
        for cell_json, extra_json, taken, reached in connection.execute(query.with_only_columns(*columns)):
            cell = whole_number(parse_json(cell_json))
            if cell is not None and parse_json(extra_json) is not True:
                results.setdefault(cell, []).append((taken, reached))
    return results


def objective_points(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[tuple[float, float]]:
    """Return (train_seconds, test_accuracy) of every finished trial."""
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    with reading(engine) as connection:
        rows = connection.execute(query.with_only_columns(seconds.c.value, accuracy.c.value))
        return [(row[0], row[1]) for row in rows]


def front_rows(
    connection: sa.Connection, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[tuple[float, float, int, int]]:
    """Return (train_seconds, -test_accuracy, number, trial id) of every finished trial, sorted."""
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    columns = (seconds.c.value, -accuracy.c.value, trials.c.number, trials.c.trial_id)
    return sorted(map(tuple, connection.execute(query.with_only_columns(*columns))))


def _finished(
    study_id: int, device_name: str | None = None, clean_only: bool = False
) -> tuple[sa.FromClause, sa.FromClause, sa.Select[Any]]:
    """Return the two columns of values and a query for the ids of complete trials whose values are both finite."""
    seconds, accuracy = trial_values.alias("seconds"), trial_values.alias("accuracy")
    is_complete = sa.and_(trials.c.study_id == study_id, trials.c.state == "COMPLETE", trials.c.number.is_not(None))
    query = sa.select(trials.c.trial_id).where(is_complete)
    for objective, values in enumerate((seconds, accuracy)):
        query = query.join(values, is_objective(values, objective))
    for key, value in {"device_name": device_name, "status": "clean" if clean_only else None}.items():
        if value is not None:
            attribute = trial_user_attributes.alias(key)
            of_trial = sa.and_(attribute.c.trial_id == trials.c.trial_id, attribute.c.key == key)
            query = query.join(attribute, of_trial).where(attribute.c.value_json == json.dumps(value))
    return seconds, accuracy, query
