"""The rule of early stops: a running trial ends that will almost surely not matter beside those that have finished.

After an epoch, a trial's final seconds and final score are forecast from the finished trials of its study, each looked
at where it was equally far. That gives the chance that the trial will *matter*: that it will improve on the front
of the finished ones by half a point of accuracy (`Law.unit` of another score) at equal time, or by 5% of the time at an
equal score. A stop saves what is left of the training, so the chance is weighed against that; how much chance is too
much is found by replaying the finished trials, not by a quantile that assumes a distribution and a single look:

- each of them runs again in thought, judged by the others as a worker would judge it, epoch after epoch, but without
  those that beat it: among these it matters, and to stop it would be wrong;
- the limit is set so that at most `1 - confidence` of the trials would be stopped where they matter. A trial that is
  stopped although it matters has none that beat it, so its own replay is what happens to it, and trials that come in no
  particular order are exchangeable: at most about that share of *all* trials, all looks together, is stopped wrongly
  (conformal prediction with leave-one-out scores: Vovk, Gammerman and Shafer, 2005; Barber et al., 2021). Much fewer
  are, as few trials matter.

The finished trials are those that the rule let go on, and would make the others look better than they are. The controls
stand for the others: trials that the rule would have stopped, and that ran to their end by lot. Each counts as many
times as the lot is rare (Horvitz and Thompson, 1952). Curves of stopped trials, which say nothing of the end, are left
out. Pure: records in, notes out.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, ndtr, ndtri

from budgettune.records import EpochRecord, StoppingNote, TrialRecord
from budgettune.spec.objective import ObjectiveSpec
from budgettune.text import format_duration

Floats = NDArray[np.float64]

LEAST_RIVALS = 8  # finished trials that a forecast takes
ERROR_OFFSET = 0.005  # added to errors before the logarithm: smaller ones are hardly told apart
RECENT = 3  # points of a curve that say where it is: one alone is noisy
OFFSET_SHARE = 0.1  # of the distance from the best to the middle of finished trials, for objectives that are no shares
BEYOND_IDEAL = 0.1  # of the offset, which is what is left of the distance of a score beyond the ideal
WORTH_POINTS = 0.005  # of accuracy that a stop may lose
WORTH_TIME = 0.05  # share of the time
MOST_CHANCE = 0.1  # that a trial which is stopped matters, however much time that saves
SAVING_POWER = 2.0  # of the seconds left, by which a chance is weighed: measured better than 0 and 1
SAME_SHARE = 1e-6  # how far shares of the training may differ that are the same
MOST_LOOKS = 20  # at a trial, and at each finished one in its replay
REPLAYED = 1_000  # of the finished trials, the last ones
LARGEST_LEVEL = 700.0  # exponentials end there
USUAL = ObjectiveSpec()
SURE = 0.95  # that the rate of wrong stops is at most what is stated
# A normal distribution of the final time in a few points, close where its tails begin, with their weights.
_CHANCES = np.array([0.01, 0.03, 0.07, 0.13, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.87, 0.93, 0.97, 0.99])
_POINTS = ndtri(_CHANCES)
_WEIGHTS = np.diff([0.0, *(_CHANCES[1:] + _CHANCES[:-1]) / 2, 1.0])


@dataclass(frozen=True, kw_only=True)
class Law:
    """What a score becomes so that the curves of a study are alike: the logarithm of its distance from an ideal.

    Accuracies have one, 1. Of other objectives it is the best that finished, and how far the middle one lies behind it
    takes the place of the errors that accuracies have.
    """

    ideal: float = 1.0
    offset: float = ERROR_OFFSET  # added to distances before the logarithm
    bounds: tuple[float, float] = (0.0, 1.0)
    unit: float = WORTH_POINTS  # of the score: by so much a trial must improve on the front to matter

    @classmethod
    def of(cls, scores: Sequence[float]) -> Self:
        """Return the law of an objective that is no share, by the scores of finished trials.

        Its unit is a twentieth of the distance from the best to the middle one.
        """
        best = max(scores)
        offset = OFFSET_SHARE * (best - statistics.median(scores)) or 1e-9 * (abs(best) or 1.0)
        return cls(ideal=best, offset=offset, bounds=(-math.inf, math.inf), unit=offset / 2)

    def levels(self, scores: Floats) -> Floats:
        """Return the level of each score; of one beyond the ideal that of one at the ideal's edge."""
        return np.log(np.maximum(self.offset + self.ideal - scores, BEYOND_IDEAL * self.offset))

    def score(self, level: float) -> float:
        """Return the score of a level."""
        low, high = self.bounds
        return min(high, max(low, self.ideal + self.offset - math.exp(min(level, LARGEST_LEVEL))))


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a trial is."""

    share: float  # of its training that is done
    before: float  # the same an epoch before
    seconds: float  # on the clock so far
    recent: tuple[float, ...]  # scores of the last few points of its curve, none before the first one

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
        whole = budget_seconds or curve[-1].train_seconds
        shares = [(each.epoch + 1) / epochs if epochs else each.train_seconds / whole for each in curve[-2:]]
        scores = [objective.score(epoch.value) for epoch in curve if epoch.value is not None]
        return cls(
            share=shares[-1],
            before=shares[0] if len(shares) > 1 else 0.0,
            seconds=curve[-1].train_seconds,
            recent=tuple(scores[-RECENT:]),
        )


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A finished trial."""

    number: int
    seconds: float
    score: float  # its accuracy, by the usual objective; the more the better by any
    shares: Floats  # float64[points], of the training that was done at each evaluated epoch, rising to 1
    seconds_so_far: Floats  # float64[points]
    scores: Floats  # float64[points]
    weight: float = 1.0  # trials that it stands for: itself, or where it is a control those that were stopped too

    @classmethod
    def of(cls, record: TrialRecord, objective: ObjectiveSpec = USUAL, weight: float = 1.0) -> Self | None:
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
            weight=weight,
        )


