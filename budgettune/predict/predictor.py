"""Both models of one study on one kind of machine, fitted to its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np

from budgettune.errors import UsageError
from budgettune.predict.accuracy import AccuracyModel
from budgettune.predict.curves import points_of
from budgettune.predict.run_time import TimeModel
from budgettune.predict.workload import Workloads
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec

ENOUGH_TRIALS = 6
ENOUGH_CONFIGURATIONS = 4


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
        configurations: different ones among them.
        device_name: that times are of; None where trials do not tell.
        timed: finished trials of that kind of machine.
        probes: that were taken on it.

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
        self.finished = self.workloads.finished()
        self.configurations = len({self.workloads.of(record.params) for record in self.finished})
        if len(self.finished) < ENOUGH_TRIALS or self.configurations < ENOUGH_CONFIGURATIONS:
            raise UsageError(
                f"too little of study {spec.name!r} has finished to predict what never ran: {len(self.finished)} "
                f"trials of {self.configurations} configurations, {ENOUGH_TRIALS} of {ENOUGH_CONFIGURATIONS} are "
                f"needed: `budgettune worker` runs more, `budgettune best --budget` answers from what ran"
            )
        self.device_name = device_name or _usual(self.finished)
        self.probes = list((probes or {}).get(self.device_name or "", ()))
        self.timed = [record for record in self.finished if record.device_name == self.device_name]
        if not self.timed and not self.probes:
            kinds = "; ".join(sorted({str(record.device_name) for record in self.finished}))
            raise UsageError(
                f"nothing of study {spec.name!r} was timed on {self.device_name!r}: probe there with "
                f"`budgettune recommend --probe 30s`, or name one of: {kinds}"
            )

    @cached_property
    def longest_visits(self) -> int:
        """Samples that the longest finished trial visited."""
        return max(sum(epoch.samples for epoch in record.curve) for record in self.finished)

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
        """Times on this kind of machine."""
        return TimeModel(self.workloads, self.timed, self.probes)

    @cached_property
    def accuracy_model(self) -> AccuracyModel:
        """Accuracies, from trials of all machines."""
        return AccuracyModel(self.workloads, self.finished)


def _usual(records: Sequence[TrialRecord]) -> str | None:
    """Return the kind of machine that most trials ran on."""
    return Counter(record.device_name for record in records).most_common(1)[0][0]
