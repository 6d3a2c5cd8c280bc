"""The loop of a worker: claim a trial, train it, record it, until nothing is left or somebody asks to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, Protocol

from budgettune.errors import (
    BudgetTuneError,
    DataError,
    DeviceLost,
    Interrupted,
    ProcessLost,
    ProgramFailed,
    StopRequested,
    StorageAway,
    StorageError,
    TrialFailed,
    TrialMisused,
    UsageError,
)
from budgettune.records import Claim, MachineInfo, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.storage.connection import open_engine
from budgettune.storage.patience import comes_back, idle_pauses, pauses, say_again_in
from budgettune.storage.studies import find_study
from budgettune.storage.trials import trial_records
from budgettune.storage.url import parse_url
from budgettune.study.durations import Outlook
from budgettune.study.handle import Fits, StudyHandle, load_study
from budgettune.study.summary import readable_studies
from budgettune.text import format_duration, warn_once
from budgettune.trial.checkpoint import Checkpoint
from budgettune.trial.stopwatch import undisturbed
from budgettune.worker.early_stop_judge import TrialJudge, judge_of
from budgettune.worker.half_trained import HalfTrainedFolder
from budgettune.worker.options import Listener, Ranks, WorkerOptions, WorkerSummary, gpu_of
from budgettune.worker.own_code import OwnCode
from budgettune.worker.signals import StopFlag
from budgettune.worker.spool import Spool
from budgettune.worker.watchdog import Heartbeat, TrialLimit, leave_hung

logger = logging.getLogger(__name__)

LONGEST_POLLS = 15.0  # first pauses of an idle worker that its longest one takes: half a minute
LONGEST_POLLS_OF_A_FILE = 3.0  # the same where the database is a file, whose workers are the few of one box
# Unexpected failures after which a worker blames itself or the study's code, and stops using up attempts.
FAILURES_IN_A_ROW = 5
NO_ANSWER = "answers this process no more"  # by which a slot's rows tell that a device was lost with it


def foreign_machine(study: StudyHandle, own_key: str, allow_mixed: bool) -> str | None:
    """Return in a sentence that a study takes its times on another kind of machine, None where it does not."""
    machine_key = None if allow_mixed else study.machine_key()
    if machine_key in (None, own_key):
        return None
    return (
        f"study {study.name!r} takes its times on {machine_key}, and this worker is {own_key}: run it on "
        f"such a machine (--threads tells how many of a CPU's), or mix their times knowingly with --allow-mixed"
    )


class Trainer(Protocol):
    """What trains the trials of a worker: `BuiltIn`, or `OwnCode`.

    Attributes:
        device: that it trains on, by its name.
        is_broken: whether the device may wait for good for a process that has left.
    """

    device: str

    @property
    def is_broken(self) -> bool: ...
    def machine(self, spec: StudySpec) -> MachineInfo: ...
    def probe(self, study: StudyHandle, limit_seconds: float, should_stop: Callable[[], bool]) -> None: ...
    def train(self, spec: StudySpec, params: dict[str, Any], *, seed: int, **hooks: Any) -> TrialResult: ...
    def is_lost(self) -> bool: ...
    def close(self) -> None: ...


def failure_of(error: Exception) -> tuple[str, str]:
    """Return the kind and the message that a failed trial's row keeps."""
    kind = error.failure_kind if isinstance(error, TrialFailed) else "error"
    return kind, str(error) if isinstance(error, BudgetTuneError) else f"{type(error).__name__}: {error}"


def run_worker(
    url: str,
    study: str | None = None,
    options: WorkerOptions | None = None,
    *,
    stop: StopFlag | None = None,
    listener: Listener | None = None,
) -> WorkerSummary:
    """Work on a study, or on every open study in order of creation, until nothing is left.

    Trials that run elsewhere count as something left, but for a worker that is to `leave`: should their worker die,
    their cells come back.

    Raises:
        StudyNotFound: where the study is not there and `wait` is off.
        StorageError: where the database does not answer, or for longer than `patience_seconds` once it has, or where
            it is busy; a result that it has not taken waits in the spool.
        DataError: where this box cannot read a study's images; the trial goes back unharmed.
        DeviceLost: where this process can use the GPU no more: a new one may.
        BudgetTuneError: where trial after trial fails in code that is not ours.
    """
    return _Worker(url, study, options or WorkerOptions(), stop or StopFlag(), listener or Listener()).run()


