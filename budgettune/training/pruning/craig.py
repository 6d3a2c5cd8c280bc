"""CRAIG: a weighted coreset of every class whose gradient follows that of all samples."""

from __future__ import annotations

from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, Strategy
from budgettune.training.pruning.coresets import weighted_coreset
from budgettune.training.pruning.scores import softmax_error


class Craig(Strategy):
    """Train on the medoids of each class, weighted by how many samples they stand for.

    Mirzasoleiman, Bilmes and Leskovec (2020), "Coresets for data-efficient training", algorithm 1, with the bound for
    deep networks: two samples of a class are as far apart as their softmax − onehot. Facility location is maximised
    by stochastic greedy (Mirzasoleiman et al. 2015) with ε = 0.1: in expectation at least 1 − 1/e − 0.1 of the
    optimum. Weights are scaled to a mean of one. The choice is renewed every reselect_every epochs.

    Extra cost: a forward pass over everything and a choice of N·ln(10) evaluations, every reselect_every epochs.
    """

    needs_model = True
    state = ("kept", "weights")
    kept: Tensor | None = None
    weights: Tensor | None = None

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Choose anew where it is due; else keep the last choice."""
        if self.keep_count < self.size and (self.kept is None or epoch % self.spec.reselect_every == 0):
            seen = self.passes.score()
            gradients, drop = softmax_error(seen.logits, seen.labels), self.size - self.keep_count
            self.kept, self.weights = weighted_coreset(
                gradients, seen.labels, drop, generator=self.generator, each_step=self.passes.check
            )
        return EpochPlan(self.kept, self.weights)
