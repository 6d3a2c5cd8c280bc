"""Predictions of trials that the models do not know: the check that an interval has to pass."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from budgettune.predict.predictor import Prediction, Predictor, prediction_of
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec

FOLDS = 5
MOST_CHECKED = 100
"""Taken at most, to learn from and to check: a random choice of whole configurations."""
HELD_OUT_SAMPLES = 500_000  # so many that hardly any accuracy is at an edge

_NORMAL = NormalDist()


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """A finished trial beside what the other configurations say of it."""

    number: int
    seconds: float  # that it took
    value: float  # of its objective that it reached, usually the accuracy
    prediction: Prediction  # of it, the budget being the seconds that it took
    # Share of such runs that are as fast, or no better, by the prediction: uniform in [0, 1] where it is honest.
    seconds_place: float
    accuracy_place: float

    @property
    def accuracy(self) -> float:
        """The value, under the name of the usual objective."""
        return self.value


def held_out(
    spec: StudySpec,
    records: Sequence[TrialRecord],
    *,
    device_name: str | None = None,
    probes: Mapping[str, Sequence[StepProbe]] | None = None,
) -> list[HeldOut]:
    """Return every finished trial of a kind of machine with what is predicted of it from the other configurations.

    Repeats are held out together, a fifth of the configurations at a time. The arguments are those of `Predictor`.

    Raises:
        UsageError: where too little has finished to predict a part from the rest.
    """
    whole = Predictor(spec, records, device_name=device_name, probes=probes)
    numbers = {record.number: whole.workloads.of(record.params).number for record in whole.timed}
    distinct = np.random.default_rng(0).permutation(sorted(set(numbers.values())))
    share = len(numbers) / len(distinct)
    chosen = distinct[: max(FOLDS, int(MOST_CHECKED / share))]
    taken = [record for record in whole.timed if numbers[record.number] in chosen]
    predictions: list[HeldOut] = []
    for fold in np.array_split(chosen, FOLDS):
        shown = [record for record in taken if numbers[record.number] not in fold]
        predictor = Predictor(spec, shown, device_name=whole.device_name, probes=probes)
        predictions += _predictions(predictor, [record for record in taken if numbers[record.number] in fold])
    return sorted(predictions, key=lambda one: one.number)


def _predictions(predictor: Predictor, records: Sequence[TrialRecord]) -> Iterator[HeldOut]:
    objective, line = predictor.workloads.spec.objective, predictor.quality_model.line
    runs = [(predictor.workloads.of(record.params), len(record.curve)) for record in records]
    times = predictor.time_model.of([workload for workload, _ in runs])
    forecasts = predictor.quality_model.predict(runs)
    deviations = np.sqrt(forecasts.variances + forecasts.seeds)
    for index, (record, (_, epochs), time) in enumerate(zip(records, runs, times, strict=True)):
        assert record.train_seconds is not None and record.value is not None
        prediction = prediction_of(time, epochs, record.train_seconds, forecasts, index, objective)
        place = line.place(objective.score(record.value), HELD_OUT_SAMPLES)
        away = (place - forecasts.means[index]) / deviations[index]
        yield HeldOut(
            number=record.number,
            seconds=record.train_seconds,
            value=record.value,
            prediction=prediction,
            seconds_place=prediction.chance_in_time,
            accuracy_place=_NORMAL.cdf(float(away)),
        )


def coverage(places: Sequence[float], level: float) -> float:
    """Return the share of outcomes that lie in the central interval of a level."""
    return sum(abs(place - 0.5) <= level / 2 for place in places) / len(places) if places else math.nan
