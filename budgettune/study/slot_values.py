"""What is said of a study's slots: their rows, what is queued, what was given up, and whether all is there."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from budgettune.errors import Interrupted
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
        seconds: on the clock of a trial that is complete or was stopped; of any other, from its start to its last sign
            of life.
        is_stopped: whether the study's rule ended it early, so that its slot is done.
        accuracy: of a complete trial.
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
    seconds: float = 0.0
    is_stopped: bool = False
    accuracy: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether it ended as it should."""
        return self.state == "COMPLETE" or self.is_stopped

    @property
    def is_taken(self) -> bool:
        """Whether this row keeps others from its slot."""
        return (self.state in TAKEN or self.is_stopped) and not self.extra

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
    """Whether a study holds exactly one trial for each cell and repeat that is complete or was stopped early.

    Attributes:
        cells: cells × repeats that the study wants (for a sampled study without an end: those drawn so far).
        complete: how many of them have exactly one complete trial.
        stopped: how many have exactly one that the study's rule stopped early instead.
        missing: those with neither that may still get one.
        doubled: those with more than one.
        given_up: those that failed too often.
    """

    cells: int
    complete: int
    missing: tuple[Slot, ...] = ()
    doubled: tuple[Slot, ...] = ()
    given_up: tuple[GivenUp, ...] = ()
    stopped: int = 0

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
