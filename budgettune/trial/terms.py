"""What a trial is told, whom it tells, and what it gives: the values around training code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from budgettune.records import EpochRecord, TrialResult
from budgettune.spec.objective import ObjectiveSpec
from budgettune.spec.study_spec import StudySpec


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What a trial is to train: the values that its code gets."""

    params: Mapping[str, Any]
    seed: int
    device: str = "cpu"
    epochs: int | None = None
    budget_seconds: float | None = None  # exactly one of the two
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    number: int | None = None

    @classmethod
    def of(cls, config: StudySpec, seed: int, device: str = "cpu", number: int | None = None) -> Terms:
        """Return the terms of a resolved spec."""
        return cls(
            params=dict(config.params),
            seed=seed,
            device=device,
            epochs=config.train.epochs,
            budget_seconds=config.train.budget,
            objective=config.objective,
            number=number,
        )


@dataclass(frozen=True, kw_only=True)
class Outside:
    """Who runs a trial: asked whether it goes on, told what it measures.

    Attributes:
        should_stop: asked before every step.
        on_epoch: told each point of the curve.
        ends_early: asked after each report whether training ends with it.
    """

    should_stop: Callable[[], bool] = lambda: False
    on_epoch: Callable[[EpochRecord], None] = lambda record: None
    ends_early: Callable[[EpochRecord], bool] = lambda record: False


ALONE = Outside()
"""Nobody: the trial goes on to its end."""


@dataclass(frozen=True)
class Trained:
    """A result, and the model that it was measured on; of own training code what it gave to `Trial.save` last."""

    result: TrialResult
    model: Any
