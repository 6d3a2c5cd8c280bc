"""Samples as arms of a bandit: what is known to be hard is kept, and some room is left to find out about the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, Strategy
from budgettune.training.pruning.baselines import drop_lowest


class EpsilonGreedy(Strategy):
    """Every reselect_every epochs, choose the k to keep: (1 − ε)k of the highest averages, εk of the others at random.

    Raju, Daruwalla and Lipasti (2021), "Accelerating deep learning with dynamic data pruning". The average is an
    exponential moving one of each sample's training loss, which only samples that are trained on move. The first
    epoch trains on everything.
    """

    state = ("mean", "kept")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mean = torch.full((self.size,), torch.nan, device=self.device)
        self.kept: Tensor | None = None

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Keep what was chosen, or choose anew."""
        drop = self.drop_count(epoch, progress)
        if not drop:
            return EpochPlan()
        if self.kept is None or (epoch - 1) % self.spec.reselect_every == 0:
            self.kept = self._choose(self.size - drop)
        return EpochPlan(self.kept)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        """Move the averages."""
        self.mean[indices] = moved(self.mean[indices], losses, self.spec.smoothing)

    def _choose(self, count: int) -> Tensor:
        best = max(1, count - round(self.spec.epsilon * count))
        keep = drop_lowest(self.mean, self.size - best, self.generator)
        others = (~keep).nonzero().squeeze(1)
        explored = max(0, count - (self.size - len(others)))
        keep[others[self.permutation(len(others))[:explored]]] = True
        return keep.nonzero().squeeze(1)


class UpperConfidenceBound(Strategy):
    """Every reselect_every epochs, keep the k samples of the highest mean + c · deviation of their training losses.

    Raju, Daruwalla and Lipasti (2021). Mean and variance are exponential moving ones (West 1979, with a constant
    weight of the newest), so that a sample whose loss jumps is kept for that. The first epoch trains on everything.
    """

    state = ("mean", "variance", "kept")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mean = torch.full((self.size,), torch.nan, device=self.device)
        self.variance = torch.zeros(self.size, device=self.device)
        self.kept: Tensor | None = None

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Keep what was chosen, or choose anew."""
        drop = self.drop_count(epoch, progress)
        if not drop:
            return EpochPlan()
        if self.kept is None or (epoch - 1) % self.spec.reselect_every == 0:
            bound = self.mean + self.spec.exploration * self.variance.sqrt()
            self.kept = drop_lowest(bound, drop, self.generator).nonzero().squeeze(1)
        return EpochPlan(self.kept)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        """Move means and variances."""
        mean, weight = self.mean[indices], self.spec.smoothing
        variance = (1 - weight) * (self.variance[indices] + weight * (losses - mean).square())
        self.variance[indices] = variance.where(variance.isfinite(), 0)
        self.mean[indices] = moved(mean, losses, weight)


def moved(mean: Tensor, values: Tensor, weight: float) -> Tensor:
    """Return the moving average with new values in it; it begins anew after one that is not finite."""
    return torch.where(mean.isfinite(), (1 - weight) * mean + weight * values, values)
