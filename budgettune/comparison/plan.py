"""The plan of a comparison: its runs, their order, and what all of them share. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from budgettune.comparison.result import FULL, Arm
from budgettune.errors import UsageError
from budgettune.spec.axes import RangeSpec
from budgettune.spec.documents import full_key
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import Scalar, is_code
from budgettune.text import format_duration

DEFAULT_PRUNE_RATE = 0.3
_ONLY_AT_THE_END = 10**9  # epochs between evaluations: they are off the clock, but take time all the same


class Turn(NamedTuple):
    """One run to come; the fields are those of `ComparedRun.key`."""

    arm: Arm
    budget_seconds: float
    seed: int

    def __str__(self) -> str:
        return f"{self.arm}, {format_duration(self.budget_seconds)}, seed {self.seed}"


def shared_spec(spec: StudySpec) -> StudySpec:
    """Return what all runs share: the spec at its own values of what it searches, without budget and strategy.

    The learning rate must reach zero at the deadline, so a constant one becomes linear.
    """
    schedule = "linear" if spec.train.lr_schedule == "constant" else spec.train.lr_schedule
    left_out = ("train.epochs", "train.budget", *(f"pruning.{name}" for name in _DECIDING))
    params = {"train.lr_schedule": schedule, "train.evaluate_every": _ONLY_AT_THE_END}
    return spec.resolve({**dict.fromkeys(left_out), **params})


_DECIDING = ("strategy", "prune_rate", "when", "evidence", "decided")


def with_turn(shared: StudySpec, turn: Turn) -> StudySpec:
    """Return the spec of one run.

    Raises:
        SpecError: where the strategy cannot work at that prune rate.
    """
    params = {"pruning.strategy": turn.arm.strategy, "pruning.prune_rate": turn.arm.prune_rate}
    return shared.resolve({"train.epochs": None, "train.budget": turn.budget_seconds, **params})


def arms_of(spec: StudySpec, strategies: Sequence[str] = (), prune_rates: Sequence[float] = ()) -> list[Arm]:
    """Return the arms to compare: `full`, `random` at each prune rate, then the other strategies at each.

    Args:
        spec: whose search says what is not said here.
        strategies: names or code; where empty those that the spec searches, else all.
        prune_rates: where empty those above 0 that the spec searches, else its own, else 0.3.

    Raises:
        UsageError: where a strategy is unknown, or a prune rate is not between 0 and 1.
    """
    names = [str(name) for name in strategies or _searched(spec, "pruning.strategy") or STRATEGIES]
    searched = [float(rate) for rate in _searched(spec, "pruning.prune_rate") if rate]
    rates = prune_rates or searched or [spec.pruning.prune_rate or DEFAULT_PRUNE_RATE]
    if unknown := [name for name in names if not (name in STRATEGIES or is_code(name))]:
        raise UsageError(f"strategy {unknown[0]!r} is unknown: use {', '.join(STRATEGIES)}, or package.module:Class")
    if wrong := [rate for rate in rates if not 0 < rate < 1]:
        raise UsageError(f"prune rate {wrong[0]:g}: give one between 0 and 1; `full` is compared in any case")
    pruned = [name for name in dict.fromkeys(["random", *names]) if name != FULL.strategy]
    return [FULL, *(Arm(name, rate) for name in pruned for rate in dict.fromkeys(rates))]


def budgets_of(spec: StudySpec, budgets_seconds: Sequence[float] = ()) -> list[float]:
    """Return the budgets to compare at: those given, else the spec's.

    Raises:
        UsageError: where there is none.
    """
    budgets = budgets_seconds or [spec.train.budget or 0.0]
    if min(budgets) <= 0:
        raise UsageError("a comparison needs a training time for its runs: give --budget 30s, or set train.budget")
    return sorted({float(budget) for budget in budgets})


def turns(arms: Sequence[Arm], budgets_seconds: Sequence[float], seeds: Sequence[int]) -> list[Turn]:
    """Return all runs, seed by seed; each seed begins elsewhere, so that no arm is always the first or the last."""
    jobs = [(arm, budget) for budget in budgets_seconds for arm in arms]
    starts = [number * len(jobs) // len(seeds) for number in range(len(seeds))]
    return [Turn(*job, seed) for seed, start in zip(seeds, starts, strict=True) for job in jobs[start:] + jobs[:start]]


def _searched(spec: StudySpec, key: str) -> tuple[Scalar, ...]:
    """Return the listed values of a search axis; none of a range."""
    axes = (axis for name, axis in spec.search.items() if full_key(name) == key)
    return next((axis for axis in axes if not isinstance(axis, RangeSpec)), ())
