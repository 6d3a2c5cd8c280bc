"""What `prune_rate` means: the fraction of a run's sample visits that are dropped, in expectation, for every strategy.

A strategy does not drop alike in all epochs: some are kept whole, some thinned less. Its *profile* says, for an epoch
and a progress in [0, 1], what part of its largest drop it makes there. From that follow the largest drop that a rate
asks for, the rates that can be reached at all, and the visits to expect. No torch: a study is refused before it runs.

Two exceptions: `full` keeps everything whatever the rate, so that it can be searched beside the others; and
`paper-as-coded` takes the rate as its script does, for each epoch between refreshes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from functools import lru_cache

from budgettune.errors import SpecError
from budgettune.spec.pruning import PruningSpec

Profile = Callable[[PruningSpec, int, float], float]
Parts = tuple[tuple[float, float], ...]

HIDING_STAGES = ((0.3, 1.0), (0.6, 0.8), (0.8, 0.6), (1.0, 0.4))
"""KAKURENBO's fractions (Nguyen et al. 2023): until this progress, this part of the largest one."""

LARGEST_CHANCE = 0.95
"""InfoBatch drops a sample with at most this probability: a weight above 20 would be noise and no gradient."""

BELOW_MEAN = 1 - math.exp(-1)
"""Share of samples below the mean loss that InfoBatch counts on: that of an exponential distribution."""

TICKS = 1_000  # of progress, where the number of epochs is unknown


def _everywhere(spec: PruningSpec, epoch: int, progress: float) -> float:
    return 1.0


def _nowhere(spec: PruningSpec, epoch: int, progress: float) -> float:
    return 0.0


def _after_the_first_epoch(spec: PruningSpec, epoch: int, progress: float) -> float:
    return float(epoch > 0)


def _between_refreshes(spec: PruningSpec, epoch: int, progress: float) -> float:
    return float(epoch % spec.refresh_every > 0)


def _until_delta(spec: PruningSpec, epoch: int, progress: float) -> float:
    return float(epoch > 0 and progress < spec.delta)


def _then_at_random(spec: PruningSpec, epoch: int, progress: float) -> float:
    return float(epoch > 0) * (1.0 if progress < spec.delta else spec.random_share)


def _in_stages(spec: PruningSpec, epoch: int, progress: float) -> float:
    return float(epoch > 0) * next((part for end, part in HIDING_STAGES if progress < end), HIDING_STAGES[-1][1])


def _once_scored(spec: PruningSpec, epoch: int, progress: float) -> float:
    return float(spec.scores is not None or (epoch > 0 and progress >= spec.score_until))


PROFILES: dict[str, Profile] = {
    "full": _nowhere,
    "stale-quantile": _between_refreshes,
    "paper-as-coded": _between_refreshes,
    "selective-backprop": _after_the_first_epoch,
    "stale-selective-backprop": _after_the_first_epoch,
    "infobatch": _until_delta,
    "epsilon-greedy": _after_the_first_epoch,
    "ucb": _after_the_first_epoch,
    "seta": _then_at_random,
    "kakurenbo": _in_stages,
    "forgetting": _once_scored,
    "ccs": _once_scored,
    "prototypes": _once_scored,
}
"""Strategies that do not drop alike in all epochs; all others, and code of your own, do."""


def profile(spec: PruningSpec, epoch: int, progress: float) -> float:
    """Return what part of its largest drop a strategy makes in an epoch, in [0, 1]."""
    return PROFILES.get(spec.strategy, _everywhere)(spec, epoch, progress)


def largest_drop(spec: PruningSpec, epochs: int | None) -> float:
    """Return the fraction of samples that the epochs of the strongest pruning drop, so that the run drops prune_rate.

    Args:
        spec: the `[pruning]` table.
        epochs: of the run; None under a time budget, where the limit of many epochs stands for all, and where an
            epoch is expected to take time by its visits.

    Raises:
        SpecError: where the rate cannot be reached.
    """
    if spec.strategy == "full":
        return 0.0
    if spec.strategy == "paper-as-coded" or spec.prune_rate == 0:
        return spec.prune_rate
    if spec.prune_rate > (limit := rate_limit(spec, epochs)) - 1e-9:
        raise SpecError(_out_of_reach(spec, epochs, limit))
    return _solve(_parts(_without_rate(spec), epochs), spec.prune_rate, epochs)


def rate_limit(spec: PruningSpec, epochs: int | None) -> float:
    """Return the prune rate that a strategy must stay below: 0 where every epoch is kept whole."""
    return _rate(_parts(_without_rate(spec), epochs), _ceiling(spec), epochs)


