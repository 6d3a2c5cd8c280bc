"""Strategies that score by what the run itself shows while it still keeps everything: forgetting, CCS, prototypes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan
from budgettune.training.pruning.coresets import spherical_kmeans
from budgettune.training.pruning.scores import keep_by_strata, negative_margin
from budgettune.training.pruning.static import Static


class _ScoredInPassing(Static):
    """Static, with scores from the beginning of the run itself.

    Epochs that begin before score_until of training keep everything. Those after drop more than prune_rate, so that
    the whole run drops prune_rate.
    """

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        if self.kept is None and (drop := self.drop_count(epoch, progress)):
            self.kept = self.choose(self.scores(), drop)
        return super().plan(epoch, progress)


class Forgetting(_ScoredInPassing):
    """Keep the samples that are most often forgotten.

    Toneva et al. (2018), "An empirical study of example forgetting", algorithm 1: a sample is forgotten where it was
    classified correctly and the next time is not; one that was never correct ranks hardest. They count over a whole
    training and then train again; here the counting lasts until score_until of the run and the run goes on.
    """

    state = ("kept", "was_correct", "was_learnt", "forgotten")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.was_correct = torch.zeros(self.size, dtype=torch.bool, device=self.device)
        self.was_learnt = self.was_correct.clone()
        self.forgotten = torch.zeros(self.size, device=self.device)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        if logits is None or self.kept is not None:
            return
        correct = logits.argmax(dim=1) == self.passes.labels[indices]
        self.forgotten[indices] += self.was_correct[indices] & ~correct
        self.was_correct[indices] = correct
        self.was_learnt[indices] |= correct

    def scores(self) -> Tensor:
        return self.forgotten.where(self.was_learnt, self.forgotten.max() + 1)  # never learnt ranks hardest


class CoverageCentric(_ScoredInPassing):
    """Cut the hardest samples, which may be mislabelled, and keep the others evenly over all degrees of hardness.

    Zheng et al. (2023), "Coverage-centric coreset selection for high pruning rates", algorithm 1, with their default
    score, the area under the margin. Their β is cutoff; it never cuts more than is to be dropped. They score by a
    whole training and train again; here scoring lasts until score_until of the run and the run goes on.
    """

    state = ("kept", "margins", "visits")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.margins = torch.zeros(self.size, device=self.device)
        self.visits = torch.zeros(self.size, device=self.device)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        if logits is None or self.kept is not None:
            return
        self.margins[indices] += negative_margin(logits, self.passes.labels[indices])
        self.visits[indices] += 1

    def scores(self) -> Tensor:
        return self.margins / self.visits  # NaN for those not seen

    def choose(self, scores: Tensor, drop: int) -> Tensor:
        return keep_by_strata(scores, drop, cut=self.spec.cutoff, strata=self.spec.strata, generator=self.generator)


class Prototypes(_ScoredInPassing):
    """Keep the samples far from the prototypes of their kind, or those near where data are scarce.

    Sorscher et al. (2022), "Beyond neural scaling laws": cosine distance to the nearest of k-means centres, by default
    one per class. Their embedding comes from a network that was trained on other images without labels; here it is
    what the run's own last layer reads when score_until of training lies behind. They keep the hard side where data
    are plenty and the easy side where they are scarce: `[pruning] side`.

    Extra cost: one forward pass over everything and one clustering.
    """

    def scores(self) -> Tensor:
        clusters = self.spec.clusters or self.passes.num_classes
        return spherical_kmeans(self.passes.score().features, clusters, generator=self.generator)
