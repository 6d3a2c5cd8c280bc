"""A training run without a model: samples are learnt at their own pace, and a strategy's passes are answered."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from budgettune.spec.pruning import PruningSpec, drop_share, largest_drop, rate_limit
from budgettune.training.pruning import Scores, Strategy, make_strategy

CLASSES = 3


def spec_of(name: str, rate: float, epochs: int | None, **fields) -> PruningSpec:
    """Return the table of a strategy, at the rate or as near to it as the strategy can come."""
    spec = PruningSpec(strategy=name, **fields)
    limit = 1.0 if name in ("full", "paper-as-coded") else rate_limit(spec, epochs)
    return PruningSpec(strategy=name, prune_rate=min(rate, 0.999 * limit), **fields)


def expected_visits(spec: PruningSpec, size: int, epochs: int) -> list[int]:
    """Return how many of size samples each epoch of a run is expected to visit."""
    drop = largest_drop(spec, epochs)
    parts = [drop_share(spec, epoch, epoch / epochs) for epoch in range(epochs)]
    return [max(1, size - round(drop * part * size)) for part in parts]


def make(name: str, size: int = 20, rate: float = 0.3, *, seed: int = 0, epochs: int | None = 12, **fields) -> Strategy:
    """Return a strategy for a run of so many epochs."""
    return make_strategy(spec_of(name, rate, epochs, **fields), size, seed=seed, epochs=epochs)


class World:
    """What a model says of each sample in each epoch: a function of the epoch alone, so that a run can be resumed.

    Stands in for `pruning.Passes`; a helper of n epochs is what the model is after n epochs, with noise of its own.
    """

    def __init__(self, size: int, seed: int = 0, pace: float = 1.0) -> None:
        chance = torch.Generator().manual_seed(seed)
        self.labels = torch.randint(CLASSES, (size,), generator=chance)
        self.num_classes = CLASSES
        self.epoch = 0
        self.asked: list[str] = []
        self._start = torch.randn(size, generator=chance)
        self._pace = pace * torch.rand(size, generator=chance)

    def look(self, indices: Tensor, epoch: int, number: int = 0) -> Scores:
        """Return scores of samples in an epoch."""
        noise = torch.randn(len(self.labels), CLASSES, generator=torch.Generator().manual_seed(7_919 * number + epoch))
        skill = self._start + 6 * torch.tanh(self._pace * epoch / 6)
        logits = (0.3 * noise + skill[:, None] * functional.one_hot(self.labels, CLASSES))[indices]
        losses = functional.cross_entropy(logits, self.labels[indices], reduction="none")
        return Scores(indices, self.labels[indices], losses, logits, embedding=noise[indices].abs() + logits.abs())

    def check(self) -> None:
        """Never stop."""

    def score(self, indices: Tensor | None = None) -> Scores:
        """Return what the model says now."""
        self.asked.append("score")
        return self.look(torch.arange(len(self.labels)) if indices is None else indices, self.epoch)

    def train_helper(
        self, indices=None, *, epochs, number=0, scale=None, budget_share=0.25, on_epoch=None
    ) -> Callable[[Tensor | None], Scores]:
        """Return a scorer that knows as much as the model after so many epochs."""
        self.asked.append("helper")

        def scorer(wanted=None):
            return self.look(torch.arange(len(self.labels)) if wanted is None else wanted, epochs, number + 1)

        return scorer


def play(strategy: Strategy, world: World, epochs: range, total: int, batch: int = 6) -> list[list[int]]:
    """Play epochs of a run as the trainer does; return what each trained on, in order of index."""
    if epochs.start == 0:
        strategy.prepare(world)
    else:
        strategy.passes = world  # a resumed run
    visited = []
    for world.epoch in epochs:
        plan = strategy.plan(world.epoch, world.epoch / total)
        offered = torch.arange(strategy.size) if plan.indices is None else plan.indices
        chance = torch.Generator().manual_seed(world.epoch)
        offered = offered[torch.randperm(len(offered), generator=chance)]
        selects = plan.select and strategy.candidates > 1
        chunk = max(batch, min(round(batch * strategy.candidates), strategy.size)) if selects else batch
        trained = []
        for part in offered.split(chunk):
            chosen = part[strategy.select(world.look(part, world.epoch)).positions] if selects else part
            seen = world.look(chosen, world.epoch)
            strategy.observe(seen.indices, seen.losses, seen.logits)
            trained += chosen.tolist()
        visited.append(sorted(trained))
    return visited
