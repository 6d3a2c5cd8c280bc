"""The `[pruning]` table of a study file, and the strategies that it can name."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from budgettune.spec.tables import Table, code_or

STRATEGIES = (
    "full",
    "random",
    "stale-quantile",
    "paper-as-coded",
    "selective-backprop",
    "stale-selective-backprop",
    "infobatch",
    "epsilon-greedy",
    "ucb",
    "seta",
    "kakurenbo",
    "el2n",
    "grand",
    "forgetting",
    "ccs",
    "prototypes",
    "reference-model",
    "rho-loss",
    "craig",
    "batch-coreset",
)
"""Names of the strategies that come with the package, as `training.pruning` registers them."""


class PruningSpec(Table):
    """`[pruning]`: which samples an epoch keeps. Behind each key stand the strategies that read it.

    Attributes:
        prune_rate: fraction of a run's sample visits that are dropped, in expectation; `prune_rates` has
            what it means for each strategy.
        refresh_every: everything is kept every that many epochs (stale-quantile, paper-as-coded).
        replacement: each epoch is drawn afresh (true), or epochs walk a permutation (false) (random).
        reselect_every: epochs between two choices (epsilon-greedy, ucb, craig).
        rescore_every: epochs between two forward passes on all samples (stale-selective-backprop).
        history: last losses that make up the distribution (selective-backprop).
        criterion: samples below the mean loss are dropped, or any at `random` (infobatch).
        delta: progress at which the last epochs begin, which drop nothing (infobatch) or at random (seta).
        random_share: part of the drop that is made at random (seta).
        groups: of samples by their loss, through which a window slides (seta).
        epsilon: part of what is kept that is drawn at random (epsilon-greedy).
        smoothing: weight of the newest loss in a moving average (epsilon-greedy, ucb).
        exploration: deviations that are added to the mean (ucb).
        confidence: with which a hidden sample must be classified correctly (kakurenbo).
        scores: a file of your own, one number per training sample as .npy, high for hard, in place of computed scores
            (el2n, grand, forgetting, ccs, prototypes, reference-model).
        side: which samples by their score are kept (el2n, grand, forgetting, prototypes, reference-model).
        score_until: progress up to which everything is kept and scored in passing (forgetting, ccs, prototypes).
        cutoff: hardest fraction that is always dropped (ccs).
        strata: ranges of scores that are kept alike (ccs).
        clusters: of k-means; None for one per class (prototypes).
        helper_epochs: of each helper model that is trained on the clock (el2n, grand, rho-loss, reference-model).
        helper_runs: helpers whose scores are averaged (el2n, grand).
        helper_scale: `model.scale` of a helper (rho-loss, reference-model).
        when: `always`, or `auto`: `study create` sets strategy and prune_rate to what the evidence supports.
        evidence: file that `budgettune compare --out` wrote, for `auto`.
        decided: what `study create` decided on that evidence, and why.
    """

    strategy: Annotated[str, code_or(*STRATEGIES)] = "stale-quantile"
    prune_rate: float = Field(0.0, ge=0, lt=1)
    refresh_every: int = Field(5, ge=1)
    replacement: bool = False
    reselect_every: int = Field(5, ge=1)
    rescore_every: int = Field(3, ge=1)
    history: int = Field(1_024, ge=1)
    criterion: Literal["loss", "random"] = "loss"
    delta: float = Field(0.875, gt=0, le=1)
    random_share: float = Field(0.25, ge=0, le=1)
    groups: int = Field(10, ge=1)
    epsilon: float = Field(0.1, ge=0, le=1)
    smoothing: float = Field(0.5, gt=0, le=1)
    exploration: float = Field(1.0, ge=0)
    confidence: float = Field(0.7, ge=0, lt=1)
    scores: str | None = None
    side: Literal["hard", "middle", "easy"] = "hard"
    score_until: float = Field(0.2, ge=0, lt=1)
    cutoff: float = Field(0.1, ge=0, lt=1)
    strata: int = Field(50, ge=1)
    clusters: int | None = Field(None, ge=1)
    helper_epochs: int = Field(3, ge=1)
    helper_runs: int = Field(1, ge=1)
    helper_scale: float = Field(0.5, gt=0, le=64)
    when: Literal["always", "auto"] = "always"
    evidence: str | None = None
    decided: str | None = None

    @model_validator(mode="after")
    def _auto_needs_evidence(self) -> Self:
        if self.when == "auto" and self.evidence is None:
            raise ValueError("when = 'auto' needs evidence: the file that `budgettune compare --out` wrote")
        return self
