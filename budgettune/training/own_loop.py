"""A data set that is thinned anew each epoch, and a network that feeds it, for training loops of your own."""

from __future__ import annotations

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from budgettune.training.pruning import Strategy
from budgettune.training.resnet import ScalableResNet


class PruningDataset(Dataset[tuple[Any, Any, int]]):
    """The samples that a strategy keeps of another data set, as (x, y, index).

    `index` is the sample's place in the underlying data set, whatever the place it was asked for at: hand it back
    to `observe` with the sample's loss. `len` is the number kept in the present epoch.

    The table of kept samples lies in shared memory, so that DataLoader workers that outlive an epoch
    (`persistent_workers=True`) see the next plan and not a frozen copy of the first.

    Args:
        dataset: map-style, yielding (x, y).
        strategy: made for exactly `len(dataset)` samples, on the CPU.
        epochs: planned epochs, from which the strategy learns how far training is; None where unknown.

    Raises:
        ValueError: where the strategy was made for another number of samples, or looks at the model itself.
    """

    def __init__(self, dataset: Dataset[Any], strategy: Strategy, *, epochs: int | None = None) -> None:
        if not isinstance(dataset, Sized) or len(dataset) != strategy.size:
            raise ValueError(f"the strategy is for {strategy.size} samples: make it for len(dataset)")
        if strategy.needs_model or strategy.candidates > 1:
            raise ValueError(
                f"{type(strategy).__name__} looks at the model, which only `budgettune.train` can show it: use that, "
                f"or a strategy that learns from losses alone"
            )
        self.dataset = dataset
        self.strategy = strategy
        self.epochs = epochs
        self.epoch = -1
        self.weights: Tensor | None = None
        self._kept: Tensor = torch.arange(strategy.size).share_memory_()
        self._count: Tensor = torch.tensor(strategy.size).share_memory_()
        self.next_epoch()

    def __len__(self) -> int:
        return int(self._count)

    def __getitem__(self, position: int) -> tuple[Any, Any, int]:
        if not -len(self) <= position < len(self):
            raise IndexError(f"position {position} of {len(self)} kept samples")
        index = int(self._kept[: len(self)][position])
        x, y = self.dataset[index]
        return x, y, index

    @property
    def kept(self) -> Tensor:
        """Indices of the kept samples in the underlying data set: int64 [len(self)], in internal order."""
        return self._kept[: len(self)].clone()

    def observe(self, indices: Tensor, losses: Tensor) -> None:
        """Tell the strategy the losses of samples, by their index in the underlying data set."""
        self.strategy.observe(indices.cpu(), losses.detach().float().cpu())

    def next_epoch(self) -> None:
        """Plan the next epoch: `len` and the kept samples change."""
        self.epoch += 1
        plan = self.strategy.plan(self.epoch, self.epoch / self.epochs if self.epochs else 0.0)
        indices = plan.indices if plan.indices is not None else torch.arange(self.strategy.size)
        self._kept[: len(indices)] = indices
        self._count.fill_(len(indices))
        self.weights = plan.weights


class ScalablePrunableResNet(ScalableResNet):
    """A ScalableResNet that feeds a PruningDataset, for people with a training loop of their own.

    `loss` keeps each batch's losses; `end_epoch` hands them to the data set, which then plans the next epoch:

        for epoch in range(epochs):
            for x, y, index in DataLoader(dataset, batch_size=256, shuffle=True):
                model.loss(x, y, index).backward()
                ...
            model.end_epoch()
    """

    def __init__(self, *, dataset: PruningDataset, **architecture: Any) -> None:
        super().__init__(**architecture)
        self.dataset = dataset
        self._seen: list[tuple[Tensor, Tensor]] = []

    def loss(self, x: Tensor, y: Tensor, index: Tensor) -> Tensor:
        """Return the mean cross-entropy of a batch, and remember each sample's under its index."""
        losses = functional.cross_entropy(self(x), y, reduction="none")
        self._seen.append((index, losses.detach()))
        return losses.mean()

    def end_epoch(self) -> None:
        """Hand the epoch's losses to the data set and have it plan the next epoch."""
        for index, losses in self._seen:
            self.dataset.observe(index, losses)
        self._seen.clear()
        self.dataset.next_epoch()
