"""The plan of a comparison: its runs, their order, their cost, and what all of them share. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter

from budgettune.comparison.result import FULL, Arm, Purpose, RunKey
from budgettune.errors import UsageError
from budgettune.spec.axes import RangeSpec
from budgettune.spec.documents import full_key
from budgettune.spec.pruning import STRATEGIES
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import Scalar, is_code
from budgettune.text import format_duration

DEFAULT_PRUNE_RATE = 0.3
RATES_AROUND = (1 / 3, 1, 3, 9)
"""Learning rates that are tried, over the spec's own: a rate that was set for long runs is low for short ones."""
_ONLY_AT_THE_END = 10**9  # epochs between evaluations: they are off the clock, but take time all the same
_DECIDING = ("strategy", "prune_rate", "when", "evidence", "decided")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All runs of a comparison: those that choose a learning rate per arm and budget, then those that are reported."""

    arms: Sequence[Arm]  # full first
    budgets_seconds: Sequence[float]
    rates: Sequence[float]  # learning rates; one alone needs no tuning
    seeds: int  # scored, of each arm
    full_seeds: int  # scored, of full; the first are those of the others
    tune_seeds: int  # of each arm at each rate
    seed_of: Callable[[int, int], int]  # of a family (0 scored, 1 tuning) and a number in it

    @property
    def full_tune_seeds(self) -> int:
        """All arms are held against full: its rate is chosen on as many times more seeds as it is scored on."""
        return math.ceil(self.tune_seeds * self.full_seeds / self.seeds)

    def tuning(self) -> list[RunKey]:
        """Return the runs that choose a rate, in their order."""
        if len(self.rates) < 2:
            return []
        jobs = [(arm, budget, lr) for budget in self.budgets_seconds for lr in self.rates for arm in self.arms]
        return _in_turns(jobs, "tuning", *self._seeds(1, self.tune_seeds, self.full_tune_seeds))

    def scored(self, rate_of: Callable[[Arm, float], float]) -> list[RunKey]:
        """Return the runs that are reported, in their order; `rate_of` has the rate of an arm at a budget."""
        jobs = [(arm, budget, rate_of(arm, budget)) for budget in self.budgets_seconds for arm in self.arms]
        return _in_turns(jobs, "scored", *self._seeds(0, self.seeds, self.full_seeds))

    def _seeds(self, family: int, shared: int, of_full: int) -> tuple[list[int], list[int]]:
        """Return the seeds of all arms, and the further ones of full."""
        seeds = [self.seed_of(family, number) for number in range(max(shared, of_full))]
        return seeds[:shared], seeds[shared:]

    @property
    def tuning_runs(self) -> int:
        """Number at each budget."""
        rates = len(self.rates) if len(self.rates) > 1 else 0
        return rates * ((len(self.arms) - 1) * self.tune_seeds + self.full_tune_seeds)

    @property
    def scored_runs(self) -> int:
        """Number at each budget."""
        return (len(self.arms) - 1) * self.seeds + self.full_seeds

    @property
    def seconds(self) -> float:
        """Training time of all runs."""
        return sum(self.budgets_seconds) * (self.tuning_runs + self.scored_runs)

    def cost(self) -> str:
        """Say how long all runs train, what tuning is of it, and the change of one option that gets nearest to half."""
        each, budgets = sum(self.budgets_seconds), len(self.budgets_seconds)
        scored = f"{self.scored_runs * budgets} scored"
        runs = f"{scored} at one rate for all, tuned for none"
        if self.tuning_runs:
            tuning = format_duration(each * self.tuning_runs)
            runs = f"{self.tuning_runs * budgets} runs to tune the learning rate ({tuning}), {scored}"
        cheaper = self._cheaper()
        advice = "" if cheaper is None else f"; {cheaper[0]} makes it {format_duration(cheaper[1].seconds)}"
        return f"{format_duration(self.seconds)} of training: {runs}{advice}"

    def _cheaper(self) -> tuple[str, Plan] | None:
        """Return the option, with its value, that comes nearest to half of the time, and the plan with it."""
        ratio = self.full_seeds / self.seeds
        options = {
            **{
                f"--seeds {number}": replace(self, seeds=number, full_seeds=max(number, round(ratio * number)))
                for number in range(2, self.seeds)
            },
            **{
                f"--tune-seeds {number}": replace(self, tune_seeds=number)
                for number in range(1, self.tune_seeds)
                if self.tuning_runs
            },
        }
        return min(options.items(), key=lambda item: abs(item[1].seconds - self.seconds / 2), default=None)


def _in_turns(
    jobs: Sequence[tuple[Arm, float, float]], purpose: Purpose, seeds: Sequence[int], of_full: Sequence[int]
) -> list[RunKey]:
    """Return all runs, seed by seed; each seed begins elsewhere, so that no arm is always the first or the last.

    The further runs of full are spread evenly among the seeds of all, and within each.
    """
    plan: list[RunKey] = []
    for number, seed in enumerate(seeds):
        start = number * len(jobs) // len(seeds)
        own = [(*job, seed) for job in (*jobs[start:], *jobs[:start])]
        more = [(*job, other) for other in of_full[number :: len(seeds)] for job in jobs if job[0] == FULL]
        places = [((place + 0.5) / len(runs), run) for runs in (own, more) for place, run in enumerate(runs)]
        plan += [
            RunKey(arm, budget, seed, lr, purpose) for _, (arm, budget, lr, seed) in sorted(places, key=itemgetter(0))
        ]
    return plan


def shared_spec(spec: StudySpec, rates: Sequence[float] = ()) -> StudySpec:
    """Return what all runs share: the spec at its own values of what it searches, without budget and strategy.

    The learning rate must reach zero at the deadline, so a constant one becomes linear; where there is only one, it is
    shared too. What is scored is judged by test images, whatever judges the study's own trials.
    """
    schedule = "linear" if spec.train.lr_schedule == "constant" else spec.train.lr_schedule
    left_out = ("train.epochs", "train.budget", *(f"pruning.{name}" for name in _DECIDING))
    params: dict[str, Scalar] = {"train.lr_schedule": schedule, "data.evaluate_on": "test"}
    params["train.evaluate_every"] = _ONLY_AT_THE_END
    if len(rates) == 1:
        params["train.lr"] = rates[0]
    return spec.resolve({**dict.fromkeys(left_out), **params})


def with_key(shared: StudySpec, key: RunKey) -> StudySpec:
    """Return the spec of one run.

    Raises:
        SpecError: where the strategy cannot work at that prune rate.
    """
    params = {"pruning.strategy": key.arm.strategy, "pruning.prune_rate": key.arm.prune_rate, "train.lr": key.lr}
    if key.purpose == "tuning":
        params |= tuning_images(shared)
    return shared.resolve({"train.epochs": None, "train.budget": key.budget_seconds, **params})


def tuning_images(shared: StudySpec) -> dict[str, Scalar]:
    """Return what differs in `[data]` where runs are judged by validation images, which no training of theirs sees."""
    data = shared.data.model_copy(update={"evaluate_on": "validation"})
    params: dict[str, Scalar] = {"data.evaluate_on": "validation"}
    if data.train_size is not None and data.part_sizes is not None:
        params["data.train_size"] = min(data.train_size, data.part_sizes[0])
    return params


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


def rates_of(spec: StudySpec, rates: Sequence[float] = ()) -> list[float]:
    """Return the learning rates to try: those given, else those that the spec searches, else some around its own.

    Raises:
        UsageError: where one is not above zero.
    """
    found = [float(rate) for rate in rates or _searched(spec, "train.lr")]
    found = found or [float(f"{factor * spec.train.lr:.2g}") for factor in RATES_AROUND]
    if wrong := [rate for rate in found if not 0 < rate < math.inf]:
        raise UsageError(f"learning rate {wrong[0]:g}: give rates above 0, such as 3e-3,9e-3")
    return sorted(set(found))


def _searched(spec: StudySpec, key: str) -> tuple[Scalar, ...]:
    """Return the listed values of a search axis; none of a range."""
    axes = (axis for name, axis in spec.search.items() if full_key(name) == key)
    return next((axis for axis in axes if not isinstance(axis, RangeSpec)), ())
