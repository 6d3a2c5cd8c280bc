"""What rows keep of trials that were stopped early, or spared as controls, and what these say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from scipy.special import betaincinv

from budgettune.study.early_stop import Verdict
from budgettune.text import format_duration

SURE = 0.95  # that the rate of wrong stops is at most what is stated


def note_of(verdict: Verdict, beaten: bool | None = None) -> dict[str, Any]:
    """Return what a trial's row keeps, as JSON values.

    Args:
        verdict: on it.
        beaten: of a control, whether its result is beaten by a trial that had finished when it was judged; None for a
            trial that was stopped.
    """
    return {
        "stopped": beaten is None,
        "wrong": None if beaten is None else not beaten,
        "epoch": verdict.epoch,
        "train_seconds": verdict.train_seconds,
        "expected_seconds": verdict.forecast.seconds,
        "least_seconds": verdict.forecast.least_seconds,
        "expected_accuracy": verdict.forecast.accuracy,
        "most_accuracy": verdict.forecast.most_accuracy,
        "rival": verdict.rival,
        "reason": verdict.describe(),
    }


@dataclass(frozen=True, kw_only=True)
class StoppingSummary:
    """What stopping did in a study.

    Attributes:
        stopped: trials that ended early.
        spent_seconds: on the clock of these.
        saved_seconds: that they were expected to take beyond.
        controls: trials that ran to their end although the rule would have stopped them.
        wrong: how many of these no trial beat that had finished when they were judged.
        wrong_rate_at_most: of all stops, with a confidence of 95% (Clopper and Pearson, 1934); None without controls.
    """

    stopped: int
    spent_seconds: float
    saved_seconds: float
    controls: int
    wrong: int
    wrong_rate_at_most: float | None

    def describe(self) -> str:
        """Return the same in a line for people."""
        total = self.spent_seconds + self.saved_seconds
        share = f" ({self.saved_seconds / total:.0%})" if total else ""
        saved = f"{format_duration(self.saved_seconds)} of {format_duration(total)}{share} saved, as forecast"
        stopped = f"{self.stopped} trials were stopped early" + (f": {saved}" if self.stopped else "")
        if self.wrong_rate_at_most is None:
            return f"{stopped}; no control was judged yet"
        return (
            f"{stopped}; of {self.controls} controls {self.wrong} would have been stopped wrongly: "
            f"at most {self.wrong_rate_at_most:.0%} of the stops, with 95% confidence"
        )


def summary_of_notes(notes: Iterable[Mapping[str, Any]]) -> StoppingSummary:
    """Return what the notes of a study's trials say together."""
    notes = list(notes)
    stopped = [note for note in notes if note["stopped"]]
    controls = [note for note in notes if not note["stopped"]]
    wrong = sum(note.get("wrong") is True for note in controls)
    return StoppingSummary(
        stopped=len(stopped),
        spent_seconds=sum(note["train_seconds"] for note in stopped),
        saved_seconds=sum(max(0.0, note["expected_seconds"] - note["train_seconds"]) for note in stopped),
        controls=len(controls),
        wrong=wrong,
        wrong_rate_at_most=_largest_rate(wrong, len(controls)),
    )


def _largest_rate(hits: int, trials: int) -> float | None:
    if not trials:
        return None
    return 1.0 if hits == trials else float(betaincinv(hits + 1, trials - hits, SURE))
