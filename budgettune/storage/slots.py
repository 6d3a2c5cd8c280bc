"""What decisions need to know of a study's trials, read in a few statements."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from budgettune.records import KEPT_EPOCHS, OPEN, Slot, SlotRow, StoppingNote
from budgettune.spec.objective import Aim
from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    attribute_values,
    is_objective,
    is_of_a_cell,
    is_of_a_slot,
    plain_text,
    trial_heartbeats,
    trial_params,
    trial_user_attributes,
    trial_values,
    trials,
    utc_in,
)
from budgettune.storage.studies import aim_of, allowed_trials
from budgettune.storage.trials import failure_pair, parse_json, read_params, whole_number

Connection = sa.Connection  # for those who hand one on, and need not know SQLAlchemy
Point = tuple[tuple[str, float], ...]
SLOT_ATTRIBUTES = ("cell", "repeat", "attempt", "failure", "extra", "late_of", "stopping", KEPT_EPOCHS)


@dataclass(frozen=True)
class Tally:
    """What tells, without its rows, whether a study may need mending, and whether anything of it is left to do.

    Attributes:
        ended: rows that ended without a result, and leave their slots to others.
        waiting, running: of cells.
        overdue: running ones of cells without a sign of life for a lease, without any, or with one from the future.
    """

    rows: int
    complete: int
    ended: int
    waiting: int
    running: int
    overdue: int

    def nothing_came_open_since(self, earlier: Tally) -> bool:
        """Whether no slot can have come open since an earlier tally, but for repeats that results ask for."""
        return not self.overdue and self.ended == earlier.ended and self.rows >= earlier.rows


def tally(engine: sa.Engine, study_id: int, lease_seconds: float) -> Tally:
    """Count a study's trials in one statement that locks nothing."""
    state = trials.c.state
    beat = sa.select(trial_heartbeats.c.heartbeat).where(trial_heartbeats.c.trial_id == trials.c.trial_id)
    # A look at the heartbeat for each running row; a join with them all takes longer where most rows have ended.
    beat_at = beat.correlate(trials).scalar_subquery()
    is_alive = sa.func.coalesce(beat_at.between(utc_in(-lease_seconds), utc_in(lease_seconds)), sa.false())
    # In this order: only open rows are asked which cell they are of, and only running ones for their heartbeats.
    kind = sa.case(
        (state == "COMPLETE", "complete"),
        (state.not_in(["WAITING", "RUNNING"]), "ended"),
        (sa.not_(is_of_a_slot()), "foreign"),
        (state == "WAITING", "waiting"),
        (is_alive, "running"),
        else_="overdue",
    ).label("kind")
    query = sa.select(kind, sa.func.count()).where(trials.c.study_id == study_id).group_by(kind)
    with reading(engine) as connection:
        counts = Counter({name: int(count) for name, count in connection.execute(query)})
    return Tally(
        rows=counts.total(),
        complete=counts["complete"],
        ended=counts["ended"],
        waiting=counts["waiting"],
        running=counts["running"] + counts["overdue"],
        overdue=counts["overdue"],
    )


def slot_rows(connection: sa.Connection, study_id: int) -> list[SlotRow]:
    """Return what decisions need to know of every trial of a cell."""
    of_study = trials.c.study_id == study_id
    with_params = (
        sa.select(trial_params.c.trial_id)
        .distinct()
        .join(trials, trials.c.trial_id == trial_params.c.trial_id)
        .where(of_study)
    )
    drawn = set(connection.execute(with_params).scalars())
    aim = aim_of(connection, study_id)
    allowed = allowed_trials(connection, study_id, aim) if aim.limits else None
    return _slot_rows(connection, connection.execute(_states_and_times(of_study)).all(), of_study, drawn, aim, allowed)


@dataclass(frozen=True)
class Seen:
    """How far the rows of a study were read: up to an id, but for those that might still change."""

    last_id: int = 0
    open_ids: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Unseen:
    """What came after, or has changed.

    Attributes:
        rows: of cells, without their scores.
        foreign: ids of open rows that are of no cell, with whether they wait.
        points: that have come up, as `read_points` has them.
        last_id: of all rows of the study.
    """

    rows: list[SlotRow]
    foreign: dict[int, bool]
    points: list[Point]
    last_id: int


def read_unseen(connection: sa.Connection, study_id: int, seen: Seen) -> Unseen:
    """Read on in a study's rows: a few statements, whatever its size."""
    is_unseen = sa.and_(
        trials.c.study_id == study_id,
        sa.or_(trials.c.trial_id > seen.last_id, trials.c.trial_id.in_(sorted(seen.open_ids))),
    )
    found = connection.execute(_states_and_times(is_unseen)).all()
    if not found:
        return Unseen([], {}, [], seen.last_id)
    points = read_points(connection, is_unseen)
    rows = _slot_rows(connection, found, is_unseen, points.keys(), None, None)
    of_cells = {row.trial_id for row in rows}
    foreign = {row[0]: row[2] == "WAITING" for row in found if row[0] not in of_cells and row[2] in OPEN}
    return Unseen(rows, foreign, list(points.values()), max(seen.last_id, *(row[0] for row in found)))


