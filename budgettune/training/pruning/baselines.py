"""Baselines: all samples, random subsets, and the lowest last-seen losses dropped, mended and as it was published."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, RemembersLosses, Strategy
from budgettune.training.pruning.scores import drop_below_quantile, drop_lowest


class Full(Strategy):
    """Every sample in every epoch.

    With `train.budget` this is the baseline of Li, Yumer and Ramanan (2020), "Budgeted training": fewer epochs, and a
    learning rate that reaches zero exactly at the budget.
    """

    def plan(self, epoch: int, progress: float) -> EpochPlan:
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
        if self.keep_count == self.size:
            return EpochPlan()
        if self.spec.replacement:
            return EpochPlan(self.permutation(self.size)[: self.keep_count])
        if len(self.queue) < self.keep_count:
            fresh = self.permutation(self.size)
            left_over = torch.zeros_like(fresh, dtype=torch.bool).scatter(0, self.queue, True)[fresh]
            # What is left of the last permutation comes last in this one: no sample twice in an epoch.
            self.queue = torch.cat([self.queue, fresh[~left_over], fresh[left_over]])
        kept, self.queue = self.queue[: self.keep_count], self.queue[self.keep_count :]
        return EpochPlan(kept)


class StaleQuantile(RemembersLosses):
    """Drop the lowest last-seen losses; every refresh_every epochs, from the first on, keep all.

    What Chang and Chen (2024, section 4.1) describe, after Stale Selective Backprop (Jiang et al. 2019): the table
    holds the most recent loss of every sample, and each epoch is planned from it. As they have it, with
    `threshold_sample`, samples below the quantile of a random subset drawn in each epoch go, which drops an approximate
    share; without, an exact one goes.
    """

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if not (drop := self.drop_count(epoch, progress)):
            return EpochPlan()
        if self.spec.threshold_sample is None:
            keep = drop_lowest(self.losses, drop, self.generator)
        else:
            sample = self.permutation(self.size)[: self.spec.threshold_sample]
            keep = drop_below_quantile(self.losses, self.largest_drop, sample)
        return EpochPlan(keep.nonzero().squeeze(1))


class PaperAsCoded(Strategy):
    """What the published script of Chang and Chen (2024) does, which is not what their text says.

    Losses reach the table only at the end of refresh epochs (0, 5, 10, …), and the kept set stays frozen in between.
    The threshold is the linear quantile of 5,000 random losses, and `loss >= threshold` is kept: losses that are all
    equal prune nothing, and the realised share varies.

    Two faults are not copied. One NaN made the script's threshold NaN and its epoch empty; here samples without a
    finite loss are kept and left out of the quantile. And the script wrote a sample's older losses of the same
    interval in undefined order with its newest; here the newest stands.
    """

    SUBSET = 5_000
    state = ("table", "recent", "kept")
    kept: Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = torch.full((self.size,), torch.nan, device=self.device)
        self.recent = self.table.clone()

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if epoch % self.spec.refresh_every == 0:
            self.kept = None
            return EpochPlan()
        if self.kept is None:
            self.table.copy_(self.recent)
            sample = self.permutation(self.size)[: self.SUBSET]
            self.kept = drop_below_quantile(self.table, self.spec.prune_rate, sample).nonzero().squeeze(1)
        return EpochPlan(self.kept)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        self.recent[indices] = losses
