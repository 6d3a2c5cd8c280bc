"""The running trials of a study before their judge: finished trials as rivals, read as they come, and the verdict."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from budgettune.errors import StorageError
from budgettune.records import EpochRecord, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.storage import answers as query
from budgettune.study.early_stop import Progress, Rival, StopVerdict, is_control, judge, note_of
from budgettune.study.handle import Claim, StudyHandle

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0
"""Between looks for trials that other workers have finished."""


class FinishedTrials:
    """The finished trials of a study that a trial on this machine is compared with.

    Args:
        study: whose.
        kind: of machine that their times must come from; None for any.
    """

    def __init__(self, study: StudyHandle, kind: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._study, self._kind, self._clock = study, kind, clock
        self._looked_at = -LOOK_SECONDS
        self._seen: set[int] = set()
        self._rivals: tuple[Rival, ...] = ()

    def known(self) -> tuple[Rival, ...]:
        """Return those that are known, after a look for new ones where the last one is a while ago."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = self._clock()
            try:
                self._look()
            except StorageError as error:  # those that are known will do
                logger.warning("finished trials not read: %s", error)
        return self._rivals

    def _look(self) -> None:
        engine, study_id = self._study.engine, self._study.study_id
        records = query.trial_records(engine, study_id, states={"COMPLETE"}, leave_out=self._seen)
        self._seen |= {record.number for record in records}
        fair = (record for record in records if not record.extra and self._kind in (None, record.device_name))
        self._rivals += tuple(rival for rival in map(Rival.of, fair) if rival is not None)


class Hearing:
    """One running trial, judged after each epoch that is evaluated.

    Args:
        spec: of the study.
        claim: the trial.
        rivals: returns the finished trials.
    """

    def __init__(self, spec: StudySpec, claim: Claim, rivals: Callable[[], tuple[Rival, ...]]) -> None:
        stopping, train = spec.stopping, spec.resolve(claim.params).train
        self._train, self._confidence, self._rivals = train, stopping.confidence, rivals
        self._is_control = is_control(spec.sampler.seed, claim.cell, claim.repeat, stopping.control)
        self._curve: list[EpochRecord] = []
        self._verdict: StopVerdict | None = None
        self._jury: tuple[Rival, ...] = ()

    def ends_early(self, record: EpochRecord) -> bool:
        """Take in one more epoch of the curve, and say whether training ends with it."""
        self._curve.append(record)
        progress = Progress.of(self._curve, epochs=self._train.epochs, budget_seconds=self._train.budget)
        if self._verdict is None and progress.share < 1.0:
            self._jury = self._rivals()
            self._verdict = judge(progress, self._jury, record.epoch, self._confidence)
        return self._verdict is not None and not self._is_control

    def noted(self, result: TrialResult) -> TrialResult:
        """Return a trial's result with what was decided about it."""
        if self._verdict is None:
            return result
        return replace(result, stopping=self._note(self._verdict, result))

    def _note(self, verdict: StopVerdict, result: TrialResult) -> Mapping[str, Any]:
        if not self._is_control:
            return note_of(verdict)
        values = (result.train_seconds, result.test_accuracy)
        return note_of(verdict, beaten=any(rival.beats(*values) for rival in self._jury))
