"""Data-pruning strategies: one short file per family, one line here per name."""

from __future__ import annotations

import torch

from budgettune.errors import SpecError
from budgettune.spec.pruning import PruningSpec
from budgettune.spec.tables import is_code
from budgettune.spec.trust import Trust
from budgettune.training.pruning.bandits import EpsilonGreedy, UpperConfidenceBound
from budgettune.training.pruning.base import EpochPlan, Passes, Quota, Scorer, Scores, Selection, Strategy
from budgettune.training.pruning.baselines import Full, PaperAsCoded, RandomSubset, StaleQuantile
from budgettune.training.pruning.batches import BatchCoreset, Craig, RhoLoss
from budgettune.training.pruning.infobatch import InfoBatch
from budgettune.training.pruning.kakurenbo import Kakurenbo
from budgettune.training.pruning.scored_in_passing import CoverageCentric, Forgetting, Prototypes
from budgettune.training.pruning.selective import SelectiveBackprop, StaleSelectiveBackprop
from budgettune.training.pruning.seta import SeTa
from budgettune.training.pruning.static import El2n, Grand, ReferenceModel

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
    "selective-backprop": SelectiveBackprop,
    "stale-selective-backprop": StaleSelectiveBackprop,
    "infobatch": InfoBatch,
    "epsilon-greedy": EpsilonGreedy,
    "ucb": UpperConfidenceBound,
    "seta": SeTa,
    "kakurenbo": Kakurenbo,
    "el2n": El2n,
    "grand": Grand,
    "forgetting": Forgetting,
    "ccs": CoverageCentric,
    "prototypes": Prototypes,
    "reference-model": ReferenceModel,
    "rho-loss": RhoLoss,
    "craig": Craig,
    "batch-coreset": BatchCoreset,
}


def make_strategy(
    spec: PruningSpec,
    size: int,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    trust: Trust = Trust(),
    epochs: int | None = None,
) -> Strategy:
    """Return the strategy that a `[pruning]` table names, for `size` training samples.

    Args:
        spec: the `[pruning]` table.
        size: number of training samples.
        seed: of the strategy's own chance.
        device: of all tensors.
        trust: which packages code of your own may come from.
        epochs: of the run; None under a time budget.

    Raises:
        SpecError: where code of your own is named that is not a Strategy.
    """
    if not is_code(spec.strategy):
        return REGISTRY[spec.strategy](size, spec, seed=seed, device=device, epochs=epochs)
    kind = trust.import_code(spec.strategy)
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise SpecError(f"pruning.strategy: {spec.strategy} must be a subclass of budgettune.training.pruning.Strategy")
    return kind(size, spec, seed=seed, device=device, epochs=epochs)
