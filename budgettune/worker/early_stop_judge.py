"""The judge of a running trial: the rule of early stops against the finished trials of its study, read as they come."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from budgettune.errors import StorageError
from budgettune.records import Claim, EpochRecord, StoppingNote, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.trials import stopping_notes, trial_records
from budgettune.study.early_stop import Finished, Progress, Rival, is_control, judge
from budgettune.study.handle import StudyHandle

logger = logging.getLogger(__name__)

LOOK_SECONDS = 5.0  # between looks for trials that other workers have finished


class FinishedTrials:
    """The finished trials of a study that a trial is compared with, of one kind of machine (None for any).

    Controls count as many times as trials of their kind were stopped.
    """

    def __init__(
        self, study: StudyHandle, machine_key: str | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study, self._machine_key, self._clock = study, machine_key, clock
        self._looked_at = -LOOK_SECONDS
        self._numbers_read: set[int] = set()
        self._known = self._of(())

    def known(self) -> Finished:
        """Return those that are known, after a look for new ones where the last one is a while ago."""
        if self._clock() - self._looked_at >= LOOK_SECONDS:
            self._looked_at = self._clock()
            try:
                records = trial_records(
                    self._study.engine, self._study.study_id, states={"COMPLETE"}, leave_out=self._numbers_read
                )
                notes = stopping_notes(self._study.engine, self._study.study_id) if records else {}
            except StorageError as error:  # those that are known will do
                logger.warning("finished trials not read: %s", error)
                return self._known
            self._numbers_read |= {record.number for record in records}
            aim = self._study.spec.aim  # a trial beyond the study's limits ends no other
            fair = (each for each in records if not each.extra and self._machine_key in (None, each.device_name))
            weights = dict.fromkeys(notes, 1.0 / (self._study.spec.stopping.control or 1.0))
            new = (Rival.of(each, aim.objective, weights.get(each.number, 1.0)) for each in fair if aim.allows(each))
            if rivals := tuple(filter(None, new)):
                self._known = self._of(self._known.rivals + rivals)
        return self._known

    def _of(self, rivals: tuple[Rival, ...]) -> Finished:
        return Finished(rivals, is_share=self._study.spec.objective.is_accuracy)


class TrialJudge:
    """The rule applied to one running trial, after each epoch that is evaluated."""

    def __init__(self, spec: StudySpec, claim: Claim, finished: Callable[[], Finished]) -> None:
        self._train, self._confidence = spec.resolve(claim.params).train, spec.stopping.confidence
        self._finished = finished
        self._is_control = is_control(spec.sampler.seed, claim.cell, claim.repeat, spec.stopping.control)
        self._objective = spec.objective
        self._curve: list[EpochRecord] = []
        self._note: StoppingNote | None = None
        self._then: Finished | None = None

    def ends_early(self, record: EpochRecord) -> bool:
        """Take in one more epoch of the curve, and say whether training ends with it."""
        self._curve.append(record)
        train, objective = self._train, self._objective
        progress = Progress.of(self._curve, epochs=train.epochs, budget_seconds=train.budget, objective=objective)
        if self._note is None and progress.share < 1.0:
            self._then = self._finished()
            self._note = judge(progress, self._then, record.epoch, self._confidence, objective)
        return self._note is not None and not self._is_control

    def with_note(self, result: TrialResult) -> TrialResult:
        """Return a trial's result with what was decided about it."""
        note = self._note
        if note is not None and self._then is not None and self._is_control:
            is_wrong = self._then.lack(result.train_seconds, self._objective.score(result.value))
            note = replace(note, stopped=False, wrong=is_wrong)
        return replace(result, stopping=note)


def judge_of(study: StudyHandle, machine_key: str | None) -> Callable[[Claim], TrialJudge | None]:
    """Return what makes the judge of each of a study's trials; it makes none where the study lets all run to their end.

    All compare with one list of finished trials, those of a kind of machine (None for any).
    """
    if study.spec.stopping.rule == "none":
        return lambda claim: None
    finished = FinishedTrials(study, machine_key)
    return lambda claim: TrialJudge(study.spec, claim, finished.known)
