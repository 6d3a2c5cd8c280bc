"""The ledger of a study: which trials it still needs, decided from those that it holds. No database is asked here.

A *slot* is one cell and repeat. At every moment a slot has at most one row that is open, complete or stopped early:

    (nothing) ──reconcile──▶ WAITING ──claim──▶ RUNNING ──complete──▶ COMPLETE, or PRUNED with a note: stopped early
                                ▲                  │
                                └── new row ── FAIL (failed, handed back, lost)
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from budgettune.records import LOST, Slot, SlotRow
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.writes import NewTrial
from budgettune.text import one_line

SHOWN = 50  # slots named in a line for people
UNRECORDED = ("unknown", "no reason was recorded")


@dataclass(frozen=True)
class GivenUp:
    """A slot that failed as often as the spec allows."""

    cell: int
    repeat: int
    reasons: tuple[str, ...]  # of the failed tries, oldest first, each with its kind in front

    @property
    def slot(self) -> Slot:
        return Slot(self.cell, self.repeat)

    def __str__(self) -> str:
        return one_line(f"{self.slot} after {'; '.join(self.reasons)}")


@dataclass(frozen=True)
class Queued:
    """A slot to try (again)."""

    slot: Slot
    attempt: int
    source: int | None = None  # trial that has the params; None where the grid has them, or a sampler must draw them

    def row_keys(self, spec: StudySpec) -> dict[str, int]:
        """Return the user attributes that say which cell, repeat and attempt a trial is."""
        cell, repeat = self.slot
        return {"cell": cell, "repeat": repeat, "attempt": self.attempt, "seed": spec.trial_seed(cell, repeat)}


@dataclass(frozen=True)
class Verification:
    """Whether a study holds exactly one trial for each cell and repeat that is complete or was stopped early."""

    cells: int  # cells × repeats that the study wants (for a sampled study without an end: those drawn so far)
    complete: int  # how many of them have exactly one complete trial
    missing: tuple[Slot, ...] = ()  # those without one, complete or stopped, that may still get it
    doubled: tuple[Slot, ...] = ()  # those with more than one
    given_up: tuple[GivenUp, ...] = ()
    stopped: int = 0  # how many have exactly one that the study's rule stopped early instead

    @property
    def whole(self) -> bool:
        return not (self.missing or self.doubled or self.given_up)

    def to_json(self) -> dict[str, Any]:
        return {
            "whole": self.whole,
            "cells": self.cells,
            "complete": self.complete,
            "stopped": self.stopped,
            "missing": [slot._asdict() for slot in self.missing],
            "doubled": [slot._asdict() for slot in self.doubled],
            "given_up": [asdict(failed) for failed in self.given_up],
        }

    def describe(self) -> str:
        """Return the same for people: a line of counts, then one for each kind of fault."""
        stopped = f", {self.stopped} exactly one that was stopped early" if self.stopped else ""
        lines = [f"{self.complete} of {self.cells} cells × repeats have exactly one complete trial{stopped}"]
        for fault, slots in (("missing", self.missing), ("doubled", self.doubled), ("given up", self.given_up)):
            if slots:
                more = f" and {len(slots) - SHOWN} more" if len(slots) > SHOWN else ""
                lines.append(f"{fault}: {', '.join(map(str, slots[:SHOWN]))}{more}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Settled:
    """What a draw must know of rows that it need not look at any more.

    Attributes:
        cells: all cells below it are drawn.
        seconds: that the trials took.
    """

    cells: int = 0
    seconds: float = 0.0

    def grown(self, spec: StudySpec, rows: Iterable[SlotRow]) -> tuple[Settled, list[SlotRow]]:
        """Return what is settled once these rows were seen, and those of them that a draw must go on looking at."""
        ledger = DrawLedger(spec, rows, self)
        cells = next(cell for cell in itertools.count(self.cells) if not ledger.is_drawn(cell))
        left: list[SlotRow] = []
        seconds = self.seconds
        for row in ledger.rows:
            is_settled = row.slot.cell < cells or not ledger.is_wanted(row.slot)
            if spec.sampler.total is not None:  # a lost trial's seconds may still go over to its late result
                is_settled = is_settled and row.is_done and row.late_of is None
            if is_settled:
                seconds += row.seconds
            else:
                left.append(row)
        return Settled(cells, seconds), left


class DrawLedger:
    """What decides the next draw of a sampled study: the rows that are not settled, and what is known of the others.

    Attributes:
        rows: by number.
        seconds: that the trials took, so far as a total is asked for.
        is_spent: whether the study has used up its total, or its search has ended, so that nothing may begin.
    """

    def __init__(
        self, spec: StudySpec, rows: Iterable[SlotRow], settled: Settled = Settled(), *, is_spent: bool = False
    ) -> None:
        self.rows = sorted(rows, key=lambda row: row.number)
        delivered = {row.late_of for row in self.rows}  # a late result and the lost trial that it is of count once
        self.seconds = settled.seconds + sum(row.seconds for row in self.rows if row.number not in delivered)
        self.is_spent = is_spent or (spec.sampler.total is not None and self.seconds >= spec.sampler.total)
        self._settled = settled
        self._most_repeats = spec.sampler.most_repeats
        self._is_grid = spec.sampler.name == "grid"
        self._limit = spec.cell_count() if self._is_grid else spec.sampler.trials
        self._rows: defaultdict[Slot, list[SlotRow]] = defaultdict(list)
        self._source: dict[int, int] = {}  # cell -> a trial that has its params
        for row in self.rows:
            if self.is_wanted(row.slot):
                if not row.extra:
                    self._rows[row.slot].append(row)
                if row.has_params:
                    self._source[row.slot.cell] = row.trial_id

    def is_wanted(self, slot: Slot) -> bool:
        """Whether the study asks for a slot."""
        return 0 <= slot.cell < (self._limit or math.inf) and 0 <= slot.repeat < self._most_repeats

    def is_taken(self, slot: Slot) -> bool:
        """Whether a slot has an open or a complete trial."""
        return any(row.is_taken for row in self._rows.get(slot, ()))

    def is_drawn(self, cell: int) -> bool:
        """Whether the params of a cell are known."""
        return self._is_grid or 0 <= cell < self._settled.cells or cell in self._source

    def next_attempt(self, slot: Slot) -> int:
        """Return the number of a slot's next try.

        One whose worker was lost uses up none if it was kept at a later epoch than any before it: so often that can be.
        """
        if not (rows := self._rows.get(slot)):
            return 1
        *before, last = rows
        is_lost = last.failure is not None and last.failure[0] == LOST
        has_moved_on = last.kept_epochs > max((row.kept_epochs for row in before), default=0)
        return last.attempt if is_lost and has_moved_on else last.next_attempt

    def to_draw(self) -> Queued | None:
        """Return the next cell that a sampler must draw, None where the study has all it wants."""
        if self._is_grid or self.is_spent:
            return None
        firsts = (Slot(cell, repeat=0) for cell in itertools.count(self._settled.cells))
        slot = next(slot for slot in firsts if not self.is_drawn(slot.cell) and not self.is_taken(slot))
        return Queued(slot, self.next_attempt(slot)) if self.is_wanted(slot) else None


class Ledger(DrawLedger):
    """All rows of a study by slot, and what follows from them."""

    def __init__(self, spec: StudySpec, rows: Iterable[SlotRow], *, is_spent: bool = False) -> None:
        super().__init__(spec, rows, is_spent=is_spent)
        self._repeats = spec.sampler.first_repeats
        self._max_attempts = spec.sampler.max_attempts
        self._is_share = spec.objective.is_accuracy

    # --- one slot ---------------------------------------------------------------------------------------------------

    def is_given_up(self, slot: Slot) -> bool:
        """Whether a slot failed as often as the spec allows; a draw that failed is repeated without end."""
        too_often = self.next_attempt(slot) > self._max_attempts
        return too_often and self.is_drawn(slot.cell) and not self.is_taken(slot)

    def is_done(self, slot: Slot) -> bool:
        """Whether nothing is left to do for a slot."""
        return self._done_count(slot) > 0 or self.is_given_up(slot) or self._is_dropped(slot)

    def _is_dropped(self, slot: Slot) -> bool:
        """Whether a slot is left without a result because the study is spent."""
        holds = any(row.is_done or row.state == "RUNNING" for row in self._rows.get(slot, ()))
        return self.is_spent and not holds and not self.is_given_up(slot)

    def _done_count(self, slot: Slot) -> int:
        return sum(row.is_done for row in self._rows.get(slot, ()))

    # --- all slots --------------------------------------------------------------------------------------------------

    def _cells(self) -> Iterable[int]:
        """Return the cells that can have trials now: all of a grid, those begun of a sampled study."""
        return range(self._limit or 0) if self._is_grid else sorted({slot.cell for slot in self._rows})

    def _slots(self, cells: Iterable[int]) -> Iterator[Slot]:
        return (Slot(cell, repeat) for cell in cells for repeat in range(self._depth(cell)))

    def _depth(self, cell: int) -> int:
        """Return how many repeats a cell has or needs now."""
        return self._begun.get(cell, self._repeats) + (cell in self._doubtful)

    @cached_property
    def _begun(self) -> dict[int, int]:
        """Repeats of each cell that has rows."""
        begun: dict[int, int] = {}
        for slot in self._rows:
            begun[slot.cell] = max(begun.get(slot.cell, self._repeats), slot.repeat + 1)
        return begun

    @cached_property
    def _doubtful(self) -> frozenset[int]:
        """Cells that need one repeat more, once all that was begun is done and every cell has a result."""
        if self._most_repeats == self._repeats or self.is_spent or len(self._begun) < (self._limit or math.inf):
            return frozenset()
        if not all(self.is_done(Slot(cell, repeat)) for cell, depth in self._begun.items() for repeat in range(depth)):
            return frozenset()
        from budgettune.study.front import cells_to_repeat

        results: defaultdict[int, list[tuple[float, float]]] = defaultdict(list)
        for slot, rows in self._rows.items():
            results[slot.cell] += [(row.seconds, row.score) for row in rows if row.score is not None]
        whole = {cell: repeats for cell, repeats in results.items() if len(repeats) == self._begun[cell]}
        return frozenset(cells_to_repeat(whole, self._most_repeats, is_share=self._is_share))

    def given_up(self, cell: int | None = None) -> tuple[GivenUp, ...]:
        """Return the slots (of one cell, or all) that failed too often, with their reasons."""
        slots = (slot for slot in self._slots(self._cells()) if cell in (None, slot.cell) and self.is_given_up(slot))
        return tuple(
            GivenUp(*slot, tuple(": ".join(row.failure or UNRECORDED) for row in self._rows[slot] if row.uses_attempt))
            for slot in slots
        )

    def to_queue(self) -> list[Queued]:
        """Return the slots that need a new row now."""
        if self.is_spent:
            return []
        slots = (slot for slot in self._slots(self._cells()) if not self.is_taken(slot) and self.is_drawn(slot.cell))
        return [self.queued(slot, self.next_attempt(slot)) for slot in slots if not self.is_given_up(slot)]

    def queued(self, slot: Slot, attempt: int) -> Queued:
        return Queued(slot, attempt, None if self._is_grid else self._source[slot.cell])

    def wanted_count(self) -> int | None:
        """Return cells × repeats that the study ends at, as far as is known; None where it has no end."""
        if self._limit is None:
            return None
        return (self._limit - len(self._begun)) * self._repeats + sum(map(self._depth, self._begun))

    def left_count(self) -> int | None:
        """Return how many of them still need to run; None where that is open, or there is no end."""
        begun = [self.is_done(slot) for slot in self._slots(self._cells())]
        if self.is_spent:
            return begun.count(False)
        wanted = self.wanted_count()
        return None if wanted is None else wanted - begun.count(True)

    def verify(self) -> Verification:
        cells = self._cells() if self._limit is None or self.is_spent else range(self._limit)
        done = {slot: self._done_count(slot) for slot in self._slots(cells) if not self._is_dropped(slot)}
        single = [slot for slot, count in done.items() if count == 1]
        stopped = sum(any(row.is_stopped for row in self._rows[slot]) for slot in single)
        given_up = self.given_up()
        without = {failed.slot for failed in given_up}
        return Verification(
            cells=len(done),
            complete=len(single) - stopped,
            missing=tuple(slot for slot, count in done.items() if count == 0 and slot not in without),
            doubled=tuple(slot for slot, count in done.items() if count > 1),
            given_up=given_up,
            stopped=stopped,
        )


def new_trials(spec: StudySpec, queue: Sequence[Queued]) -> list[NewTrial]:
    """Return the waiting rows of slots; the params of a grid cell come from the spec, others from an earlier trial."""
    if not queue or spec.sampler.name != "grid":
        return [NewTrial("WAITING", each.row_keys(spec), params_of=each.source) for each in queue]
    from budgettune.study.sampling import grid_params

    params = grid_params(spec)
    return [NewTrial("WAITING", each.row_keys(spec), params=params[each.slot.cell]) for each in queue]
