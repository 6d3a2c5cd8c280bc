"""Data-pruning strategies: one short file per family. `spec.pruning.STRATEGIES` names them."""

from __future__ import annotations

import importlib

import torch

from budgettune.errors import SpecError
from budgettune.spec.pruning import STRATEGIES, PruningSpec
from budgettune.spec.tables import is_code
from budgettune.spec.trust import Trust
from budgettune.training.pruning.base import EpochPlan, Passes, Quota, Scorer, Scores, Selection, Strategy

__all__ = [
    "EpochPlan",
    "Passes",
    "Quota",
    "Scorer",
    "Scores",
    "Selection",
    "Strategy",
    "make_strategy",
    "strategy_class",
]


def make_strategy(
    spec: PruningSpec,
    size: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust: Trust = Trust(),
    epochs: int | None = None,
) -> Strategy:
    """Return the strategy that a `[pruning]` table names, for `size` training samples; as Strategy says.

    Raises:
        SpecError: where the rate cannot be reached; and what `strategy_class` raises.
    """
    return strategy_class(spec.strategy, trust)(size, spec, seed=seed, device=device, epochs=epochs)


def strategy_class(name: str, trust: Trust = Trust()) -> type[Strategy]:
    """Return the class that a name or package.module:Class stands for, imported now from where `trust` allows.

    Raises:
        SpecError: where code of your own is not a Strategy, or cannot be imported.
        UsageError: where its package is not allowed.
    """
    if not is_code(name):
        module, _, attribute = STRATEGIES[name].path.partition(":")
        bundled: type[Strategy] = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return bundled
    own = trust.import_code(name)
    if not (isinstance(own, type) and issubclass(own, Strategy)):
        raise SpecError(f"pruning.strategy: {name} must be a subclass of budgettune.training.pruning.Strategy")
    return own
