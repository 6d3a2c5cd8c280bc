"""Strategies that score by short runs: EL2N and GraNd."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from budgettune.training.pruning.base import Scores
from budgettune.training.pruning.scores import el2n, last_layer_grad_norm
from budgettune.training.pruning.static import ScoredAhead


class _ScoredByShortRuns(ScoredAhead):
    """The mean score over helper_runs models of the trial's own kind, each trained for helper_epochs on everything."""

    def scores(self) -> Tensor:
        """Train the helpers one after the other, and score with each."""
        runs, total = self.spec.helper_runs, torch.zeros(self.size, device=self.device)
        for number in range(runs):
            helper = self.passes.train_helper(epochs=self.spec.helper_epochs, number=number, budget_share=0.25 / runs)
            total += self.score_of(helper())
        return total / runs

    @staticmethod
    @abstractmethod
    def score_of(seen: Scores) -> Tensor:
        """Return the score of every sample under one helper."""


class El2n(_ScoredByShortRuns):
    """Keep the samples with the largest error of the softmax early in training.

    Paul, Ganguli and Dziugaite (2021), "Deep learning on a data diet", definition 2.2: the norm of softmax − onehot,
    averaged over runs. They train ten runs to epoch 20 of 200, which costs as much as one whole training; the default
    here is one run of 3 epochs.

    Extra cost: helper_runs · helper_epochs epochs of training, and helper_runs forward passes over everything.
    """

    @staticmethod
    def score_of(seen: Scores) -> Tensor:
        """Return the norms of softmax − onehot."""
        return el2n(seen.logits, seen.labels)


class Grand(_ScoredByShortRuns):
    """Keep the samples with the largest gradient in the last layer early in training.

    Paul, Ganguli and Dziugaite (2021), definition 2.1, in its practical form. Their norm is of the gradient in all
    weights, which costs a backward pass per sample; and at initialisation, where they propose it first, its results
    could not be reproduced (Kirsch 2023, "Does 'Deep learning on a data diet' reproduce?"). Hence the last layer, and
    the same short runs and cost as for EL2N.
    """

    @staticmethod
    def score_of(seen: Scores) -> Tensor:
        """Return the norms of the last layer's gradients."""
        return last_layer_grad_norm(seen.logits, seen.labels, seen.features)
