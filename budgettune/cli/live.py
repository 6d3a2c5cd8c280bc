"""What a worker is doing, on a terminal as one live line, elsewhere as a log."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median

from rich.console import Console
from rich.status import Status
from rich.text import Text

from budgettune.cli.output import cell
from budgettune.records import EpochRecord, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.study.handle import Claim, StudyHandle
from budgettune.text import format_duration, one_line
from budgettune.worker.loop import Listener


class TerminalProgress(Listener):
    """Prints one line per finished trial; while one runs, a live line says which, how far, and what remains."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status: Status | None = None
        self._began = 0.0
        self._wall_seconds: list[float] = []
        self._remaining = ""

    def claimed(self, study: StudyHandle, claim: Claim) -> None:
        """Show which trial begins."""
        self._began = time.monotonic()
        if self.console.is_terminal and self._status is None:
            self._status = self.console.status("")
            self._status.start()
        self._show(f"{_label(claim)}: reading images, warming up")

    def epoch(self, claim: Claim, spec: StudySpec, record: EpochRecord) -> None:
        """Show how far the trial is."""
        budget_seconds = spec.train.budget
        of = f"/{spec.train.epochs}" if budget_seconds is None else f", {format_duration(budget_seconds)} allowed"
        accuracy = "" if record.accuracy is None else f", accuracy {record.accuracy:.1%}"
        seconds = format_duration(record.train_seconds)
        self._show(f"{_label(claim)}: epoch {record.epoch + 1}{of}, {seconds} on the clock{accuracy}{self._remaining}")

    def completed(self, study: StudyHandle, claim: Claim, result: TrialResult) -> None:
        """Print the trial's two objectives, or why it was stopped early."""
        self._wall_seconds.append(time.monotonic() - self._began)
        self._remaining = self._estimate(study.counts())
        outcome = f"{format_duration(result.train_seconds)}, accuracy {result.test_accuracy:.2%}, {result.status}"
        if result.is_stopped:
            outcome = f"stopped early {result.stopping['reason']}"
        self._print(f"{_label(claim)}: {outcome}{self._remaining}")

    def failed(self, claim: Claim, reason: str) -> None:
        """Print why a trial gave no result."""
        self._print(f"{_label(claim)}: {reason}")

    def close(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def _estimate(self, counts: Mapping[str, int]) -> str:
        waiting, running = counts.get("WAITING", 0), counts.get("RUNNING", 0)
        seconds = waiting * median(self._wall_seconds) / (1 + running)
        trials = "trial" if waiting == 1 else "trials"
        return f"; {waiting} {trials} waiting, about {format_duration(seconds)}" if waiting else ""

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(Text(one_line(text)))

    def _print(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _label(claim: Claim) -> str:
    params = ", ".join(f"{name.rpartition('.')[2]} {cell(value)}" for name, value in claim.params.items())
    repeat = f", repeat {claim.repeat}" if claim.repeat else ""
    return f"trial {claim.number} ({params}{repeat})"