class Finished:
    """The finished trials of a study, and all that a running one is judged by; slow to make, quick to ask."""

    def __init__(self, rivals: Sequence[Rival], *, is_share: bool = True) -> None:
        """Take the rivals; `is_share` says that scores are accuracies in [0, 1]: others have a law of their own."""
        self.rivals = tuple(rivals)
        self.law = Law() if is_share or not rivals else Law.of([rival.score for rival in rivals])
        self.front = Stairs.of(self._of("seconds", self.rivals), self._of("score", self.rivals))
        self._basis = self.rivals[-REPLAYED:]
        seconds, self._weights = self._of("seconds", self._basis), self._of("weight", self._basis)
        self._mean_seconds = float(np.average(seconds, weights=self._weights)) if rivals else 0.0
        self._ends, self._levels = np.log(seconds), self.law.levels(self._of("score", self._basis))
        self._limits: dict[float, float] = {}

    @staticmethod
    def _of(name: str, rivals: Sequence[Rival]) -> Floats:
        return np.array([getattr(rival, name) for rival in rivals], dtype=np.float64)

    def gains(self, seconds: float, score: float) -> tuple[float, float]:
        """Return what a trial adds to the front: score at equal time, and share of the time at an equal score.

        Infinite where none was as fast, or as good; zero, or less, where it is beaten.
        """
        faster = [rival.score for rival in self.rivals if rival.seconds <= seconds]
        better = [rival.seconds for rival in self.rivals if rival.score >= score]
        return score - max(faster, default=-math.inf), 1.0 - seconds / min(better, default=math.inf)

    def lack(self, seconds: float, score: float) -> bool:
        """Whether a trial matters beside the finished ones: it improves on their front by enough."""
        points, time = self.gains(seconds, score)
        return points > 0 and (points >= self.law.unit or time >= WORTH_TIME)

    def forecast(self, progress: Progress) -> Forecast | None:
        """Return where a trial will end; None where too few of the finished ones were evaluated when it was as far."""
        places = np.flatnonzero(np.abs(self.looks - progress.share) < SAME_SHARE)
        learnt, look = (self._at_looks, int(places[0])) if len(places) else (self._learnt([progress.share]), 0)
        if not learnt.is_enough[look]:
            return None
        level = np.full((1, 1), self.law.levels(np.array(progress.recent)).mean())
        return learnt.of_other(level, np.full((1, 1), math.log(progress.seconds))).at(look)

    def risk(self, chances: Floats, forecast: Forecast) -> Floats:
        """Return chances that trials matter, weighed against what a stop would save; inf where they are too high."""
        left = np.exp(forecast.end) - np.exp(forecast.now)
        saving = np.maximum(left / self._mean_seconds, 1e-9) ** SAVING_POWER
        return np.where(chances <= MOST_CHANCE, chances / saving, np.inf)

    def limit(self, confidence: float) -> float:
        """Return the risk up to which trials are stopped, so that at most 1 - confidence of them are so wrongly.

        Zero, which stops nothing, where too few have finished: 1 / (1 - confidence) at least, less one.
        """
        if confidence not in self._limits:
            may_be_wrong, total = 1.0 - confidence + 1e-9, 1.0 + float(self._weights.sum())
            if len(self._basis) < LEAST_RIVALS or may_be_wrong * total < 1.0:
                return 0.0
            order = np.argsort(self._least_risks)
            # The trial that is judged is one more, and may be the worst of all: the correction for few trials.
            stopped = (1.0 + np.cumsum(self._weights[order])) / total
            risks = np.append(self._least_risks[order], np.inf)
            self._limits[confidence] = float(risks[np.searchsorted(stopped, may_be_wrong, side="right")])
        return self._limits[confidence]

    @cached_property
    def looks(self) -> Floats:
        """Shares of the training at which trials are judged, float64[looks]: where finished ones were evaluated."""
        shares = {round(share, 6) for rival in self._basis for share in rival.shares.tolist() if share < 1.0}
        found = np.array(sorted(shares))
        return found[np.unique(np.linspace(0, len(found) - 1, MOST_LOOKS).round().astype(int))] if shares else found

    @cached_property
    def _at_looks(self) -> _Learnt:
        return self._learnt(self.looks.tolist())

    @cached_property
    def _least_risks(self) -> Floats:
        """Float64[basis], the least risk that each finished trial ran in its replay, inf where it would not matter."""
        learnt = self._at_looks
        seconds, scores = self._of("seconds", self._basis), self._of("score", self._basis)
        beating = (seconds[None] <= seconds[:, None]) & (scores[None] >= scores[:, None])  # each is one of its own
        stairs = Stairs.of(seconds, np.where(beating, -np.inf, scores))
        forecast = learnt.of_each()
        risks = self.risk(forecast.chance(stairs, self.law), forecast)
        points = scores - stairs.reached(np.log(seconds)[None])[0]
        time = 1.0 - seconds / stairs.seconds_to(scores)
        matters = (points >= self.law.unit) | (time >= WORTH_TIME)
        usable = learnt.is_enough[:, None] & learnt.is_known & matters
        least: Floats = np.where(usable, risks, np.inf).min(axis=0, initial=np.inf)
        return least

    def _learnt(self, shares: Sequence[float]) -> _Learnt:
        """Return what the finished trials teach of ones that are so far."""
        at = np.array(shares)
        is_known = np.array([rival.shares[0] <= at + SAME_SHARE for rival in self._basis]).T
        levels, now = self._curves(at)
        weights = np.where(is_known, self._weights, 0.0)
        return _Learnt(
            is_known=is_known,
            is_enough=is_known.sum(axis=1) >= LEAST_RIVALS,
            now=now,
            level=_Line.fit(levels, np.broadcast_to(self._levels, now.shape), weights),
            growth=_Line.fit(np.zeros_like(now), self._ends - now, weights),
        )

    def _curves(self, shares: Floats) -> tuple[Floats, Floats]:
        """Return level and logarithm of the seconds of each finished trial at some shares, float64[looks, basis]."""
        levels = np.array([np.interp(shares, rival.shares, means) for rival, means in self._means]).T
        seconds = np.array([np.interp(shares, rival.shares, rival.seconds_so_far) for rival, _ in self._means]).T
        return levels, np.log(np.maximum(seconds, 1e-9))

    @cached_property
    def _means(self) -> list[tuple[Rival, Floats]]:
        """Each finished trial with the level of its curve, the mean over the last few points."""
        found = []
        for rival in self._basis:
            sums = np.cumsum(self.law.levels(rival.scores))
            sums[RECENT:] -= sums[:-RECENT].copy()
            found.append((rival, sums / np.minimum(np.arange(1, len(sums) + 1), RECENT)))
        return found


