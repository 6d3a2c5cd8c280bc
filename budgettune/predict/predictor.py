"""Both models of one study on one kind of machine, fitted to its records, and the configurations to choose among."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from budgettune.errors import UsageError
from budgettune.predict.accuracy import AccuracyForecasts, AccuracyModel
from budgettune.predict.curves import points_of
from budgettune.predict.run_time import TimeModel, WorkloadTime
from budgettune.predict.workload import Workload, Workloads, visited_samples
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.axes import RangeSpec, value_at
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import is_code

ENOUGH_TRIALS = 6
ENOUGH_CONFIGURATIONS = 4
TAIL = 0.05  # on either side of an interval

LONGEST_FACTOR = 4.0
"""Times the longest training that ran: beyond it the law of length is not trusted."""

SAMPLE = 1_000
"""Points of a search space with ranges or more cells than that; what ran is added to them."""

LASTING = ("non-finite-loss", "out-of-memory")
"""Failures that would come again."""


class Predictor:
    """Predicts time and accuracy of any run of a study's search space.

    Args:
        spec: of the study.
        records: of its trials, in any state; curves are needed.
        device_name: kind of machine that times are wanted of; None for the one with most trials.
        probes: step times taken outside trials, by kind of machine.

    Raises:
        UsageError: where too little has finished yet, or nothing was timed on that kind of machine.
    """

    def __init__(
        self,
        spec: StudySpec,
        records: Sequence[TrialRecord],
        *,
        device_name: str | None = None,
        probes: Mapping[str, Sequence[StepProbe]] | None = None,
    ) -> None:
        self.records = records
        self.workloads = Workloads(spec, records)
        self.finished = self.workloads.finished()  # trials to learn from
        self.configurations = len({self.workloads.of(record.params) for record in self.finished})
        if len(self.finished) < ENOUGH_TRIALS or self.configurations < ENOUGH_CONFIGURATIONS:
            raise UsageError(
                f"too little of study {spec.name!r} has finished to predict what never ran: trials "
                f"{len(self.finished)} (at least {ENOUGH_TRIALS} needed), different configurations among them "
                f"{self.configurations} (at least {ENOUGH_CONFIGURATIONS}): "
                f"let `budgettune worker` run what is open, or make a study of more trials; "
                f"`budgettune best --budget` answers from what ran"
            )
        ran_on = Counter(record.device_name for record in self.finished)
        self.device_name = device_name or ran_on.most_common(1)[0][0]  # None where trials do not tell
        self.probes = list((probes or {}).get(self.device_name or "", ()))
        self.timed = [record for record in self.finished if record.device_name == self.device_name]
        if not self.timed and not self.probes:
            kinds = "; ".join(sorted(map(str, ran_on)))
            raise UsageError(
                f"nothing of study {spec.name!r} was timed on {self.device_name!r}: probe there with "
                f"`budgettune recommend --probe 30s`, or name one of: {kinds}"
            )

    def most_epochs(self, workload: Workload) -> int:
        """Return the epochs beyond which a workload's accuracy is not predicted."""
        return max(1, round(LONGEST_FACTOR * self._longest_visits / workload.images))

    @cached_property
    def _longest_visits(self) -> int:
        return max(map(visited_samples, self.finished))

    @property
    def noise_ceiling(self) -> float:
        """Share of the variance of finished trials' accuracies that is not their seeds': no model explains more."""
        finals = [points_of(self.workloads, record)[0] for record in self.finished]
        variance = float(np.var([point.accuracy for point in finals]))
        noise = self.accuracy_model.seed_noise
        # A small step of the logit moves the accuracy by accuracy · (1 - accuracy) of it.
        between_seeds = [(point.accuracy * (1 - point.accuracy)) ** 2 * noise.of(point) for point in finals]
        return max(0.0, 1 - float(np.mean(between_seeds)) / variance) if variance else 0.0

    @cached_property
    def time_model(self) -> TimeModel:
        return TimeModel(self.workloads, self.timed, self.probes)

    @cached_property
    def accuracy_model(self) -> AccuracyModel:
        """Accuracies, from trials of all machines."""
        return AccuracyModel(self.workloads, self.finished)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one run is expected to give.

    Attributes:
        params: searched values, those of the length of training left out.
        epochs: of the run.
        seconds: median of its training time.
        seconds_low: the run is faster than that in 5 of 100 cases.
        seconds_high: slower in 5 of 100.
        chance_in_time: probability of ending within the budget.
        accuracy: mean of its accuracy, over seeds and over what is not known.
        accuracy_low: the run is less accurate than that in 5 of 100 cases.
        accuracy_high: more accurate in 5 of 100.
        step_is_measured: whether its very step was timed, in a trial or by a probe.
    """

    params: Mapping[str, Any]
    epochs: int
    seconds: float
    seconds_low: float
    seconds_high: float
    chance_in_time: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    step_is_measured: bool


def prediction_of(
    time: WorkloadTime, epochs: int, budget_seconds: float, forecasts: AccuracyForecasts, index: int
) -> Prediction:
    """Return what is predicted of a run, its accuracy by one of some forecasts."""
    timing = time.at(epochs)
    return Prediction(
        params=dict(time.workload.params),
        epochs=epochs,
        seconds=timing.median_seconds,
        seconds_low=timing.quantile(TAIL),
        seconds_high=timing.quantile(1 - TAIL),
        chance_in_time=timing.chance_within(budget_seconds),
        accuracy=float(forecasts.expected()[index]),
        accuracy_low=float(forecasts.quantile(TAIL)[index]),
        accuracy_high=float(forecasts.quantile(1 - TAIL)[index]),
        step_is_measured=time.is_measured,
    )


def candidate_workloads(workloads: Workloads, records: Sequence[TrialRecord]) -> list[Workload]:
    """Return what may be recommended of a study: the search space and what ran, without what is known to fail."""
    spec = workloads.spec
    if any(isinstance(axis, RangeSpec) for axis in spec.search.values()) or spec.cell_count() > SAMPLE:
        places = np.random.default_rng(0).random((SAMPLE, len(spec.search))).tolist()
        points = [
            spec.active(
                {name: value_at(axis, place) for (name, axis), place in zip(spec.search.items(), row, strict=True)}
            )
            for row in places
        ]
    else:
        points = spec.cells()
    ran = [record.params for record in records if record.state == "COMPLETE"]
    broken = [record.params for record in records if (record.failure or "").startswith(LASTING)]
    failing = set(map(workloads.find, broken)) - set(map(workloads.find, ran))
    distinct = dict.fromkeys(map(workloads.find, [*points, *ran]))
    return [workload for workload in distinct if workload is not None and workload not in failing]


def unmeasured(
    spec: StudySpec, records: Sequence[TrialRecord], probes: Iterable[StepProbe], device_name: str
) -> list[Workload]:
    """Return one candidate for each step that neither trials nor probes have timed and that a probe can time.

    Nothing of a set or a model of your own: a probe trains on random images, and knows the shapes of the built-in sets
    only; steps are told apart by the arithmetic of the package's own networks. Records are of the study's trials in any
    state, probes were taken on that kind of machine.
    """
    if spec.data.facts is None or any(map(is_code, spec.model_names)):
        return []
    workloads = Workloads(spec, records)
    ran = [one.params for one in records if one.state == "COMPLETE" and one.device_name == device_name]
    timed = {probe.step for probe in probes}
    timed |= {workload.step for params in ran if (workload := workloads.find(params)) is not None}
    distinct = {workload.step: workload for workload in candidate_workloads(workloads, records)}
    return [workload for step, workload in distinct.items() if step not in timed]
