"""The `[pruning]` table of a study file, the strategies that it can name, and what `prune_rate` means for each.

It means the fraction of a run's sample visits that are dropped, in expectation, for every strategy.

A strategy does not drop alike in all epochs: some are kept whole, some thinned less. Its *drop share* says, for an
epoch and a progress in [0, 1], what part of its largest drop it makes there. From that follow the largest drop that a
rate asks for, the rates that can be reached at all, and the visits to expect. No torch: a study is refused before it
runs.

With `rate_per = "epoch"` the rate is the largest drop itself, as papers mostly have it: the fraction that each epoch
drops that prunes, or that prunes most.

Two exceptions: `full` keeps everything whatever the rate, so that it can be searched beside the others; and
`paper-as-coded` takes the rate as its script does, for each epoch between refreshes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from budgettune.errors import SpecError
from budgettune.spec.tables import Clash, SpecModel, code_or

DropShare = Callable[["PruningSpec", int, float], float]
"""Of epoch and progress. But for refreshes, it only falls after the first epoch, or only rises."""
Parts = tuple[tuple[float, float], ...]

HIDING_STAGES = ((0.3, 1.0), (0.6, 0.8), (0.8, 0.6), (1.0, 0.4))
"""KAKURENBO's fractions (Nguyen et al. 2023): until this progress, this part of the largest one."""

LARGEST_CHANCE = 0.95
"""InfoBatch drops a sample with at most this probability: a weight above 20 would be noise and no gradient."""

BELOW_MEAN = 1 - math.exp(-1)
"""Share of samples below the mean loss that InfoBatch counts on: that of an exponential distribution."""

LARGEST_SAMPLE = 10_000_000  # of losses that torch takes a quantile of

TICKS = 1_000  # of progress, where the number of epochs is unknown
LONGER = 1_000  # epochs beyond those asked for that are looked through for a run that would work


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


class BundledStrategy(NamedTuple):
    """A strategy that comes with the package."""

    path: str  # of its class as module:Class in `training.pruning`; text, because reading a study file loads no torch
    drop_share: DropShare = _everywhere
    is_free: bool = False  # it draws indices and does nothing else, so that choosing takes no time to speak of


STRATEGIES = {
    "full": BundledStrategy("baselines:Full", _nowhere, is_free=True),
    "random": BundledStrategy("baselines:RandomSubset", is_free=True),
    "stale-quantile": BundledStrategy("baselines:StaleQuantile", _between_refreshes),
    "paper-as-coded": BundledStrategy("baselines:PaperAsCoded", _between_refreshes),
    "selective-backprop": BundledStrategy("selective:SelectiveBackprop", _after_the_first_epoch),
    "stale-selective-backprop": BundledStrategy("selective:StaleSelectiveBackprop", _after_the_first_epoch),
    "infobatch": BundledStrategy("by_last_loss:InfoBatch", _until_delta),
    "epsilon-greedy": BundledStrategy("bandits:EpsilonGreedy", _after_the_first_epoch),
    "ucb": BundledStrategy("bandits:UpperConfidenceBound", _after_the_first_epoch),
    "seta": BundledStrategy("by_last_loss:SeTa", _then_at_random),
    "kakurenbo": BundledStrategy("by_last_loss:Kakurenbo", _in_stages),
    "el2n": BundledStrategy("static:El2n"),
    "grand": BundledStrategy("static:Grand"),
    "forgetting": BundledStrategy("static:Forgetting", _once_scored),
    "ccs": BundledStrategy("static:CoverageCentric", _once_scored),
    "prototypes": BundledStrategy("static:Prototypes", _once_scored),
    "reference-model": BundledStrategy("static:ReferenceModel"),
    "rho-loss": BundledStrategy("batches:RhoLoss"),
    "craig": BundledStrategy("batches:Craig"),
    "batch-coreset": BundledStrategy("batches:BatchCoreset"),
}
"""By the name that a study file gives them: a new one is a file in `training.pruning` and a line here."""


