"""How long a run takes: its epochs are simulated step by step, and finished trials correct the simulation.

    T = step · (Σ_epochs effective steps + strategy) · correction

Effective steps count a last batch that is not full by its size and by the fixed share of a step. What a pruning
strategy adds (helpers, scores, plans, looking at candidates) is taken from the trials that ran it, in units of a step,
and so is how many samples it really visits. Time is never regressed on `scale`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean

import numpy as np

from budgettune.predict.steptime import StepTime, StepTimes
from budgettune.predict.workload import Workload, Workloads, effective_steps
from budgettune.records import PhaseSeconds, StepProbe, TrialRecord

RUN_DEVIATION = 0.03
"""Of the log of a run's time, from run to run, before anything is observed; worth RUN_WEIGHT observations."""
RUN_WEIGHT = 4.0

FREE_STRATEGIES = ("full", "random")  # they draw indices and do nothing else
UNKNOWN_COST = 0.3  # deviation of the log of a run's time where its strategy never ran
VISITS_DEVIATION = 0.02  # of the log of visits over what the schedule says, before anything is observed
FIRST_FIXED_SHARE = 0.1  # of a step, until the model says

_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A run's time, log-normal.

    Attributes:
        median_seconds: half of such runs are faster.
        deviation: of the log of seconds.
    """

    median_seconds: float
    deviation: float

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of runs ends."""
        return self.median_seconds * math.exp(self.deviation * _NORMAL.inv_cdf(share))

    def chance_within(self, seconds: float) -> float:
        """Return the probability of ending within some seconds."""
        return _NORMAL.cdf(math.log(seconds / self.median_seconds) / self.deviation)


@dataclass(frozen=True, kw_only=True)
class StrategyCost:
    """What a pruning strategy adds to a run.

    Attributes:
        in_step: of the time of steps: looking at candidates, handing losses back.
        plan: per epoch, in epochs of training on all images.
        prepare: once, in the same unit.
        log_visits: log of the samples visited over those that its schedule says.
        deviation: of the log of a run's time, from not knowing these better.
    """

    in_step: float = 0.0
    plan: float = 0.0
    prepare: float = 0.0
    log_visits: float = 0.0
    deviation: float = 0.0


@dataclass(frozen=True, kw_only=True)
class WorkloadTime:
    """The time of one workload at any length.

    Attributes:
        log_step: log of the seconds of a full step.
        deviation: of the log of a run's time.
        fixed_share: of a step.
        is_measured: whether this very step was timed.
    """

    workload: Workload
    log_step: float
    deviation: float
    fixed_share: float
    cost: StrategyCost
    is_measured: bool

    def at(self, epochs: int) -> Timing:
        """Return the time of a run of some epochs.

        Raises:
            SpecError: where the strategy cannot reach its prune rate in so few.
        """
        workload, cost = self.workload, self.cost
        steps = effective_steps(workload.epoch_sizes(epochs), workload.batch, self.fixed_share)
        steps *= math.exp(cost.log_visits) * (1 + cost.in_step)
        steps += (cost.plan * epochs + cost.prepare) * workload.images / workload.batch
        return Timing(median_seconds=math.exp(self.log_step) * steps, deviation=self.deviation)

    def longest(self, budget_seconds: float, confidence: float, most_epochs: int) -> int | None:
        """Return the most epochs that end in time with at least a probability; None where not even one does."""
        longest, low, high = None, 1, most_epochs
        while low <= high:
            middle = (low + high) // 2
            if not self.workload.can_train(middle):
                low = middle + 1
            elif self.at(middle).chance_within(budget_seconds) >= confidence:
                longest, low = middle, middle + 1
            else:
                high = middle - 1
        return longest


