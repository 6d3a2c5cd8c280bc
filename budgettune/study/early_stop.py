"""The rule of early stops: a running trial ends that finished ones will almost surely beat in time and accuracy.

After an epoch, a trial's final seconds and final accuracy are forecast from the finished trials of its study, each
looked at where it was equally far. The trial is dominated where one of them took no longer than the least that the
forecast allows, and is at least as accurate as the most. Pure: records in, notes out.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from budgettune.records import EpochRecord, StoppingNote, TrialRecord
from budgettune.text import format_duration

Floats = NDArray[np.float64]

LEAST_RIVALS = 8  # finished trials that a forecast takes
ERROR_OFFSET = 0.005  # added to errors before the logarithm: smaller ones are hardly told apart
RECENT = 3  # points of a curve that say where it is: one alone is noisy
SURE = 0.95  # that the rate of wrong stops is at most what is stated


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a trial is."""

    share: float  # of its training that is done
    seconds: float  # on the clock so far
    level: float  # mean logarithm of the error (1 - accuracy) over the last few points of its curve

    @classmethod
    def of(cls, curve: Sequence[EpochRecord], *, epochs: int | None, budget_seconds: float | None) -> Self:
        """Return where the last epoch of a curve left a trial that trains for so many epochs, or so many seconds."""
        seconds = curve[-1].train_seconds
        share = (curve[-1].epoch + 1) / epochs if epochs else seconds / (budget_seconds or seconds)
        return cls(share=share, seconds=seconds, level=float(_levels(curve)[-1]))


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A finished trial."""

    number: int
    seconds: float
    accuracy: float
    shares: Floats  # float64[points], of the training that was done at each evaluated epoch, rising to 1
    seconds_so_far: Floats  # float64[points]
    levels: Floats  # float64[points], as in `Progress`
    last_level: float  # of its result alone

    @classmethod
    def of(cls, record: TrialRecord) -> Self | None:
        """Return a finished trial as a rival; None where its curve or its result is missing."""
        points = [epoch for epoch in record.curve if epoch.accuracy is not None]
        if record.train_seconds is None or record.test_accuracy is None or not points:
            return None
        return cls(
            number=record.number,
            seconds=record.train_seconds,
            accuracy=record.test_accuracy,
            shares=np.array([(epoch.epoch + 1) / len(record.curve) for epoch in points]),
            seconds_so_far=np.array([epoch.train_seconds for epoch in points]),
            levels=_levels(points),
            last_level=_level(record.test_accuracy),
        )

    def at(self, share: float) -> tuple[float, float]:
        seconds = np.interp(share, self.shares, self.seconds_so_far)
        return float(seconds), float(np.interp(share, self.shares, self.levels))

    def beats(self, seconds: float, accuracy: float) -> bool:
        """Whether it took no longer, and is at least as accurate."""
        return self.seconds <= seconds and self.accuracy >= accuracy


@dataclass(frozen=True, kw_only=True)
class EndForecast:
    """Where a trial will end: what to expect, and bounds that hold with the confidence asked for, each by itself."""

    seconds: float
    least_seconds: float
    accuracy: float
    most_accuracy: float


def judge(progress: Progress, rivals: Sequence[Rival], epoch: int, confidence: float) -> StoppingNote | None:
    """Return why a trial is dominated after an epoch (0-based); None where it may still matter, or too little is known.

    The confidence is that in each bound of the forecast.
    """
    end = forecast_end(progress, rivals, confidence)
    if end is None:
        return None
    beating = (rival for rival in rivals if rival.beats(end.least_seconds, end.most_accuracy))
    best = max(beating, key=lambda rival: rival.accuracy, default=None)
    if best is None:
        return None
    return StoppingNote(
        stopped=True,
        epoch=epoch,
        train_seconds=progress.seconds,
        expected_seconds=end.seconds,
        least_seconds=end.least_seconds,
        expected_accuracy=end.accuracy,
        most_accuracy=end.most_accuracy,
        rival=best.number,
        reason=(
            f"after epoch {epoch + 1} ({format_duration(progress.seconds)}): it would take at least "
            f"{format_duration(end.least_seconds)} and reach at most {end.most_accuracy:.1%}; "
            f"trial {best.number} took {format_duration(best.seconds)} and reached {best.accuracy:.1%}"
        ),
    )


def forecast_end(progress: Progress, rivals: Sequence[Rival], confidence: float) -> EndForecast | None:
    """Return where a trial will end, by the finished trials that were evaluated when they were as far, or before.

    The logarithm of the factor from the seconds so far to the final ones is taken as normal. The logarithm of the final
    error lies on a straight line over that of the present one. Both bounds are those of one further observation, so
    that few rivals, and curves unlike theirs, make them wide.
    """
    known = [rival for rival in rivals if rival.shares[0] <= progress.share]
    if len(known) < LEAST_RIVALS:
        return None
    seconds, levels = np.array([rival.at(progress.share) for rival in known]).T
    growth = np.log([rival.seconds for rival in known]) - np.log(seconds)
    final = np.array([rival.last_level for rival in known])
    constant = np.ones((len(known), 1))
    factor, factor_width = _next_observation(constant, growth, np.ones(1), confidence)
    line = np.column_stack([constant, levels])
    level, level_width = _next_observation(line, final, np.array([1.0, progress.level]), confidence)
    return EndForecast(
        seconds=progress.seconds * math.exp(factor),
        least_seconds=progress.seconds * math.exp(max(0.0, factor - factor_width)),
        accuracy=_accuracy(level),
        most_accuracy=_accuracy(level - level_width),
    )


def _next_observation(design: Floats, outcomes: Floats, at: Floats, confidence: float) -> tuple[float, float]:
    """Return what least squares expects of one further observation, and how far it lies beyond at most on one side.

    The textbook's prediction interval of a linear model with normal errors (Draper and Smith, 1998, section 3.1).

    Args:
        design: float64[observations, terms].
        outcomes: float64[observations].
        at: float64[terms], of the further observation.
        confidence: that it lies within the bound.
    """
    inverse = np.linalg.pinv(design.T @ design)
    weights = inverse @ design.T @ outcomes
    freedom = len(outcomes) - design.shape[1]
    variance = float(((outcomes - design @ weights) ** 2).sum()) / freedom
    spread = math.sqrt(variance * (1.0 + float(at @ inverse @ at)))
    return float(at @ weights), float(stdtrit(freedom, confidence)) * spread


def _levels(curve: Iterable[EpochRecord]) -> Floats:
    each = [_level(epoch.accuracy) for epoch in curve if epoch.accuracy is not None]
    return np.array([np.mean(each[max(0, end - RECENT) : end]) for end in range(1, len(each) + 1)])


def _level(accuracy: float) -> float:
    return math.log(ERROR_OFFSET + 1.0 - accuracy)


def _accuracy(level: float) -> float:
    return min(1.0, max(0.0, 1.0 + ERROR_OFFSET - math.exp(level)))


def is_control(seed: int, cell: int, repeat: int, share: float) -> bool:
    """Whether a trial runs to its end whatever the rule says; the same on every box, and at every attempt."""
    digest = hashlib.sha256(f"control/{seed}/{cell}/{repeat}".encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


# --- What it did in a study -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class EarlyStopSummary:
    """What stopping trials early did in a study."""

    stopped: int  # trials that ended early
    spent_seconds: float  # on the clock of these
    saved_seconds: float  # that they were expected to take beyond
    controls: int  # trials that ran to their end although the rule would have stopped them
    wrong: int  # how many of these no trial beat that had finished when they were judged
    wrong_rate_at_most: float | None  # of all stops, with a confidence of 95%; None without controls

    def describe(self) -> str:
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


def summary_of_notes(notes: Sequence[StoppingNote]) -> EarlyStopSummary:
    stopped = [note for note in notes if note.stopped]
    controls = [note for note in notes if not note.stopped]
    wrong = sum(note.wrong is True for note in controls)
    # The bound of Clopper and Pearson (1934).
    rate = 1.0 if wrong == len(controls) else float(betaincinv(wrong + 1, len(controls) - wrong, SURE))
    return EarlyStopSummary(
        stopped=len(stopped),
        spent_seconds=sum(note.train_seconds for note in stopped),
        saved_seconds=sum(max(0.0, note.expected_seconds - note.train_seconds) for note in stopped),
        controls=len(controls),
        wrong=wrong,
        wrong_rate_at_most=rate if controls else None,
    )
