"""How long trials take by the clock on the wall, and which open ones still fit into the time that a box has left.

From its claim to its record a trial takes longer than it trains: images are loaded, batches warmed up, accuracies
taken. What finished trials of the machine took beyond their training is fitted as so many seconds, and a share:

    wall = training + fixed + share · training
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from statistics import median
from typing import TYPE_CHECKING, Any

from budgettune.errors import BudgetTuneError
from budgettune.records import StepProbe, TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.answers import latest_trials
from budgettune.storage.slots import has_kept_epochs
from budgettune.storage.studies import read_probes

if TYPE_CHECKING:
    from budgettune.study.handle import StudyHandle

logger = logging.getLogger(__name__)

LATEST = 60  # finished trials that are looked at: the model of own code takes many times longer for more
CAUTION = 0.25  # quantile that is taken of a time that was not measured: what is not begun outlasts three in four times
LOOKING_SHARE = 0.05  # of a worker's time, that looking at finished trials may take


@dataclass(frozen=True)
class Duration:
    """What a trial is predicted to take from its claim on."""

    seconds: float  # until it is recorded
    first_epoch_seconds: float  # until there is something to go on from elsewhere


class Durations:
    """Predicts durations on one kind of machine from trials that finished there, and from probes.

    Args:
        spec: of the study.
        records: of finished trials with their curves.
        probes: that were taken there.
    """

    def __init__(self, spec: StudySpec, records: Sequence[TrialRecord], probes: Sequence[StepProbe] = ()) -> None:
        self._spec, self._probes = spec, probes
        self._known: dict[str, Duration | None] = {}
        walls = [(record, _wall_seconds(record)) for record in records]
        # A late result has a row of its own that took no time, and one that went on elsewhere took only the rest.
        self._walls = [(record, wall) for record, wall in walls if wall >= (record.train_seconds or math.inf)]

    def of(self, params: Mapping[str, Any]) -> Duration | None:
        """Return what a trial is predicted to take; None where nothing tells.

        That is what its cell took, else by its `train.budget`, else by the model behind `recommend`.
        """
        key = repr(sorted(params.items()))  # values of another program need not be hashable
        if key not in self._known:
            self._known[key] = self._predicted(params)
        return self._known[key]

    def _predicted(self, params: Mapping[str, Any]) -> Duration | None:
        try:
            train = self._spec.resolve(params).train
        except BudgetTuneError:  # its trial will say so
            return None
        same = [(record, wall) for record, wall in self._walls if record.params == params]
        fixed, share = self._beyond_training
        if same:
            seconds = median(wall for _, wall in same)
        else:
            training = train.budget or self._training_seconds(params, train.epochs or 1)
            if training is None:
                return None
            seconds = fixed + (1 + share) * training
        counts = [record.epochs for record, _ in same or self._walls if record.epochs]
        epochs = train.epochs or (median(counts) if counts else math.inf)
        fixed = min(fixed, seconds)
        return Duration(seconds, fixed + (seconds - fixed) / epochs)

    @cached_property
    def _beyond_training(self) -> tuple[float, float]:
        """Fixed seconds that a trial takes beyond its training, and the share of its training that it takes besides."""
        if not self._walls:
            return 0.0, 0.0
        import numpy as np
        from scipy.optimize import nnls

        trained = np.array([record.train_seconds for record, _ in self._walls])
        beyond = np.array([wall for _, wall in self._walls]) - trained
        scale = trained.max()  # so that both columns are of one size
        columns = np.column_stack([np.ones_like(trained), trained / scale])
        # A little against both, so that trials of one length make it half and half.
        rows, values = np.vstack([columns, 1e-3 * np.eye(2)]), np.append(beyond, [0.0, 0.0])
        (fixed, share), _ = nnls(rows, values)
        return float(fixed), float(share / scale)

    def _training_seconds(self, params: Mapping[str, Any], epochs: int) -> float | None:
        """Return what the model says that a run trains at least, but for one case in four."""
        if self._model is None:
            return None
        workloads, model = self._model
        try:
            return float(model.of([workloads.of(params)])[0].at(epochs).quantile(CAUTION))
        except Exception as error:  # what another program left, say: no prediction is worth a worker
            logger.debug("no duration of %s: %s", params, error)
            return None

    @cached_property
    def _model(self) -> tuple[Any, Any] | None:
        from budgettune.predict.run_time import TimeModel
        from budgettune.predict.workload import Workloads

        workloads = Workloads(self._spec, [record for record, _ in self._walls])
        try:
            timed = workloads.finished()
            return (workloads, TimeModel(workloads, timed, self._probes)) if timed or self._probes else None
        except Exception as error:
            logger.debug("no model of durations: %s", error)
            return None


def _wall_seconds(record: TrialRecord) -> float:
    if record.started_at is None or record.completed_at is None:
        return 0.0
    took = datetime.fromisoformat(record.completed_at) - datetime.fromisoformat(record.started_at)
    return took.total_seconds()


class Outlook:
    """Tells a worker whose time is limited which trials of a study it may still begin.

    The study is looked at again now and then: looking takes a twentieth of the time at most.

    Args:
        study: that is worked on.
        machine_key: of this machine.
        is_kept: whether half-trained trials are kept where another worker finds them.
        clock: seconds, monotonic.

    Attributes:
        shortest_seconds: that a trial was predicted to need which was not begun since the last look; None where all
            were.
    """

    def __init__(
        self, study: StudyHandle, machine_key: str, *, is_kept: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study, self._machine_key, self._is_kept, self._clock = study, machine_key, is_kept, clock
        self._due_at = -math.inf
        self.shortest_seconds: float | None = None

    def look(self) -> None:
        """Begin a round: learn from what has finished, where that is worth its time."""
        self.shortest_seconds = None
        began = self._clock()
        if began < self._due_at:
            return
        study = self._study
        records = latest_trials(study.engine, study.study_id, LATEST, documents=True)
        probes = read_probes(study.engine, study.study_id).get(self._machine_key, [])
        self._durations = Durations(
            study.spec, [record for record in records if record.device_name == self._machine_key], probes
        )
        # Whether own code saves nobody knows before it has.
        saves = not study.spec.train.is_own_code or has_kept_epochs(study.engine, study.study_id)
        self._can_go_on = self._is_kept and saves
        self._looked(began)

    def fits(self, params: Mapping[str, Any], seconds_left: float) -> bool:
        """Whether a trial may begin so many seconds before the end."""
        began = self._clock()
        duration = self._durations.of(params)
        self._looked(began)
        if duration is None:
            return True
        needed = duration.first_epoch_seconds if self._can_go_on else duration.seconds
        if needed <= seconds_left:
            return True
        self.shortest_seconds = min(needed, self.shortest_seconds or math.inf)
        return False

    def _looked(self, began: float) -> None:
        now = self._clock()
        self._due_at = max(self._due_at, now) + (now - began) / LOOKING_SHARE
