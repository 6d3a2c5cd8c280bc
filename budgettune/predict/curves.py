"""What trials saw and how accurate they were: final points, and earlier ones put where they can be compared.

With a learning rate that falls to zero, the accuracy in the middle of a long run is *not* what a shorter run ends at:
the short run's rate is zero there and the long one's is not. Two corrections make such a point a helper:

- it is placed at the length of the complete run that has had the same sum of learning rates ("forward area" of Tissue
  et al. 2024, *Scaling Law with Learning Rate Annealing*), so that half of a linear run counts as three quarters;
- it carries the share of the rate that is still to fall, so that the model can learn what annealing is worth (their
  "annealing area", here by the rate itself), and the more of it is left, the more noise it is given.

Points before LEAST_PROGRESS are left out: their batch norm and their rate make them noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from budgettune.predict.workload import Workload, Workloads, visited_samples
from budgettune.records import TrialRecord
from budgettune.spec.tables import DataSpec

LEAST_PROGRESS = 0.45
HELPERS_AT = (0.5, 0.7, 0.85)
"""Progress of the points that are taken from each curve beside its last, where it has points near."""

UNKNOWN_TEST_IMAGES = 1_000

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


@dataclass(frozen=True, kw_only=True)
class EpochPoint:
    """One point of a trial's curve."""

    trial: int  # number of the trial
    workload: Workload
    samples: float  # visited by a complete run that is as far; those of the trial itself for its final point
    still_to_fall: float  # share of the learning rate, 0 for a final point
    accuracy: float  # in [0, 1]
    test_images: int  # that it was measured on
    is_final: bool  # whether training had ended

    @property
    def logit(self) -> float:
        return logit(inside_edges(self.accuracy, self.test_images))


def inside_edges(accuracy: float, test_images: int) -> float:
    """Return an accuracy at least half an image off none and all correct, so that its logit is finite."""
    edge = 0.5 / test_images
    return min(1 - edge, max(edge, accuracy))


def logit(accuracy: float) -> float:
    """Return the log odds of a probability."""
    return math.log(accuracy / (1 - accuracy))


def points_of(workloads: Workloads, record: TrialRecord) -> list[EpochPoint]:
    """Return the final point of a finished trial, then its helpers."""
    workload = workloads.of(record.params)
    assert record.test_accuracy is not None
    last = EpochPoint(
        trial=record.number,
        workload=workload,
        samples=float(visited_samples(record)),
        still_to_fall=0.0,
        accuracy=record.test_accuracy,
        test_images=test_images(workload.config.data),
        is_final=True,
    )
    schedule, curve = workload.config.train.lr_schedule, record.curve
    visited = list(accumulate(epoch.samples or 0 for epoch in curve))
    # By samples, which is by epochs where nothing is pruned and close to the clock where the budget is one of time.
    progress = [count / visited[-1] for count in visited]
    places = [
        index
        for index, (share, epoch) in enumerate(zip(progress, curve, strict=True))
        if LEAST_PROGRESS <= share < 1 and epoch.accuracy is not None
    ]
    if not places:
        return [last]
    helpers = {min(places, key=lambda index: abs(progress[index] - wanted)) for wanted in HELPERS_AT}
    return [last] + [
        replace(
            last,
            samples=last.samples * AREAS[schedule](progress[index]),
            still_to_fall=STILL_TO_FALL[schedule](progress[index]),
            accuracy=accuracy,
            is_final=False,
        )
        for index in sorted(helpers)
        if (accuracy := curve[index].accuracy) is not None
    ]


def test_images(data: DataSpec) -> int:
    """Return how many held-out images an accuracy is taken on; a guess where the set is not built in."""
    return UNKNOWN_TEST_IMAGES if data.part_sizes is None else data.part_sizes[1]