class PruningSpec(SpecModel):
    """`[pruning]`: which samples an epoch keeps. After the colon stand the strategies that read a key."""

    newer = ("rate_per",)

    strategy: Annotated[str, code_or(*STRATEGIES)] = "stale-quantile"
    prune_rate: float = Field(0.0, ge=0, lt=1)  # fraction of sample visits that are dropped, in expectation
    # Of all visits of the run, or of those of each epoch that prunes (that prunes most, where they differ).
    rate_per: Literal["run", "epoch"] = "run"
    # Samples drawn at random in each epoch, the quantile of whose losses is the threshold; None drops an exact count:
    # stale-quantile.
    threshold_sample: int | None = Field(None, ge=1, le=LARGEST_SAMPLE)
    # Everything is kept every that many epochs: stale-quantile, paper-as-coded.
    refresh_every: int = Field(5, ge=1)
    # Each epoch is drawn afresh (true), or epochs walk a permutation (false): random.
    replacement: bool = False
    reselect_every: int = Field(5, ge=1)  # epochs between two choices: epsilon-greedy, ucb, craig
    # Epochs between two forward passes on all samples: stale-selective-backprop.
    rescore_every: int = Field(3, ge=1)
    history: int = Field(1_024, ge=1)  # last losses that make up the distribution: selective-backprop
    # Samples below the mean loss are dropped, or any at `random`: infobatch.
    criterion: Literal["loss", "random"] = "loss"
    # Progress at which the last epochs begin, which drop nothing (infobatch) or at random (seta).
    delta: float = Field(0.875, gt=0, le=1)
    random_share: float = Field(0.25, ge=0, le=1)  # part of the drop that is made at random: seta
    groups: int = Field(10, ge=1)  # of samples by their loss, through which a window slides: seta
    epsilon: float = Field(0.1, ge=0, le=1)  # part of what is kept that is drawn at random: epsilon-greedy
    smoothing: float = Field(0.5, gt=0, le=1)  # weight of the newest loss in a moving average: epsilon-greedy, ucb
    exploration: float = Field(1.0, ge=0)  # deviations that are added to the mean: ucb
    confidence: float = Field(0.7, ge=0, lt=1)  # with which a hidden sample must be classified correctly: kakurenbo
    # A file of your own, one number per training sample as .npy, high for hard, in place of computed scores: el2n,
    # grand, forgetting, ccs, prototypes, reference-model, rho-loss.
    scores: str | None = None
    # Which samples by their score are kept: el2n, grand, forgetting, prototypes, reference-model.
    side: Literal["hard", "middle", "easy"] = "hard"
    # Progress up to which everything is kept and scored in passing: forgetting, ccs, prototypes.
    score_until: float = Field(0.2, ge=0, lt=1)
    cutoff: float = Field(0.1, ge=0, lt=1)  # hardest fraction that is always dropped: ccs
    strata: int = Field(50, ge=1)  # ranges of scores that are kept alike: ccs
    clusters: int | None = Field(None, ge=1)  # of k-means; None for one per class: prototypes
    # Epochs of each helper model that is trained on the clock: el2n, grand, rho-loss, reference-model.
    helper_epochs: int = Field(3, ge=1)
    helper_runs: int = Field(1, ge=1)  # helpers whose scores are averaged: el2n, grand
    helper_scale: float = Field(0.5, gt=0, le=64)  # `model.scale` of a helper: rho-loss, reference-model
    # `auto`: `study create` sets strategy and prune_rate to what the evidence supports.
    when: Literal["always", "auto"] = "always"
    evidence: str | None = None  # file that `budgettune compare --out` wrote, for `auto`
    decided: str | None = None  # what `study create` decided on that evidence, and why

    @model_validator(mode="after")
    def _keys_go_together(self) -> Self:
        if self.threshold_sample is not None and self.strategy != "stale-quantile":
            raise Clash(
                f"threshold_sample is a key of stale-quantile, and {self.strategy} has no threshold: take it out"
            )
        if self.when == "auto" and self.evidence is None:
            raise Clash("when = 'auto' needs evidence: the file that `budgettune compare --out` wrote")
        return self


DECIDE_REACH = (
    "strategy", "rate_per", "refresh_every", "criterion", "delta", "random_share", "scores", "score_until"
)  # fmt: skip
"""Keys that the limit of a prune rate depends on, beside the length of the run."""


