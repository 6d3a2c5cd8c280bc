"""The answer to a budget: the run that is expected to be best of those likely to end in time, how sure, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist, pstdev
from typing import Any

import numpy as np

from budgettune.errors import NothingFits, UsageError
from budgettune.predict.curves import Line
from budgettune.predict.measured_time import MeasuredSteps
from budgettune.predict.predictor import LONGEST_FACTOR, Prediction, Predictor, prediction_of
from budgettune.predict.regression import on_one_thread
from budgettune.predict.run_time import UNKNOWN_COST, WorkloadTime
from budgettune.predict.search_axes import outside, search_axes
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.objective import Aim, ObjectiveSpec
from budgettune.spec.study_spec import StudySpec

LEAST_GAIN = 0.0005  # in accuracy, from which a next trial is worth naming
LEAST_GAIN_SHARE = 0.01  # the same of other objectives, in deviations between trials

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
    gain: float  # of the answer, in units of the objective, expected from knowing its result


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What an answer rests on."""

    trials: int  # finished ones
    configurations: int  # different ones among them
    repeats: int  # trials beyond the first of their configuration
    seed_deviation: float  # of the objective between seeds at the choice
    noise_ceiling: float  # share of the variance of trials' values that is not their seed's: no model explains more
    step_times: int  # different steps that were timed
    probe_seconds: float  # that probes took, beside all trials
    calibrated_on: int  # configurations that were held out to calibrate intervals of the objective; the rest fitted
    time_factor: float  # by which that changed the variance of times
    value_factor: float  # the same of the objective
    least_gain: float  # of the answer, below which no next trial is named

    @property
    def seed_points(self) -> float:
        """The deviation between seeds in points of 100, where the objective is an accuracy."""
        return 100 * self.seed_deviation


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to train within a budget, how sure that is, and why.

    Attributes:
        choice: what to train.
        observed: the best finished trial within the budget, and within the study's limits; None where there is none.
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
    aim: Aim = field(default_factory=Aim)

    @property
    def objective(self) -> ObjectiveSpec:
        """What is predicted beside the time, on the images that judge the study."""
        return self.aim.objective

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values in which the objective has its name; of the observed trial what says which it is."""
        document, objective = asdict(self), self.objective
        del document["aim"]
        document["objective"] = {"name": self.aim.name, "direction": objective.direction}
        if self.aim.judged_on:
            document["judged_on"] = self.aim.judged_on
        document["choice"] = self.choice.to_json(objective)
        if self.next_trial is not None:
            document["next_trial"]["prediction"] = self.next_trial.prediction.to_json(objective)
        if self.observed is not None:
            own = ("judged_on", "validation_accuracy") if self.observed.judged_on else ()
            names = ("number", "params", "epochs", "train_seconds", *own, "test_accuracy")
            document["observed"] = objective.renamed({name: getattr(self.observed, name) for name in names})
        if objective.is_accuracy:  # as ever, in points
            named = {"seed_deviation": ("seed_points", self.basis.seed_points)}
            document["basis"] = dict(named.get(key, (key, value)) for key, value in document["basis"].items())
        return document


def recommend(
    spec: StudySpec,
    records: Sequence[TrialRecord],
    ask: Ask,
    *,
    device_name: str | None = None,
    probes: Mapping[str, Sequence[StepProbe]] | None = None,
) -> Recommendation:
    """Return the run that is expected to be best of those that end in time with a probability of the confidence.

    The other arguments are those of `Predictor`, device_name being the kind of machine that will train.

    Raises:
        UsageError: where too little has finished, or nothing was timed on that kind of machine.
        NothingFits: where not even one epoch of anything is likely to end in time.
    """
    return answer(Predictor(spec, records, device_name=device_name, probes=probes), ask)


@on_one_thread
def answer(predictor: Predictor, ask: Ask) -> Recommendation:
    """Return the same from a predictor, which learns at its first answer and is asked again at little cost.

    Raises:
        UsageError: where nothing was timed, or nothing of the study is left to choose from.
        NothingFits: where not even one epoch of anything is likely to end in time.
    """
    spec, candidates = predictor.workloads.spec, Candidates(predictor, ask)
    best = candidates.best
    in_time = [
        record
        for record in predictor.timed
        if (record.train_seconds or math.inf) <= ask.budget_seconds and spec.aim.allows(record)
    ]
    observed = max(in_time, key=lambda record: spec.objective.score(record.value or 0.0), default=None)
    choice, quality, steps = candidates.prediction(best), predictor.quality_model, predictor.time_model.steps
    return Recommendation(
        study=spec.name,
        budget_seconds=ask.budget_seconds,
        confidence=ask.confidence,
        device_name=predictor.device_name,
        choice=choice,
        observed=observed,
        extrapolated=tuple(_extrapolations(predictor, *candidates.runs[best])),
        next_trial=candidates.worth_knowing(),
        basis=Basis(
            trials=len(predictor.finished),
            configurations=predictor.configurations,
            repeats=quality.seed_noise.repeats,
            seed_deviation=candidates.seed_deviation(best),
            noise_ceiling=predictor.noise_ceiling,
            step_times=len(steps.measured),
            probe_seconds=sum(probe.seconds for probe in predictor.probes),
            calibrated_on=quality.calibrated_on,
            time_factor=steps.calibration,
            value_factor=quality.calibration,
            least_gain=candidates.least_gain,
        ),
        notes=(
            *_notes(predictor, *candidates.runs[best]),
            *_better(spec.objective, observed, choice),
            *candidates.left_out,
        ),
        aim=spec.aim,
    )


class Candidates:
    """Every candidate for as long as it is likely to end in time, and what is predicted of it.

    Raises:
        NothingFits: where there is none.
    """

    def __init__(self, predictor: Predictor, ask: Ask) -> None:
        self.ask = ask
        self.left_out, times = predictor.choice.left_out, predictor.choice.times
        if not times:
            raise UsageError(f"nothing of study {predictor.workloads.spec.name!r} is left: {'; '.join(self.left_out)}")
        self.runs = [  # times, and the epochs that fit
            (time, epochs)
            for time in times
            if (epochs := time.longest(ask.budget_seconds, ask.confidence, predictor.most_epochs(time.workload)))
        ]
        if not self.runs:
            shortest = [time.at(time.workload.fewest_epochs()).quantile(ask.confidence) for time in times]
            raise NothingFits(ask.budget_seconds, ask.confidence, min(shortest))
        self._objective = predictor.workloads.spec.objective
        self._forecasts = predictor.quality_model.predict([(time.workload, epochs) for time, epochs in self.runs])
        self.expected = self._forecasts.expected()  # float64[len(runs)], scores: the more the better
        spread = pstdev(record.value or 0.0 for record in predictor.finished)
        self.least_gain = LEAST_GAIN if self._objective.is_accuracy else LEAST_GAIN_SHARE * spread
        self.best = int(np.argmax(self.expected))  # index of the run to train

    def prediction(self, index: int) -> Prediction:
        return prediction_of(*self.runs[index], self.ask.budget_seconds, self._forecasts, index, self._objective)

    def seed_deviation(self, index: int) -> float:
        """Return the deviation of a run's score between seeds."""
        slope = self._forecasts.line.slopes(self.expected[[index]])[0]
        return float(slope * math.sqrt(self._forecasts.seeds[index]))

    def worth_knowing(self) -> NextTrial | None:
        """Return the run whose result is worth most to the answer, None where that is next to nothing.

        The worth is the knowledge gradient (Frazier, Powell and Dayanik 2008) of one more trial, each run by itself:
        how much better the best of what is known is expected to be. A loss counts at most at the size of its rival's:
        at a hopeless run's own place, a loss of thousands, a little doubt would be worth thousands.
        """
        if len(self.runs) == 1:
            return None
        line, means, variances = self._forecasts.line, self.expected, self._forecasts.variances
        rivals = np.full(len(means), means[self.best])
        rivals[self.best] = np.delete(means, self.best).max()
        slopes = line.slopes(means)
        if line is Line.LOG:
            slopes = np.minimum(slopes, line.slopes(rivals))
        learnt = slopes * variances / np.sqrt(variances + self._forecasts.seeds)
        # How far a normal variable is expected to pass a rival that is so far away from its mean.
        scaled = np.abs(means - rivals) / np.maximum(learnt, 1e-12)
        density = np.exp(-0.5 * scaled**2) / math.sqrt(2 * math.pi)
        beyond = np.array([_NORMAL.cdf(-value) for value in scaled])
        gains = learnt * (density - scaled * beyond)
        index = int(np.argmax(gains))
        if gains[index] < self.least_gain:
            return None
        return NextTrial(prediction=self.prediction(index), gain=float(gains[index]))


