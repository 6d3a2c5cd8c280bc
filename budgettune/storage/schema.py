"""Optuna's tables (schema v3.2.0.a) for SQLAlchemy Core, and what SQLite and PostgreSQL say differently about time.

Only columns that are used here. Times are UTC without a time zone, by the clock of the database.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
SPEC_ATTRIBUTE = "budgettune:spec"
KINDS_ATTRIBUTE = "budgettune:machine_kinds"
PROSPECT_ATTRIBUTE = "budgettune:prospect"
METRIC_NAMES_ATTRIBUTE = "study:metric_names"  # the name that Optuna gives it
NOTE_VERSION_ATTRIBUTE = "dashboard:note_ver"  # the names that optuna-dashboard gives a study's note
NOTE_ATTRIBUTE = "dashboard:note_str:0"
CONSTRAINTS_ATTRIBUTE = "constraints"  # of a trial: by how much it is beyond each limit; the name that Optuna reads

_metadata = sa.MetaData()


def _key(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.Integer, primary_key=True)


def _attributes(table: str, owner: str) -> sa.Table:
    return sa.Table(
        table,
        _metadata,
        _key(f"{table[:-1]}_id"),
        sa.Column(owner, sa.Integer),
        sa.Column("key", sa.String(512)),
        sa.Column("value_json", sa.Text),
    )


studies = sa.Table("studies", _metadata, _key("study_id"), sa.Column("study_name", sa.String(512)))

study_directions = sa.Table(
    "study_directions",
    _metadata,
    _key("study_direction_id"),
    sa.Column("direction", sa.Enum("NOT_SET", "MINIMIZE", "MAXIMIZE", name="studydirection")),
    sa.Column("study_id", sa.Integer),
    sa.Column("objective", sa.Integer),
)

study_user_attributes = _attributes("study_user_attributes", "study_id")
study_system_attributes = _attributes("study_system_attributes", "study_id")

trials = sa.Table(
    "trials",
    _metadata,
    _key("trial_id"),
    sa.Column("number", sa.Integer),
    sa.Column("study_id", sa.Integer),
    sa.Column("state", sa.Enum(*STATES, name="trialstate")),
    sa.Column("datetime_start", sa.DateTime),
    sa.Column("datetime_complete", sa.DateTime),
)

trial_user_attributes = _attributes("trial_user_attributes", "trial_id")
trial_system_attributes = _attributes("trial_system_attributes", "trial_id")

trial_params = sa.Table(
    "trial_params",
    _metadata,
    _key("param_id"),
    sa.Column("trial_id", sa.Integer),
    sa.Column("param_name", sa.String(512)),
    sa.Column("param_value", sa.Float(53)),
    sa.Column("distribution_json", sa.Text),
)

trial_values = sa.Table(
    "trial_values",
    _metadata,
    _key("trial_value_id"),
    sa.Column("trial_id", sa.Integer),
    sa.Column("objective", sa.Integer),
    sa.Column("value", sa.Float(53)),
    sa.Column("value_type", sa.Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype")),
)

trial_intermediate_values = sa.Table(
    "trial_intermediate_values",
    _metadata,
    _key("trial_intermediate_value_id"),
    sa.Column("trial_id", sa.Integer),
    sa.Column("step", sa.Integer),
    sa.Column("intermediate_value", sa.Float(53)),
    sa.Column(
        "intermediate_value_type", sa.Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype")
    ),
)

trial_heartbeats = sa.Table(
    "trial_heartbeats",
    _metadata,
    _key("trial_heartbeat_id"),
    sa.Column("trial_id", sa.Integer),
    sa.Column("heartbeat", sa.DateTime),
)

TABLES_OF_A_TRIAL = tuple(table for table in _metadata.tables.values() if "trial_id" in table.c and table is not trials)
TABLES_OF_A_STUDY = (study_user_attributes, study_system_attributes, study_directions)


class utc_in(FunctionElement[Any]):  # noqa: N801  (reads like the SQL functions beside it)
    """The time of the database's clock so many seconds from now (below zero: ago)."""

    type = sa.DateTime()
    inherit_cache = True

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__(sa.bindparam(None, float(seconds), sa.Float))


@compiles(utc_in, "sqlite")
def _utc_in_sqlite(element: utc_in, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%d %H:%M:%f000', 'now', {seconds} || ' seconds')"


@compiles(utc_in, "postgresql")
def _utc_in_postgresql(element: utc_in, compiler: Any, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(timezone('utc', clock_timestamp()) + {seconds} * interval '1 second')"


def is_of_a_cell() -> sa.ColumnElement[bool]:
    """Return the condition that trials of our cells meet; rows that another program added do not."""
    return sa.func.substr(_attribute_text("cell"), 1, 1).in_(list("0123456789"))


def is_of_a_slot() -> sa.ColumnElement[bool]:
    """Return the stricter condition that both cell and repeat are whole numbers, as decisions about slots ask."""
    texts = (_attribute_text("cell"), _attribute_text("repeat"))
    return sa.and_(*(sa.and_(text != "", sa.func.rtrim(text, "0123456789") == "") for text in texts))


def _attribute_text(key: str) -> sa.ColumnElement[str]:
    """Return a user attribute of the trial at hand as it is stored, empty where there is none."""
    attribute = trial_user_attributes
    value = sa.select(attribute.c.value_json).where(attribute.c.trial_id == trials.c.trial_id, attribute.c.key == key)
    # Not as EXISTS: PostgreSQL makes a join of it that reads all waiting rows to find the first.
    return sa.func.coalesce(value.correlate(trials).scalar_subquery(), "")


def attribute_values(study_id: int, key: str) -> sa.Select[tuple[str]]:
    """Return the query of a user attribute of a study's trials, as JSON; a row for each trial that has it."""
    attribute = trial_user_attributes
    query = sa.select(attribute.c.value_json).join(trials, trials.c.trial_id == attribute.c.trial_id)
    return query.where(trials.c.study_id == study_id, attribute.c.key == key)


def plain_text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    """Return a column as text, so that a value which another program put there cannot break the reading."""
    return sa.cast(column, sa.String)


def is_finite(column: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    """Return a condition that only finite numbers meet.

    NaN sorts above infinity in PostgreSQL and is NULL in SQLite, where text sorts above every number.
    """
    return sa.and_(column > float("-inf"), column < float("inf"))


def is_objective(values: sa.FromClause, objective: int) -> sa.ColumnElement[bool]:
    """Return the condition that joins trials with their finite values of one objective."""
    of_trial = values.c.trial_id == trials.c.trial_id
    return sa.and_(of_trial, values.c.objective == objective, is_finite(values.c.value))
