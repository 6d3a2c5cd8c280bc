"""The rule of early stops: a running trial ends that finished ones will almost surely beat in time and accuracy.

After an epoch, a trial's final seconds and final accuracy are forecast from the finished trials of its study, each
looked at where it was equally far. The trial is dominated where one of them took no longer than the least that the
forecast allows, and is at least as accurate as the most. Another objective stands in for the accuracy by its score, the
more the better. Pure: records in, notes out.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtrit

from budgettune.records import EpochRecord, StoppingNote, TrialRecord
from budgettune.spec.objective import ObjectiveSpec
from budgettune.text import format_duration

Floats = NDArray[np.float64]

LEAST_RIVALS = 8  # finished trials that a forecast takes
ERROR_OFFSET = 0.005  # added to errors before the logarithm: smaller ones are hardly told apart
RECENT = 3  # points of a curve that say where it is: one alone is noisy
OFFSET_SHARE = 0.1  # of the distance from the best to the middle of finished trials, for objectives that are no shares
BEYOND_IDEAL = 0.1  # of the offset, which is what is left of the distance of a score beyond the ideal
LARGEST_LEVEL = 700.0  # exponentials end there
USUAL = ObjectiveSpec()
SURE = 0.95  # that the rate of wrong stops is at most what is stated


@dataclass(frozen=True, kw_only=True)
class Law:
    """What a score becomes so that the curves of a study are alike: the logarithm of its distance from an ideal.

    Accuracies have one, 1. Of other objectives it is the best that finished, and how far the middle one lies behind it
    takes the place of the errors that accuracies have.
    """

    ideal: float = 1.0
    offset: float = ERROR_OFFSET  # added to distances before the logarithm
    bounds: tuple[float, float] = (0.0, 1.0)

    @classmethod
    def of(cls, scores: Sequence[float]) -> Self:
        """Return the law of an objective that is no share, by the scores of finished trials."""
        best = max(scores)
        offset = OFFSET_SHARE * (best - statistics.median(scores)) or 1e-9 * (abs(best) or 1.0)
        return cls(ideal=best, offset=offset, bounds=(-math.inf, math.inf))

    def levels(self, scores: Floats) -> Floats:
        """Return the level of each score, float64[scores]; of one beyond the ideal that of one at the ideal's edge."""
        return np.log(np.maximum(self.offset + self.ideal - scores, BEYOND_IDEAL * self.offset))

    def score(self, level: float) -> float:
        """Return the score of a level."""
        low, high = self.bounds
        return min(high, max(low, self.ideal + self.offset - math.exp(min(level, LARGEST_LEVEL))))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a trial is."""

    share: float  # of its training that is done
    seconds: float  # on the clock so far
    recent: tuple[float, ...]  # scores of the last few points of its curve

    @classmethod
    def of(
        cls,
        curve: Sequence[EpochRecord],
        *,
        epochs: int | None,
        budget_seconds: float | None,
        objective: ObjectiveSpec = USUAL,
    ) -> Self:
        """Return where the last epoch of a curve left a trial that trains for so many epochs, or so many seconds."""
        seconds = curve[-1].train_seconds
        share = (curve[-1].epoch + 1) / epochs if epochs else seconds / (budget_seconds or seconds)
        scores = [objective.score(epoch.value) for epoch in curve if epoch.value is not None]
        return cls(share=share, seconds=seconds, recent=tuple(scores[-RECENT:]))

    def level(self, law: Law) -> float:
        """Return the mean level of the last few points of its curve."""
        return float(law.levels(np.array(self.recent)).mean())


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A finished trial."""

    number: int
    seconds: float
    score: float  # its accuracy, by the usual objective; the more the better by any
    shares: Floats  # float64[points], of the training that was done at each evaluated epoch, rising to 1
    seconds_so_far: Floats  # float64[points]
    scores: Floats  # float64[points]

    @classmethod
    def of(cls, record: TrialRecord, objective: ObjectiveSpec = USUAL) -> Self | None:
        """Return a finished trial as a rival; None where its curve or its result is missing."""
        points = [(epoch, epoch.value) for epoch in record.curve if epoch.value is not None]
        if record.train_seconds is None or record.value is None or not points:
            return None
        return cls(
            number=record.number,
            seconds=record.train_seconds,
            score=objective.score(record.value),
            shares=np.array([(epoch.epoch + 1) / len(record.curve) for epoch, _ in points]),
            seconds_so_far=np.array([epoch.train_seconds for epoch, _ in points]),
            scores=np.array([objective.score(value) for _, value in points]),
        )

    def at(self, share: float, law: Law) -> tuple[float, float]:
        """Return seconds and level where so much of the training was done: the mean over the last few points."""
        sums = np.cumsum(law.levels(self.scores))
        sums[RECENT:] -= sums[:-RECENT].copy()
        means = sums / np.minimum(np.arange(1, len(sums) + 1), RECENT)
        seconds = np.interp(share, self.shares, self.seconds_so_far)
        return float(seconds), float(np.interp(share, self.shares, means))

    def beats(self, seconds: float, score: float) -> bool:
        """Whether it took no longer, and is at least as good."""
        return self.seconds <= seconds and self.score >= score


