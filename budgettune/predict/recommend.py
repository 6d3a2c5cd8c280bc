"""The answer to a budget: the run of highest expected accuracy that is likely to end in time, how sure, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from budgettune.errors import NothingFits, UsageError
from budgettune.predict.predictor import LONGEST_FACTOR, Prediction, Predictor, candidate_workloads, prediction_of
from budgettune.predict.regression import on_one_thread
from budgettune.predict.run_time import UNKNOWN_COST, WorkloadTime
from budgettune.predict.search_axes import outside, search_axes
from budgettune.predict.workload import visited_samples
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec

LEAST_GAIN = 0.0005  # in accuracy, from which a next trial is worth naming

_NORMAL = NormalDist()


@dataclass(frozen=True)
class Ask:
    """The question: what to train within a budget."""

    budget_seconds: float  # of training, on the clock
    confidence: float = 0.9  # least probability of ending in time

    def __post_init__(self) -> None:
        if not 0.5 <= self.confidence < 1:
            raise UsageError(f"confidence {self.confidence:g}: give a probability from 0.5 up to, but not, 1")


@dataclass(frozen=True, kw_only=True)
class NextTrial:
    """The run that is worth most before asking again."""

    prediction: Prediction  # of it; its seconds are what it costs
    gain: float  # in accuracy of the answer, expected from knowing its result


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What an answer rests on."""

    trials: int  # finished ones
    configurations: int  # different ones among them
    repeats: int  # trials beyond the first of their configuration
    seed_points: float  # deviation of accuracy between seeds at the choice, in points of 100
    noise_ceiling: float  # share of the variance of trials' accuracies that is not their seed's: no model explains more
    step_times: int  # different steps that were timed
    probe_seconds: float  # that probes took, beside all trials


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to train within a budget, how sure that is, and why.

    Attributes:
        choice: what to train.
        observed: the most accurate finished trial within the budget, None where there is none.
        extrapolated: in what the choice lies outside all that ran.
        next_trial: what to run to know more; None where nothing is likely to change the answer.
        notes: what else a reader must know.
    """

    study: str
    budget_seconds: float
    confidence: float
    device_name: str | None
    choice: Prediction
    observed: TrialRecord | None
    extrapolated: tuple[str, ...]
    next_trial: NextTrial | None
    basis: Basis
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; of the observed trial what says which it is."""
        document = asdict(self)
        if self.observed is not None:
            names = ("number", "params", "epochs", "train_seconds", "test_accuracy")
            document["observed"] = {name: getattr(self.observed, name) for name in names}
        return document


@on_one_thread
def recommend(
    spec: StudySpec,
    records: Sequence[TrialRecord],
    ask: Ask,
    *,
    device_name: str | None = None,
    probes: Mapping[str, Sequence[StepProbe]] | None = None,
) -> Recommendation:
    """Return the run of highest expected accuracy whose probability of ending in time is at least the confidence.

    The other arguments are those of `Predictor`, device_name being the kind of machine that will train.

    Raises:
        UsageError: where too little has finished, or nothing was timed on that kind of machine.
        NothingFits: where not even one epoch of anything is likely to end in time.
    """
    predictor = Predictor(spec, records, device_name=device_name, probes=probes)
    candidates = Candidates(predictor, ask)
    best = candidates.best
    in_time = [record for record in predictor.timed if (record.train_seconds or math.inf) <= ask.budget_seconds]
    return Recommendation(
        study=spec.name,
        budget_seconds=ask.budget_seconds,
        confidence=ask.confidence,
        device_name=predictor.device_name,
        choice=candidates.prediction(best),
        observed=max(in_time, key=lambda record: record.test_accuracy or 0.0, default=None),
        extrapolated=tuple(_extrapolations(predictor, *candidates.runs[best])),
        next_trial=candidates.worth_knowing(),
        basis=Basis(
            trials=len(predictor.finished),
            configurations=predictor.configurations,
            repeats=predictor.accuracy_model.seed_noise.repeats,
            seed_points=100 * candidates.seed_deviation(best),
            noise_ceiling=predictor.noise_ceiling,
            step_times=len(predictor.time_model.steps.measured),
            probe_seconds=sum(probe.seconds for probe in predictor.probes),
        ),
        notes=tuple(_notes(predictor, *candidates.runs[best])),
    )