def drop_share(spec: PruningSpec, epoch: int, progress: float) -> float:
    """Return what part of its largest drop a strategy makes in an epoch, in [0, 1]; code of your own always all."""
    return _share_of(spec)(spec, epoch, progress)


def _share_of(spec: PruningSpec) -> DropShare:
    bundled = STRATEGIES.get(spec.strategy)
    return _everywhere if bundled is None else bundled.drop_share


def largest_drop(spec: PruningSpec, epochs: int | None) -> float:
    """Return the fraction of samples that the epochs of the strongest pruning drop, for the asked rate.

    Args:
        spec: the `[pruning]` table.
        epochs: of the run; None under a time budget, where the limit of many epochs stands for all, and where an
            epoch is expected to take time by its visits.

    Raises:
        SpecError: where the rate cannot be reached.
    """
    if spec.strategy == "full":
        return 0.0
    check_rate(spec, epochs)
    if spec.rate_per == "epoch" or spec.strategy == "paper-as-coded" or spec.prune_rate == 0:
        return spec.prune_rate
    return _solve(_parts(_without_rate(spec), epochs), spec.prune_rate, epochs)


def check_rate(spec: PruningSpec, epochs: int | None) -> None:
    """Refuse a prune rate that a strategy cannot reach, with what would work.

    Raises:
        SpecError: as said.
    """
    if spec.strategy in ("full", "paper-as-coded") or _is_within_reach(spec, epochs):
        return
    limit = math.floor(rate_limit(spec, epochs) * 1e4) / 1e4
    longer = () if epochs is None else range(epochs + 1, epochs + LONGER)
    enough = next((more for more in longer if _is_within_reach(spec, more)), None)
    run = "under a time budget" if epochs is None else f"in {epochs} epoch{'s' if epochs != 1 else ''}"
    least = "no image above the mean loss" if spec.criterion == "loss" else f"at most {LARGEST_CHANCE:.0%} of them"
    reasons = [
        *([f"it trains on all images {'in some epochs' if limit else 'there'}"] if spec.rate_per == "run" else []),
        *([f"it drops {least}"] if spec.strategy == "infobatch" else []),
    ]
    ways = [
        *([f"stay below {limit:g}"] if limit else []),
        *([f"train for {enough} epochs"] if enough else []),
        *(["raise pruning.refresh_every"] if _is_always_whole(spec) else []),
        'take pruning.strategy = "random", which drops as much in every epoch',
    ]
    raise SpecError(
        f"prune_rate: {spec.prune_rate:g} is more than {spec.strategy} can drop {run}, because "
        f"{' and '.join(reasons)}: {', or '.join(ways)}"
    )


def _is_always_whole(spec: PruningSpec) -> bool:
    return spec.refresh_every == 1 and _share_of(spec) is _between_refreshes


def no_drop_note(spec: PruningSpec, epochs: int | None) -> str | None:
    """Return a sentence where a prune rate drops nothing though it may be asked for, as a rate per epoch may be."""
    if not _never_drops(spec, epochs):
        return None
    longer = () if epochs is None else range(epochs + 1, epochs + LONGER)
    enough = next((more for more in longer if not _never_drops(spec, more)), None)
    run = "under a time budget" if epochs is None else f"in {epochs} epoch{'s' if epochs != 1 else ''}"
    way = f"train for {enough} epochs" if enough else 'take pruning.strategy = "random"'
    if _is_always_whole(spec):
        way = "raise pruning.refresh_every"
    return f"prune_rate has no effect {run}, because {spec.strategy} trains on all images there: {way}"


def _never_drops(spec: PruningSpec, epochs: int | None) -> bool:
    asked = spec.strategy != "full" and spec.prune_rate > 0
    return asked and not any(part for part, _ in _parts(_without_rate(spec), epochs))


def _is_within_reach(spec: PruningSpec, epochs: int | None) -> bool:
    return spec.prune_rate == 0 or spec.prune_rate <= rate_limit(spec, epochs) - 1e-9


