"""Which trials a study still needs, decided from what it holds. Pure: no database here.

A *slot* is one cell and repeat. At every moment a slot has at most one row that is open or complete:

    (nothing) ──reconcile──▶ WAITING ──claim──▶ RUNNING ──complete──▶ COMPLETE
                                ▲                  │
                                └── new row ── FAIL (failed, handed back, lost)
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from budgettune.errors import Interrupted
from budgettune.spec import StudySpec
from budgettune.texts import one_line

LOST = "lost"
"""Kind of failure of a trial whose worker gave no sign of life."""

HANDED_BACK = Interrupted.kind
"""Kind of failure that uses up no attempt."""

SHOWN = 50  # slots named in a line for people

TAKEN = frozenset({"WAITING", "RUNNING", "COMPLETE"})
"""States in which a trial holds its slot."""


class Slot(NamedTuple):
    """One cell and repeat: what must end with exactly one complete trial."""

    cell: int
    repeat: int

    def __str__(self) -> str:
        return f"cell {self.cell} repeat {self.repeat}"


@dataclass(frozen=True)
class SlotRow:
    """What a decision needs to know of one trial.

    Attributes:
        has_params: false for a sampled point whose worker died while it was drawn.
        failure: the kind and the message of a failed trial.
        extra: a late result beside the one that counts.
        late_of: number of the trial whose late result this row keeps.
    """

    trial_id: int
    number: int
    state: str
    slot: Slot
    attempt: int = 1
    has_params: bool = True
    failure: tuple[str, str] | None = None
    extra: bool = False
    late_of: int | None = None

    @property
    def is_taken(self) -> bool:
        """Whether this row keeps others from its slot."""
        return self.state in TAKEN and not self.extra

    @property
    def uses_attempt(self) -> bool:
        """Whether this try counts towards the limit."""
        return self.failure is None or self.failure[0] != HANDED_BACK

    @property
    def next_attempt(self) -> int:
        """Number of the try that follows this failed one."""
        return self.attempt + 1 if self.uses_attempt else self.attempt


@dataclass(frozen=True)
class GivenUp:
    """A slot that failed as often as the spec allows.

    Attributes:
        reasons: of the failed tries, oldest first, each with its kind in front.
    """

    cell: int
    repeat: int
    reasons: tuple[str, ...]

    @property
    def slot(self) -> Slot:
        """The cell and repeat."""
        return Slot(self.cell, self.repeat)

    def __str__(self) -> str:
        return one_line(f"{self.slot} after {'; '.join(self.reasons)}")


@dataclass(frozen=True)
class Queued:
    """A slot to try (again).

    Attributes:
        source: trial that has the params; None where the spec's grid has them, or a sampler must draw them.
    """

    slot: Slot
    attempt: int
    source: int | None = None


@dataclass(frozen=True)
class Verification:
    """Whether a study holds exactly one complete trial for each cell and repeat.

    Attributes:
        cells: cells × repeats that the study wants (for a sampled study without an end: those drawn so far).
        complete: how many of them have exactly one complete trial.
        missing: those with no complete trial that may still get one.
        doubled: those with more than one.
        given_up: those that failed too often.
    """

    cells: int
    complete: int
    missing: tuple[Slot, ...] = ()
    doubled: tuple[Slot, ...] = ()
    given_up: tuple[GivenUp, ...] = ()

    @property
    def whole(self) -> bool:
        """Whether nothing is missing, doubled or given up."""
        return not (self.missing or self.doubled or self.given_up)

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {
            "whole": self.whole,
            "cells": self.cells,
            "complete": self.complete,
            "missing": [slot._asdict() for slot in self.missing],
            "doubled": [slot._asdict() for slot in self.doubled],
            "given_up": [asdict(failed) for failed in self.given_up],
        }

    def describe(self) -> str:
        """Return the same for people: a line of counts, then one for each kind of fault."""
        lines = [f"{self.complete} of {self.cells} cells × repeats have exactly one complete trial"]
        for fault, slots in (("missing", self.missing), ("doubled", self.doubled), ("given up", self.given_up)):
            if slots:
                more = f" and {len(slots) - SHOWN} more" if len(slots) > SHOWN else ""
                lines.append(f"{fault}: {', '.join(map(str, slots[:SHOWN]))}{more}")
        return "\n".join(lines)


class Cells:
    """The rows of a study by slot, and what follows from them."""

    def __init__(self, spec: StudySpec, rows: Iterable[SlotRow]) -> None:
        self._repeats = spec.sampler.repeats
        self._max_attempts = spec.sampler.max_attempts
        self._is_grid = spec.sampler.name == "grid"
        self._limit = spec.cell_count() if self._is_grid else spec.sampler.trials
        self._rows: defaultdict[Slot, list[SlotRow]] = defaultdict(list)
        self._source: dict[int, int] = {}  # cell -> a trial that has its params
        for row in sorted(rows, key=lambda row: row.number):
            if self._is_wanted(row.slot):
                self._add(row)

    def _is_wanted(self, slot: Slot) -> bool:
        return 0 <= slot.cell < (self._limit or math.inf) and 0 <= slot.repeat < self._repeats

    def _add(self, row: SlotRow) -> None:
        if not row.extra:
            self._rows[row.slot].append(row)
        if row.has_params:
            self._source[row.slot.cell] = row.trial_id

    # --- one slot ---------------------------------------------------------------------------------------------------

    def is_taken(self, slot: Slot) -> bool:
        """Whether a slot has an open or a complete trial."""
        return any(row.is_taken for row in self._rows.get(slot, ()))

    def is_drawn(self, cell: int) -> bool:
        """Whether the params of a cell are known."""
        return self._is_grid or cell in self._source

    def next_attempt(self, slot: Slot) -> int:
        """Return the number of the next try of a slot."""
        rows = self._rows.get(slot)
        return rows[-1].next_attempt if rows else 1

    def is_given_up(self, slot: Slot) -> bool:
        """Whether a slot failed as often as the spec allows; a draw that failed is repeated without end."""
        too_often = self.next_attempt(slot) > self._max_attempts
        return too_often and self.is_drawn(slot.cell) and not self.is_taken(slot)

    def is_done(self, slot: Slot) -> bool:
        """Whether nothing is left to do for a slot."""
        return self._completed(slot) > 0 or self.is_given_up(slot)

    def _completed(self, slot: Slot) -> int:
        return sum(row.state == "COMPLETE" for row in self._rows.get(slot, ()))

    # --- all slots --------------------------------------------------------------------------------------------------

    def _cells(self) -> Iterable[int]:
        """Return the cells that can have trials now: all of a grid, those begun of a sampled study."""
        return range(self._limit or 0) if self._is_grid else sorted({slot.cell for slot in self._rows})

    def _slots(self, cells: Iterable[int]) -> Iterator[Slot]:
        return (Slot(cell, repeat) for cell in cells for repeat in range(self._repeats))

    def given_up(self, cell: int | None = None) -> tuple[GivenUp, ...]:
        """Return the slots (of one cell, or all) that failed too often, with their reasons."""
        slots = (slot for slot in self._slots(self._cells()) if cell in (None, slot.cell) and self.is_given_up(slot))
        return tuple(GivenUp(*slot, reasons=_reasons(self._rows[slot])) for slot in slots)

    def to_queue(self) -> list[Queued]:
        """Return the slots that need a new row now."""
        slots = (slot for slot in self._slots(self._cells()) if not self.is_taken(slot) and self.is_drawn(slot.cell))
        return [self.queued(slot, self.next_attempt(slot)) for slot in slots if not self.is_given_up(slot)]

    def queued(self, slot: Slot, attempt: int) -> Queued:
        """Return a new try of a slot."""
        return Queued(slot, attempt, None if self._is_grid else self._source[slot.cell])

    def to_draw(self) -> Queued | None:
        """Return the next cell that a sampler must draw, None where the study has all it wants."""
        if self._is_grid:
            return None
        firsts = (Slot(cell, repeat=0) for cell in itertools.count())
        slot = next(slot for slot in firsts if not self.is_drawn(slot.cell) and not self.is_taken(slot))
        return Queued(slot, self.next_attempt(slot)) if self._is_wanted(slot) else None

    def wanted_count(self) -> int | None:
        """Return cells × repeats that the study ends at; None for a sampled study without an end."""
        return None if self._limit is None else self._limit * self._repeats

    def left_count(self) -> int | None:
        """Return how many of them still need to run; None for a sampled study without an end."""
        wanted = self.wanted_count()
        return None if wanted is None else wanted - sum(self.is_done(slot) for slot in self._slots(self._cells()))

    def verify(self) -> Verification:
        """Return what is missing, doubled and given up."""
        cells = self._cells() if self._limit is None else range(self._limit)
        complete = {slot: self._completed(slot) for slot in self._slots(cells)}
        given_up = self.given_up()
        without = {failed.slot for failed in given_up}
        return Verification(
            cells=len(complete),
            complete=sum(count == 1 for count in complete.values()),
            missing=tuple(slot for slot, count in complete.items() if count == 0 and slot not in without),
            doubled=tuple(slot for slot, count in complete.items() if count > 1),
            given_up=given_up,
        )


def _reasons(rows: Iterable[SlotRow]) -> tuple[str, ...]:
    failures = (row.failure or ("unknown", "no reason was recorded") for row in rows if row.uses_attempt)
    return tuple(f"{kind}: {message}" for kind, message in failures)
