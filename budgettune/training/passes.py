"""What a pruning strategy may ask of a model while the clock runs: forward passes, and helpers trained on the side."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from budgettune.errors import BudgetUsedUp, Interrupted
from budgettune.spec.pruning import batch_sizes
from budgettune.text import format_duration
from budgettune.training.learner import Batch, Learner
from budgettune.training.pruning import Scorer, Scores
from budgettune.trial.schedule import BudgetProgress, EpochProgress, Progress, learning_rate
from budgettune.trial.stopwatch import Stopwatch

MakeHelper = Callable[[float | None, int], Learner]
"""Builds a helper of a scale (None for the trial's own) whose chance begins at a seed."""


class ModelPasses:
    """The trainer's side of `pruning.Passes`: counts what it does, and stops when told to or when time is up."""

    def __init__(self, learner: Learner, watch: Stopwatch, seed: int, make_helper: MakeHelper) -> None:
        self.learner, self.watch, self.seed, self.make_helper = learner, watch, seed, make_helper
        self.labels = learner.data.train.labels
        self.num_classes = learner.data.num_classes
        self.should_stop: Callable[[], bool] = lambda: False  # asked before every batch
        self.scored_samples = 0  # forward passes of single samples so far
        self.helper_samples = 0  # sample visits of helpers in training so far

    def score(self, indices: Tensor | None = None) -> Scores:
        """Return what the model in training says now of the unaugmented images of indices; None for all."""
        return self._score(self.learner, indices)

    def score_candidates(self, candidates: Batch) -> Scores:
        """Return what the model in training says of gathered images, in batches of the size that it trains on."""
        sizes = batch_sizes(len(candidates), self.learner.config.train.batch_size)
        columns = (column.split(sizes) for column in (candidates.indices, candidates.images, candidates.labels))
        parts = [self.learner.score_batch(Batch(*part)) for part in zip(*columns, strict=True)]
        self.scored_samples += len(candidates)
        return joined(parts)

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
        """Train a fresh model as `pruning.Passes` says, and return its scorer."""
        seed = self.seed + 1_000 * (number + 1)
        with self.learner.device.own_chance(seed):
            helper = self.make_helper(scale, seed)
            scorer = partial(self._score, helper)
            ends: list[Progress] = [EpochProgress(epochs)]  # the first of them counts
            if (budget := self.learner.config.train.budget) is not None:
                until = self.watch.elapsed() + budget_share * budget
                device = helper.device
                ends.append(BudgetProgress(until, self.watch.elapsed, device.queued_steps, device.group.agreed))
            for epoch in range(epochs):
                if epoch and any(end.is_over(epoch) for end in ends):
                    break
                self._helper_epoch(helper, self._all(indices), epoch, ends)
                if on_epoch is not None:
                    on_epoch(epoch, scorer)
        helper.device.synchronize()
        return scorer

    def _helper_epoch(self, helper: Learner, indices: Tensor, epoch: int, ends: list[Progress]) -> None:
        order = indices[torch.randperm(len(indices), generator=helper.generator, device=indices.device)]
        train = helper.config.train
        batches = list(self._batches(order, train.batch_size))
        helper.device.begin_steps(self.watch.clock())
        for number, (chunk, places) in enumerate(batches):
            self.check()
            if number and any(end.is_over(epoch) for end in ends):
                break
            progress = max(end.at(epoch, number / len(batches)) for end in ends)
            lr = learning_rate(train.lr_schedule, train.lr, progress)
            helper.step(helper.gather(chunk, places), lr)
            self.helper_samples += len(chunk)
            helper.device.end_step(self.watch.clock())
            if train.budget is not None:
                helper.device.pace()
            for step_seconds in helper.device.ended_steps():
                for end in ends:
                    end.learn(step_seconds)

    def _score(self, learner: Learner, indices: Tensor | None = None) -> Scores:
        data, parts = learner.data.train, []
        for chunk, places in self._batches(self._all(indices), learner.scoring_batch):
            self.check()
            parts.append(learner.score_batch(Batch(chunk, learner.normalise(data.images[places]), data.labels[chunk])))
            self.scored_samples += len(chunk)
        # Once a pass, so that what the device did is charged to the phase that asked for it.
        learner.device.synchronize()
        return joined(parts)

    def _all(self, indices: Tensor | None) -> Tensor:
        return torch.arange(len(self.labels), device=self.labels.device) if indices is None else indices

    def _batches(self, indices: Tensor, size: int) -> zip[tuple[Tensor, Tensor]]:
        places = self.learner.data.train.places(indices)
        sizes = batch_sizes(len(indices), size)
        return zip(indices.split(sizes), places.split(sizes), strict=True)

    def check(self) -> None:
        """Raise Interrupted or BudgetUsedUp where one of them is due."""
        if self.should_stop():
            raise Interrupted("told to stop while pruning looked at the model: the configuration can be run again")
        config, agreed = self.learner.config, self.learner.device.group.agreed
        if config.train.budget is not None and agreed(self.watch.elapsed()) >= config.train.budget:
            raise BudgetUsedUp(
                f"train.budget: {format_duration(config.train.budget)} are over before training began, because "
                f"{config.pruning.strategy} looks at the model first: give more time, or choose another strategy"
            )


def joined(parts: list[Scores]) -> Scores:
    """Return the scores of consecutive batches as one."""
    if len(parts) == 1:
        return parts[0]
    embeddings = [part.embedding for part in parts if part.embedding is not None]
    return Scores(
        torch.cat([part.indices for part in parts]),
        torch.cat([part.labels for part in parts]),
        torch.cat([part.losses for part in parts]),
        torch.cat([part.logits for part in parts]),
        torch.cat(embeddings) if embeddings else None,
    )
