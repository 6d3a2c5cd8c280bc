"""Samples as arms of a bandit: what is known to be hard is kept, and some room is left to find out about the rest."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, Strategy
from budgettune.training.pruning.scores import drop_lowest


class _Bandit(Strategy):
    """Every reselect_every epochs chooses what to keep. The first epoch trains on everything.

    `mean` is an exponential moving average of each sample's training loss, which only samples that are trained on move.
    """

    state: tuple[str, ...] = ("mean", "kept")
    kept: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mean = torch.full((self.size,), torch.nan, device=self.device)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if not (drop := self.drop_count(epoch, progress)):
            return EpochPlan()
        if self.kept is None or (epoch - 1) % self.spec.reselect_every == 0:
            self.kept = self.choose(drop).nonzero().squeeze(1)
        return EpochPlan(self.kept)

    @abstractmethod
    def choose(self, drop: int) -> Tensor:
        """Return a mask of the samples to keep when `drop` go."""

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        mean, weight = self.mean[indices], self.spec.smoothing
        # It begins anew after one that is not finite.
        self.mean[indices] = torch.where(mean.isfinite(), (1 - weight) * mean + weight * losses, losses)


class EpsilonGreedy(_Bandit):
    """Choose the k to keep: (1 − ε)k of the highest averages, εk of the others at random.

    Raju, Daruwalla and Lipasti (2021), "Accelerating deep learning with dynamic data pruning".
    """

    def choose(self, drop: int) -> Tensor:
        count = self.size - drop
        best = max(1, count - round(self.spec.epsilon * count))
        keep = drop_lowest(self.mean, self.size - best, self.generator)
        others = (~keep).nonzero().squeeze(1)
        explored = max(0, count - (self.size - len(others)))
        keep[others[self.permutation(len(others))[:explored]]] = True
        return keep


class UpperConfidenceBound(_Bandit):
    """Keep the k samples of the highest mean + c · deviation of their training losses.

    Raju, Daruwalla and Lipasti (2021). The variance moves like the mean (West 1979, with a constant weight of the
    newest), so that a sample whose loss jumps is kept for that.
    """

    state = ("mean", "variance", "kept")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.variance = torch.zeros(self.size, device=self.device)

    def choose(self, drop: int) -> Tensor:
        return drop_lowest(self.mean + self.spec.exploration * self.variance.sqrt(), drop, self.generator)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        mean, weight = self.mean[indices], self.spec.smoothing
        variance = (1 - weight) * (self.variance[indices] + weight * (losses - mean).square())
        self.variance[indices] = variance.where(variance.isfinite(), 0)
        super().observe(indices, losses)
