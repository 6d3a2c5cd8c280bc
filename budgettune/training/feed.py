"""Batches of an epoch's plan: shuffled, cut, gathered, and chosen among where a strategy chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from budgettune.spec.pruning import batch_sizes
from budgettune.training.learner import Batch, Learner, taken
from budgettune.training.passes import ModelPasses
from budgettune.training.pruning import EpochPlan, Strategy
from budgettune.trial.stopwatch import Stopwatch


@dataclass(frozen=True)
class Order:
    """What an epoch goes through, shuffled."""

    indices: Tensor  # int64 [n], of the training samples
    places: Tensor  # the same where images are read by them
    weights: Tensor | None  # float32 [n], factors on the losses; None for all one
    chunk: int  # samples that are gathered at a time
    select: bool  # whether the strategy chooses among those

    def __len__(self) -> int:
        return len(self.indices)


class Feed:
    """Makes the batches of a run."""

    def __init__(self, learner: Learner, strategy: Strategy, passes: ModelPasses, watch: Stopwatch) -> None:
        self.learner, self.strategy, self.passes, self.watch = learner, strategy, passes, watch
        self.batch_size = learner.config.train.batch_size
        self.offered = 0  # samples that were gathered so far, whether they were trained on or not

    @property
    def chunk(self) -> int:
        """Candidates that a strategy which selects is asked about at a time."""
        return max(self.batch_size, min(round(self.batch_size * self.strategy.candidates), self.strategy.size))

    def order(self, plan: EpochPlan) -> Order:
        device = self.learner.device.torch
        count = self.strategy.size if plan.indices is None else len(plan.indices)
        shuffled = torch.randperm(count, generator=self.learner.generator, device=device)
        indices = shuffled if plan.indices is None else plan.indices[shuffled]
        select = plan.select and self.strategy.candidates > 1
        return Order(
            indices,
            self.learner.data.train.places(indices),
            None if plan.weights is None else plan.weights[shuffled],
            self.chunk if select else self.batch_size,
            select,
        )

    def gather(self, indices: Tensor, places: Tensor | None = None, weights: Tensor | None = None) -> Batch:
        """Return a batch, charged to the data phase; places as `ImageSet.places` gives them."""
        with self.watch.phase("data"):
            self.offered += len(indices)
            if places is None:
                places = self.learner.data.train.places(indices)
            return self.learner.gather(indices, places, weights)

    def batches(self, order: Order, go_on: Callable[[], bool]) -> Iterator[tuple[float, Batch]]:
        """Yield batches to train on, each with the share of the epoch that lies before it.

        `go_on` is asked before anything is gathered; when it says no, the epoch ends.
        """
        chosen: Batch | None = None
        sizes = batch_sizes(len(order), order.chunk)
        for number, (begin, end) in enumerate(pairwise(accumulate(sizes, initial=0))):
            if not go_on():
                return
            part = slice(begin, end)
            weights = None if order.weights is None else order.weights[part]
            share, batch = number / len(sizes), self.gather(order.indices[part], order.places[part], weights)
            if not order.select:
                yield share, batch
                continue
            chosen = self._choose(batch, chosen)
            for size in self._ready(len(chosen), chunks_left=len(sizes) - 1 - number):
                yield share, taken(chosen, slice(size))
                chosen = taken(chosen, slice(size, None))

    def _ready(self, chosen: int, chunks_left: int) -> list[int]:
        """Return the sizes of the batches to train on now; what is left waits for what is chosen next."""
        if not chunks_left:
            return batch_sizes(chosen, self.batch_size)
        # A full batch with nothing behind it waits for the last candidates: if one of them is chosen, it joins.
        reserve = chunks_left == 1
        return [self.batch_size] * ((chosen - reserve) // self.batch_size)

    def _choose(self, candidates: Batch, waiting: Batch | None) -> Batch:
        """Return what waits for a full batch, with what the strategy chooses among the candidates behind it."""
        with self.watch.phase("select"):
            selection = self.strategy.select(self.passes.score_candidates(candidates))
            selection = self.learner.device.group.selection(selection)
            batch = taken(candidates, selection.positions)
            if (weights := selection.weights) is not None:
                batch = replace(batch, weights=weights if batch.weights is None else batch.weights * weights)
            return batch if waiting is None or not len(waiting) else both(waiting, batch)


def both(one: Batch, other: Batch) -> Batch:
    weights = None
    if one.weights is not None or other.weights is not None:
        weights = torch.cat(
            [
                torch.ones(len(batch), device=batch.indices.device) if batch.weights is None else batch.weights
                for batch in (one, other)
            ]
        )
    return Batch(
        torch.cat([one.indices, other.indices]),
        torch.cat([one.images, other.images]),
        torch.cat([one.labels, other.labels]),
        weights,
    )
