"""How long a run takes: its epochs are simulated step by step, and finished trials correct the simulation.

    T = step · (Σ_epochs effective steps + what the strategy adds)

Effective steps count a last batch that is not full by its size and by the fixed share of a step. What a pruning
strategy adds (helpers, scores, plans, looking at candidates) is taken from the trials that ran it, in units of a step,
and so is how many samples it really visits. Time is never regressed on `scale`. Own training code has epochs for steps,
and they need not be alike: see `budgettune.predict.measured_time`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist, fmean

import numpy as np

from budgettune.predict.measured_time import USUAL_FIXED_SHARE, MeasuredSteps, Pace
from budgettune.predict.regression import Floats
from budgettune.predict.step_time import StepTime, StepTimes
from budgettune.predict.workload import Workload, Workloads
from budgettune.records import PhaseSeconds, StepProbe, TrialRecord
from budgettune.spec.pruning import STRATEGIES, batch_count

UNKNOWN_COST = 0.3  # deviation of the log of a run's time where its strategy never ran
VISITS_DEVIATION = 0.02  # of the log of visits over what the schedule says, before anything is observed
VISITS_WEIGHT = 2.0  # trials that the schedule's own visits are worth
FIRST_FIXED_SHARE = 0.1  # of a step, until the model says

_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class Timing:
    """A run's time, log-normal."""

    median_seconds: float
    deviation: float  # of the log of seconds

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of runs ends."""
        return self.median_seconds * math.exp(self.deviation * _NORMAL.inv_cdf(share))

    def chance_within(self, seconds: float) -> float:
        """Return the probability of ending within some seconds."""
        return _NORMAL.cdf(math.log(seconds / self.median_seconds) / self.deviation)


@dataclass(frozen=True)
class StrategyCost:
    """What a pruning strategy adds to a run."""

    in_step: float = 0.0  # of the time of steps: looking at candidates, handing losses back
    plan: float = 0.0  # per epoch, in epochs of training on all images
    prepare: float = 0.0  # once, in the same unit
    log_visits: float = 0.0  # log of the samples visited over those that its schedule says
    deviation: float = 0.0  # of the log of a run's time, from not knowing these better


@dataclass(frozen=True, kw_only=True)
class WorkloadTime:
    """The time of one workload at any length."""

    workload: Workload
    log_step: float  # log of the seconds of a full step
    deviation: float  # of the log of a run's time
    fixed_share: float  # of a step: what does not depend on the batch
    cost: StrategyCost
    is_measured: bool  # whether this very step was timed
    pace: Pace | None = None  # of epochs of own training code

    def at(self, epochs: int) -> Timing:
        """Return the time of a run of some epochs.

        Raises:
            SpecError: where the strategy cannot reach its prune rate in so few.
        """
        workload, cost = self.workload, self.cost
        if self.pace is None:
            steps = effective_steps(workload.epoch_sizes(epochs), workload.batch, self.fixed_share)
        else:
            steps = self.pace.epochs(epochs)
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


def effective_steps(sizes: Mapping[int, int], batch: int, fixed_share: float) -> float:
    """Return what epochs cost in full steps: each batch costs the fixed share, and by its size.

    Sizes are epochs by the samples that they visit; the fixed share, in [0, 1], of a full step's time does not depend
    on the batch.
    """
    return sum(
        count * (fixed_share * batch_count(size, batch) + (1 - fixed_share) * size / batch)
        for size, count in sizes.items()
    )


TimedRun = tuple[Workload, TrialRecord]


class TimeModel:
    """Times of one kind of machine, learnt from finished trials and probes taken there, at least one of either."""

    def __init__(self, workloads: Workloads, records: Sequence[TrialRecord], probes: Sequence[StepProbe] = ()) -> None:
        runs = [(workloads.of(record.params), record) for record in _believable(workloads, records)]
        ran = [workload for workload, _ in runs]
        own_code = workloads.spec.train.is_own_code
        self.pace = Pace.of([_whole_epochs(*run) for run in runs]) if own_code else None
        probed = [
            self._of_probe(probe, workload)
            for probe in probes
            if (workload := workloads.find(probe.params)) is not None
        ]
        self.steps: StepTimes | MeasuredSteps
        if workloads.have_arithmetic:
            # A step's fixed share says what a last batch costs, and that what a step costs: twice around is enough.
            rough = _step_times(runs, np.full(len(runs), FIRST_FIXED_SHARE), probed)
            self.steps = _step_times(runs, rough.fixed_shares(ran), probed)
        else:
            seconds = [self._step_seconds(*run) for run in runs]
            timed = [
                StepTime(workload=workload, log_seconds=math.log(each))
                for workload, each in zip(ran, seconds, strict=True)
            ]
            self.steps = MeasuredSteps(workloads.spec, [*timed, *probed])
        self._costs = {} if own_code else _strategy_costs(runs, self.steps.fixed_shares(ran))

    def _of_probe(self, probe: StepProbe, workload: Workload) -> StepTime:
        time = StepTime.of_probe(probe, workload)
        first = math.log(self.pace.epochs(1)) if self.pace else 0.0  # own code is probed for an epoch
        return replace(time, log_seconds=time.log_seconds - first)

    def _step_seconds(self, workload: Workload, record: TrialRecord) -> float:
        if self.pace is None:
            return _step_seconds(workload, record, USUAL_FIXED_SHARE)
        assert record.train_seconds is not None
        return record.train_seconds / self.pace.epochs(sum(workload.visited(record)))

    def of(self, workloads: Sequence[Workload]) -> list[WorkloadTime]:
        means, variances = self.steps.predict(workloads)
        columns = (means.tolist(), variances.tolist(), self.steps.fixed_shares(workloads).tolist())
        return [
            WorkloadTime(
                workload=workload,
                log_step=log_step,
                deviation=math.sqrt(variance + self.steps.run_deviation**2 + cost.deviation**2),
                fixed_share=fixed_share,
                cost=cost,
                is_measured=self.steps.is_measured(workload),
                pace=self.pace,
            )
            for workload, log_step, variance, fixed_share in zip(workloads, *columns, strict=True)
            for cost in [self._cost_of(workload)]
        ]

    def _cost_of(self, workload: Workload) -> StrategyCost:
        """Return a strategy's cost: as it ran, between rates that ran by a straight line, beyond them as at the end."""
        pruning = workload.config.pruning
        if self.pace is not None:
            return StrategyCost()
        if pruning.strategy not in self._costs:
            is_free = pruning.strategy in STRATEGIES and STRATEGIES[pruning.strategy].is_free
            return StrategyCost(deviation=VISITS_DEVIATION if is_free else UNKNOWN_COST)
        rates, costs = self._costs[pruning.strategy]
        cost = StrategyCost(*(float(np.interp(pruning.prune_rate, rates, column)) for column in costs.T))
        # A rate that never ran may cost otherwise than its neighbours: half as much again, or half.
        doubt = 0.0 if pruning.prune_rate in rates else 0.5 * min(1.0, cost.in_step + cost.plan + cost.prepare)
        return replace(cost, deviation=math.hypot(cost.deviation, doubt))