@dataclass(frozen=True, kw_only=True)
class EndForecast:
    """Where a trial will end: what to expect, and bounds that hold with the confidence asked for, each by itself."""

    seconds: float
    least_seconds: float
    score: float
    most_score: float


def judge(
    progress: Progress, rivals: Sequence[Rival], epoch: int, confidence: float, objective: ObjectiveSpec = USUAL
) -> StoppingNote | None:
    """Return why a trial is dominated after an epoch (0-based); None where it may still matter, or too little is known.

    The confidence is that in each bound of the forecast.
    """
    end = forecast_end(progress, rivals, confidence, is_share=objective.is_accuracy)
    if end is None:
        return None
    beating = (rival for rival in rivals if rival.beats(end.least_seconds, end.most_score))
    best = max(beating, key=lambda rival: rival.score, default=None)
    if best is None:
        return None
    is_rising = objective.direction == "maximize"
    at_most, reached = (objective.text(objective.score(score), 1) for score in (end.most_score, best.score))
    return StoppingNote(
        stopped=True,
        epoch=epoch,
        train_seconds=progress.seconds,
        expected_seconds=end.seconds,
        least_seconds=end.least_seconds,
        expected_accuracy=objective.score(end.score),
        most_accuracy=objective.score(end.most_score),
        rival=best.number,
        reason=(
            f"after epoch {epoch + 1} ({format_duration(progress.seconds)}): it would take at least "
            f"{format_duration(end.least_seconds)} and reach at {'most' if is_rising else 'least'} {at_most}; "
            f"trial {best.number} took {format_duration(best.seconds)} and reached {reached}"
        ),
    )


def forecast_end(
    progress: Progress, rivals: Sequence[Rival], confidence: float, *, is_share: bool = True
) -> EndForecast | None:
    """Return where a trial will end, by the finished trials that were evaluated when they were as far, or before.

    The logarithm of the factor from the seconds so far to the final ones is taken as normal. The logarithm of the final
    error lies on a straight line over that of the present one. Both bounds are those of one further observation, so
    that few rivals, and curves unlike theirs, make them wide. `is_share` says that scores are accuracies in [0, 1];
    other ones have a law of their own in place of errors.
    """
    known = [rival for rival in rivals if rival.shares[0] <= progress.share]
    if len(known) < LEAST_RIVALS:
        return None
    law = Law() if is_share else Law.of([rival.score for rival in known])
    seconds, levels = np.array([rival.at(progress.share, law) for rival in known]).T
    growth = np.log([rival.seconds for rival in known]) - np.log(seconds)
    final = law.levels(np.array([rival.score for rival in known]))
    constant = np.ones((len(known), 1))
    factor, factor_width = _next_observation(constant, growth, np.ones(1), confidence)
    line = np.column_stack([constant, levels])
    level, level_width = _next_observation(line, final, np.array([1.0, progress.level(law)]), confidence)
    return EndForecast(
        seconds=progress.seconds * math.exp(factor),
        least_seconds=progress.seconds * math.exp(max(0.0, factor - factor_width)),
        score=law.score(level),
        most_score=law.score(level - level_width),
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
