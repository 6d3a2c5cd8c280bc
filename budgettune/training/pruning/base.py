"""What every pruning strategy is: a small object with two verbs, plan and observe."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from budgettune.spec import PruningSpec


@dataclass(frozen=True)
class EpochPlan:
    """Which samples an epoch visits.

    Attributes:
        indices: int64 [n], each sample at most once, in any order (the trainer shuffles); None for all.
        weights: float32 [n], factors on the loss of each; None for all one.
    """

    indices: Tensor | None = None
    weights: Tensor | None = None


class Strategy(ABC):
    """Chooses the samples of each epoch from what it saw of them.

    A strategy sees tensors and never the trainer. All its chance comes from `self.generator`, and all its memory is
    tensors (or plain numbers) named in `state`, so that seeding and resuming need no code of their own.

    Args:
        size: number of training samples.
        spec: the `[pruning]` table.
        seed: of this strategy's own random generator; the global random state is never touched.
        device: of all tensors, in and out.
    """

    state: tuple[str, ...] = ()

    def __init__(self, size: int, spec: PruningSpec, *, seed: int = 0, device: torch.device | str = "cpu") -> None:
        if size < 1:
            raise ValueError(f"a strategy needs at least one sample, not {size}")
        self.size = size
        self.spec = spec
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def keep_count(self) -> int:
        """Samples that a pruned epoch keeps: at least one."""
        return max(1, self.size - round(self.spec.prune_rate * self.size))

    def epoch_sizes(self) -> tuple[int, ...]:
        """Return the numbers of samples that epochs are expected to have, for warming up their last batches."""
        return self.size, self.keep_count

    @abstractmethod
    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Return what an epoch visits.

        Args:
            epoch: 0-based.
            progress: share of training that lies behind, in [0, 1].
        """

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:  # noqa: B027 - strategies that look at nothing need not
        """Take in a batch after its training step: indices int64 [B], losses float32 [B], logits [B, classes]."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on identically."""
        values = {name: getattr(self, name) for name in self.state}
        tensors = {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}
        return {"generator": self.generator.get_state(), **tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another strategy of the same size stopped."""
        self.generator.set_state(state["generator"])
        for name in self.state:
            value = state[name]
            setattr(self, name, value.clone().to(self.device) if isinstance(value, Tensor) else value)

    def permutation(self, size: int) -> Tensor:
        """Return a random order of range(size), from this strategy's own generator."""
        return torch.randperm(size, generator=self.generator, device=self.device)
