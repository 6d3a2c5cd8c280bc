"""KAKURENBO: hide what is learnt already, for one epoch at a time, and look at it again before the next."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, RemembersLosses
from budgettune.training.pruning.scores import drop_lowest


class Kakurenbo(RemembersLosses):
    """Hide the F·N lowest losses, but move back whoever is not classified correctly with confidence.

    Nguyen et al. (2023): F falls in stages (to 0.8, 0.6 and 0.4 of the largest from progress 0.3, 0.6 and 0.8 on);
    hidden samples get a forward pass after the epoch, so that losses are never older than that; the learning rate is
    divided by 1 − F. Here F is what is really hidden, so that an epoch's steps add up to a full one's, and the
    softmax runs over classes (over the batch in the published code).

    The largest F follows from the prune rate. How many are moved back is known only in training: what an epoch could
    not hide is added to the next ones, up to the largest F. A model that is never confident hides less than was asked
    for.
    """

    needs_model = True
    state = ("losses", "is_sure", "hidden", "owed")
    owed = 0  # of what earlier epochs should have hidden

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.is_sure = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        self.hidden = torch.empty(0, dtype=torch.int64, device=self.device)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if len(self.hidden):
            scores = self.passes.score(self.hidden)
            self.observe(scores.indices, scores.losses, scores.logits)
        wanted = self.drop_count(epoch, progress)
        if wanted:
            wanted = min(self.size - self.keep_count, wanted + self.owed)
        hide = ~drop_lowest(self.losses, wanted, self.generator) & self.is_sure
        self.hidden = hide.nonzero().squeeze(1)
        if wanted:
            self.owed += self.drop_count(epoch, progress) - len(self.hidden)
        if not len(self.hidden):
            return EpochPlan()
        kept = (~hide).nonzero().squeeze(1)
        return EpochPlan(kept, lr_factor=self.size / len(kept))

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        super().observe(indices, losses)
        if logits is not None:
            confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
            self.is_sure[indices] = (predicted == self.passes.labels[indices]) & (confidence >= self.spec.confidence)