def rate_limit(spec: PruningSpec, epochs: int | None) -> float:
    """Return the prune rate that a strategy must stay below: 0 where every epoch is kept whole."""
    largest = 1.0  # all but nothing, where the method sets no lower bound
    if spec.strategy == "infobatch":
        largest = LARGEST_CHANCE * (BELOW_MEAN if spec.criterion == "loss" else 1.0)
    return largest if spec.rate_per == "epoch" else _rate(_parts(_without_rate(spec), epochs), largest, epochs)


def visits_of_epochs(spec: PruningSpec, size: int, epochs: int) -> Mapping[int, int]:
    """Return how many epochs of a run are expected to visit how many of size samples."""
    drop, visits = largest_drop(spec, epochs), Counter[int]()
    for part, count in _epochs_by_part(spec, epochs).items():
        visits[_visits(size, drop * part)] += count
    return visits


def epoch_sizes(spec: PruningSpec, size: int, epochs: int | None) -> tuple[int, ...]:
    """Return the different numbers of samples that epochs are expected to visit, all of them first."""
    if epochs is not None:
        return tuple(dict.fromkeys([size, *visits_of_epochs(spec, size, epochs)]))
    drop = largest_drop(spec, None)
    parts = [drop_share(spec, 0, 0.0), *(part for part, _ in _runs_in_time(spec))]
    return tuple(dict.fromkeys([size, *(_visits(size, drop * part) for part in parts)]))


def batch_count(samples: int, size: int) -> int:
    """Return how many batches of a size go through some samples.

    A rest of one joins the batch before it: batch norm cannot learn from one sample, and `squeeze` takes its axis away.
    """
    full, rest = divmod(samples, size)
    return full + (rest > (1 if full else 0))


def batch_sizes(samples: int, size: int) -> list[int]:
    """Return the sizes of those batches, in order."""
    before = batch_count(samples, size) - 1
    return [size] * before + [samples - before * size] if samples else []


def _visits(size: int, drop: float) -> int:
    return max(1, size - round(drop * size))


def _without_rate(spec: PruningSpec) -> PruningSpec:
    """Return the spec as a key that equal drop shares have in common."""
    return spec.model_copy(update={"prune_rate": 0.0})


@lru_cache(maxsize=1_024)
def _parts(spec: PruningSpec, epochs: int | None) -> Parts:
    """Return (part of the largest drop, its share of the epochs; of the time, where epochs are unknown)."""
    if epochs is not None:
        return tuple((part, count / epochs) for part, count in _epochs_by_part(spec, epochs).items())
    if _share_of(spec) is _between_refreshes:
        return (((spec.refresh_every - 1) / spec.refresh_every, 1.0),)  # on average over a cycle
    return tuple((part, count / TICKS) for part, count in _runs_in_time(spec))


def _epochs_by_part(spec: PruningSpec, epochs: int) -> Mapping[float, int]:
    """Return how many epochs of a run make what part of its largest drop, in order of their first."""
    if _share_of(spec) is _between_refreshes:
        whole = math.ceil(epochs / spec.refresh_every)
        return {0.0: whole, 1.0: epochs - whole} if whole < epochs else {0.0: whole}
    counts = Counter({drop_share(spec, 0, 0.0): 1})
    for part, count in _runs(lambda epoch: drop_share(spec, epoch, epoch / epochs), 1, epochs):
        counts[part] += count
    return counts


def _runs_in_time(spec: PruningSpec) -> Iterator[tuple[float, int]]:
    """Yield the parts of the largest drop that follow each other after the first epoch, each with its ticks."""
    return _runs(lambda tick: drop_share(spec, 1, (tick + 0.5) / TICKS), 0, TICKS)


def _runs(part_at: Callable[[int], float], first: int, last: int) -> Iterator[tuple[float, int]]:
    """Yield each part from first up to last with how often it comes, in few steps: parts only fall, or only rise."""
    if first >= last:
        return
    if (part := part_at(first)) == part_at(last - 1):
        yield part, last - first
        return
    middle = (first + last) // 2
    yield from _runs(part_at, first, middle)
    yield from _runs(part_at, middle, last)


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
