"""What trials saw and how good they were: final points, and earlier ones put where they can be compared.

Models learn from scores (objectives turned so that more is better), on a line where equal steps are equally hard: the
logit of a share, the logarithm of what can only fall to zero, as a loss, and any other number as it is.

With a learning rate that falls to zero, the accuracy in the middle of a long run is *not* what a shorter run ends at:
the short run's rate is zero there and the long one's is not. Two corrections make such a point a helper:

- it is placed at the length of the complete run that has had the same sum of learning rates ("forward area" of Tissue
  et al. 2024, *Scaling Law with Learning Rate Annealing*), so that half of a linear run counts as three quarters;
- it carries the share of the rate that is still to fall, so that the model can learn what annealing is worth (their
  "annealing area", here by the rate itself), and the more of it is left, the more noise it is given.

Points before LEAST_PROGRESS are left out: their batch norm and their rate make them noise. Whether own training code
lets its rate fall, it does not say: see `budgettune.predict.quality`. Where its points are as good as those of runs
that end there, it gives more of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate

import numpy as np

from budgettune.predict.regression import Floats
from budgettune.predict.workload import Workload, Workloads
from budgettune.records import TrialRecord
from budgettune.spec.objective import ObjectiveSpec
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec

LEAST_PROGRESS = 0.45
HELPERS_AT = (0.5, 0.7, 0.85)
"""Progress of the points that are taken from each curve beside its last, where it has points near."""


UNKNOWN_TEST_IMAGES = 1_000
TINY = 1e-12  # size of a loss, at least
MOST_TAIL = 2.0  # variance of a log that counts for a mean: beyond, it is that of a tail which nobody has seen

AREAS: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: progress,
    "linear": lambda progress: 2 * progress - progress**2,
    "cosine": lambda progress: progress + math.sin(math.pi * progress) / math.pi,
}
"""Sum of learning rates up to a progress, in that of the whole run."""

STILL_TO_FALL: Mapping[str, Callable[[float], float]] = {
    "constant": lambda progress: 0.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
}
"""Share of the learning rate that is left at a progress and will be gone at the end."""


class Line(Enum):
    """A line that scores are put on."""

    LOGIT = "logit"
    LOG = "log"  # of a score below zero: minus the log of its size
    PLAIN = "plain"

    @classmethod
    def of(cls, objective: ObjectiveSpec, scores: Sequence[float]) -> Line:
        """Return the line for the scores that a study has seen."""
        if objective.is_accuracy or all(0 <= score <= 1 for score in scores):
            return cls.LOGIT
        return cls.LOG if all(score < 0 for score in scores) else cls.PLAIN

    def place(self, score: float, held_out: int = UNKNOWN_TEST_IMAGES) -> float:
        """Return where a score lies, a share being taken on so many held-out samples."""
        if self is Line.LOGIT:
            return logit(inside_edges(score, held_out))
        return -math.log(max(-score, TINY)) if self is Line.LOG else score

    def scores(self, places: Floats) -> Floats:
        """Return the scores at some places."""
        if self is Line.LOGIT:
            return 1 / (1 + np.exp(-places))
        return -np.exp(-places) if self is Line.LOG else places

    def slopes(self, scores: Floats) -> Floats:
        """Return by how much scores grow per unit of the line."""
        if self is Line.LOGIT:
            return scores * (1 - scores)
        return -scores if self is Line.LOG else np.ones_like(scores)

    def means(self, places: Floats, variances: Floats) -> Floats:
        """Return the mean score of normal places."""
        if self is Line.LOGIT:  # the logistic function against a normal one: MacKay (1992), equation 10
            return self.scores(places / np.sqrt(1 + np.pi / 8 * variances))
        return self.scores(places - np.minimum(variances, MOST_TAIL) / 2) if self is Line.LOG else places


@dataclass(frozen=True, kw_only=True)
class EpochPoint:
    """One point of a trial's curve."""

    trial: int  # number of the trial
    workload: Workload
    samples: float  # visited by a complete run that is as far; those of the trial itself for its final point
    still_to_fall: float  # share of the learning rate, 0 for a final point
    score: float
    place: float  # of the score on its line
    test_images: int  # that it was measured on
    is_final: bool  # whether training had ended


def inside_edges(accuracy: float, test_images: int) -> float:
    """Return an accuracy at least half an image off none and all correct, so that its logit is finite."""
    edge = 0.5 / test_images
    return min(1 - edge, max(edge, accuracy))


def logit(accuracy: float) -> float:
    """Return the log odds of a probability."""
    return math.log(accuracy / (1 - accuracy))


def line_of(spec: StudySpec, records: Sequence[TrialRecord]) -> Line:
    """Return the line for all that finished trials have seen of their objective."""
    values = [epoch.value for one in records for epoch in one.curve] + [one.value for one in records]
    return Line.of(spec.objective, [spec.objective.score(value) for value in values if value is not None])


def points_of(
    workloads: Workloads,
    record: TrialRecord,
    line: Line = Line.LOGIT,
    schedule: str | None = None,
    helpers: Sequence[float] = HELPERS_AT,
) -> list[EpochPoint]:
    """Return the final point of a finished trial, then its helpers.

    Args:
        line: that scores are put on.
        schedule: of the learning rate; None for the one that the spec names.
        helpers: progress of the points that are taken beside the last.
    """
    workload, objective = workloads.of(record.params), workloads.spec.objective
    assert record.value is not None
    held_out = test_images(workload.config.data) if not workload.is_own_code else UNKNOWN_TEST_IMAGES
    visited = list(accumulate(workload.visited(record)))
    score = objective.score(record.value)
    last = EpochPoint(
        trial=record.number,
        workload=workload,
        samples=visited[-1],
        still_to_fall=0.0,
        score=score,
        place=line.place(score, held_out),
        test_images=held_out,
        is_final=True,
    )
    schedule = schedule or workload.config.train.lr_schedule
    # By samples, which is by epochs where nothing is pruned and close to the clock where the budget is one of time.
    progress = [count / visited[-1] for count in visited]
    places = [
        index
        for index, (share, epoch) in enumerate(zip(progress, record.curve, strict=True))
        if min(LEAST_PROGRESS, *helpers) <= share < 1 and epoch.value is not None
    ]
    if not places:
        return [last]
    chosen = {min(places, key=lambda index: abs(progress[index] - wanted)) for wanted in helpers}
    return [last] + [
        replace(
            last,
            samples=last.samples * AREAS[schedule](progress[index]),
            still_to_fall=STILL_TO_FALL[schedule](progress[index]),
            score=objective.score(value),
            place=line.place(objective.score(value), held_out),
            is_final=False,
        )
        for index in sorted(chosen)
        if (value := record.curve[index].value) is not None
    ]


def test_images(data: DataSpec) -> int:
    """Return how many held-out images an accuracy is taken on; a guess where the set is not built in."""
    return UNKNOWN_TEST_IMAGES if data.part_sizes is None else data.part_sizes[1]
