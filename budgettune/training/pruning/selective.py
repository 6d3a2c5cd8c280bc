"""Selective Backprop: the higher a loss stands among the latest losses, the likelier the sample is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, RemembersLosses, Scores, Selection, Strategy


def rank_share(values: Tensor, among: Tensor, chance: Tensor) -> Tensor:
    """Return the share of others that lie below each value, in [0, 1].

    It is the empirical distribution function with each of its steps spread evenly over its height, so that the
    share of one of `among` is uniform on [0, 1] whatever their distribution, ties included. All are finite; chance,
    float32 [n], is uniform on [0, 1).
    """
    ordered = among.sort().values
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + chance * (not_above - below)) / len(among)


def draw(losses: Tensor, among: Tensor, beta: float, generator: torch.Generator) -> Tensor:
    """Return a mask of samples kept with probability CDF(loss)^beta: bool [n], at least one true.

    The finite losses `among` make up the distribution; where there are none, everything is kept. For losses that are
    distributed likewise the expected share is 1 / (beta + 1). Losses that are not finite are always kept.
    """
    comparable = losses.isfinite()
    if not len(among):
        return torch.ones_like(comparable)
    chance = torch.rand(2, len(losses), generator=generator, device=losses.device)
    keep = chance[1] < rank_share(losses.nan_to_num(), among, chance[0]) ** beta
    keep |= ~comparable
    if not keep.any():  # rare but for tiny sets
        keep[losses.argmax()] = True
    return keep


class SelectiveBackprop(Strategy):
    """Look at every sample; train on it with probability CDF(loss)^β over the last losses (Jiang et al. 2019).

    The first epoch trains on everything. Afterwards each batch of candidates costs a forward pass (in evaluation
    mode, on the augmented images that would be trained on); what is selected waits until a batch is full, as in the
    authors' code, and what is left at the end of an epoch is trained on as a smaller batch.

    β follows from the prune rate: a share of s = 1 / (β + 1) is kept where the last losses are distributed as the next
    ones. They lie a little higher, because the model learns, and fewer are kept. After each epoch β is therefore
    multiplied by the odds k / (1 − k) of what it kept over the odds of s, which is exact where rank shares are
    distributed as a power.

    How many are kept is decided on the device, and the host asks: a GPU is waited for three times per batch of
    candidates.
    """

    needs_model = True
    state = ("history", "beta", "offered", "kept")
    offered = kept = 0  # in the present epoch

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.odds = (1 - self.largest_drop) / max(self.largest_drop, 1e-9)
        self.beta = 1 / self.odds
        self.history = torch.empty(0, device=self.device)

    @property
    def candidates(self) -> float:
        return 1 / (1 - self.largest_drop)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if self.offered > self.kept > 0:
            self.beta *= self.kept / (self.offered - self.kept) / self.odds
        self.offered = self.kept = 0
        return EpochPlan(select=self.drop_count(epoch, progress) > 0)

    def select(self, candidates: Scores) -> Selection:
        losses = candidates.losses
        self.history = torch.cat([self.history, losses[losses.isfinite()]])[-self.spec.history :]
        positions = draw(losses, self.history, self.beta, self.generator).nonzero().squeeze(1)
        self.offered += len(losses)
        self.kept += len(positions)
        return Selection(positions)


class StaleSelectiveBackprop(RemembersLosses):
    """The same draw for a whole epoch, from losses that are brought up to date every rescore_every epochs.

    Stale-SB of Jiang et al. (2019): the forward passes of selection are made in every n-th epoch only (n = 3), and
    the losses found there serve until the next. The first epoch trains on everything, and its losses are the first.
    The distribution is that of all stored losses.
    """

    needs_model = True
    is_first = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.beta = self.largest_drop / (1 - self.largest_drop)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        self.is_first = epoch == 0
        if not self.drop_count(epoch, progress):
            return EpochPlan()
        if epoch % self.spec.rescore_every == 0:
            self.losses = self.passes.score().losses
        among = self.losses[self.losses.isfinite()]
        return EpochPlan(draw(self.losses, among, self.beta, self.generator).nonzero().squeeze(1))

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        if self.is_first:
            super().observe(indices, losses)
