"""Strategies that train on the best part of large batches, or on medoids of all samples: RHO-LOSS and coresets."""

from __future__ import annotations

from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, Passes, Quota, Scores, Selection, Strategy
from budgettune.training.pruning.coresets import weighted_coreset
from budgettune.training.pruning.scores import keep_by_score, read_scores, softmax_error
from budgettune.training.pruning.static import held_out_losses


class _ChoosesInBatches(Strategy):
    """Of 1 / (1 − prune_rate) candidates for each place in a batch, all but prune_rate are trained on, exactly."""

    needs_model = True
    quota: Quota

    @property
    def candidates(self) -> float:
        return 1 / (1 - self.largest_drop) if self.keep_count < self.size else 1.0

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        self.quota = Quota(1 - self.largest_drop)
        return EpochPlan()

    def drop_of(self, candidates: Scores) -> int:
        """Return how many of the candidates go. Asked once for each batch."""
        return len(candidates) - self.quota.of(len(candidates))


class RhoLoss(_ChoosesInBatches):
    """Of each large batch train on the samples with the highest reducible loss: learnable and not yet learnt.

    Mindermann et al. (2022), "Prioritized training on points that are learnable, worth learning, and not yet learnt",
    algorithm 1: loss minus irreducible loss, which is the loss under a small model that was trained without the
    sample. They keep a tenth of each batch; here prune_rate says how much goes. Irreducible losses of your own
    (`[pruning] scores`) save the helpers, as the authors save them over many runs.

    Extra cost: helper_epochs epochs of training and one forward pass at helper_scale; and a forward pass on every
    candidate.
    """

    state = ("irreducible",)
    irreducible: Tensor | None = None

    @property
    def helper_scales(self) -> tuple[float | None, ...]:
        return (self.spec.helper_scale,)

    def prepare(self, passes: Passes) -> None:
        super().prepare(passes)
        if self.spec.scores is not None:
            self.irreducible = read_scores(self.spec.scores, self.size).to(self.device)
        elif self.keep_count < self.size:
            self.irreducible = held_out_losses(self)

    def select(self, candidates: Scores) -> Selection:
        assert self.irreducible is not None  # prepare found them wherever there are candidates
        reducible = candidates.losses - self.irreducible[candidates.indices]
        return Selection(keep_by_score(reducible, self.drop_of(candidates), "hard", self.generator))


class BatchCoreset(_ChoosesInBatches):
    """Of each large batch train on the medoids of its gradients, weighted by how many candidates they stand for.

    After Nguyen et al. (2024), "Mini-batch coresets for memory-efficient language model training on data mixtures".
    Classes stand for their sources of data, softmax − onehot for their sparse gradient of the last projection, and a
    small class always has at least one medoid where there is room, as their small sources do.

    Extra cost: a forward pass on every candidate and a choice among them in every step.
    """

    def select(self, candidates: Scores) -> Selection:
        gradients, drop = softmax_error(candidates.logits, candidates.labels), self.drop_of(candidates)
        return Selection(*weighted_coreset(gradients, candidates.labels, drop, generator=self.generator))


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
        if self.keep_count < self.size and (self.kept is None or epoch % self.spec.reselect_every == 0):
            scores = self.passes.score()
            gradients, drop = softmax_error(scores.logits, scores.labels), self.size - self.keep_count
            self.kept, self.weights = weighted_coreset(
                gradients, scores.labels, drop, generator=self.generator, each_step=self.passes.check
            )
        return EpochPlan(self.kept, self.weights)
