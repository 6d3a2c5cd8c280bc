"""What strategies share that score every sample and then train on the same ones to the end."""

from __future__ import annotations

from abc import abstractmethod

from torch import Tensor

from budgettune.training.pruning.base import EpochPlan, Passes, Strategy
from budgettune.training.pruning.score_file import read_scores
from budgettune.training.pruning.scores import keep_by_score


class Static(Strategy):
    """One choice, by scores of which high means hard.

    Scores of the user's own (`[pruning] scores`) take the place of the method's: nothing is computed then, and every
    epoch drops prune_rate. `[pruning] side` says what is kept: the hard, the middle or the easy.
    """

    needs_model = True
    state: tuple[str, ...] = ("kept",)
    kept: Tensor | None = None

    def prepare(self, passes: Passes) -> None:
        """Choose by the user's scores, where there are any."""
        super().prepare(passes)
        if self.spec.scores is not None:
            scores = read_scores(self.spec.scores, self.size)
            self.kept = self.choose(scores.to(self.device), self.size - self.keep_count)

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Keep what was chosen, and everything until then."""
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
        """Score and choose, where there is anything to drop and the user has not scored."""
        super().prepare(passes)
        if self.kept is None and self.keep_count < self.size:
            self.kept = self.choose(self.scores(), self.size - self.keep_count)


class ScoredInPassing(Static):
    """Static, with scores from the beginning of the run itself.

    Epochs that begin before score_until of training keep everything. Those after drop more than prune_rate, so that
    the whole run drops prune_rate.
    """

    def plan(self, epoch: int, progress: float) -> EpochPlan:
        """Keep everything until the scores are ripe, then choose once."""
        if self.kept is None and (drop := self.drop_count(epoch, progress)):
            self.kept = self.choose(self.scores(), drop)
        return super().plan(epoch, progress)
