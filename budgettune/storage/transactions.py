"""Every change of a study, each in one transaction: what a killed process leaves is the state before or after."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from budgettune.records import HANDED_BACK, KEPT_EPOCHS, LOST, Claim, SlotRow
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import writing
from budgettune.storage.schema import (
    METRIC_NAMES_ATTRIBUTE,
    NOTE_ATTRIBUTE,
    NOTE_VERSION_ATTRIBUTE,
    SPEC_ATTRIBUTE,
    TABLES_OF_A_STUDY,
    TABLES_OF_A_TRIAL,
    is_of_a_cell,
    studies,
    study_directions,
    study_system_attributes,
    study_user_attributes,
    trial_heartbeats,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trials,
    utc_in,
)
from budgettune.storage.slots import slot_rows
from budgettune.storage.studies import add_machine_key, own_machine_key
from budgettune.storage.trials import read_attributes, read_params
from budgettune.storage.writes import (
    NewTrial,
    StoredParam,
    beat,
    end_trial,
    insert,
    insert_params,
    insert_trials,
    lock_study,
    lock_trial,
    set_attributes,
    set_state,
)

CLAIM_ATTRIBUTES = ("cell", "repeat", "attempt", "seed")
MANY_ROWS = 1_000


@dataclass(frozen=True)
class Reconciled:
    """What a look at a study repaired.

    Attributes:
        lost: running trials whose worker gave no sign of life for a lease.
        queued: rows that were added so that every cell and repeat gets its trial.
        given_up: cells × repeats that failed too often.
    """

    lost: int
    queued: int
    given_up: int


def insert_study(engine: sa.Engine, spec: StudySpec, new_trials: Sequence[NewTrial], *, note: str) -> int | None:
    """Add a study with its note for dashboards and its first trials, all or nothing.

    Returns:
        The study's id, None where one of that name is there.
    """
    aim = spec.aim
    metrics = {"train_seconds": "MINIMIZE", aim.key: aim.objective.direction.upper()}
    with writing(engine) as connection:
        statement = insert(connection, studies).values(study_name=spec.name)
        statement = statement.on_conflict_do_nothing(index_elements=["study_name"])
        study_id = connection.execute(statement.returning(studies.c.study_id)).scalar()
        if study_id is None:
            return None
        for number, direction in enumerate(metrics.values()):
            values = {"study_id": study_id, "objective": number, "direction": direction}
            connection.execute(sa.insert(study_directions).values(values))
        for table, key, value in (
            (study_user_attributes, SPEC_ATTRIBUTE, spec.to_json()),
            (study_system_attributes, METRIC_NAMES_ATTRIBUTE, json.dumps(list(metrics))),
            (study_system_attributes, NOTE_VERSION_ATTRIBUTE, "1"),
            (study_system_attributes, NOTE_ATTRIBUTE, json.dumps(note)),
        ):
            connection.execute(sa.insert(table).values(study_id=study_id, key=key, value_json=value))
        insert_trials(connection, study_id, new_trials)
        if connection.dialect.name == "postgresql" and len(new_trials) >= MANY_ROWS:
            # The server learns of many new rows by itself within minutes, and plans badly until then.
            connection.execute(sa.text(f"ANALYZE {trials.name}, {trial_user_attributes.name}, {trial_params.name}"))
        return int(study_id)


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


def take_waiting(
    engine: sa.Engine,
    study_id: int,
    seed_of: Callable[[int, int], int],
    after_id: int = 0,
    among: Collection[int] | None = None,
) -> Claim | None:
    """Turn the oldest waiting trial of a cell into a running one with its first heartbeat; None where none waits.

    Trials up to the id `after_id` are known not to wait, and are not looked at; nor are others than those `among` some
    ids, where they are given. A row that lost its seed gets that of `seed_of` its cell and repeat.
    """
    with writing(engine) as connection:
        while (found := _next_waiting(connection, study_id, after_id, among)) is not None:
            after_id, number = found
            stored = read_attributes(connection, [after_id], CLAIM_ATTRIBUTES)[after_id]
            keys = {"attempt": 1} | {name: value for name, value in stored.items() if type(value) is int}
            if type(number) is int and {"cell", "repeat"} <= keys.keys():
                set_state(connection, after_id, "RUNNING", datetime_start=utc_in())
                beat(connection, after_id)
                params = read_params(connection, [after_id])[after_id]
                return Claim(after_id, number, params, **{"seed": seed_of(keys["cell"], keys["repeat"]), **keys})
    return None


def _next_waiting(
    connection: sa.Connection, study_id: int, after_id: int, among: Collection[int] | None = None
) -> tuple[int, int] | None:
    """Lock the next waiting row of a cell; rows that others have locked are being taken by them."""
    query = (
        sa.select(trials.c.trial_id, trials.c.number)
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING", trials.c.trial_id > after_id)
        .where(is_of_a_cell())
        .order_by(trials.c.trial_id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    query = query if among is None else query.where(trials.c.trial_id.in_(among))
    row = connection.execute(query).first()
    return None if row is None else (row[0], row[1])


def put_back(engine: sa.Engine, trial_id: int) -> bool:
    """Let a running trial wait again as if nobody had claimed it; false where it runs no longer."""
    with writing(engine) as connection:
        if lock_trial(connection, trial_id) != "RUNNING":
            return False
        connection.execute(sa.delete(trial_heartbeats).where(trial_heartbeats.c.trial_id == trial_id))
        set_state(connection, trial_id, "WAITING", datetime_start=None)
        return True


def renew_lease(engine: sa.Engine, trial_id: int, kept_epochs: int | None = None) -> bool:
    """Record a sign of life of a running trial, and how much of it is kept; false where the trial runs no longer."""
    with writing(engine) as connection:
        is_running = beat(connection, trial_id)
        if is_running and kept_epochs is not None:
            set_attributes(connection, trial_id, {KEPT_EPOCHS: kept_epochs})
        return is_running


def record_result(
    engine: sa.Engine,
    study_id: int,
    claim: Claim,
    attributes: Mapping[str, Any],
    values: tuple[float, float] | None,
    machine_key: str | None = None,
    *,
    is_known: bool = False,
    excesses: Sequence[float] = (),
) -> bool:
    """Store a result; return whether it is the one that counts for its cell and repeat.

    Delivering the same result again (the answer to the first delivery was lost) changes nothing. A result from another
    kind of machine is kept as an extra, and its slot is queued again.

    Args:
        values: of both objectives; None for a trial that was stopped early.
        machine_key: of the kind of machine that counts; None asks the study.
        is_known: whether the study's list of kinds holds this result's already.
        excesses: by how much it is beyond each limit of the study.
    """
    ended = _ended(values)
    with writing(engine) as connection:
        if not lock_study(connection, study_id):
            return False  # deleted meanwhile
        if not is_known:
            add_machine_key(connection, study_id, attributes["device_name"])
        state = lock_trial(connection, claim.trial_id)
        fits = (machine_key or own_machine_key(connection, study_id)) in (None, attributes.get("device_name"))
        if state == "RUNNING":
            end_trial(
                connection,
                claim.trial_id,
                ended,
                attributes if fits else {**attributes, "extra": True},
                values,
                excesses,
            )
            if not fits:
                insert_trials(connection, study_id, [NewTrial("WAITING", claim.keys, params_of=claim.trial_id)])
            return fits
        if state == ended:
            return read_attributes(connection, [claim.trial_id], ["extra"])[claim.trial_id].get("extra") is not True
        return state is not None and _record_late(connection, study_id, claim, attributes, values, fits, excesses)


def _record_late(
    connection: sa.Connection,
    study_id: int,
    claim: Claim,
    attributes: Mapping[str, Any],
    values: tuple[float, float] | None,
    fits: bool,
    excesses: Sequence[float],
) -> bool:
    """Keep the result of a trial that was taken for lost: for its cell where that still waits, else as an extra."""
    attributes = {**attributes, "late_of": claim.number}
    rows = [row for row in slot_rows(connection, study_id) if row.slot == claim.slot]
    delivered = next((row for row in rows if row.late_of == claim.number), None)
    if delivered is not None:
        return not delivered.extra
    for row in rows if fits else ():
        if row.state == "WAITING" and lock_trial(connection, row.trial_id) == "WAITING":
            end_trial(connection, row.trial_id, _ended(values), attributes, values, excesses)
            return True
    counts = fits and not any(row.is_taken for row in rows)
    if not counts:
        attributes["extra"] = True
    keys = {**claim.keys, **attributes}
    new = NewTrial(_ended(values), keys, params_of=claim.trial_id, values=values, excesses=excesses)
    insert_trials(connection, study_id, [new])
    return counts


def _ended(values: tuple[float, float] | None) -> str:
    """Return the state of a trial with these values. Without any it counts as pruned, in Optuna's word."""
    return "PRUNED" if values is None else "COMPLETE"


