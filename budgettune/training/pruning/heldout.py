"""What a small model says of samples that it was not trained on, and the strategy that keeps samples by that alone."""

from __future__ import annotations

import torch
from torch import Tensor

from budgettune.training.pruning.base import Strategy
from budgettune.training.pruning.static import ScoredAhead


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
        """The small one."""
        return (self.spec.helper_scale,)

    def scores(self) -> Tensor:
        """Return the losses under the reference models."""
        return held_out_losses(self)