def read_points(connection: sa.Connection, of_trials: sa.ColumnElement[bool]) -> dict[int, Point]:
    """Return the points of trials by id, each as its params' names and stored values in order of the names."""
    table = trial_params
    query = (
        sa.select(table.c.trial_id, table.c.param_name, table.c.param_value)
        .join(trials, trials.c.trial_id == table.c.trial_id)
        .where(of_trials)
    )
    found: defaultdict[int, list[tuple[str, float]]] = defaultdict(list)
    for trial_id, name, value in connection.execute(query):
        if isinstance(name, str):  # SQLite keeps whatever others wrote
            found[trial_id].append((name, value))
    return {trial_id: tuple(sorted(point)) for trial_id, point in found.items()}


def _slot_rows(
    connection: sa.Connection,
    found: Sequence[Sequence[Any]],
    of_trials: sa.ColumnElement[bool],
    drawn: Collection[int],
    aim: Aim | None,
    allowed: Collection[int] | None,
) -> list[SlotRow]:
    """Return the rows of cells among those that `_states_and_times` found; of scores none without an aim."""
    attribute = trial_user_attributes
    pairs = (
        sa.select(attribute.c.trial_id, attribute.c.key, attribute.c.value_json)
        .join(trials, trials.c.trial_id == attribute.c.trial_id)
        .where(of_trials, attribute.c.key.in_(SLOT_ATTRIBUTES))
    )
    attributes: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in connection.execute(pairs):
        attributes[trial_id][key] = parse_json(text)
    rows: list[SlotRow] = []
    for trial_id, number, state, value, *times in found:
        facts = attributes[trial_id]
        cell, repeat = whole_number(facts.get("cell")), whole_number(facts.get("repeat"))
        if cell is None or repeat is None or whole_number(number) is None:
            continue  # not of a cell
        note = StoppingNote.read(facts.get("stopping"))
        is_stopped = state == "PRUNED" and note is not None and note.stopped
        is_allowed = allowed is None or trial_id in allowed
        row = SlotRow(
            trial_id=trial_id,
            number=number,
            state=state,
            slot=Slot(cell, repeat),
            attempt=whole_number(facts.get("attempt")) or 1,
            has_params=trial_id in drawn,
            failure=failure_pair(facts.get("failure")),
            extra=facts.get("extra") is True,
            late_of=whole_number(facts.get("late_of")),
            seconds=note.train_seconds if note is not None and is_stopped else _seconds(*times),
            is_stopped=is_stopped,
            kept_epochs=whole_number(facts.get(KEPT_EPOCHS)) or 0,
            score=aim.objective.score(value) if aim is not None and value is not None and is_allowed else None,
        )
        rows.append(row)
    return rows


def _states_and_times(of_trials: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Return what selects each trial's id, number, state, value, seconds, start and last sign of life."""
    heartbeats, seconds, reached = trial_heartbeats, trial_values.alias("seconds"), trial_values.alias("reached")
    return (
        sa.select(
            trials.c.trial_id,
            trials.c.number,
            plain_text(trials.c.state),
            reached.c.value,
            seconds.c.value,
            plain_text(trials.c.datetime_start),
            plain_text(heartbeats.c.heartbeat),
        )
        .select_from(trials)
        .outerjoin(seconds, is_objective(seconds, 0))
        .outerjoin(reached, is_objective(reached, 1))
        .outerjoin(heartbeats, heartbeats.c.trial_id == trials.c.trial_id)
        .where(of_trials)
    )


def _seconds(on_the_clock: float | None, start: str | None, last_sign: str | None) -> float:
    if on_the_clock is not None:
        return on_the_clock
    try:
        return max(0.0, (datetime.fromisoformat(str(last_sign)) - datetime.fromisoformat(str(start))).total_seconds())
    except (TypeError, ValueError):  # it has not begun, or another tool runs it
        return 0.0


def waiting_params(engine: sa.Engine, study_id: int, after_id: int, limit: int) -> dict[int, dict[str, Any]]:
    """Return the params of the trials of cells that wait, by id from `after_id` on, oldest first."""
    is_waiting = sa.and_(trials.c.study_id == study_id, trials.c.state == "WAITING", trials.c.trial_id > after_id)
    query = sa.select(trials.c.trial_id).where(is_waiting, is_of_a_cell()).order_by(trials.c.trial_id).limit(limit)
    with reading(engine) as connection:
        ids = list(connection.execute(query).scalars())
        params = read_params(connection, ids)
        return {trial_id: params[trial_id] for trial_id in ids}


def has_kept_epochs(engine: sa.Engine, study_id: int) -> bool:
    """Whether a trial of a study is known to have been kept half-trained."""
    with reading(engine) as connection:
        return connection.execute(attribute_values(study_id, KEPT_EPOCHS).limit(1)).first() is not None