@dataclass
class _Worker:
    url: str
    study_name: str | None
    options: WorkerOptions
    stop: StopFlag
    listener: Listener
    completed: int = 0
    failed: int = 0
    extras: int = 0
    spool: Spool = field(default_factory=Spool)
    half_trained: HalfTrainedFolder = field(init=False)
    _in_a_row: int = 0
    _handles: dict[str, StudyHandle] = field(default_factory=dict)
    _judges: dict[int, Callable[[Claim], TrialJudge | None]] = field(default_factory=dict)
    _outlooks: dict[int, Outlook] = field(default_factory=dict)
    _probed: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _left_out: tuple[str, ...] = ()
    _trainers: dict[str, Trainer] = field(default_factory=dict)
    _troubled: dict[str, None] = field(default_factory=dict)
    _has_answered: bool = False
    _waits: Iterator[float] | None = None
    _idle: Iterator[float] | None = None
    _began: float = field(default_factory=time.monotonic)
    _note: str = ""
    _got_nowhere: bool = False

    def run(self) -> WorkerSummary:
        parse_url(self.url)  # one that cannot be read is not waited for
        gpu_of(self.options.device)
        self.half_trained = HalfTrainedFolder(self.options.checkpoints, self.options.checkpoint_every_seconds)
        self.trust = Trust.of_database(
            self.url, self.options.allow_import, self.options.allow_root, self.options.allow_command
        )
        ranks = Ranks.of_torchrun()
        if ranks is not None and ranks.rank > 0:
            from budgettune.worker.built_in import follow_torchrun

            follow_torchrun(ranks, self.options, self.trust)
            return WorkerSummary(completed=0, failed=0, signal_number=None, follows=True)
        try:
            return self._until_nothing_is_left()
        finally:
            for trainer in self._trainers.values():
                trainer.close()

    def _trainer(self, study: StudyHandle) -> Trainer:
        """Return what trains a study: torch is loaded for the built-in training alone."""
        kind = "own code" if study.spec.train.is_own_code else "built-in"
        if kind not in self._trainers:
            if kind == "own code":
                self._trainers[kind] = OwnCode(self.options, self.trust)
            else:
                from budgettune.worker.built_in import BuiltIn

                self._trainers[kind] = BuiltIn(self.options, self.trust)
        return self._trainers[kind]

    def _until_nothing_is_left(self) -> WorkerSummary:
        while not self.stop.is_set and not self._is_spent():
            try:
                if not self._round():
                    break
                self._waits = None
            except StorageError as error:
                self._wait_for_database(error)
        return WorkerSummary(
            completed=self.completed,
            failed=self.failed,
            signal_number=self.stop.signal_number,
            extras=self.extras,
            troubled=tuple(self._troubled),
            left_out=self._left_out,
            note=self._note,
            is_out_of_time=self._is_out_of_time(),
        )

    def _round(self) -> bool:
        """Work on one trial, or wait a little for one; return false where nothing is left to do."""
        studies = self._studies()
        work = next(((study, claim) for study in studies if (claim := self._claim(study)) is not None), None)
        if work is not None:
            self._idle = None
            self._work_on(*work)
        elif self.spool.deliver_all(self.url):
            self._idle = None  # what is open has changed
        elif self._lacks_time(studies):
            return False
        elif self._may_go(studies):
            self._look_back(studies)
            return False
        else:
            self._idle = self._idle or self._pauses()
            self.stop.wait(max(0.0, min(next(self._idle), self._seconds_left())))
        return True

    def _may_go(self, studies: Sequence[StudyHandle]) -> bool:
        """Whether nothing is left; or open, for who leaves and replaces nobody whose lease has not run out yet."""
        is_new = time.monotonic() - self._began < self.options.lease_seconds
        is_left = self.options.wait or not all(study.is_finished(by_last_look=True) for study in studies)
        return not is_left or (self.options.leave and not is_new)

    def _lacks_time(self, studies: Sequence[StudyHandle]) -> bool:
        """Whether trials are open that this worker has no time for; note it."""
        outlooks = [self._outlooks[study.study_id] for study in studies if study.study_id in self._outlooks]
        needed = [outlook.shortest_seconds for outlook in outlooks if outlook.shortest_seconds is not None]
        if needed:
            left, shortest = format_duration(max(0.0, self._seconds_left())), format_duration(min(needed))
            self._note = f"nothing that is open is likely to end within the {left} left; the shortest takes {shortest}"
        return bool(needed)

    def _pauses(self) -> Iterator[float]:
        is_file = parse_url(self.url).get_backend_name() == "sqlite"
        polls, poll_seconds = LONGEST_POLLS_OF_A_FILE if is_file else LONGEST_POLLS, self.options.poll_seconds
        return idle_pauses(poll_seconds, polls * poll_seconds)

    def _look_back(self, studies: Sequence[StudyHandle]) -> None:
        """Note which studies hold nothing but failures, which are open to others only, and what others still train."""
        for study in studies:
            if study.holds_only_failures():
                self._troubled[study.name] = None
            if note := study.foreign_note():
                logger.warning("%s", note)
        self._left_out = tuple(name for name in self._refused if not self._handles[name].is_finished())
        if self.options.leave and (running := sum(study.counts()["RUNNING"] for study in studies)):
            trials = "1 trial runs" if running == 1 else f"{running} trials run"
            self._note = f"nothing is open; {trials} elsewhere"

    def _wait_for_database(self, error: StorageError) -> None:
        """Wait a little for a database that is busy, or answered before; else, or with patience over, raise."""
        has_answered = self._has_answered or self._waits is not None  # be it that it is busy
        # Who is to leave is one of a fleet, whose database did answer when the fleet was started.
        has_answered = has_answered or (self.options.leave and isinstance(error, StorageAway))
        self._waits = self._waits or pauses(self.options.patience_seconds)
        pause_seconds = next(self._waits, None)
        if pause_seconds is None or not comes_back(error, has_answered=has_answered):
            raise error
        say_again_in(pause_seconds, error)
        told_to_stop = self.stop.wait(pause_seconds)
        if not self._has_answered and not told_to_stop and self._seconds_left() <= 0:
            raise error  # who has seen no study must not end as if nothing were open

    def _is_spent(self) -> bool:
        done = self.completed + self.failed + self.extras
        return (self.options.trials is not None and done >= self.options.trials) or self._seconds_left() <= 0

    def _is_out_of_time(self) -> bool:
        """Whether something is open, for which nothing but the time did not do; maybe also where it runs elsewhere."""
        options = self.options
        if not options.leave or options.timeout_seconds is None or options.trials is not None:
            return False
        if self.stop.is_set:
            return self._got_nowhere and self._seconds_left() < options.timeout_seconds / 2
        with suppress(StorageError):  # a new worker sees for itself
            unfinished = [study for study in self._handles.values() if not study.is_finished()]
            may_draw = self._seconds_left() <= 0 and any(study.spec.sampler.name != "grid" for study in unfinished)
            return may_draw or any(study.counts()["WAITING"] for study in unfinished)
        return True

    def _seconds_left(self) -> float:
        """Return how long trials may still begin."""
        timeout_seconds = self.options.timeout_seconds
        return math.inf if timeout_seconds is None else timeout_seconds - (time.monotonic() - self._began)

    def _studies(self) -> list[StudyHandle]:
        """Return the studies to serve, in order of creation."""
        try:
            engine = next((handle.engine for handle in self._handles.values()), None) or open_engine(self.url)
            rows = [find_study(engine, self.study_name)] if self.study_name else readable_studies(engine)
            for row in rows:
                if row.name not in self._handles or not self._handles[row.name].is_of(row):
                    self._handles[row.name] = load_study(self.url, row.name)
            studies = [self._handles[row.name] for row in rows]
        except StorageError as error:  # no database yet, no study of that name yet, or not reachable just now
            if self.options.wait:
                warn_once(logger, f"waiting: {error}")
                return []
            raise
        if not self._has_answered:
            self._has_answered = True
            self.spool.deliver_all(self.url)  # before a cell whose result is here is taken for open
            for study in studies[:1]:
                self.half_trained.tidy(study)
        return [study for study in studies if self._fits(study)]

    def _fits(self, study: StudyHandle) -> bool:
        """Whether a study's times come from machines of this kind; where it was named and they do not, say so."""
        if (refusal := self._refusal(study)) is None:
            return True
        if self.study_name:
            raise UsageError(refusal)
        if study.name not in self._refused:
            logger.warning("left out: %s", refusal)
            self._refused.add(study.name)
        return False

    def _refusal(self, study: StudyHandle) -> str | None:
        try:
            own_key = self._trainer(study).machine(study.spec).key
        except UsageError as error:
            return f"study {study.name!r}: {error}"
        return foreign_machine(study, own_key, self.options.allow_mixed)

    def _claim(self, study: StudyHandle) -> Claim | None:
        """Return an open trial of a study, looking for lost ones only where none is waiting."""
        self._probe(study)
        if self.stop.is_set:
            return None
        with suppress(StopRequested):
            return study.claim(self.stop.interrupting, self._that_fit(study), lease_seconds=self.options.lease_seconds)
        return None

    def _that_fit(self, study: StudyHandle) -> Fits | None:
        """Return what tells which trials fit into the time that is left, where that is limited."""
        if self.options.timeout_seconds is None:
            return None
        if study.study_id not in self._outlooks:
            key, is_kept = self._trainer(study).machine(study.spec).key, self.half_trained.is_usable
            self._outlooks[study.study_id] = Outlook(study, key, is_kept=is_kept)
        outlook = self._outlooks[study.study_id]
        outlook.look()
        return lambda params: outlook.fits(params, self._seconds_left())

    def _probe(self, study: StudyHandle) -> None:
        """Time steps that nobody has timed, where the study asks for it, before this worker's first trial of it."""
        limit_seconds = study.spec.predict.probe
        if limit_seconds is None or study.name in self._probed:
            return
        self._probed.add(study.name)
        with suppress(StopRequested), self.stop.interrupting():
            limit_seconds = min(limit_seconds, self._seconds_left())
            self._trainer(study).probe(study, limit_seconds, lambda: self.stop.is_set)

    def _work_on(self, study: StudyHandle, claim: Claim) -> None:
        self.listener.claimed(study, claim)
        checkpoint = self.half_trained.of(study, claim, self._trainer(study).machine(study.spec).key)
        with Heartbeat(study, claim, self.options.heartbeat_seconds, checkpoint):
            try:
                result = self._train_in_time(study, claim, checkpoint)
            except (Interrupted, KeyboardInterrupt, SystemExit) as error:
                self.stop.request()
                study.hand_back(claim)
                self._got_nowhere = not checkpoint.kept_epochs
                self.listener.failed(claim, "told to stop; its cell is open again")
                if not isinstance(error, (Interrupted, StopRequested)):
                    raise  # Ctrl-C in a program that called us, or its way to end at a signal
            except (DataError, UsageError):
                study.hand_back(claim)  # this box's fault, not the configuration's
                raise
            except Exception as error:
                if isinstance(error, DeviceLost):
                    self._record_failure(study, claim, error)
                    raise
                trainer = self._trainer(study)
                if trainer.is_broken:
                    self._record_failure(study, claim, error)
                    raise DeviceLost(
                        f"{trainer.device} waits for a process that is gone: start the worker again"
                    ) from error
                if trainer.is_lost():
                    self._leave_device(study, claim, error)
                self._record_failure(study, claim, error)
            else:
                self._deliver(study, claim, result)

    def _train_in_time(self, study: StudyHandle, claim: Claim, checkpoint: Checkpoint) -> TrialResult:
        options = self.options
        with (
            TrialLimit(
                options.trial_timeout_seconds,
                options.hang_grace_seconds,
                record=lambda error: study.fail(claim, error.failure_kind, str(error)),
            ) as limit,
            self.stop.interrupting(),
        ):
            try:  # again, where the study asks for it and something disturbed the clock
                tries, result = undisturbed(
                    study.spec,
                    lambda: self._train_once(study, claim, lambda: self.stop.cuts_short or limit.is_over, checkpoint),
                    checkpoint,
                )
            except Interrupted:
                if self.stop.cuts_short:
                    raise
                raise limit.error() from None
        if tries > 1:
            logger.info("trial %d was disturbed: trained %d times", claim.number, tries)
        return result

    def _train_once(
        self, study: StudyHandle, claim: Claim, should_stop: Callable[[], bool], checkpoint: Checkpoint
    ) -> TrialResult:
        spec = study.spec
        judge = self._judge_of(study, claim)
        result = self._trainer(study).train(
            spec,
            claim.params,
            seed=claim.seed,
            should_stop=should_stop,
            on_epoch=lambda record: self.listener.epoch(claim, spec, record),
            ends_early=judge.ends_early if judge else lambda record: False,
            on_hang=lambda error: leave_hung(lambda: study.fail(claim, *failure_of(error))),
            checkpoint=checkpoint,
        )
        return judge.with_note(result) if judge else result

    def _judge_of(self, study: StudyHandle, claim: Claim) -> TrialJudge | None:
        """Return what judges a trial as it runs, None where its study lets all trials run to their end."""
        if study.study_id not in self._judges:
            machine_key = None if self.options.allow_mixed else self._trainer(study).machine(study.spec).key
            self._judges[study.study_id] = judge_of(study, machine_key)
        return self._judges[study.study_id](claim)

    def _deliver(self, study: StudyHandle, claim: Claim, result: TrialResult) -> None:
        allow_mixed, patience_seconds = self.options.allow_mixed, self.options.patience_seconds
        counts = self.spool.deliver(study, claim, result, patience_seconds, self.stop.wait, allow_mixed=allow_mixed)
        self.half_trained.forget(study, claim)
        if counts is None:
            self.listener.failed(claim, "told to stop; the next worker on this box delivers its result")
            return
        self._in_a_row = 0
        if counts:
            self.completed += 1
            self.listener.completed(study, claim, result)
        elif not study.holds(claim):
            self.listener.failed(claim, "its result is lost: it was deleted while it ran")
        elif result.is_finite():
            self.extras += 1
            self.listener.failed(claim, "kept as an extra: another worker's result counts for its cell")
        else:
            self._note_failure(study, claim, f"its time or its {study.spec.objective.label} is not a finite number")

    def _leave_device(self, study: StudyHandle, claim: Claim, error: Exception) -> NoReturn:
        """End the worker, whose next trials would all fail.

        Whether this trial broke the GPU or only met a broken one cannot be told, so the first time costs its slot no
        attempt. Every further time does, or a configuration that breaks GPUs would go round for ever.
        """
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        lost = DeviceLost(f"{self._trainer(study).device} {NO_ANSWER} ({said}): start the worker again")
        failed = trial_records(study.engine, study.study_id, states=["FAIL"], documents=False)
        reasons = [one.failure or "" for one in failed if (one.cell, one.repeat) == claim.slot]
        if any(NO_ANSWER in reason for reason in reasons):
            study.fail(claim, lost.failure_kind, str(lost))
        else:
            study.hand_back(claim, str(lost))
        self.listener.failed(claim, str(lost))
        raise lost from error

    def _note_failure(self, study: StudyHandle, claim: Claim, message: str) -> None:
        self.failed += 1
        self._troubled[study.name] = None
        self.listener.failed(claim, message)

    def _record_failure(self, study: StudyHandle, claim: Claim, error: Exception) -> None:
        expected = isinstance(error, BudgetTuneError) and not isinstance(error, (TrialMisused, ProgramFailed))
        kind, message = failure_of(error)
        is_told = isinstance(error, BudgetTuneError) and study.spec.train.command is not None
        if not expected and not is_told:  # a program has printed its own lines
            logger.exception("trial %d failed", claim.number)
        study.fail(claim, kind, message)
        if not isinstance(error, (DeviceLost, ProcessLost)):  # which are no fault of the trial's
            self.half_trained.forget(study, claim)
        self._note_failure(study, claim, message)
        self._in_a_row = 0 if expected else self._in_a_row + 1
        if self._in_a_row >= FAILURES_IN_A_ROW:
            raise BudgetTuneError(
                f"{self._in_a_row} trials in a row failed in code of the study, the last with {message}: "
                f"mend it, then queue the cells again with `budgettune study retry`"
            ) from error
