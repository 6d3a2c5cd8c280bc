"""Threads that look after a running trial: signs of life for its lease, and an end to one that hangs."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Self

from budgettune.errors import StorageBusy, TrialTimeout
from budgettune.records import Claim
from budgettune.storage.patience import shortened_by_chance
from budgettune.study.handle import StudyHandle
from budgettune.text import format_duration
from budgettune.trial.checkpoint import NOWHERE, Checkpoint

logger = logging.getLogger(__name__)

HUNG_STATUS = 75  # of a worker whose trial hung or whose GPU is lost: EX_TEMPFAIL of sysexits.h, start me again
RECORDING_SECONDS = 20.0  # for which the end of a hung trial may wait for the database


class Heartbeat:
    """Renews a trial's lease on a thread of its own; a database that does not answer is asked again later.

    It is told, too, how much is kept of the trial, so that one whose worker is lost need not count as a failed try.
    """

    def __init__(
        self, study: StudyHandle, claim: Claim, interval_seconds: float, checkpoint: Checkpoint = NOWHERE
    ) -> None:
        self._study, self._claim, self._checkpoint, self._told_epochs = study, claim, checkpoint, 0
        self._interval_seconds = interval_seconds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{claim.number}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(timeout=5)

    def _beat(self) -> None:
        kept = self._checkpoint.kept_epochs
        self._study.heartbeat(self._claim.trial_id, kept if kept > self._told_epochs else None)
        self._told_epochs = kept

    def _run(self) -> None:
        # Workers that were started together beat apart from their second sign of life on.
        pause_seconds = shortened_by_chance(self._interval_seconds)
        while not self._done.is_set():
            try:
                self._beat()
            except Exception as error:  # whatever it is, the next beat may get through
                logger.warning("heartbeat not recorded: %s", error)
                if isinstance(error, StorageBusy):
                    pause_seconds = shortened_by_chance(self._interval_seconds) / 4
            self._done.wait(pause_seconds)
            pause_seconds = self._interval_seconds


def leave_hung(
    record: Callable[[], object],
    is_over: Callable[[], bool] = lambda: False,
    end_process: Callable[[int], object] = os._exit,
) -> None:
    """End this process for another to be started, from a thread, after a try to record why.

    Not where `is_over` says meanwhile that it does not hang any more.
    """
    recording = threading.Thread(target=_tried, args=(record,), name="hung-record", daemon=True)
    recording.start()
    recording.join(RECORDING_SECONDS)
    if not is_over():
        end_process(HUNG_STATUS)


def _tried(record: Callable[[], object]) -> None:
    try:
        record()
    except Exception as error:  # the lease runs out instead
        logger.warning("the end of a hung trial is not recorded: %s", error)


class TrialLimit:
    """Ends a trial that takes too long: a slow one at its next step, one that hangs inside a step with the process.

    Nothing interrupts a step from outside, so the failure of a hung trial is recorded from a thread, and the process
    ends with `HUNG_STATUS` for a fleet or a service manager to start it again.

    Args:
        seconds: a trial may take; None for no limit.
        grace_seconds: more for the last step to return.
        record: writes the failure of a hung trial to the database.
        end_process: stands in for `os._exit` in tests.
    """

    def __init__(
        self,
        seconds: float | None,
        grace_seconds: float,
        record: Callable[[TrialTimeout], object],
        end_process: Callable[[int], object] = os._exit,
    ) -> None:
        self._seconds = seconds
        self._grace_seconds = grace_seconds
        self._record = record
        self._end_process = end_process
        self._done = threading.Event()
        self._began = time.monotonic()

    @property
    def is_over(self) -> bool:
        return self._seconds is not None and time.monotonic() - self._began > self._seconds

    def error(self) -> TrialTimeout:
        return TrialTimeout(
            f"took longer than {format_duration(self._seconds or 0.0)}: allow more with --trial-timeout, or less work"
        )

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._seconds is not None:
            hung_seconds = self._seconds + self._grace_seconds
            threading.Thread(target=self._watch, args=(hung_seconds,), name="trial-limit", daemon=True).start()
            # A step that hangs without letting go of the interpreter stops our thread too; this one runs below it.
            with suppress(Exception):  # standard error without a file behind it
                last_seconds = hung_seconds + 2 * RECORDING_SECONDS
                faulthandler.dump_traceback_later(last_seconds, exit=True, file=sys.__stderr__ or sys.stderr)
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._seconds is not None:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self, seconds: float) -> None:
        if self._done.wait(seconds):
            return
        with suppress(Exception):  # where it hangs is worth knowing, but never worth staying for
            faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)
        leave_hung(lambda: self._record(self.error()), self._done.is_set, self._end_process)
