"""What a handle has read of a sampled study, so that a draw reads under the study's lock only what is new."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from budgettune.records import OPEN, SlotRow
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import Engine, reading
from budgettune.storage.slots import Connection, Point, Seen, read_unseen
from budgettune.storage.studies import search_prospect
from budgettune.storage.writes import NewTrial, StoredParam
from budgettune.study.ledger import DrawLedger, Settled


class Draws:
    """Reads each row of a study once, but for those that may still change what is drawn. For several threads at once.

    Rows that somebody deletes are noticed by their number only: whoever sees fewer rows makes a new one.

    Attributes:
        points: that the study holds.
        is_enqueued: whether a row of another program waited at the last look.
    """

    def __init__(self, spec: StudySpec, study_id: int) -> None:
        self.points: set[Point] = set()
        self.is_enqueued = False
        self._spec, self._study_id = spec, study_id
        self._seen, self._settled = Seen(), Settled()
        self._rows: list[SlotRow] = []
        self._lock = threading.Lock()  # held while rows are read, which waits for no lock of the database

    def read(self, connection: Connection) -> DrawLedger:
        """Read on, and return what decides the next draw."""
        with self._lock:
            unseen = read_unseen(connection, self._study_id, self._seen)
            known = [row for row in self._rows if row.trial_id not in self._seen.open_ids]
            self._settled, self._rows = self._settled.grown(self._spec, [*known, *unseen.rows])
            still_open = {row.trial_id for row in self._rows if row.state in OPEN}
            self._seen = Seen(unseen.last_id, frozenset(still_open | unseen.foreign.keys()))
            self.points.update(unseen.points)
            self.is_enqueued = any(unseen.foreign.values())
            prospect = search_prospect(connection, self._study_id, self._spec)
            is_spent = prospect is not None and prospect.has_ended
            return DrawLedger(self._spec, self._rows, self._settled, is_spent=is_spent)

    def read_on(self, engine: Engine) -> DrawLedger:
        """Read on while nothing is locked."""
        with reading(engine) as connection:
            return self.read(connection)

    def next_point(self, connection: Connection) -> tuple[NewTrial, bool] | None:
        """Return a row for the next point, None where none is wanted, and whether one of another program may wait."""
        queued = self.read(connection).to_draw()
        return None if queued is None else (NewTrial("RUNNING", queued.row_keys(self._spec)), self.is_enqueued)

    def choice(
        self, engine: Engine, proposal: Mapping[str, Any], number: int, *, stands: bool
    ) -> Callable[[Connection], tuple[StoredParam, ...]]:
        """Return what gives a trial its params under the study's lock: the proposal's, or fresh ones for points known.

        What takes long is done here, before: under the lock it is only asked whether another draw came first. With
        `stands` the proposal is not replaced, whatever has run.
        """
        from budgettune.study import sampling

        if not stands:
            self.read_on(engine)
        known: set[Point] = set() if stands else self.points
        seed = sampling.draw_seed(self._spec.sampler.seed, number)
        chosen = sampling.fresh_point(self._spec, proposal, known, seed)
        if stands or sampling.point_of(chosen) in known:  # all of a small space has run
            return lambda connection: chosen

        def choose(connection: Connection) -> tuple[StoredParam, ...]:
            self.read(connection)
            if sampling.point_of(chosen) not in self.points:
                return chosen
            return sampling.fresh_point(self._spec, proposal, self.points, seed)

        return choose
