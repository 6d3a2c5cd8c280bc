"""Trials for a program or a notebook: claimed, kept alive and recorded while a `for` loop goes through them."""

from __future__ import annotations

import gc
import linecache
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType, TracebackType

from budgettune.errors import Interrupted, TrialFailed, UsageError
from budgettune.records import Claim
from budgettune.spec.trust import Trust
from budgettune.storage.patience import asking_again
from budgettune.study.handle import StudyHandle
from budgettune.text import one_line
from budgettune.trial.checkpoint import Checkpoint
from budgettune.trial.terms import Outside, Terms
from budgettune.trial.trial import Trial
from budgettune.worker.early_stop_judge import judge_of
from budgettune.worker.half_trained import HalfTrainedFolder
from budgettune.worker.loop import failure_of, foreign_machine
from budgettune.worker.options import WorkerOptions
from budgettune.worker.own_code import OwnCode, watched
from budgettune.worker.spool import Spool
from budgettune.worker.watchdog import Heartbeat


def trials(study: StudyHandle, options: WorkerOptions) -> Iterator[Trial]:
    """Yield the open trials of a study, each claimed for this process until the next one is asked for.

    A trial is recorded when the loop goes on. One whose code raises is a failure, with the reason, and its cell is
    queued again; one that Ctrl-C or a `break` ends before it was reported is handed back.

    Raises:
        UsageError: where the study trains with the built-in trainer, or takes its times on another kind of machine.
        TrialMisused: where the loop goes on from a trial that was not trained and reported to its end.
    """
    if study.spec.train.command is not None:
        raise UsageError(f"study {study.name!r} trains with a program: `budgettune worker` starts it")
    if not study.spec.train.is_own_code:
        raise UsageError(f"study {study.name!r} trains with the built-in trainer: `budgettune worker` does that")
    own, spool = OwnCode(options, Trust()), Spool()
    half_trained = HalfTrainedFolder(options.checkpoints, options.checkpoint_every_seconds)
    machine = own.machine(study.spec)
    if (refusal := foreign_machine(study, machine.key, options.allow_mixed)) is not None:
        raise UsageError(refusal)
    spool.deliver_all(study.url)
    judging = judge_of(study, None if options.allow_mixed else machine.key)
    take = partial(study.claim, lease_seconds=options.lease_seconds)
    with _hearing_ctrl_c() as heard:
        while (claim := asking_again(take, options.patience_seconds)) is not None:
            config, judge = study.spec.resolve(claim.params), judging(claim)
            outside = Outside(ends_early=judge.ends_early if judge else lambda record: False)
            checkpoint = half_trained.of(study, claim, machine.key)
            trial = Trial(Terms.of(config, claim.seed, own.device, claim.number), outside, checkpoint=checkpoint)
            was_left = False
            with Heartbeat(study, claim, options.heartbeat_seconds, checkpoint):
                try:
                    with watched(own.witness(), trial, machine) as finish:
                        yield trial
                except GeneratorExit:  # the loop was left, perhaps with all that it wanted
                    was_left = True
                    if _settled(study, claim, trial, checkpoint, sys._getframe(1), heard):
                        return
                caught = trial.failure
                try:
                    result = finish()
                except TrialFailed as error:
                    study.fail(claim, *failure_of(caught or error))
                    checkpoint.forget()
                    if caught is None:
                        raise
                    continue  # the code has seen it, and goes on with the next one
                result = judge.with_note(result) if judge else result
                patience_seconds, wait = options.patience_seconds, threading.Event().wait
                spool.deliver(study, claim, result, patience_seconds, wait, allow_mixed=options.allow_mixed)
                checkpoint.forget()
            if was_left:
                return


def _settled(
    study: StudyHandle,
    claim: Claim,
    trial: Trial,
    checkpoint: Checkpoint,
    frame: FrameType,
    heard: threading.Event,
) -> bool:
    """Record why a loop was left in a trial; return false where the trial is whole, and its result counts."""
    traceback, error = _leaving(frame)
    error = error or trial.failure
    if traceback is None:
        if trial.is_whole:
            return False
        study.hand_back(claim, "its loop was left")
    elif isinstance(error, (KeyboardInterrupt, SystemExit, Interrupted)) or (error is None and heard.is_set()):
        study.hand_back(claim)
    else:
        unknown = ("error", f"an exception left the loop {_place(traceback)}")
        study.fail(claim, *(failure_of(error) if isinstance(error, Exception) else unknown))
        checkpoint.forget()
    return True


def _leaving(frame: FrameType) -> tuple[TracebackType | None, BaseException | None]:
    """Return the traceback and the exception that leave a frame just now, as far as Python shows them.

    A generator that is closed by an exception of its loop is not told which. Its traceback refers to the frame,
    though, and from Python 3.12 on the exception to the traceback.
    """
    for traceback in gc.get_referrers(frame):
        if isinstance(traceback, TracebackType) and traceback.tb_frame is frame:
            errors = (each for each in gc.get_referrers(traceback) if isinstance(each, BaseException))
            return traceback, next(errors, None)
    return None, None


def _place(traceback: TracebackType) -> str:
    """Return where the innermost frame of a traceback stands, with its line."""
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    file, line = traceback.tb_frame.f_code.co_filename, traceback.tb_lineno
    return one_line(f"at {file}:{line}: {linecache.getline(file, line).strip()}")


@contextmanager
def _hearing_ctrl_c() -> Iterator[threading.Event]:
    """Note whether Ctrl-C was pressed, and raise KeyboardInterrupt as ever."""
    heard = threading.Event()
    takes = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if takes else None
    if before is not signal.default_int_handler:  # somebody else's, such as a worker's
        yield heard
        return

    def note(number: int, at: FrameType | None) -> None:
        heard.set()
        signal.default_int_handler(number, at)

    signal.signal(signal.SIGINT, note)
    try:
        yield heard
    finally:
        with suppress(ValueError):  # the generator may be closed in another thread
            if signal.getsignal(signal.SIGINT) is note:
                signal.signal(signal.SIGINT, before)