@dataclass(frozen=True, kw_only=True)
class Stairs:
    """The best score that took so long at most: of one list of trials, or of one for each trial that is judged."""

    ends: Floats  # float64[trials], logarithms of seconds, rising
    best: Floats  # float64[lists, 1 + trials], of the first so many

    @classmethod
    def of(cls, seconds: Floats, scores: Floats) -> Self:
        """Take float64[trials] and float64[lists, trials] (or [trials]); -inf is a trial that a list lacks."""
        order = np.argsort(seconds)
        rows = np.atleast_2d(scores)[:, order]
        nothing = np.full((len(rows), 1), -np.inf)
        return cls(ends=np.log(seconds[order]), best=np.maximum.accumulate(np.hstack([nothing, rows]), axis=1))

    def reached(self, ends: Floats, *, before: bool = False) -> Floats:
        """Return the best score by so long, [..., lists, points] or [..., lists]; `before` leaves out equal times."""
        places = np.searchsorted(self.ends, ends, side="left" if before else "right")
        rows = np.arange(len(self.best))
        found: Floats = self.best[rows[:, None] if ends.ndim == 3 else rows, places]
        return found

    def seconds_to(self, scores: Floats) -> Floats:
        """Return how long it takes each list to reach a score, float64[lists], inf where it does not."""
        found: Floats = np.append(np.exp(self.ends), np.inf)[(self.best[:, 1:] < scores[:, None]).sum(axis=1)]
        return found


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """Where trials will end, float64[looks, trials]: normal distributions of levels and of logarithms of seconds."""

    now: Floats
    end: Floats
    end_deviation: Floats
    level: Floats
    level_deviation: Floats

    def at(self, look: int) -> Self:
        """Return it at one of the looks."""
        rows = {each.name: np.broadcast_to(getattr(self, each.name), self.level.shape) for each in fields(self)}
        return type(self)(**{name: row[look : look + 1] for name, row in rows.items()})

    def chance(self, stairs: Stairs, law: Law) -> Floats:
        """Return the chance that each trial matters beside the finished ones."""
        ends = np.maximum(self.end[..., None] + self.end_deviation[..., None] * _POINTS, self.now[..., None])
        at_equal_time = stairs.reached(ends) + law.unit
        at_equal_score = stairs.reached(ends - math.log1p(-WORTH_TIME), before=True)
        needed = law.levels(np.minimum(at_equal_time, at_equal_score))
        deviations = (needed - self.level[..., None]) / self.level_deviation[..., None]
        chances: Floats = ndtr(deviations) @ _WEIGHTS
        return chances


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Weighted straight lines, one for each look; all arrays are float64[looks, trials] or float64[looks, 1]."""

    outcomes: Floats
    fitted: Floats
    leverages: Floats  # share of each outcome in its own fit
    squares: Floats  # weighted, of what the lines leave
    weights: Floats
    count: Floats  # how many trials of equal weights would tell as much (Kish, 1965)
    centre: Floats
    mean: Floats
    slope: Floats
    variance: Floats  # of the trials' places

    @classmethod
    def fit(cls, places: Floats, outcomes: Floats, weights: Floats) -> Self:
        """Return the lines of outcomes over places; where all places are one, they are level."""
        total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
        shares = weights / total
        centre, mean = (shares * places).sum(axis=1, keepdims=True), (shares * outcomes).sum(axis=1, keepdims=True)
        beside = places - centre
        variance = (shares * beside**2).sum(axis=1, keepdims=True)
        is_flat = variance <= 1e-12
        variance = np.where(is_flat, np.inf, variance)
        slope = (shares * beside * (outcomes - mean)).sum(axis=1, keepdims=True) / variance
        fitted = mean + slope * beside
        return cls(
            outcomes=outcomes,
            fitted=fitted,
            leverages=np.minimum(shares * (1.0 + beside**2 / variance), 0.95),
            squares=(shares * (outcomes - fitted) ** 2).sum(axis=1, keepdims=True),
            weights=shares,
            count=1.0 / np.maximum((shares**2).sum(axis=1, keepdims=True), 1e-12),
            centre=centre,
            mean=mean,
            slope=slope,
            variance=variance,
        )

    def of_other(self, places: Floats) -> tuple[Floats, Floats]:
        """Return what the lines expect of one further trial, and the deviation of that."""
        beside = places - self.centre
        variance = self.squares * self.count / np.maximum(self.count - 2.0, 1.0)
        spread = 1.0 + (1.0 + beside**2 / self.variance) / self.count
        return self.mean + self.slope * beside, np.sqrt(np.maximum(variance * spread, 1e-12))

    def of_each(self) -> tuple[Floats, Floats]:
        """Return the same of each trial, by lines through all others."""
        missed = (self.outcomes - self.fitted) / (1.0 - self.leverages)
        rest = self.squares - self.weights * missed**2 * (1.0 - self.leverages)
        count = np.maximum(self.count - 1.0, 1.0)
        variance = np.maximum(rest, 0.0) / np.maximum(1.0 - self.weights, 0.05) * count / np.maximum(count - 2.0, 1.0)
        return self.outcomes - missed, np.sqrt(np.maximum(variance / (1.0 - self.leverages), 1e-12))


@dataclass(frozen=True, kw_only=True)
class _Learnt:
    """What finished trials teach of ones that are so far, for a few looks."""

    is_known: NDArray[np.bool_]  # [looks, trials], which of them were evaluated as early
    is_enough: NDArray[np.bool_]  # [looks]
    now: Floats  # [looks, trials], logarithms of their seconds
    level: _Line  # the final level over the present one
    growth: _Line  # logarithm of the factor from the seconds so far to the final ones

    def of_other(self, levels: Floats, now: Floats) -> Forecast:
        """Return where a further trial will end, by its level and the logarithm of its seconds."""
        return self._forecast(now, self.level.of_other(levels), self.growth.of_other(np.zeros_like(now)))

    def of_each(self) -> Forecast:
        """Return where each of the finished trials would have been seen to end by the others."""
        return self._forecast(self.now, self.level.of_each(), self.growth.of_each())

    @staticmethod
    def _forecast(now: Floats, level: tuple[Floats, Floats], growth: tuple[Floats, Floats]) -> Forecast:
        end = now + np.maximum(growth[0], 0.0)
        return Forecast(now=now, end=end, end_deviation=growth[1], level=level[0], level_deviation=level[1])


def judge(
    progress: Progress, finished: Finished, epoch: int, confidence: float, objective: ObjectiveSpec = USUAL
) -> StoppingNote | None:
    """Return why a trial is stopped after an epoch (0-based); None where it may still matter, or too little is known.

    At most 1 - confidence of all trials are stopped although they matter.
    """
    is_look = any(progress.before < look - SAME_SHARE <= progress.share for look in finished.looks.tolist())
    limit = finished.limit(confidence) if is_look and progress.recent else 0.0
    forecast = finished.forecast(progress) if limit > 0.0 else None
    if forecast is None:
        return None
    law, at_most = finished.law, float(ndtri(confidence))
    chance = forecast.chance(finished.front, law)
    if not finished.risk(chance, forecast)[0, 0] < limit:
        return None
    end, level = float(forecast.end[0, 0]), float(forecast.level[0, 0])
    least_end = max(float(forecast.now[0, 0]), end - at_most * float(forecast.end_deviation[0, 0]))
    expected_seconds, score = math.exp(end), law.score(level)
    best = max((each for each in finished.rivals if each.seconds <= expected_seconds), key=lambda each: each.score)
    expected, reached = (objective.text(objective.score(each), 1) for each in (score, best.score))
    return StoppingNote(
        stopped=True,
        epoch=epoch,
        train_seconds=progress.seconds,
        expected_seconds=expected_seconds,
        least_seconds=math.exp(least_end),
        expected_accuracy=objective.score(score),
        most_accuracy=objective.score(law.score(level - at_most * float(forecast.level_deviation[0, 0]))),
        rival=best.number,
        reason=(
            f"after epoch {epoch + 1} ({format_duration(progress.seconds)}): it would take about "
            f"{format_duration(expected_seconds)} and reach about {expected}, and matters with a chance of "
            f"{math.ceil(1e3 * chance[0, 0]) / 1e3:.3f}; trial {best.number} took {format_duration(best.seconds)} "
            f"and reached {reached}"
        ),
    )


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
    wrong: int  # how many of these mattered beside the trials that had finished when they were judged
    wrong_rate_at_most: float | None  # of all stops, with a confidence of 95%; None without controls

    def describe(self) -> str:
        total = self.spent_seconds + self.saved_seconds
        share = f" ({self.saved_seconds / total:.0%})" if total else ""
        saved = f"{format_duration(self.saved_seconds)} of {format_duration(total)}{share} saved, as forecast"
        stopped = f"{self.stopped} trials were stopped early" + (f": {saved}" if self.stopped else "")
        if self.wrong_rate_at_most is None:
            return f"{stopped}; no control was judged yet"
        return (
            f"{stopped}; of {self.controls} controls {self.wrong} would have been stopped wrongly where it matters: "
            f"at most {self.wrong_rate_at_most:.0%} of the stops, with 95% confidence"
        )


def summary_of_notes(notes: Sequence[StoppingNote]) -> EarlyStopSummary:
    stopped = [note for note in notes if note.stopped]
    controls = [note for note in notes if not note.stopped]
    wrong = sum(note.wrong is True for note in controls)
    # The bound of Clopper and Pearson (1934): who is a control is drawn for each trial by itself.
    rate = 1.0 if wrong == len(controls) else float(betaincinv(wrong + 1, len(controls) - wrong, SURE))
    return EarlyStopSummary(
        stopped=len(stopped),
        spent_seconds=sum(note.train_seconds for note in stopped),
        saved_seconds=sum(max(0.0, note.expected_seconds - note.train_seconds) for note in stopped),
        controls=len(controls),
        wrong=wrong,
        wrong_rate_at_most=rate if controls else None,
    )
