"""Kernel cliffs: configurations that are slower than their arithmetic explains. Pure, from timings to verdicts.

A training step should cost what its arithmetic costs elsewhere: time ~ FLOP ** growth, with growth near 1 where
products dominate and below 1 where fixed costs do. Each configuration is held against up to three witnesses, and the
one that predicts least counts:

- its *aligned twin*: the same network with widths rounded to a multiple of 8, at the same batch. It is the only good
  witness where most of a search space has fallen off the same cliff;
- its *neighbours*: the nearest networks in arithmetic, at the same batch;
- its *other batches*: the same network at the nearest batch sizes.

A prediction is the median over the witnesses of one sort, each scaled to the configuration's own arithmetic, so one
bad neighbour cannot spoil it. Configurations that their twin already convicts are no witnesses for others.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from budgettune.spec.tables import ALIGNMENT
from budgettune.training.profile.probe import ProbeResult

Key = TypeVar("Key", bound=Hashable)

THRESHOLD = 1.25
"""Time over prediction from which it is a cliff. Aligned networks of one family scatter by up to 1.12 around it."""

_NEAREST = 4
_DISTINCT = 1.1  # ratio of arithmetic below which two points say nothing about growth


@dataclass(frozen=True, kw_only=True)
class CliffVerdict:
    """How a configuration stands against what others predict: None and empty where there is no witness."""

    predicted_ms: float | None = None  # per step, by the witness that predicts least
    excess: float | None = None  # measured over predicted time
    witness: str = ""  # aligned twin, neighbours or other batches
    is_cliff: bool = False


def growth(points: Iterable[ProbeResult]) -> float:
    """Return the exponent of time against arithmetic: the median slope over all pairs, kept in [0, 1].

    The estimator of Theil (1950) and Sen (1968), which a quarter of bad points cannot move far. 1 where there is no
    pair to tell.
    """
    slopes = [
        math.log(b.ms_median / a.ms_median) / math.log(b.flop_per_step / a.flop_per_step)
        for a, b in itertools.combinations(points, 2)
        if abs(math.log(b.flop_per_step / a.flop_per_step)) > math.log(_DISTINCT)
    ]
    return min(1.0, max(0.0, median(slopes))) if slopes else 1.0


def predict(own: ProbeResult, witnesses: Sequence[ProbeResult], exponent: float) -> float:
    """Return the milliseconds that witnesses predict for a configuration's arithmetic."""
    return median(w.ms_median * math.pow(own.flop_per_step / w.flop_per_step, exponent) for w in witnesses)


def judge(
    results: Mapping[Key, ProbeResult], twins: Mapping[Key, Key], threshold: float = THRESHOLD
) -> dict[Key, CliffVerdict]:
    """Return a verdict on every configuration; twins lead from unaligned ones to aligned ones, and may lack any."""
    by_twin = {key: _verdict(results[key], _by_twin(key, results, twins), threshold) for key in results}
    healthy = {key: result for key, result in results.items() if not by_twin[key].is_cliff}
    verdicts = {}
    for key, own in results.items():
        others = [result for other, result in healthy.items() if other != key]
        network = (own.multiply_adds, own.precision)
        batches = [other for other in others if (other.multiply_adds, other.precision) == network]
        alike = [other for other in others if _comparable(own, other)]
        predictions = {
            **_by_twin(key, results, twins),
            "neighbours": _by_others(own, alike, _scale(own, healthy)),
            "other batches": _by_others(own, batches, batches),
        }
        verdicts[key] = _verdict(own, predictions, threshold)
    return verdicts


def nearest_healthy(key: Key, results: Mapping[Key, ProbeResult], verdicts: Mapping[Key, CliffVerdict]) -> Key | None:
    """Return the configuration of the same batch and precision, on no cliff, that is nearest in arithmetic."""
    own = results[key]
    healthy = [other for other in results if other != key and not verdicts[other].is_cliff]
    alike = [other for other in healthy if _comparable(own, results[other])]
    return min(alike, key=lambda other: _distance(own, results[other]), default=None)


def _verdict(own: ProbeResult, predictions: Mapping[str, float | None], threshold: float) -> CliffVerdict:
    known = {witness: ms for witness, ms in predictions.items() if ms is not None}
    if not known:
        return CliffVerdict()
    witness = min(known, key=known.__getitem__)
    excess = own.ms_median / known[witness]
    return CliffVerdict(predicted_ms=known[witness], excess=excess, witness=witness, is_cliff=excess > threshold)


def _by_twin(key: Key, results: Mapping[Key, ProbeResult], twins: Mapping[Key, Key]) -> dict[str, float | None]:
    own = results[key]
    twin = results.get(twins[key]) if key in twins else None
    return {"aligned twin": None if twin is None else predict(own, [twin], growth(_scale(own, results)))}


def _by_others(own: ProbeResult, others: Sequence[ProbeResult], scale: Sequence[ProbeResult]) -> float | None:
    """Return what other networks or batches predict, None where there is none."""
    nearest = sorted(others, key=lambda other: _distance(own, other))[:_NEAREST]
    if not nearest:
        return None
    # At the ends of the space growth would be extrapolated, and fixed costs bend it: only the bounds are safe there.
    if all(other.flop_per_step > own.flop_per_step for other in nearest):
        return predict(own, nearest[:1], 0.0)  # less work takes no longer
    if all(other.flop_per_step < own.flop_per_step for other in nearest):
        return predict(own, nearest, 1.0)  # more work takes at most so much longer
    return predict(own, nearest, growth(scale))


def _scale(own: ProbeResult, results: Mapping[Key, ProbeResult]) -> list[ProbeResult]:
    """Return what tells how time grows with arithmetic: aligned networks at the same batch, else all of them."""
    comparable = [result for result in results.values() if _comparable(own, result)]
    aligned = [result for result in comparable if not any(width % ALIGNMENT for width in result.widths)]
    return aligned if len({result.multiply_adds for result in aligned}) > 1 else comparable


def _comparable(own: ProbeResult, other: ProbeResult) -> bool:
    return (own.batch_size, own.precision) == (other.batch_size, other.precision)


def _distance(own: ProbeResult, other: ProbeResult) -> float:
    return abs(math.log(own.flop_per_step / other.flop_per_step))
