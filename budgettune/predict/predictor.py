"""Both models of one study on one kind of machine, fitted to its records."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from budgettune.errors import UsageError
from budgettune.predict.accuracy import AccuracyModel, Forecasts
from budgettune.predict.curves import points_of
from budgettune.predict.seednoise import fit_seed_noise, length_of
from budgettune.predict.timing import TimeModel
from budgettune.predict.workload import Run, Workloads, finished
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec import StudySpec

ENOUGH_TRIALS = 6
ENOUGH_CONFIGURATIONS = 4
"""Below either, accuracies are taken from what ran, and only time is predicted."""


class ObservedAccuracies:
    """Accuracies of runs that ran, and of no others: the means of their trials.

    Args:
        workloads: of the study.
        records: finished trials, at least one.
    """

    def __init__(self, workloads: Workloads, records: Sequence[TrialRecord]) -> None:
        finals = [points_of(workloads, record)[0] for record in records]
        self.seed_noise = fit_seed_noise(finals, 0.0)
        self._found = defaultdict(list)
        for point, record in zip(finals, records, strict=True):
            self._found[point.workload, len(record.curve)].append(point)

    @property
    def runs(self) -> list[Run]:
        """Configurations and epochs that ran."""
        return list(self._found)

    def predict(self, runs: Sequence[Run]) -> Forecasts:
        """Return the accuracies of runs that ran.

        Raises:
            KeyError: where one did not.
        """
        means, variances, seeds = [], [], []
        for run in runs:
            points = self._found[run]
            seed = self.seed_noise.variance(
                length_of(points[0], 0.0), float(np.mean([one.accuracy for one in points])), points[0].test_images
            )
            means.append(float(np.mean([point.logit for point in points])))
            variances.append(seed / len(points))
            seeds.append(seed)
        return Forecasts(np.array(means), np.array(variances), np.array(seeds))


class Predictor:
    """Predicts time and accuracy of any run of a study's search space.

    Args:
        spec: of the study.
        records: of its trials, in any state; curves are needed.
        device_name: kind of machine that times are wanted of; None for the one with most trials.
        probes: step times taken outside trials, by kind of machine.

    Attributes:
        records: as given.
        finished: those to learn from.
        device_name: that times are of; None where trials do not tell.
        timed: finished trials of that kind of machine.
        probes: that were taken on it.

    Raises:
        UsageError: where nothing has finished yet, or nothing was timed on that kind of machine.
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
        self.finished = list(finished(records))
        if not self.finished:
            raise UsageError(f"study {spec.name!r} has no finished trial with a curve yet: run `budgettune worker`")
        self.device_name = device_name or _usual(self.finished)
        self.workloads = Workloads(spec, records)
        self.probes = list((probes or {}).get(self.device_name or "", ()))
        self.timed = [record for record in self.finished if record.device_name == self.device_name]
        if not self.timed and not self.probes:
            kinds = "; ".join(sorted({str(record.device_name) for record in self.finished}))
            raise UsageError(
                f"nothing of study {spec.name!r} was timed on {self.device_name!r}: probe there with "
                f"`budgettune recommend --probe`, or name one of: {kinds}"
            )

    @property
    def is_thin(self) -> bool:
        """Whether there is too little to predict accuracies of what did not run."""
        configurations = {self.workloads.of(record.params) for record in self.finished}
        return len(self.finished) < ENOUGH_TRIALS or len(configurations) < ENOUGH_CONFIGURATIONS

    @cached_property
    def longest_visits(self) -> int:
        """Samples that the longest finished trial visited."""
        return max(sum(epoch.samples for epoch in record.curve) for record in self.finished)

    @property
    def noise_ceiling(self) -> float | None:
        """Share of the variance of finished trials' accuracies that is not their seeds'; None for fewer than three.

        No model can explain more of it.
        """
        accuracies = np.array([record.test_accuracy for record in self.finished])
        if len(accuracies) < 3 or not accuracies.var():
            return None
        runs = [(self.workloads.of(record.params), len(record.curve)) for record in self.finished]
        seeds = self.accuracy_model.predict(runs).seeds
        between_seeds = float(np.mean((accuracies * (1 - accuracies)) ** 2 * seeds))
        return max(0.0, 1 - between_seeds / float(accuracies.var()))

    @cached_property
    def time_model(self) -> TimeModel:
        """Times on this kind of machine."""
        return TimeModel(self.workloads, self.timed, self.probes)

    @cached_property
    def accuracy_model(self) -> AccuracyModel | ObservedAccuracies:
        """Accuracies, from trials of all machines."""
        kind = ObservedAccuracies if self.is_thin else AccuracyModel
        return kind(self.workloads, self.finished)


def _usual(records: Sequence[TrialRecord]) -> str | None:
    """Return the kind of machine that most trials ran on."""
    return Counter(record.device_name for record in records).most_common(1)[0][0]
