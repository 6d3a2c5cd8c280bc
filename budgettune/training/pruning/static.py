"""Strategies that choose once, by a score of every sample: computed ahead, or shown by the run while it keeps all."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, Passes, Scores, Strategy
from budgettune.training.pruning.coresets import spherical_kmeans
from budgettune.training.pruning.scores import (
    el2n,
    keep_by_score,
    keep_by_strata,
    last_layer_grad_norm,
    negative_margin,
    read_scores,
)


class Static(Strategy):
    """One choice, by scores of which high means hard.

    Scores of the user's own (`[pruning] scores`) take the place of the method's: nothing is computed then, and every
    epoch drops prune_rate. `[pruning] side` says what is kept: the hard, the middle or the easy.
    """

    needs_model = True
    state: tuple[str, ...] = ("kept",)
    kept: Tensor | None = None

    def prepare(self, passes: Passes) -> None:
        super().prepare(passes)
        if self.spec.scores is not None:
            scores = read_scores(self.spec.scores, self.size)
            self.kept = self.choose(scores.to(self.device), self.size - self.keep_count)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        return EpochPlan(self.kept)

    @abstractmethod
    def scores(self) -> Tensor:
        """Return the method's score of every sample: [size]. Asked once at most."""

    def choose(self, scores: Tensor, drop: int) -> Tensor:
        """Return the samples to keep, int64, when `drop` go."""
        return keep_by_score(scores, drop, self.spec.side, self.generator)


class ScoredAhead(Static):
    """Static, with scores that are computed on the clock before training begins."""

    def prepare(self, passes: Passes) -> None:
        super().prepare(passes)
        if self.kept is None and self.keep_count < self.size:
            self.kept = self.choose(self.scores(), self.size - self.keep_count)


class _ScoredByShortRuns(ScoredAhead):
    """The mean score over helper_runs models of the trial's own kind, each trained for helper_epochs on everything."""

    def scores(self) -> Tensor:
        runs, total = self.spec.helper_runs, torch.zeros(self.size, device=self.device)
        for number in range(runs):
            helper = self.passes.train_helper(epochs=self.spec.helper_epochs, number=number, budget_share=0.25 / runs)
            total += self.score_of(helper())
        return total / runs

    @staticmethod
    @abstractmethod
    def score_of(scores: Scores) -> Tensor:
        """Return the score of every sample under one helper."""


class El2n(_ScoredByShortRuns):
    """Keep the samples with the largest error of the softmax early in training.

    Paul, Ganguli and Dziugaite (2021), "Deep learning on a data diet", definition 2.2: the norm of softmax − onehot,
    averaged over runs. They train ten runs to epoch 20 of 200, which costs as much as one whole training; the default
    here is one run of 3 epochs.

    Extra cost: helper_runs · helper_epochs epochs of training, and helper_runs forward passes over everything.
    """

    @staticmethod
    def score_of(scores: Scores) -> Tensor:
        return el2n(scores.logits, scores.labels)


class Grand(_ScoredByShortRuns):
    """Keep the samples with the largest gradient in the last layer early in training.

    Paul, Ganguli and Dziugaite (2021), definition 2.1, in its practical form. Their norm is of the gradient in all
    weights, which costs a backward pass per sample; and at initialisation, where they propose it first, its results
    could not be reproduced (Kirsch 2023, "Does 'Deep learning on a data diet' reproduce?"). Hence the last layer, and
    the same short runs and cost as for EL2N.
    """

    @staticmethod
    def score_of(scores: Scores) -> Tensor:
        return last_layer_grad_norm(scores.logits, scores.labels, scores.features)


def held_out_losses(strategy: Strategy) -> Tensor:
    """Return each sample's loss under a helper that was trained without it: float32 [size].

    Two helpers of helper_scale learn for helper_epochs on one random half each and score the other (what
    Mindermann et al. 2022 do "without holdout data"): no sample is lost to a holdout set.
    """
    spec, passes = strategy.spec, strategy.passes
    halves = strategy.permutation(strategy.size).tensor_split(2)
    losses = torch.empty(strategy.size, device=strategy.device)
    for number, (learnt, held_out) in enumerate([halves, halves[::-1]]):
        helper = passes.train_helper(
            learnt, epochs=spec.helper_epochs, number=number, scale=spec.helper_scale, budget_share=0.125
        )
        losses[held_out] = helper(held_out).losses
    return losses


class ReferenceModel(ScoredAhead):
    """Keep the samples whose loss under a small reference model is high, middling or low.

    Ankner et al. (2024), "Perplexed by perplexity", do it for language models, where the best side depends on the
    data: `[pruning] side`. There the reference model learns from a part of the data that is then left out; here two of
    them score each other's half.

    Extra cost: helper_epochs epochs of training and one forward pass, at helper_scale.
    """

    @property
    def helper_scales(self) -> tuple[float | None, ...]:
        return (self.spec.helper_scale,)

    def scores(self) -> Tensor:
        return held_out_losses(self)


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
