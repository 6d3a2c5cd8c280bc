"""InfoBatch: drop some of the easy samples at random, and weigh the others so that the gradient stays unbiased."""

from __future__ import annotations

import torch
from torch import Tensor

from budgettune.spec.pruning import LARGEST_CHANCE
from budgettune.training.pruning.base import EpochPlan, RemembersLosses


class InfoBatch(RemembersLosses):
    """Of m samples whose last loss lies below the mean, keep k at random with weight m / k (Qin et al. 2023).

    A sample below the mean is kept with probability k / m, so that the weighted gradient of an epoch has the
    expectation of the full one. From progress `delta` on nothing is dropped, whatever delta times the epochs comes to,
    and nothing in the first epoch. With `criterion = "random"` all samples stand where else those below the mean do.

    In the paper k / m is a parameter (a half); here it follows from the prune rate. The share below the mean is known
    only in training: where an epoch cannot drop what it should (fewer lie below the mean, or k / m would fall under
    1/20), the next epochs make up for it.

    Three faults of the published package are not copied: its final epochs never begin when delta times the epochs is
    no whole number; it seeds numpy's global generator; it rounds k down while the weight knows nothing of it.
    """

    state = ("scores", "owed")
    owed = 0  # of what earlier epochs should have dropped

    @property
    def scores(self) -> Tensor:
        """The losses, by the name that saved states have for them."""
        return self.losses

    @scores.setter
    def scores(self, losses: Tensor) -> None:
        self.losses = losses

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if not (drop := self.drop_count(epoch, progress)):
            return EpochPlan()
        droppable = self._droppable()
        candidates = droppable.nonzero().squeeze(1)
        wanted = drop + self.owed
        drop = min(wanted, int(LARGEST_CHANCE * len(candidates)))
        self.owed = wanted - drop
        if not drop:
            return EpochPlan()
        kept = candidates[self.permutation(len(candidates))[drop:]]
        others = (~droppable).nonzero().squeeze(1)
        weights = torch.ones(len(others) + len(kept), device=self.device)
        weights[len(others) :] = len(candidates) / len(kept)
        return EpochPlan(torch.cat([others, kept]), weights)

    def _droppable(self) -> Tensor:
        """Return a mask of the samples below the mean; never of those whose loss is unseen or not finite."""
        if self.spec.criterion == "random":
            return torch.ones(self.size, dtype=torch.bool, device=self.device)
        comparable = self.losses.isfinite()
        losses = self.losses.double()  # in which the mean of equal losses is that loss
        return comparable & (losses < losses.where(comparable, 0).sum() / comparable.sum())
