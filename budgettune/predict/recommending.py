"""From two models to an answer: the run of highest expected accuracy that is likely to end in time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from budgettune.errors import NothingFits, UsageError
from budgettune.predict.answer import Basis, NextTrial, Prediction, Recommendation
from budgettune.predict.axes import axes_of, outside
from budgettune.predict.candidates import candidates
from budgettune.predict.gaussian import Floats
from budgettune.predict.predictor import ENOUGH_CONFIGURATIONS, ENOUGH_TRIALS, ObservedAccuracies, Predictor
from budgettune.predict.timing import UNKNOWN_COST, WorkloadTime
from budgettune.predict.workload import Workload
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec import StudySpec

LONGEST_FACTOR = 4.0
"""Times the longest training that ran: beyond it the law of length is not trusted."""

SHORTER = (0.8, 0.5)
"""Parts of the longest training that fits which are tried as well: more is not always better."""

TAIL = 0.05  # on either side of an interval
LEAST_GAIN = 0.0005  # in accuracy, from which a next trial is worth naming

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Ask:
    """A question.

    Attributes:
        budget_seconds: of training, on the clock.
        confidence: least probability of ending in time.
    """

    budget_seconds: float
    confidence: float = 0.9

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence {self.confidence:g}: give a probability from 0.5 up to, but not, 1")


def recommend(
    spec: StudySpec,
    records: Sequence[TrialRecord],
    ask: Ask,
    *,
    device_name: str | None = None,
    probes: Mapping[str, Sequence[StepProbe]] | None = None,
) -> Recommendation:
    """Return the run of highest expected accuracy whose probability of ending in time is at least the confidence.

    Args:
        spec: of the study.
        records: of its trials, in any state; curves are needed.
        ask: the question.
        device_name: kind of machine that will train; None for the one with most trials.
        probes: step times taken outside trials, by kind of machine.

    Raises:
        UsageError: where nothing has finished, or nothing was timed on that kind of machine.
        NothingFits: where not even one epoch of anything is likely to end in time.
    """
    predictor = Predictor(spec, records, device_name=device_name, probes=probes)
    choices = Choices(predictor, _runs(predictor, ask), ask)
    best = choices.best()
    return Recommendation(
        study=spec.name,
        budget_seconds=ask.budget_seconds,
        confidence=ask.confidence,
        device_name=predictor.device_name,
        choice=choices.prediction(best),
        observed=_best_observed(predictor, ask),
        extrapolated=tuple(_extrapolated(predictor, *choices.runs[best])),
        next_trial=None if predictor.is_thin else choices.worth_knowing(best),
        basis=_basis(predictor, choices, best),
        notes=tuple(_notes(predictor, *choices.timed_runs[best])),
    )


class Choices:
    """Runs among which one is chosen, with what is predicted of them.

    Args:
        predictor: of their study.
        runs: with their times; at least one of them likely to end in time.
        ask: the question.
    """

    def __init__(self, predictor: Predictor, runs: Sequence[tuple[WorkloadTime, int]], ask: Ask) -> None:
        self.timed_runs = runs
        self.runs = [(time.workload, epochs) for time, epochs in runs]
        self._timings = [time.at(epochs) for time, epochs in runs]
        self._forecasts = predictor.accuracy_model.predict(self.runs)
        self._expected = self._forecasts.expected()
        self._chances = np.array([timing.chance_within(ask.budget_seconds) for timing in self._timings])
        self._fits = self._chances >= ask.confidence

    def best(self) -> int:
        """Return the index of the run to train."""
        return int(np.argmax(np.where(self._fits, self._expected, -1.0)))

    def prediction(self, index: int) -> Prediction:
        """Return what is predicted of a run."""
        (workload, epochs), timing = self.runs[index], self._timings[index]
        low, high = (float(self._forecasts.quantile(share)[index]) for share in (TAIL, 1 - TAIL))
        return Prediction(
            params=dict(workload.params),
            epochs=epochs,
            seconds=timing.median_seconds,
            seconds_low=timing.quantile(TAIL),
            seconds_high=timing.quantile(1 - TAIL),
            chance_in_time=float(self._chances[index]),
            accuracy=float(self._expected[index]),
            accuracy_low=low,
            accuracy_high=high,
            step_is_measured=self.timed_runs[index][0].is_measured,
        )

    def seed_deviation(self, index: int) -> float:
        """Return the deviation of accuracy between seeds of a run."""
        accuracy = self._expected[index]
        return float(accuracy * (1 - accuracy) * math.sqrt(self._forecasts.seeds[index]))

    def worth_knowing(self, best: int) -> NextTrial | None:
        """Return the run whose result is worth most to the answer, None where that is next to nothing.

        The worth is the knowledge gradient (Frazier, Powell and Dayanik 2008) of one more trial, each run by itself:
        how much better the best of what is known is expected to be, times the probability that the run ends in time.
        """
        means, slope = self._expected, self._expected * (1 - self._expected)
        learnt = slope * self._forecasts.variances / np.sqrt(self._forecasts.variances + self._forecasts.seeds)
        others = np.where(self._fits & (np.arange(len(means)) != best), means, -1.0)
        rival = np.where(np.arange(len(means)) == best, others.max(), means[best])
        gains = self._chances * _expected_gain(np.abs(means - rival), learnt)
        index = int(np.argmax(gains))
        if gains[index] < LEAST_GAIN:
            return None
        return NextTrial(prediction=self.prediction(index), gain=float(gains[index]))


def _expected_gain(distances: Floats, deviations: Floats) -> Floats:
    """Return how far a normal variable is expected to pass a rival that is so far away from its mean: float64[n]."""
    scaled = distances / np.maximum(deviations, 1e-12)
    density = np.exp(-0.5 * scaled**2) / math.sqrt(2 * math.pi)
    beyond = np.array([_NORMAL.cdf(-value) for value in scaled])
    return deviations * (density - scaled * beyond)


def _runs(predictor: Predictor, ask: Ask) -> list[tuple[WorkloadTime, int]]:
    """Return the runs to choose among: what ran, where evidence is thin; else the search space at several lengths."""
    model = predictor.accuracy_model
    if isinstance(model, ObservedAccuracies):
        times = predictor.time_model.of([workload for workload, _ in model.runs])
        runs = [(time, epochs) for time, (_, epochs) in zip(times, model.runs, strict=True)]
    else:
        times = predictor.time_model.of(candidates(predictor.workloads, predictor.records))
        runs = [(time, epochs) for time in times for epochs in _lengths(predictor, time, ask)]
    if not any(time.at(epochs).chance_within(ask.budget_seconds) >= ask.confidence for time, epochs in runs):
        raise NothingFits(ask.budget_seconds, ask.confidence, _fastest(times, ask.confidence))
    return runs


def _lengths(predictor: Predictor, time: WorkloadTime, ask: Ask) -> list[int]:
    """Return the epochs to try: the most that are likely to end in time, the most that may, and some fewer."""
    most = _most_epochs(predictor, time.workload)
    longest = time.longest(ask.budget_seconds, ask.confidence, most)
    hopeful = time.longest(ask.budget_seconds, 0.5, most)
    if longest is None:
        return [] if hopeful is None else [hopeful]
    tried = {longest, hopeful or longest, *(max(1, round(part * longest)) for part in SHORTER)}
    return sorted(epochs for epochs in tried if time.workload.can_train(epochs))


def _fastest(times: Sequence[WorkloadTime], confidence: float) -> float:
    """Return the seconds within which the shortest run of anything ends, with a probability."""
    shortest = (next(epochs for epochs in range(1, 10_000) if time.workload.can_train(epochs)) for time in times)
    return min(time.at(epochs).quantile(confidence) for time, epochs in zip(times, shortest, strict=True))


def _best_observed(predictor: Predictor, ask: Ask) -> TrialRecord | None:
    """Return the most accurate finished trial of this kind of machine within the budget."""
    within = [
        record
        for record in predictor.timed
        if record.train_seconds is not None and record.train_seconds <= ask.budget_seconds
    ]
    return max(within, key=lambda record: record.test_accuracy or 0.0, default=None)


def _extrapolated(predictor: Predictor, workload: Workload, epochs: int) -> list[str]:
    """Return sentences on what lies outside all that ran."""
    seen = [record.params for record in predictor.finished]
    found = outside(axes_of(predictor.workloads.spec), workload.params, seen)
    visits = [sum(epoch.samples for epoch in record.curve) for record in predictor.finished]
    wanted = workload.visits(epochs)
    if not min(visits) <= wanted <= 1.001 * max(visits):
        lengths = sorted({len(record.curve) for record in predictor.finished})
        ran = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        found.append(f"{epochs} epochs are {wanted:,.0f} sample visits; trials of {ran} epochs ran")
    if workload.step not in predictor.time_model.steps.measured:
        found.append(f"the step ({workload.step}) was never timed")
    if workload.is_estimated:
        found.append(f"the arithmetic of {workload.network} is a guess")
    return found


def _basis(predictor: Predictor, choices: Choices, best: int) -> Basis:
    records = predictor.finished
    configurations = {predictor.workloads.of(record.params) for record in records}
    return Basis(
        method="observed" if predictor.is_thin else "model",
        trials=len(records),
        configurations=len(configurations),
        repeats=predictor.accuracy_model.seed_noise.repeats,
        seed_points=100 * choices.seed_deviation(best),
        noise_ceiling=predictor.noise_ceiling,
        step_times=len(predictor.time_model.steps.measured),
        probe_seconds=sum(probe.seconds for probe in predictor.probes),
    )


def _notes(predictor: Predictor, choice: WorkloadTime, epochs: int) -> Iterator[str]:
    """Yield what else a reader must know before trusting the answer."""
    records = predictor.finished
    if predictor.is_thin:
        yield (
            f"too little has finished to predict what did not run ({len(records)} trials; {ENOUGH_TRIALS} of "
            f"{ENOUGH_CONFIGURATIONS} configurations are needed): this is the best of what ran"
        )
    if not predictor.accuracy_model.seed_noise.repeats:
        yield "no configuration ran twice: how far seeds lie apart is assumed, not measured"
    if len(predictor.timed) < len(records):
        yield (
            f"{len(records) - len(predictor.timed)} of {len(records)} trials ran on other machines: they tell of "
            f"accuracy, not of time"
        )
    if disturbed := sum(record.status == "disturbed" for record in predictor.timed):
        yield f"{disturbed} of {len(predictor.timed)} times are marked disturbed"
    if not predictor.is_thin and epochs >= _most_epochs(predictor, choice.workload):
        yield (
            f"longer training is not predicted: {epochs} epochs are {LONGEST_FACTOR:g} times the longest that ran"
        )
    if choice.cost.deviation >= UNKNOWN_COST:
        yield f"what {choice.workload.config.pruning.strategy} costs beside its steps was never measured"


def _most_epochs(predictor: Predictor, workload: Workload) -> int:
    return max(1, round(LONGEST_FACTOR * predictor.longest_visits / workload.images))
