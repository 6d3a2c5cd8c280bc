"""Optuna's storage as a dashboard needs it: a trial is read once, and again only where it has changed.

Optuna's own cache re-reads, through its ORM, every trial above the last finished one at each poll: seconds while a grid
of 10,000 is half done. Here a poll reads one line per trial, and more only of those whose line is another one by now.
"""

from __future__ import annotations

import copy
import math
import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Container, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

import sqlalchemy as sa
from optuna.distributions import BaseDistribution, json_to_distribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState

from budgettune.storage.connection import reading
from budgettune.storage.schema import (
    SPEC_ATTRIBUTE,
    plain_text,
    trial_intermediate_values,
    trial_params,
    trial_system_attributes,
    trial_user_attributes,
    trial_values,
    trials,
)
from budgettune.storage.trials import DOCUMENTS, IDS_PER_STATEMENT, parse_json

NOT_SHOWN = (*DOCUMENTS, "details")
"""Attributes of our trials that optuna-dashboard would cut off at 1,024 characters: most of the bytes of a study."""


class _Line(NamedTuple):
    """What changes whenever a trial does, but for one that runs. The times tell a row from a later one of its id."""

    trial_id: int
    number: int
    state: str
    started: str | None
    completed: str | None


def _passed_on(name: str) -> Callable[..., Any]:
    def method(self: LiveStorage, *arguments: Any, **options: Any) -> Any:
        return getattr(self._inner, name)(*arguments, **options)

    return method


_Wrapper: Any = type("_Wrapper", (BaseStorage,), {name: _passed_on(name) for name in BaseStorage.__abstractmethods__})


class LiveStorage(_Wrapper):
    """Optuna's storage with a fast `get_all_trials`; everything else is passed on. Safe for many threads.

    Args:
        inner: the storage behind it.
    """

    def __init__(self, inner: RDBStorage) -> None:
        self._inner = inner
        self._known: dict[int, dict[int, tuple[_Line, FrozenTrial]]] = {}
        self._lock = threading.Lock()

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials of a study by number; of our studies without the documents that no page shows whole.

        Raises:
            KeyError: where there is no such study.
        """
        with self._lock:
            known = self._known[study_id] = self._read(study_id, self._known.pop(study_id, {}))
        found = [trial for _, trial in known.values() if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def _read(self, study_id: int, known: dict[int, tuple[_Line, FrozenTrial]]) -> dict[int, tuple[_Line, FrozenTrial]]:
        is_ours = SPEC_ATTRIBUTE in self._inner.get_study_user_attrs(study_id)
        with reading(self._inner.engine) as connection:
            lines = _lines(connection, study_id)
            changed = [line for line in lines if line.state == "RUNNING" or known.get(line.trial_id, ())[:1] != (line,)]
            fresh: dict[int, FrozenTrial] = {}
            for begin in range(0, len(changed), IDS_PER_STATEMENT):
                fresh |= _frozen(connection, changed[begin : begin + IDS_PER_STATEMENT], NOT_SHOWN if is_ours else ())
        return {
            line.trial_id: (line, fresh[line.trial_id]) if line.trial_id in fresh else known[line.trial_id]
            for line in lines
        }


def _lines(connection: sa.Connection, study_id: int) -> list[_Line]:
    started, completed = plain_text(trials.c.datetime_start), plain_text(trials.c.datetime_complete)
    query = (
        sa.select(trials.c.trial_id, trials.c.number, plain_text(trials.c.state), started, completed)
        .where(trials.c.study_id == study_id)
        .order_by(trials.c.number)
    )
    return [_Line(*row) for row in connection.execute(query)]


def _frozen(connection: sa.Connection, lines: Sequence[_Line], skipped: Collection[str]) -> dict[int, FrozenTrial]:
    ids = [line.trial_id for line in lines]
    drawn = _rows(connection, trial_params, ids, "param_name", "param_value", "distribution_json", by="param_id")
    values = _rows(connection, trial_values, ids, "value", "value_type", by="objective")
    steps = _rows(connection, trial_intermediate_values, ids, "step", "intermediate_value", "intermediate_value_type")
    user = _rows(connection, trial_user_attributes, ids, "key", "value_json", skipped=skipped)
    system = _rows(connection, trial_system_attributes, ids, "key", "value_json")
    return {
        line.trial_id: FrozenTrial(
            number=line.number,
            state=TrialState[line.state],
            value=None,
            values=[_number(*row) for row in values[line.trial_id]] or None,
            datetime_start=_moment(line.started),
            datetime_complete=_moment(line.completed),
            params={name: _distribution(text).to_external_repr(value) for name, value, text in drawn[line.trial_id]},
            distributions={name: _distribution(text) for name, _, text in drawn[line.trial_id]},
            user_attrs={key: parse_json(text) for key, text in user[line.trial_id]},
            system_attrs={key: parse_json(text) for key, text in system[line.trial_id]},
            intermediate_values={step: _number(value, kind) for step, value, kind in steps[line.trial_id]},
            trial_id=line.trial_id,
        )
        for line in lines
    }


def _rows(
    connection: sa.Connection,
    table: sa.Table,
    trial_ids: Sequence[int],
    *columns: str,
    by: str | None = None,
    skipped: Collection[str] = (),
) -> defaultdict[int, list[Sequence[Any]]]:
    """Return some columns of a table by trial id, each trial's rows in order of one more column."""
    chosen = [plain_text(table.c[name]) if name.endswith("_type") else table.c[name] for name in columns]
    query = sa.select(table.c.trial_id, *chosen).where(table.c.trial_id.in_(trial_ids))
    if skipped:
        query = query.where(table.c.key.not_in(skipped))
    rows: defaultdict[int, list[Sequence[Any]]] = defaultdict(list)
    for trial_id, *row in connection.execute(query if by is None else query.order_by(table.c[by])):
        rows[trial_id].append(row)
    return rows


@lru_cache(maxsize=4096)
def _distribution(text: str) -> BaseDistribution:
    return json_to_distribution(text)


def _number(value: float | None, kind: str) -> float:
    """Return a stored number; those that are not finite are stored by name."""
    words = {"INF_POS": math.inf, "INF_NEG": -math.inf, "NAN": math.nan}
    return words[kind] if value is None else value


def _moment(text: str | None) -> datetime | None:
    """Return a stored UTC time as Optuna does: local, and without its zone."""
    return None if text is None else datetime.fromisoformat(f"{text}+00:00").astimezone().replace(tzinfo=None)
