"""Strategies that never look at a loss: everything, and random subsets."""

from __future__ import annotations

from typing import Any

import torch

from budgettune.training.pruning.base import EpochPlan, Strategy


class Full(Strategy):
    """Every sample in every epoch.

    With `train.budget` this is the baseline of Li, Yumer and Ramanan (2020), "Budgeted training": fewer epochs, and a
    learning rate that reaches zero exactly at the budget.
    """

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Keep everything, whatever the prune rate says."""
        return EpochPlan()


class RandomSubset(Strategy):
    """A random subset of the same size each epoch (RS2; Okanovic et al. 2023, "Repeated random sampling").

    With replacement every epoch draws afresh. Without, epochs walk through a permutation of all samples, so that none
    comes twice before all came once.
    """

    state = ("queue",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.queue = torch.empty(0, dtype=torch.int64, device=self.device)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Keep the next keep_count samples of the walk, or of a fresh permutation."""
        if self.keep_count == self.size:
            return EpochPlan()
        if self.spec.replacement:
            return EpochPlan(self.permutation(self.size)[: self.keep_count])
        if len(self.queue) < self.keep_count:
            self.queue = torch.cat([self.queue, self._next_round()])
        kept, self.queue = self.queue[: self.keep_count], self.queue[self.keep_count :]
        return EpochPlan(kept)

    def _next_round(self) -> torch.Tensor:
        """Return a permutation in which what is left of the old one comes last: no sample twice in an epoch."""
        fresh = self.permutation(self.size)
        is_left_over = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        is_left_over[self.queue] = True
        left_over = is_left_over[fresh]
        return torch.cat([fresh[~left_over], fresh[left_over]])
