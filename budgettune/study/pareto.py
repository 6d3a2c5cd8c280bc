"""The Pareto front of time and accuracy, and the hypervolume that it dominates. No numpy: answers start fast."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

from budgettune.records import TrialRecord
from budgettune.storage.answers import front_rows
from budgettune.storage.connection import Engine, reading
from budgettune.storage.trials import records_of


def pareto_front(
    engine: Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> list[TrialRecord]:
    """Return the finished trials that no other beats in both time and score, fastest first."""
    with reading(engine) as connection:
        rows = front_rows(connection, study_id, device_name=device_name, clean_only=clean_only)
        return records_of(connection, [row[3] for row in undominated(rows)])


def undominated(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return the sorted rows (seconds, loss, …) that improve on the loss of all faster ones, and their equals."""
    front: list[tuple[Any, ...]] = []
    for row in rows:
        if not front or row[1] < front[-1][1] or row[:2] == front[-1][:2]:
            front.append(row)
    return front


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Return the area that points of (seconds, accuracy) dominate up to a reference point, exactly.

    Args:
        points: seconds count the less the better, accuracy (or another score) the more; those that are not finite, or
            not better than the reference in both, add nothing.
        reference: (seconds, accuracy) that is worse than what matters.
    """
    worst_seconds, worst_accuracy = reference
    useful = sorted(
        (seconds, -accuracy)
        for seconds, accuracy in points
        if math.isfinite(seconds) and math.isfinite(accuracy) and seconds < worst_seconds and accuracy > worst_accuracy
    )
    area, height = 0.0, worst_accuracy
    for seconds, negated in useful:
        gain = max(0.0, -negated - height)
        area += gain * (worst_seconds - seconds)
        height += gain
    return area


def hypervolume_reference(points: Sequence[tuple[float, float]], *, is_share: bool = True) -> tuple[float, float]:
    """Return the seconds and the score that a study's hypervolume is measured against.

    1.1 times the slowest of its times; accuracy 0, or where the score is no share in [0, 1], a tenth of the range of
    scores below the worst (where all are the same, a tenth of that).
    """
    seconds, scores = [taken for taken, _ in points], [score for _, score in points]
    if is_share or not scores:
        return 1.1 * max(seconds, default=0.0), 0.0
    worst = min(scores)
    return 1.1 * max(seconds), worst - 0.1 * (max(scores) - worst or abs(worst) or 1.0)