def _believable(workloads: Workloads, records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the trials to take times from: of each step the undisturbed ones, where it has any."""
    by_step: defaultdict[str, list[TrialRecord]] = defaultdict(list)
    for record in records:
        by_step[workloads.of(record.params).step].append(record)
    calm = {step: [one for one in same if one.status != "disturbed"] for step, same in by_step.items()}
    return [record for step, same in by_step.items() for record in calm[step] or same]


def _step_times(runs: Sequence[TimedRun], fixed_shares: Floats, probed: Sequence[StepTime]) -> StepTimes:
    """Return the times of steps that probes and runs suggest, fixed shares being those of the runs: float64[runs]."""
    by_step: defaultdict[str, list[tuple[Workload, float]]] = defaultdict(list)
    for (workload, record), share in zip(runs, fixed_shares.tolist(), strict=True):
        by_step[workload.step].append((workload, math.log(_step_seconds(workload, record, share))))
    means = {step: fmean(value for _, value in same) for step, same in by_step.items()}
    scatter = sum((value - means[step]) ** 2 for step, same in by_step.items() for _, value in same)
    times = [StepTime(workload=same[0][0], log_seconds=means[step], runs=len(same)) for step, same in by_step.items()]
    return StepTimes([*times, *probed], scatter, len(runs) - len(by_step))


def _step_seconds(workload: Workload, record: TrialRecord, fixed_share: float) -> float:
    visited = Counter(epoch.samples or 0 for epoch in record.curve)
    return _in_steps(record) / effective_steps(visited, workload.batch, fixed_share)


def _whole_epochs(workload: Workload, record: TrialRecord) -> list[float]:
    """Return the seconds at the end of each epoch that was trained as a whole."""
    visited = workload.visited(record)
    return [epoch.train_seconds for epoch, share in zip(record.curve, visited, strict=True) if share == 1.0]


def _in_steps(record: TrialRecord) -> float:
    """Return the seconds of a trial that are neither pruning's choice nor its planning."""
    phases = record.phases or PhaseSeconds()
    assert record.train_seconds is not None
    return max(record.train_seconds - phases.pruning, 0.05 * record.train_seconds)


def _strategy_costs(runs: Sequence[TimedRun], fixed_shares: Floats) -> dict[str, tuple[Floats, Floats]]:
    """Return for each strategy the rates that ran, float64[r], and a row of costs for each: float64[r, 5]."""
    by_rate: defaultdict[str, defaultdict[float, list[Floats]]] = defaultdict(lambda: defaultdict(list))
    for (workload, record), share in zip(runs, fixed_shares.tolist(), strict=True):
        pruning = workload.config.pruning
        by_rate[pruning.strategy][pruning.prune_rate].append(_cost_in_steps(workload, record, share))
    return {
        strategy: (np.array(sorted(rates)), np.array([_mean_cost(rates[rate]) for rate in sorted(rates)]))
        for strategy, rates in by_rate.items()
    }


def _cost_in_steps(workload: Workload, record: TrialRecord, fixed_share: float) -> Floats:
    """Return a trial's in_step, plan, prepare and log_visits: float64[4]."""
    phases, epochs = record.phases or PhaseSeconds(), len(record.curve)
    whole_epoch = _step_seconds(workload, record, fixed_share) * workload.images / workload.batch
    # By shares, because a time budget cuts the last epoch short.
    planned = workload.visits(epochs) / (workload.images * epochs) if workload.can_train(epochs) else None
    return np.array(
        [
            (phases.select + phases.observe) / _in_steps(record),
            phases.plan / epochs / whole_epoch,
            phases.prepare / whole_epoch,
            math.log(record.keep_fraction / planned) if planned and record.keep_fraction else 0.0,
        ]
    )


def _mean_cost(costs: Sequence[Floats]) -> Floats:
    """Return the mean and its deviation, float64[5]; visits are held near the schedule's."""
    in_step, plan, prepare, log_visits = np.mean(costs, axis=0).tolist()
    log_visits *= len(costs) / (len(costs) + VISITS_WEIGHT)
    deviation = math.hypot(VISITS_DEVIATION / math.sqrt(len(costs) + 1), log_visits / 2)
    return np.array([in_step, plan, prepare, log_visits, deviation])
