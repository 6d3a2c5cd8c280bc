"""A trial that a program tells about, line by line: `docs/your-program.md` has the table of lines."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from budgettune.errors import TrialMisused
from budgettune.records import MachineInfo, TrialResult
from budgettune.text import as_written, shortened
from budgettune.trial.checkpoint import NOWHERE, Checkpoint
from budgettune.trial.terms import Outside, Terms
from budgettune.trial.trial import Trial

AHEAD_SECONDS = 0.001  # that a line's `at` may be later than its arrival: a clock is read in steps
KINDS = ("clock", "aside", "report", "epoch", "describe", "save")


class ToldTrial(Trial):
    """One trial of a program that is not ours, driven by what it says.

    Its clock stands still between two lines: a line counts from its `at`, else from its arrival.

    Attributes:
        folder: that a file lies in which the program names without one.
        is_past: whether the program was told to end, and went on all the same.
    """

    def __init__(self, terms: Terms, outside: Outside, checkpoint: Checkpoint = NOWHERE) -> None:
        self._now = time.monotonic()
        super().__init__(terms, outside, clock=lambda: self._now, checkpoint=checkpoint)
        self.folder = Path()
        self._segment: AbstractContextManager[None] | None = None  # while the clock runs
        self._segment_began = 0.0  # on the clock
        self._aside: tuple[str, AbstractContextManager[None]] | None = None
        self._lines = 0
        self.is_past = False

    def hear(self, line: bytes, arrived: float) -> dict[str, Any] | None:
        """Take in a line that arrived at a second of the monotonic clock; return the answer to it, None for none.

        Raises:
            TrialMisused: where it says what cannot be.
            NonFiniteLoss: where it reports a number that is not finite.
        """
        self._lines += 1
        try:
            told = json.loads(line)
            if not isinstance(told, dict):
                raise ValueError("no object")
        except ValueError:
            raise TrialMisused(f"{self._line(line)} is no JSON object: write one line for each thing said") from None
        kind = next((kind for kind in KINDS if kind in told), None)
        if kind is None:
            raise TrialMisused(f"{self._line(line)} says none of {', '.join(KINDS)}")
        self._now = self._moment(told.get("at", arrived), arrived)
        try:
            return getattr(self, f"_hear_{kind}")(told)  # type: ignore[no-any-return]
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise TrialMisused(f"{self._line(line)} cannot be read: {error}") from None

    def result(self, machine: MachineInfo, status: str = "unverified", evidence: Mapping[str, Any] = {}) -> TrialResult:
        if not self._lines:
            raise TrialMisused(
                "the program ended well and told nothing: in Python it trains with budgettune.Trial.current(), "
                "in any other language it writes lines to $BUDGETTUNE_TRIAL/say"
            )
        if self._segment is not None:
            raise TrialMisused('the program ended while its clock ran: say {"clock": "stop"} before')
        if self._epoch is not None and not self._epoch.has_run:
            self._epoch = None
        if not self._curve and self._epoch is None:
            raise TrialMisused('the program ended without an epoch: say {"clock": "start"} before training begins')
        last = self._curve[-1].value if self._epoch is None else None
        if last is None:
            raise TrialMisused(
                f'the program ended without a report of its last epoch: say {{"report": {{"{self._keyword}": …}}}}'
            )
        return super().result(machine, status, evidence)

    # --- kinds of lines ---------------------------------------------------------------------------------------------

    def _hear_clock(self, told: dict[str, Any]) -> None:
        state = told["clock"]
        if state == "start":
            if self._segment is not None:
                raise self._misuse("the clock runs already")
            if self._aside is not None:
                raise self._misuse(f"the clock starts inside of {self._aside[0]!r}, which is off the clock")
            self.is_past = self._epoch is None and self._is_over
            if self.is_past:
                return
            if self._epoch is None:
                self._begin_epoch()
            self._segment, self._segment_began = self.clock(), self._watch.elapsed()
            self._segment.__enter__()
        elif state == "stop":
            if self._segment is None:
                raise self._misuse("the clock does not run")
            self._count_segment(told)
            segment, self._segment = self._segment, None
            segment.__exit__(None, None, None)
        else:
            raise self._misuse(f"clock is {as_written(state)}: start or stop")

    def _count_segment(self, told: dict[str, Any]) -> None:
        steps, samples, loss = told.get("steps"), told.get("samples"), told.get("loss")
        for name in ("steps", "samples"):
            count = told.get(name)
            if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 0):
                raise self._misuse(f"{name} is {as_written(count)}: a whole number from 0")
        seconds = [float(each) for each in told.get("step_seconds", ())]
        if steps and not seconds:
            seconds = [(self._watch.elapsed() - self._segment_began) / steps]
        self._count(steps or 0, samples, None if loss is None else float(loss), seconds)

    def _hear_aside(self, told: dict[str, Any]) -> None:
        name, state = told["aside"], told.get("state")
        if not isinstance(name, str) or state not in ("start", "stop"):
            raise self._misuse('an aside has a name and a state: {"aside": "load", "state": "start"}, later "stop"')
        if self._segment is not None:
            raise self._misuse(f"{name!r} is off the clock, and the clock runs: stop it before")
        if state == "start":
            if self._aside is not None:
                raise self._misuse(f"{self._aside[0]!r} has not ended: one aside at a time")
            self._aside = name, self.aside(name)
            self._aside[1].__enter__()
        else:
            if self._aside is None or self._aside[0] != name:
                raise self._misuse(f"{name!r} has not begun")
            (_, aside), self._aside = self._aside, None
            aside.__exit__(None, None, None)

    def _hear_report(self, told: dict[str, Any]) -> dict[str, Any]:
        measures = told["report"]
        if not isinstance(measures, dict) or any(not name.isidentifier() or name == "self" for name in measures):
            raise self._misuse(f'a report has numbers by names of letters, digits and _: {{"{self._keyword}": 0.9}}')
        self._ready_to_end()
        self.report(**measures)
        self._end_epoch()
        goes_on = not self._is_over
        may_save = goes_on and self._checkpoint.is_due()
        return {"go_on": goes_on, "train_seconds": self._watch.elapsed(), "save": may_save}

    def _hear_save(self, told: dict[str, Any]) -> None:
        if self._epoch is not None or not self._curve:
            raise self._misuse('save at the end of an epoch: say {"save": FILE} after its report')
        try:
            self.saved = (self.folder / told["save"]).read_bytes()
        except OSError as error:
            raise self._misuse(f"{as_written(told['save'])} cannot be read: {error.strerror}") from None
        self._keep()

    @property
    def done(self) -> dict[str, Any]:
        """What was trained before, where the program goes on with it; empty where it begins."""
        if not self._curve:
            return {}
        return {"epochs": len(self._curve), "train_seconds": self._watch.elapsed(), "steps": self._usual_steps}

    def _hear_epoch(self, told: dict[str, Any]) -> None:
        if told["epoch"] != "end":
            raise self._misuse('an epoch begins with its clock, and ends with a report or {"epoch": "end"}')
        self._ready_to_end()
        self._end_epoch()

    def _hear_describe(self, told: dict[str, Any]) -> None:
        if not isinstance(told["describe"], dict):
            raise self._misuse('facts have names: {"describe": {"parameters": 1000}}')
        self.describe(**told["describe"])

    def _ready_to_end(self) -> None:
        if self._segment is not None:
            raise self._misuse('the clock runs: say {"clock": "stop"}, then evaluate, or it is charged')
        if self._epoch is None:
            raise self._misuse(
                'the clock never ran in this epoch: say {"clock": "start"} before training, {"clock": "stop"} after; '
                "nothing is timed from the start of the program"
            )

    def _moment(self, at: Any, arrived: float) -> float:
        """Return the second that a line counts from."""
        if isinstance(at, bool) or not isinstance(at, int | float) or not self._now <= at <= arrived + AHEAD_SECONDS:
            raise self._misuse(
                f"at is {as_written(at)}: seconds of CLOCK_MONOTONIC, none before the line above or after now; "
                f"without it the moment counts at which the line arrives"
            )
        return float(at)

    def _misuse(self, text: str) -> TrialMisused:
        return self._misused(f"line {self._lines} that the program said: {text}")

    def _line(self, line: bytes) -> str:
        return f"line {self._lines} that the program said, {shortened(line.decode(errors='replace').strip())!r},"
