"""What every pruning strategy is: a small object that plans epochs from what it saw, and may look at the model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from budgettune.errors import SpecError
from budgettune.spec.pruning import PruningSpec, drop_share, epoch_sizes, largest_drop


@dataclass(frozen=True)
class EpochPlan:
    """Which samples an epoch visits, and how."""

    indices: Tensor | None = None  # int64 [n], each at most once, in any order (the trainer shuffles); None for all
    weights: Tensor | None = None  # float32 [n], factors on the loss of each; None for all one
    select: bool = True  # whether `select` is asked in this epoch, where there is more than one candidate per place
    lr_factor: float = 1.0  # on the learning rate of the whole epoch


@dataclass(frozen=True)
class Scores:
    """What a model in evaluation mode says of some samples, without learning from them."""

    indices: Tensor  # int64 [n], of the samples
    labels: Tensor  # int64 [n]
    losses: Tensor  # float32 [n], cross-entropy
    logits: Tensor  # float32 [n, classes]
    embedding: Tensor | None = None  # float32 [n, d], what the model's last linear layer reads; None where it has none

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def features(self) -> Tensor:
        """Penultimate features, float32 [n, d].

        Raises:
            SpecError: where the model has no last linear layer to read them from.
        """
        if self.embedding is None:
            raise SpecError(
                "pruning.strategy: it needs the features that a last linear layer reads, and this model has none of "
                "num_classes outputs: end the model in torch.nn.Linear(d, num_classes), or choose another strategy"
            )
        return self.embedding


@dataclass(frozen=True)
class Selection:
    """Which samples of a batch of candidates are trained on."""

    positions: Tensor  # int64 [k], k >= 1, each place in the batch at most once
    weights: Tensor | None = None  # float32 [k], factors on the loss of each; None for all one


class Scorer(Protocol):
    """A forward pass in evaluation mode, on the training clock."""

    def __call__(self, indices: Tensor | None = None) -> Scores:
        """Return what the model says of the unaugmented images of indices, int64 [n], n >= 1; None for all."""


class Passes(Protocol):
    """What the trainer offers to strategies that look at a model. All of it is on the training clock.

    Every call may raise Interrupted (the trial was told to stop) or BudgetUsedUp (a time budget is over): strategies
    let both pass.
    """

    labels: Tensor  # int64 [n], of all training samples, from 0 to num_classes - 1
    num_classes: int

    def check(self) -> None:
        """Do nothing, or raise as every call here may: for a strategy's own loops that take long."""

    def score(self, indices: Tensor | None = None) -> Scores:
        """Return what the model in training says now of the unaugmented images of indices; None for all."""

    def train_helper(
        self,
        indices: Tensor | None = None,
        *,
        epochs: int,
        number: int = 0,
        scale: float | None = None,
        budget_share: float = 0.25,
        on_epoch: Callable[[int, Scorer], None] | None = None,
    ) -> Scorer:
        """Train a fresh model and return its scorer. The learning rate goes to the end of its schedule.

        Args:
            indices: int64 [n], what it trains on; None for all.
            epochs: passes over them.
            number: of this helper; helpers of one trial with different numbers start from different weights.
            scale: `model.scale` of the helper; None for the network of the trial. Name it in `helper_scales`.
            budget_share: under a time budget the helper ends, however few its epochs, at this share of the budget.
            on_epoch: called after each epoch with its 0-based number and the helper's scorer.
        """


class Strategy(ABC):
    """Chooses the samples of each epoch, or of each batch, from what it saw of them.

    A strategy sees tensors and never the trainer. All its chance comes from `self.generator`, and all its memory is
    tensors (or plain numbers) named in `state`, so that seeding and resuming need no code of their own.

    The trainer calls `prepare` once, then for every epoch `plan`, and after every step `observe`. A strategy whose
    `candidates` is above 1 is also asked to `select`: the trainer gathers that many times the batch size, looks at
    them once in evaluation mode, and trains on what was selected. Selected samples wait until a batch is full; what
    is left at the end of an epoch is a last, smaller batch; a single one joins the batch before it.

    Args:
        size: number of training samples.
        spec: the `[pruning]` table.
        seed: of this strategy's own random generator; the global random state is never touched.
        device: of all tensors, in and out.
        epochs: of the run; None under a time budget.

    Attributes:
        largest_drop: fraction of the samples that the epochs of the strongest pruning drop, for the asked rate.
        needs_model: whether it uses passes or `select`, and so works in the trainer only.
        state: names of the attributes that a resumed run needs.
    """

    needs_model: ClassVar[bool] = False
    state: tuple[str, ...] = ()
    passes: Passes  # what `prepare` was given

    def __init__(
        self,
        size: int,
        spec: PruningSpec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        epochs: int | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"a strategy needs at least one sample, not {size}")
        self.size = size
        self.spec = spec
        self.epochs = epochs
        self.largest_drop = largest_drop(spec, epochs)
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def keep_count(self) -> int:
        """Samples that the epochs of the strongest pruning keep: at least one."""
        return max(1, self.size - round(self.largest_drop * self.size))

    def drop_count(self, epoch: int, progress: float) -> int:
        """Return how many samples an epoch is to drop for the asked rate; 0 where the strategy keeps it whole."""
        return min(self.size - 1, round(self.largest_drop * drop_share(self.spec, epoch, progress) * self.size))

    @property
    def candidates(self) -> float:
        """Samples that are looked at for each that is trained on; 1 where `select` is never asked."""
        return 1.0

    @property
    def helper_scales(self) -> tuple[float | None, ...]:
        """Scales of the helpers that `prepare` trains, so that they are warmed up too; None for the trial's own."""
        return ()

    def epoch_sizes(self) -> tuple[int, ...]:
        """Return the numbers of samples that epochs are expected to have, for warming up their last batches."""
        return epoch_sizes(self.spec, self.size, self.epochs)

    def prepare(self, passes: Passes) -> None:
        """Take what looks at the model, once, before the first epoch. Overriders call this first.

        A resumed run sets `passes` itself and calls `load_state_dict`, so that nothing is scored twice.
        """
        self.passes = passes

    @abstractmethod
    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Return what an epoch, counted from 0, visits when progress in [0, 1] lies behind. May use `self.passes`."""

    def select(self, candidates: Scores) -> Selection:
        """Return which candidates to train on: at least one. Asked only where `candidates` is above 1."""
        return Selection(torch.arange(len(candidates), device=self.device))

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:  # noqa: B027 - strategies that look at nothing need not
        """Take in a batch after its training step: indices int64 [B], losses float32 [B], logits [B, classes]."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that `load_state_dict` needs to go on identically, taken between two epochs."""
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


class RemembersLosses(Strategy):
    """A strategy with the loss of each sample when it was last trained on, float32 [size]; NaN for those unseen."""

    state: tuple[str, ...] = ("losses",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.losses = torch.full((self.size,), torch.nan, device=self.device)

    def observe(self, indices: Tensor, losses: Tensor, logits: Tensor | None = None) -> None:
        """Remember the losses."""
        self.losses[indices] = losses


class Quota:
    """How many of each batch of candidates to keep for a share in (0, 1]; rounding never accumulates over an epoch."""

    def __init__(self, share: float) -> None:
        self.share = share
        self._offered = self._taken = 0

    def of(self, count: int) -> int:
        """Return how many of the next count candidates to keep: at least one."""
        self._offered += count
        take = min(count, max(1, round(self._offered * self.share) - self._taken))
        self._taken += take
        return take