def record_failure(
    engine: sa.Engine,
    study_id: int,
    claim: Claim,
    failure_kind: str,
    message: str,
    max_attempts: int,
    *,
    keeps_params: bool = True,
) -> bool:
    """Fail a running trial and queue its slot again; return whether it was queued.

    Nothing happens where the trial runs no longer: whoever ended it has seen to its slot. Nor is a slot queued here
    whose trial keeps no params that the next one may copy: they are not drawn, or not those of its cell.
    """
    failure = {"kind": failure_kind, "message": message}
    attempt = claim.attempt + (failure_kind != HANDED_BACK)
    with writing(engine) as connection:
        if not lock_study(connection, study_id) or lock_trial(connection, claim.trial_id) != "RUNNING":
            return False
        end_trial(connection, claim.trial_id, "FAIL", {"failure": failure})
        if attempt > max_attempts or not keeps_params:
            return False
        again = NewTrial("WAITING", {**claim.keys, "attempt": attempt}, params_of=claim.trial_id)
        insert_trials(connection, study_id, [again])
        return True


def repair(
    engine: sa.Engine,
    study_id: int,
    lease_seconds: float | None,
    decide: Callable[[list[SlotRow]], tuple[list[NewTrial], int]],
) -> Reconciled:
    """Fail what is lost, then add the rows that a decision asks for, under the study's lock.

    A trial is lost after `lease_seconds` without a sign of life; None leaves running trials alone. The decision goes
    from the rows as they are then to the rows to add, and the number of slots given up.
    """
    with writing(engine) as connection:
        if not lock_study(connection, study_id):
            return Reconciled(lost=0, queued=0, given_up=0)
        lost = 0 if lease_seconds is None else _fail_lost(connection, study_id, lease_seconds)
        new_trials, given_up = decide(slot_rows(connection, study_id))
        insert_trials(connection, study_id, new_trials)
    return Reconciled(lost=lost, queued=len(new_trials), given_up=given_up)