def expected_visits_at(spec: PruningSpec, size: int, epochs: int | None, epoch: int, progress: float) -> int:
    """Return how many of size samples an epoch is expected to visit: at least one.

    Args:
        spec: the `[pruning]` table.
        size: number of training samples.
        epochs: of the run, None under a time budget.
        epoch: 0-based.
        progress: share of training that lies behind when the epoch begins.
    """
    return _visits(spec, largest_drop(spec, epochs), size, epoch, progress)


def expected_visits(spec: PruningSpec, size: int, epochs: int) -> list[int]:
    """Return how many of size samples each epoch of a run is expected to visit."""
    drop = largest_drop(spec, epochs)
    return [_visits(spec, drop, size, epoch, epoch / epochs) for epoch in range(epochs)]


def _visits(spec: PruningSpec, drop: float, size: int, epoch: int, progress: float) -> int:
    return max(1, size - round(drop * profile(spec, epoch, progress) * size))


def epoch_sizes(spec: PruningSpec, size: int, epochs: int | None) -> tuple[int, ...]:
    """Return the different numbers of samples that epochs are expected to visit, all of them first."""
    if epochs is not None:
        return tuple(dict.fromkeys([size, *expected_visits(spec, size, epochs)]))
    drop = largest_drop(spec, None)
    parts = dict.fromkeys(profile(spec, epoch, progress) for epoch, progress in _ticks(spec))
    return tuple(dict.fromkeys([size, *(max(1, size - round(drop * part * size)) for part in parts)]))


def _ceiling(spec: PruningSpec) -> float:
    """Return what the strongest epochs may drop at most: all but nothing, where the method sets no lower bound."""
    if spec.strategy != "infobatch":
        return 1.0
    return LARGEST_CHANCE * (BELOW_MEAN if spec.criterion == "loss" else 1.0)


def _without_rate(spec: PruningSpec) -> PruningSpec:
    """Return a key that equal profiles share."""
    return spec.model_copy(update={"prune_rate": 0.0})


@lru_cache(maxsize=1_024)
def _parts(spec: PruningSpec, epochs: int | None) -> Parts:
    """Return (part of the largest drop, its share of the epochs; of the time, where epochs are unknown)."""
    if epochs is not None:
        counted = Counter(profile(spec, epoch, epoch / epochs) for epoch in range(epochs))
        return tuple((part, count / epochs) for part, count in counted.items())
    cycle = spec.refresh_every
    means = Counter(
        sum(profile(spec, cycle + epoch, (tick + 0.5) / TICKS) for epoch in range(cycle)) / cycle
        for tick in range(TICKS)
    )
    return tuple((part, count / TICKS) for part, count in means.items())


def _ticks(spec: PruningSpec) -> list[tuple[int, float]]:
    """Return all (epoch, progress) that are different to a profile."""
    return [(epoch, (tick + 0.5) / TICKS) for tick in range(TICKS) for epoch in range(spec.refresh_every + 1)]


def _rate(parts: Parts, drop: float, epochs: int | None) -> float:
    """Return the fraction of visits that a run drops when its strongest epochs drop this fraction."""
    if _is_linear(parts, epochs):
        return drop * sum(part * share for part, share in parts)
    # In a given time more of the thin epochs fit.
    counted = [(drop * part, share / max(1e-12, 1 - drop * part)) for part, share in parts]
    return sum(dropped * count for dropped, count in counted) / sum(count for _, count in counted)


def _solve(parts: Parts, rate: float, epochs: int | None) -> float:
    """Return the drop that gives a rate, which grows with the drop."""
    if _is_linear(parts, epochs):
        return rate / sum(part * share for part, share in parts)
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _rate(parts, middle, epochs) < rate else (low, middle)
    return high


def _is_linear(parts: Parts, epochs: int | None) -> bool:
    return epochs is not None or len(parts) == 1


def _out_of_reach(spec: PruningSpec, epochs: int | None, limit: float) -> str:
    run = "a time budget" if epochs is None else f"{epochs} epoch{'s' if epochs != 1 else ''}"
    reach = f"stay below {math.floor(limit * 1e4) / 1e4:g}" if limit > 0 else "only 0 is within reach"
    return (
        f"prune_rate: {spec.prune_rate:g} of all visits cannot be dropped by {spec.strategy} over {run}: {reach}, "
        f"{'train for more epochs, ' if epochs is not None else ''}or choose one that prunes every epoch (random)"
    )
