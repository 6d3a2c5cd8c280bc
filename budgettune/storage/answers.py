"""Answers by SQL on Optuna's tables: records, the best under a budget, the Pareto front. No Optuna, no torch.

Other programs may write to the same tables. What is not as we write it (a missing value, a text where a number
belongs) is left out of the answer, never an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from budgettune.errors import NothingWithinBudget, SpecError, StorageError, StudyNotFound, UsageError
from budgettune.records import TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
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
from budgettune.storage.schema import studies as studies_table
from budgettune.storage.slots import has_repeats, machine_kind, machine_kinds
from budgettune.storage.trials import parse_json, record_batches, records_of, trial_records, whole_number
from budgettune.text import shortened

__all__ = [
    "ANY_KIND",
    "StudyRow",
    "best_under_budget",
    "comparable_kind",
    "device_names",
    "find_study",
    "hypervolume",
    "latest_trials",
    "objective_points",
    "param_names",
    "pareto_front",
    "record_batches",
    "repeated_results",
    "state_counts",
    "studies",
    "train_seconds",
    "trial_records",
    "undominated",
    "waiting_trial_ids",
]


ANY_KIND = "any"
"""In place of a device name: times of all kinds of machine, side by side."""


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

    def read_spec(self) -> StudySpec:
        """Return the study file, under the name that the database has: another program may have copied the study.

        Raises:
            StorageError: where this budgettune cannot read it.
        """
        try:
            spec = StudySpec.from_json(self.spec_json or "")
        except SpecError as error:
            name = shortened(repr(self.name))
            raise StorageError(f"study {name}: {error}: open it with the budgettune that made it") from None
        return spec.model_copy(update={"name": self.name})


# --- Studies --------------------------------------------------------------------------------------------------------


def studies(engine: sa.Engine) -> list[StudyRow]:
    """Return every study of the database in order of creation, those of other programs too."""
    with reading(engine) as connection:
        rows = connection.execute(
            sa.select(studies_table.c.study_id, plain_text(studies_table.c.study_name)).order_by(
                studies_table.c.study_id
            )
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
    names = ", ".join(shortened(row.name) for row in ours[:20])
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
    raise StudyNotFound(f"study {shortened(repr(name))} {fault}: {hint}")


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
    return sorted(machine_kinds(engine, study_id))


def comparable_kind(engine: sa.Engine, study_id: int, device_name: str | None = None) -> str | None:
    """Return the kind of machine whose times an answer may compare; None where all may.

    Args:
        engine: from `open_engine`.
        study_id: from `find_study`.
        device_name: what a user asked for; None for the study's own kind where it holds several, ANY_KIND for all.

    Raises:
        UsageError: where the study has no time of that kind.
    """
    if device_name == ANY_KIND:
        return None
    names = device_names(engine, study_id)
    if device_name is not None and names and device_name not in names:
        raise UsageError(f"no finished trial ran on {device_name!r}: choose one of {', '.join(map(repr, names))}")
    if device_name is not None or len(names) < 2:
        return device_name
    return machine_kind(engine, study_id)


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
        return records_of(connection, ids)


def pareto_front(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[TrialRecord]:
    """Return the finished trials that no other beats in both time and accuracy, fastest first."""
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    points = query.with_only_columns(seconds.c.value, -accuracy.c.value, trials.c.number, trials.c.trial_id)
    with reading(engine) as connection:
        rows = sorted(map(tuple, connection.execute(points)))
        return records_of(connection, [row[3] for row in undominated(rows)])


def repeated_results(
    engine: sa.Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> dict[int, list[tuple[float, float]]]:
    """Return (train_seconds, test_accuracy) of every finished trial that counts, by cell.

    Nothing where the study asks for one trial per cell: nothing is repeated then.
    """
    if not has_repeats(engine, study_id):
        return {}
    seconds, accuracy, query = _finished(study_id, device_name, clean_only)
    cells, extras = trial_user_attributes.alias("cells"), trial_user_attributes.alias("extras")
    query = query.join(cells, sa.and_(cells.c.trial_id == trials.c.trial_id, cells.c.key == "cell"))
    query = query.outerjoin(extras, sa.and_(extras.c.trial_id == trials.c.trial_id, extras.c.key == "extra"))
    columns = (cells.c.value_json, extras.c.value_json, seconds.c.value, accuracy.c.value)
    results: dict[int, list[tuple[float, float]]] = {}
    with reading(engine) as connection:
        for cell_json, extra_json, taken, reached in connection.execute(query.with_only_columns(*columns)):
            cell = whole_number(parse_json(cell_json))
            if cell is not None and parse_json(extra_json) is not True:
                results.setdefault(cell, []).append((taken, reached))
    return results


def undominated(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the sorted rows (seconds, loss, …) that improve on the loss of all faster ones, and their equals."""
    front: list[tuple[Any, ...]] = []
    for row in rows:
        if not front or row[1] < front[-1][1] or row[:2] == front[-1][:2]:
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
