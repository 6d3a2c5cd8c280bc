"""Both models of one study on one kind of machine, fitted to its records, and the configurations to choose among."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from budgettune.errors import UsageError
from budgettune.predict.curves import points_of
from budgettune.predict.measured_time import MeasuredSteps
from budgettune.predict.quality import QualityForecasts, QualityModel
from budgettune.predict.run_time import TimeModel, WorkloadTime
from budgettune.predict.search_axes import SearchAxis, search_axes
from budgettune.predict.workload import Workload, Workloads
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.axes import RangeSpec, value_at
from budgettune.spec.objective import ObjectiveSpec
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import is_code, library_of
from budgettune.text import as_written

ENOUGH_TRIALS = 6
ENOUGH_CONFIGURATIONS = 4
TAIL = 0.05  # on either side of an interval

LONGEST_FACTOR = 4.0
"""Times the longest training that ran: beyond it the law of length is not trusted."""

SAMPLE = 1_000
"""Points of a search space with ranges or more cells than that; what ran is added to them."""

MOST_NAMED = 20
"""Values of an axis, of which those that never ran are named."""

LASTING = ("non-finite-loss", "out-of-memory")
"""Failures that would come again."""


class Predictor:
    """Predicts time and quality of any run of a study's search space.

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
        """Return the epochs beyond which a workload's quality is not predicted."""
        return max(1, round(LONGEST_FACTOR * self._longest_visits / workload.images))

    def visits(self, record: TrialRecord) -> float:
        """Return the samples that a trial visited, or of own training code its epochs."""
        return sum(self.workloads.of(record.params).visited(record))

    @cached_property
    def _longest_visits(self) -> float:
        return max(map(self.visits, self.finished))

    @property
    def noise_ceiling(self) -> float:
        """Share of the variance of finished trials' scores that is not their seeds': no model explains more."""
        line, noise = self.quality_model.line, self.quality_model.seed_noise
        finals = [points_of(self.workloads, record, line)[0] for record in self.finished]
        scores = np.array([point.score for point in finals])
        variance = float(np.var(scores))
        # A small step along the line moves the score by the slope there.
        between_seeds = line.slopes(scores) ** 2 * np.array([noise.of(point) for point in finals])
        return max(0.0, 1 - float(np.mean(between_seeds)) / variance) if variance else 0.0

    @cached_property
    def choice(self) -> Choice:
        """What there is to choose from."""
        return choice_of(self)

    @cached_property
    def time_model(self) -> TimeModel:
        return TimeModel(self.workloads, self.timed, self.probes)

    @cached_property
    def quality_model(self) -> QualityModel:
        """Scores, from trials of all machines."""
        return QualityModel(self.workloads, self.finished)


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
        value: mean of its objective, usually the accuracy, over seeds and over what is not known.
        value_low: the run ends below that in 5 of 100 cases.
        value_high: above that in 5 of 100.
        step_is_measured: whether its very step was timed, in a trial or by a probe.
    """

    params: Mapping[str, Any]
    epochs: int
    seconds: float
    seconds_low: float
    seconds_high: float
    chance_in_time: float
    value: float
    value_low: float
    value_high: float
    step_is_measured: bool

    @property
    def accuracy(self) -> float:
        """The value, under the name of the usual objective."""
        return self.value

    @property
    def accuracy_low(self) -> float:
        """The lower end, likewise."""
        return self.value_low

    @property
    def accuracy_high(self) -> float:
        """The upper end, likewise."""
        return self.value_high

    def to_json(self, objective: ObjectiveSpec) -> dict[str, Any]:
        """Return plain JSON values, in which the objective has its name."""
        key = "accuracy" if objective.is_accuracy else objective.key
        return {name.replace("value", key, name.startswith("value")): value for name, value in asdict(self).items()}


def prediction_of(
    time: WorkloadTime,
    epochs: int,
    budget_seconds: float,
    forecasts: QualityForecasts,
    index: int,
    objective: ObjectiveSpec,
) -> Prediction:
    """Return what is predicted of a run, its quality by one of some forecasts."""
    timing = time.at(epochs)
    low, high = sorted(objective.score(float(forecasts.quantile(share)[index])) for share in (TAIL, 1 - TAIL))
    return Prediction(
        params=dict(time.workload.params),
        epochs=epochs,
        seconds=timing.median_seconds,
        seconds_low=timing.quantile(TAIL),
        seconds_high=timing.quantile(1 - TAIL),
        chance_in_time=timing.chance_within(budget_seconds),
        value=objective.score(float(forecasts.expected()[index])),
        value_low=low,
        value_high=high,
        step_is_measured=time.is_measured,
    )


@dataclass(frozen=True)
class Choice:
    """What there is to choose from, and what was left out of it, as sentences."""

    times: tuple[WorkloadTime, ...]
    left_out: tuple[str, ...] = ()


def choice_of(predictor: Predictor) -> Choice:
    """Return the configurations whose time is measured, or follows from a formula, within the limits of the study.

    Where no formula tells times, these are the steps that were timed, each with all that changes no time. Where trials
    went beyond a limit of the study, so will what runs the same steps; where only some of those did, what is nearest to
    them: a limited number may depend on settings that change no time.
    """
    workloads, steps, records = predictor.workloads, predictor.time_model.steps, predictor.records
    found, left_out = (
        _with_measured_steps(workloads, records, steps)
        if isinstance(steps, MeasuredSteps)
        else (candidate_workloads(workloads, records), [])
    )
    axes, aim = search_axes(workloads.spec), workloads.spec.aim
    ran: defaultdict[Any, list[tuple[list[float], bool]]] = defaultdict(list)  # places, and whether within the limits
    for record in predictor.finished:
        ran[steps.key_of(workloads.of(record.params))].append((_place(axes, record.params), aim.allows(record)))

    def is_within(workload: Workload) -> bool:
        same = ran.get(steps.key_of(workload), [])
        if len({is_allowed for _, is_allowed in same}) < 2:
            return all(is_allowed for _, is_allowed in same)
        place = _place(axes, workload.params)
        return min(same, key=lambda one: math.dist(place, one[0]))[1]

    allowed = [workload for workload in found if is_within(workload)]
    if len(allowed) < len(found):
        limits = ", ".join(workloads.spec.constraints)
        left_out.append(f"{len(found) - len(allowed)} configurations are left out: their trials went beyond {limits}")
    return Choice(tuple(predictor.time_model.of(allowed)) if allowed else (), tuple(left_out))


def _place(axes: Sequence[SearchAxis], params: Mapping[str, Any]) -> list[float]:
    return [place for axis in axes for place in axis.places(params.get(axis.name))]


def _with_measured_steps(
    workloads: Workloads, records: Sequence[TrialRecord], steps: MeasuredSteps
) -> tuple[list[Workload], list[str]]:
    """Return what differs from a timed step in nothing that changes its time, and sentences on all else."""
    spec, timed = workloads.spec, list(steps.measured.values())
    everything = _points(spec)
    known = [point for point in everything if steps.key(point) in steps.measured]
    if _is_sampled(spec):  # hardly any point of it is like one that ran
        known = [spec.active({**point, **timed[place % len(timed)]}) for place, point in enumerate(everything)]
    found = [one for one in _not_failing(workloads, records, known) if steps.is_measured(one)]
    missing = [point for point in everything if steps.key(point) not in steps.measured]
    if not missing:
        return found, []
    never = []
    for axis in steps.axes:
        values = dict.fromkeys(point[axis.name] for point in missing if axis.name in point)
        ran = {one.get(axis.name) for one in timed}
        if len(values) < MOST_NAMED:
            never += [f"{axis.name} {as_written(value)}" for value in values if value not in ran]
    which = f"{', '.join(never[:5])}{' …' * (len(never) > 5)} never ran: " if never else ""
    total = f"{len(everything)} {'drawn from the search space' if _is_sampled(spec) else 'in the search space'}"
    return found, [f"{which}{len(missing)} configurations without a measured step are left out, of {total}"]


def _points(spec: StudySpec) -> list[dict[str, Any]]:
    """Return the cells of a search space, or points drawn from it where it has ranges or many cells."""
    if not _is_sampled(spec):
        return [dict(cell) for cell in spec.cells()]
    places = np.random.default_rng(0).random((SAMPLE, len(spec.search))).tolist()
    return [
        spec.active({name: value_at(axis, place) for (name, axis), place in zip(spec.search.items(), row, strict=True)})
        for row in places
    ]


def _is_sampled(spec: StudySpec) -> bool:
    return any(isinstance(axis, RangeSpec) for axis in spec.search.values()) or spec.cell_count() > SAMPLE


def candidate_workloads(workloads: Workloads, records: Sequence[TrialRecord]) -> list[Workload]:
    """Return what may be recommended of a study: the search space and what ran, without what is known to fail."""
    return _not_failing(workloads, records, _points(workloads.spec))


def _not_failing(
    workloads: Workloads, records: Sequence[TrialRecord], points: Sequence[Mapping[str, Any]]
) -> list[Workload]:
    """Return some points and what ran, without what is known to fail, each once."""
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
    only. Own training code is probed by an epoch of it. Records are of the study's trials in any state, probes were
    taken on that kind of machine.
    """
    own_code = spec.train.is_own_code
    own_models = [name for name in spec.model_names if is_code(name) and library_of(name) is None]
    if not own_code and (spec.data.facts is None or own_models):
        return []
    workloads, probes = Workloads(spec, records), list(probes)
    candidates = candidate_workloads(workloads, records)
    timed = [record for record in workloads.finished() if record.device_name == device_name]
    if own_code and (timed or probes):
        steps = TimeModel(workloads, timed, probes).steps
        distinct = {steps.key_of(workload): workload for workload in candidates}
        return [workload for workload in distinct.values() if not steps.is_measured(workload)]
    ran = [one.params for one in records if one.state == "COMPLETE" and one.device_name == device_name]
    known = {probe.step for probe in probes}
    known |= {workload.step for params in ran if (workload := workloads.find(params)) is not None}
    by_step = {workload.step: workload for workload in candidates}
    return [workload for step, workload in by_step.items() if step not in known]
