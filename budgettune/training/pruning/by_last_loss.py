"""Strategies that plan each epoch from every sample's last loss: InfoBatch, KAKURENBO and SeTa."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgettune.spec.pruning import LARGEST_CHANCE
from budgettune.training.pruning.base import EpochPlan, RemembersLosses
from budgettune.training.pruning.scores import drop_lowest

_ROUNDS = 20  # of k-means on a line; it has settled long before


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
    def scores(self) -> Tensor:  # saved states have the losses by this name
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
        drop = self.drop_count(epoch, progress)
        wanted = min(self.size - self.keep_count, drop + self.owed) if drop else 0
        hide = ~drop_lowest(self.losses, wanted, self.generator) & self.is_sure
        self.hidden = hide.nonzero().squeeze(1)
        self.owed += drop - len(self.hidden)
        if not len(self.hidden):
            return EpochPlan()
        kept = (~hide).nonzero().squeeze(1)
        return EpochPlan(kept, lr_factor=self.size / len(kept))

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        super().observe(indices, losses)
        if logits is not None:
            confidence, predicted = logits.float().softmax(dim=1).max(dim=1)
            self.is_sure[indices] = (predicted == self.passes.labels[indices]) & (confidence >= self.spec.confidence)


class SeTa(RemembersLosses):
    """Drop some at random, order the rest by loss, and keep a window that begins one group later each epoch.

    Zhou, Gao and Wang (2025), "Scale efficient training for large datasets": random pruning first, then groups of
    similar loss by k-means, then a window that slides from easy to hard and starts over; from progress `delta` on
    only the random pruning is left. Nothing is weighted. The first epoch trains on everything.

    There the window is a number of groups, and what it keeps depends on their sizes. Here the prune rate says how many
    it keeps; groups say where it may begin. Of what is dropped, `random_share` is dropped at random.
    """

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if not (drop := self.drop_count(epoch, progress)):
            return EpochPlan()
        order = self.permutation(self.size)
        if progress >= self.spec.delta:
            return EpochPlan(order[drop:])
        rest = order[round(self.spec.random_share * drop) :]
        # Losses that are not finite are the hardest; in a random order, so that ties are broken at random.
        losses, ranks = self.losses[rest].nan_to_num(torch.inf, torch.inf, torch.inf).sort(stable=True)
        keep, start = self.size - drop, 0
        if len(finite := losses[losses.isfinite()]):
            # The window begins at one group after the other, as long as it fits.
            latest, starts = len(rest) - keep, group_starts(finite, self.spec.groups)
            starts = torch.cat([starts[starts < latest], starts.new_tensor([latest])]).unique()
            start = int(starts[(epoch - 1) % len(starts)])
        return EpochPlan(rest[ranks[start : start + keep]])


def group_starts(ordered: Tensor, groups: int) -> Tensor:
    """Return where each group of k-means on a line begins, from quantiles on (Lloyd 1982): int64 [groups], on the host.

    On sorted values, float32 [n], finite, n >= 1, a group is an interval, so that a round is one search and one
    difference of running sums. Empty groups begin where the next one does.
    """
    count, ordered = len(ordered), ordered.cpu()  # a running sum on CUDA is not the same twice
    sums = torch.cat([ordered.new_zeros(1).double(), ordered.double().cumsum(0)])
    edges = torch.arange(groups + 1, device=ordered.device) * count // groups
    for _ in range(_ROUNDS):
        sizes = edges.diff()
        centres = ((sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1))[sizes > 0].float()
        middles = (centres[1:] + centres[:-1]) / 2
        inner = torch.searchsorted(ordered, middles)
        edges = torch.cat([edges[:1], inner, edges.new_full((groups - len(inner),), count)])
    return edges[:-1]
