"""Data-pruning strategies: one short file per family, one line here per name."""

from __future__ import annotations

from collections.abc import Collection

import torch

from budgettune.errors import SpecError
from budgettune.spec import PruningSpec, is_code
from budgettune.training.imports import import_code
from budgettune.training.pruning.base import EpochPlan, Passes, Quota, Scorer, Scores, Selection, Strategy
from budgettune.training.pruning.blind import Full, RandomSubset
from budgettune.training.pruning.stale import PaperAsCoded, StaleQuantile

__all__ = [
    "REGISTRY",
    "EpochPlan",
    "Passes",
    "Quota",
    "Scorer",
    "Scores",
    "Selection",
    "Strategy",
    "make_strategy",
]

REGISTRY: dict[str, type[Strategy]] = {
    "full": Full,
    "random": RandomSubset,
    "stale-quantile": StaleQuantile,
    "paper-as-coded": PaperAsCoded,
}


def make_strategy(
    spec: PruningSpec,
    size: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    allow_import: Collection[str] = (),
    epochs: int | None = None,
) -> Strategy:
    """Return the strategy that a `[pruning]` table names, for `size` training samples.

    Args:
        spec: the `[pruning]` table.
        size: number of training samples.
        seed: of the strategy's own chance.
        device: of all tensors.
        allow_import: packages that code of your own may come from.
        epochs: of the run; None under a time budget.

    Raises:
        SpecError: where code of your own is named that is not a Strategy.
    """
    if not is_code(spec.strategy):
        return REGISTRY[spec.strategy](size, spec, seed=seed, device=device, epochs=epochs)
    kind = import_code(spec.strategy, allow_import)
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise SpecError(f"pruning.strategy: {spec.strategy} must be a subclass of budgettune.training.pruning.Strategy")
    return kind(size, spec, seed=seed, device=device, epochs=epochs)