def _fail_lost(connection: sa.Connection, study_id: int, lease_seconds: float) -> int:
    """Fail the running trials of cells whose lease is over, and return how many.

    Both ends of a lease are read off the database's clock. A trial without a heartbeat (another tool made it run) and
    one whose heartbeat lies in the future (a clock was set back) get a lease that begins now. What another program runs
    for itself (`study.ask`) is its own to end.
    """
    running = sa.select(trials.c.trial_id).where(
        trials.c.study_id == study_id, trials.c.state == "RUNNING", is_of_a_cell()
    )
    heartbeats = trial_heartbeats
    stale = running.join(heartbeats, heartbeats.c.trial_id == trials.c.trial_id).where(
        heartbeats.c.heartbeat < utc_in(-lease_seconds)
    )
    # A trial may end while this waits for its row; it is not running then, and not in the answer.
    ids = list(connection.execute(stale.order_by(trials.c.trial_id).with_for_update(of=trials)).scalars())
    failure = {"kind": LOST, "message": f"its worker gave no sign of life for {lease_seconds:g} s"}
    for trial_id in ids:
        end_trial(connection, trial_id, "FAIL", {"failure": failure})
    unleased = running.outerjoin(heartbeats, heartbeats.c.trial_id == trials.c.trial_id).where(
        sa.or_(heartbeats.c.heartbeat.is_(None), heartbeats.c.heartbeat > utc_in(lease_seconds))
    )
    for trial_id in list(connection.execute(unleased).scalars()):
        beat(connection, trial_id)
    return len(ids)


def reserve(
    engine: sa.Engine, study_id: int, decide: Callable[[sa.Connection], tuple[NewTrial, bool] | None]
) -> Claim | None:
    """Return a running row for the next point, its params to be drawn; None where the study has all it wants.

    It is a row that somebody queued with Optuna's `enqueue_trial`, or else a new one. Its number seeds the draw, so the
    row comes first; the study's lock keeps the count from overshooting.

    Args:
        decide: given the connection that holds the lock, returns the row, and whether another program's may wait.
    """
    with writing(engine) as connection:
        decision = decide(connection) if lock_study(connection, study_id) else None
        if decision is None:
            return None
        new, may_be_enqueued = decision
        if may_be_enqueued and (enqueued := _next_enqueued(connection, study_id)) is not None:
            trial_id, number = enqueued
            set_attributes(connection, trial_id, new.attributes)
            set_state(connection, trial_id, "RUNNING", datetime_start=utc_in())
            beat(connection, trial_id)
        else:
            [(trial_id, number)] = insert_trials(connection, study_id, [new])
        return Claim(trial_id, number, {}, **new.attributes)


def _next_enqueued(connection: sa.Connection, study_id: int) -> tuple[int, int] | None:
    """Lock the oldest waiting row that asks for params of its own, and is of no cell."""
    asked = trial_system_attributes.alias("asked")
    query = (
        sa.select(trials.c.trial_id, trials.c.number)
        .join(asked, sa.and_(asked.c.trial_id == trials.c.trial_id, asked.c.key == "fixed_params"))
        .where(trials.c.study_id == study_id, trials.c.state == "WAITING", sa.not_(is_of_a_cell()))
        .order_by(trials.c.trial_id)
        .limit(1)
        .with_for_update(of=trials, skip_locked=True)
    )
    row = connection.execute(query).first()
    return None if row is None else (row[0], row[1])


def fill_reserved(
    engine: sa.Engine,
    study_id: int,
    trial_id: int,
    choose: Callable[[sa.Connection], Sequence[StoredParam]],
    repeats: Sequence[Mapping[str, Any]],
) -> dict[str, Any] | None:
    """Give a reserved row its params and queue its repeats; return the params, None where the row was taken for lost.

    `choose` is given the connection that holds the study's lock, and returns the params; `repeats` are the user
    attributes of the rows that repeat it.
    """
    with writing(engine) as connection:
        if not lock_study(connection, study_id) or lock_trial(connection, trial_id) != "RUNNING":
            return None
        insert_params(connection, trial_id, choose(connection))
        beat(connection, trial_id)
        insert_trials(connection, study_id, [NewTrial("WAITING", each, params_of=trial_id) for each in repeats])
        return read_params(connection, [trial_id])[trial_id]
