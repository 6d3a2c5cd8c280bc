"""Learning rate against progress in [0, 1], and when a time budget is used up."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from statistics import median

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""Factor on the learning rate; linear and cosine are zero at progress 1 (Li, Yumer and Ramanan 2020)."""


def learning_rate(name: str, base: float, progress: float) -> float:
    """Return the learning rate of a schedule at a progress, which is clipped to [0, 1]."""
    return base * SCHEDULES[name](min(1.0, max(0.0, progress)))


class EpochProgress:
    """Training that ends after a number of epochs."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def at(self, epoch: int, share: float) -> float:
        """Return the progress when a share of an epoch lies behind."""
        return (epoch + share) / self.epochs

    def is_over(self, epoch: int) -> bool:
        """Whether no further step may begin in this epoch."""
        return epoch >= self.epochs

    def learn(self, step_seconds: float) -> None:
        """Take in how long a step took: no matter, epochs end when they end."""


class BudgetProgress:
    """Training that ends at a number of seconds on the clock, and begins where the clock stands now.

    A step is begun where at least half of it fits, so that training ends within half a step of the budget on either
    side and never a whole step past it. The schedule aims at the start of the last step, so that the last step is the
    one with the learning rate at zero. A device that works by itself begins a step when those that are queued before
    it have ended.
    """

    def __init__(
        self,
        budget_seconds: float,
        elapsed: Callable[[], float],
        queued_steps: Callable[[], int] = lambda: 0,
        agreed: Callable[[float], float] = lambda value: value,  # of several processes on one model: the first one's
    ) -> None:
        self.budget_seconds, self.agreed = budget_seconds, agreed
        self.elapsed = elapsed  # returns the seconds on the clock so far
        self.queued_steps = queued_steps  # returns how many steps the device has yet to end
        self.began = elapsed()
        self._recent: deque[float] = deque(maxlen=15)

    def at(self, epoch: int, share: float) -> float:
        whole = self.budget_seconds - self.began - self._step()
        return self.agreed(min(1.0, (self._next_step() - self.began) / max(whole, 1e-9)))

    def is_over(self, epoch: int) -> bool:
        """Whether less than half a step is left."""
        return bool(self.agreed(self._next_step() + self._step() / 2 > self.budget_seconds))

    def learn(self, step_seconds: float) -> None:
        self._recent.append(step_seconds)

    def _next_step(self) -> float:
        """Return the seconds on the clock at which a step would begin that is queued now."""
        return self.elapsed() + self.queued_steps() * self._step()

    def _step(self) -> float:
        return median(self._recent) if self._recent else 0.0


Progress = EpochProgress | BudgetProgress