def _extrapolations(predictor: Predictor, time: WorkloadTime, epochs: int) -> Iterator[str]:
    workload, ran = time.workload, [record.params for record in predictor.finished]
    yield from outside(search_axes(predictor.workloads.spec), workload.params, ran)
    visits = [predictor.visits(record) for record in predictor.finished]
    wanted = workload.visits(epochs)
    if not min(visits) <= wanted <= 1.001 * max(visits):
        lengths = sorted({len(record.curve) for record in predictor.finished})
        trained = f"{lengths[0]}" if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        told = f"{epochs} epochs" + ("" if workload.is_own_code else f" are {wanted:,.0f} sample visits")
        yield f"{told}; trials of {trained} epochs ran"
    if not time.is_measured:
        yield f"the step ({workload.step}) was never timed"


def _better(objective: ObjectiveSpec, observed: TrialRecord | None, choice: Prediction) -> Iterator[str]:
    """Yield a sentence where a trial is better than all that is likely of the choice, which uses up the time."""
    most = max(objective.score(choice.value_low), objective.score(choice.value_high))
    if observed is not None and observed.value is not None and objective.score(observed.value) > most:
        trained = "epoch" if len(observed.curve) == 1 else "epochs"
        yield (
            f"trial {observed.number} is better, with {len(observed.curve)} {trained}: "
            f"answers use up the time, and training for longer may make {objective.label} worse"
        )


def _notes(predictor: Predictor, time: WorkloadTime, epochs: int) -> Iterator[str]:
    spec, objective = predictor.workloads.spec, predictor.workloads.spec.objective
    if not predictor.quality_model.seed_noise.repeats:
        yield "no configuration ran twice: how far seeds lie apart is assumed, not measured"
    if elsewhere := len(predictor.finished) - len(predictor.timed):
        trials = f"{elsewhere} of {len(predictor.finished)} trials"
        yield f"{trials} ran elsewhere: they tell of {objective.label}, not of time"
    if disturbed := sum(record.status == "disturbed" for record in predictor.timed):
        yield f"{disturbed} of {len(predictor.timed)} times are marked disturbed"
    if epochs >= predictor.most_epochs(time.workload):
        yield f"longer training is not predicted: {epochs} epochs are {LONGEST_FACTOR:g} times the longest that ran"
    if time.cost.deviation >= UNKNOWN_COST:
        yield f"what {time.workload.config.pruning.strategy} costs beside its steps was never measured"
    steps = predictor.time_model.steps
    if isinstance(steps, MeasuredSteps) and spec.train.is_own_code:
        kept = {axis.name for axis in steps.axes}
        free = [axis.name for axis in search_axes(spec) if axis.name not in kept]
        if free:
            yield f"the time of an epoch shows no sign of depending on {', '.join(free)}"