class Candidates:
    """Every candidate for as long as it is likely to end in time, and what is predicted of it.

    Raises:
        NothingFits: where there is none.
    """

    def __init__(self, predictor: Predictor, ask: Ask) -> None:
        self.ask = ask
        times = predictor.time_model.of(candidate_workloads(predictor.workloads, predictor.records))
        self.runs = [  # times, and the epochs that fit
            (time, epochs)
            for time in times
            if (epochs := time.longest(ask.budget_seconds, ask.confidence, predictor.most_epochs(time.workload)))
        ]
        if not self.runs:
            shortest = [time.at(time.workload.fewest_epochs()).quantile(ask.confidence) for time in times]
            raise NothingFits(ask.budget_seconds, ask.confidence, min(shortest))
        self._forecasts = predictor.accuracy_model.predict([(time.workload, epochs) for time, epochs in self.runs])
        self.expected = self._forecasts.expected()  # float64[len(runs)], accuracies
        self.best = int(np.argmax(self.expected))  # index of the run to train

    def prediction(self, index: int) -> Prediction:
        return prediction_of(*self.runs[index], self.ask.budget_seconds, self._forecasts, index)

    def seed_deviation(self, index: int) -> float:
        """Return the deviation of a run's accuracy between seeds."""
        accuracy = self.expected[index]
        return float(accuracy * (1 - accuracy) * math.sqrt(self._forecasts.seeds[index]))

    def worth_knowing(self) -> NextTrial | None:
        """Return the run whose result is worth most to the answer, None where that is next to nothing.

        The worth is the knowledge gradient (Frazier, Powell and Dayanik 2008) of one more trial, each run by itself:
        how much better the best of what is known is expected to be.
        """
        if len(self.runs) == 1:
            return None
        means, variances = self.expected, self._forecasts.variances
        learnt = means * (1 - means) * variances / np.sqrt(variances + self._forecasts.seeds)
        rivals = np.full(len(means), means[self.best])
        rivals[self.best] = np.delete(means, self.best).max()
        # How far a normal variable is expected to pass a rival that is so far away from its mean.
        scaled = np.abs(means - rivals) / np.maximum(learnt, 1e-12)
        density = np.exp(-0.5 * scaled**2) / math.sqrt(2 * math.pi)
        beyond = np.array([_NORMAL.cdf(-value) for value in scaled])
        gains = learnt * (density - scaled * beyond)
        index = int(np.argmax(gains))
        if gains[index] < LEAST_GAIN:
            return None
        return NextTrial(prediction=self.prediction(index), gain=float(gains[index]))


def _extrapolations(predictor: Predictor, time: WorkloadTime, epochs: int) -> Iterator[str]:
    ran = [record.params for record in predictor.finished]
    yield from outside(search_axes(predictor.workloads.spec), time.workload.params, ran)
    visits = [visited_samples(record) for record in predictor.finished]
    wanted = time.workload.visits(epochs)
    if not min(visits) <= wanted <= 1.001 * max(visits):
        lengths = sorted({len(record.curve) for record in predictor.finished})
        trained = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        yield f"{epochs} epochs are {wanted:,.0f} sample visits; trials of {trained} epochs ran"
    if not time.is_measured:
        yield f"the step ({time.workload.step}) was never timed"


def _notes(predictor: Predictor, time: WorkloadTime, epochs: int) -> Iterator[str]:
    if not predictor.accuracy_model.seed_noise.repeats:
        yield "no configuration ran twice: how far seeds lie apart is assumed, not measured"
    if elsewhere := len(predictor.finished) - len(predictor.timed):
        yield f"{elsewhere} of {len(predictor.finished)} trials ran elsewhere: they tell of accuracy, not of time"
    if disturbed := sum(record.status == "disturbed" for record in predictor.timed):
        yield f"{disturbed} of {len(predictor.timed)} times are marked disturbed"
    if epochs >= predictor.most_epochs(time.workload):
        yield f"longer training is not predicted: {epochs} epochs are {LONGEST_FACTOR:g} times the longest that ran"
    if time.cost.deviation >= UNKNOWN_COST:
        yield f"what {time.workload.config.pruning.strategy} costs beside its steps was never measured"
