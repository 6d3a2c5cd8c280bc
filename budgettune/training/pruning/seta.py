"""SeTa: a window over loss groups that slides from easy to hard, epoch by epoch."""

from __future__ import annotations

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, RemembersLosses

ROUNDS = 20  # of k-means on a line; it has settled long before


def group_starts(ordered: Tensor, groups: int) -> Tensor:
    """Return where each group of k-means on a line begins, from quantiles on (Lloyd 1982): int64 [groups].

    On sorted values, float32 [n], finite, n >= 1, a group is an interval, so that a round is one search and one
    difference of running sums. Empty groups begin where the next one does.
    """
    count = len(ordered)
    sums = torch.cat([ordered.new_zeros(1).double(), ordered.double().cumsum(0)])
    edges = torch.arange(groups + 1, device=ordered.device) * count // groups
    for _ in range(ROUNDS):
        sizes = edges.diff()
        centres = ((sums[edges[1:]] - sums[edges[:-1]]) / sizes.clamp(min=1))[sizes > 0].float()
        middles = (centres[1:] + centres[:-1]) / 2
        inner = torch.searchsorted(ordered, middles)
        edges = torch.cat([edges[:1], inner, edges.new_full((groups - len(inner),), count)])
    return edges[:-1]


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
        start = self._start(losses, epoch - 1, len(rest) - (self.size - drop))
        return EpochPlan(rest[ranks[start : start + self.size - drop]])

    def _start(self, losses: Tensor, turn: int, latest: int) -> int:
        """Return where the window begins: at one group after the other, as long as it fits."""
        finite = losses[losses.isfinite()]
        if not len(finite):
            return 0
        starts = group_starts(finite, self.spec.groups)
        starts = torch.cat([starts[starts < latest], starts.new_tensor([latest])]).unique()
        return int(starts[turn % len(starts)])