class TimeModel:
    """Times of one kind of machine.

    Args:
        workloads: of the study.
        records: finished trials of that kind of machine.
        probes: taken there.

    Raises:
        ValueError: where there are neither trials nor probes.
    """

    def __init__(self, workloads: Workloads, records: Sequence[TrialRecord], probes: Sequence[StepProbe] = ()) -> None:
        probed = [StepTime.of_probe(probe, workloads.of(probe.params)) for probe in probes]
        runs = [(workloads.of(record.params), record) for record in _believable(workloads, records)]
        self.run_deviation = RUN_DEVIATION
        if runs:
            rough = StepTimes(self._measured(runs, None) + probed)
            self.steps = StepTimes(self._measured(runs, rough) + probed)
        else:
            self.steps = StepTimes(probed)
        self._costs = self._strategy_costs(runs)

    def of(self, workloads: Sequence[Workload]) -> list[WorkloadTime]:
        """Return the times of some workloads."""
        means, variances = self.steps.predict(workloads)
        return [self._time(*each) for each in zip(workloads, means.tolist(), variances.tolist(), strict=True)]

    def _time(self, workload: Workload, log_step: float, variance: float) -> WorkloadTime:
        cost = self._cost_of(workload)
        return WorkloadTime(
            workload=workload,
            log_step=log_step,
            deviation=math.sqrt(variance + self.run_deviation**2 + cost.deviation**2),
            fixed_share=self.steps.fixed_share(workload),
            cost=cost,
            is_measured=workload.step in self.steps.measured,
        )

    # --- From trials ------------------------------------------------------------------------------------------------

    def _measured(self, runs: Sequence[tuple[Workload, TrialRecord]], rough: StepTimes | None) -> list[StepTime]:
        """Return what trials say of each step, and note how much runs of one step differ."""
        found: defaultdict[str, list[tuple[Workload, float]]] = defaultdict(list)
        for workload, record in runs:
            share = FIRST_FIXED_SHARE if rough is None else rough.fixed_share(workload)
            found[workload.step].append((workload, math.log(_step_seconds(workload, record, share))))
        squares = [(value - fmean(v for _, v in same)) ** 2 for same in found.values() for _, value in same]
        freedom = RUN_WEIGHT + len(squares) - len(found)
        self.run_deviation = math.sqrt((RUN_WEIGHT * RUN_DEVIATION**2 + sum(squares)) / freedom)
        return [
            StepTime(
                workload=same[0][0],
                log_seconds=fmean(value for _, value in same),
                variance=self.run_deviation**2 / len(same),
            )
            for same in found.values()
        ]

    def _strategy_costs(self, runs: Sequence[tuple[Workload, TrialRecord]]) -> dict[str, dict[float, StrategyCost]]:
        """Return the mean costs of each strategy at each rate that ran."""
        found: defaultdict[str, defaultdict[float, list[StrategyCost]]] = defaultdict(lambda: defaultdict(list))
        for workload, record in runs:
            pruning = workload.config.pruning
            share = self.steps.fixed_share(workload)
            found[pruning.strategy][pruning.prune_rate].append(_cost_of(workload, record, share))
        return {
            strategy: {rate: _mean_cost(costs) for rate, costs in sorted(rates.items())}
            for strategy, rates in found.items()
        }

    def _cost_of(self, workload: Workload) -> StrategyCost:
        """Return a strategy's cost: as it ran, between rates that ran by a straight line, beyond them as at the end."""
        pruning = workload.config.pruning
        rates = self._costs.get(pruning.strategy)
        if rates is None:
            is_free = pruning.strategy in FREE_STRATEGIES
            return StrategyCost(deviation=VISITS_DEVIATION if is_free else UNKNOWN_COST)
        places = list(rates)

        def at_rate(name: str) -> float:
            return float(np.interp(pruning.prune_rate, places, [getattr(cost, name) for cost in rates.values()]))

        in_step, plan, prepare = at_rate("in_step"), at_rate("plan"), at_rate("prepare")
        # A rate that never ran may cost otherwise than its neighbours: half as much again, or half.
        doubt = 0.0 if pruning.prune_rate in rates else 0.5 * min(1.0, in_step + plan + prepare)
        return StrategyCost(
            in_step=in_step,
            plan=plan,
            prepare=prepare,
            log_visits=at_rate("log_visits"),
            deviation=math.hypot(at_rate("deviation"), doubt),
        )


def _believable(workloads: Workloads, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials to take times from: of each step the undisturbed ones, where it has any."""
    by_step: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        by_step[workloads.of(record.params).step].append(record)
    calm = {step: [one for one in same if one.status != "disturbed"] for step, same in by_step.items()}
    return [record for step, same in by_step.items() for record in calm[step] or same]


def _visited(record: TrialRecord) -> Counter[int]:
    return Counter(epoch.samples for epoch in record.curve)


def _in_steps(record: TrialRecord) -> float:
    """Return the seconds of a trial that are neither pruning's choice nor its planning."""
    phases = record.phases or PhaseSeconds()
    assert record.train_seconds is not None
    return max(record.train_seconds - phases.pruning, 0.05 * record.train_seconds)


def _step_seconds(workload: Workload, record: TrialRecord, fixed_share: float) -> float:
    return _in_steps(record) / effective_steps(_visited(record), workload.batch, fixed_share)


def _cost_of(workload: Workload, record: TrialRecord, fixed_share: float) -> StrategyCost:
    phases, steps = record.phases or PhaseSeconds(), _in_steps(record)
    epoch_seconds = _step_seconds(workload, record, fixed_share) * workload.images / workload.batch
    epochs = len(record.curve)
    said = workload.visits(epochs)
    return StrategyCost(
        in_step=(phases.select + phases.observe) / steps,
        plan=phases.plan / epochs / epoch_seconds,
        prepare=phases.prepare / epoch_seconds,
        log_visits=math.log(sum(size * count for size, count in _visited(record).items()) / said),
    )


def _mean_cost(costs: Sequence[StrategyCost]) -> StrategyCost:
    """Return the mean; visits are held near the schedule's by as much as two trials."""
    visits = sum(cost.log_visits for cost in costs) / (len(costs) + 2)
    return StrategyCost(
        in_step=fmean(cost.in_step for cost in costs),
        plan=fmean(cost.plan for cost in costs),
        prepare=fmean(cost.prepare for cost in costs),
        log_visits=visits,
        deviation=math.hypot(VISITS_DEVIATION / math.sqrt(len(costs) + 1), visits / 2),
    )
