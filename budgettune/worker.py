"""The program that turns open trials into records: claim, train, record, until told to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from budgettune.disturbance import Witness
from budgettune.errors import (
    BudgetTuneError,
    DataError,
    Interrupted,
    StorageError,
    StudyNotFound,
    TrialFailed,
    UsageError,
)
from budgettune.machine import usable_cores, witness_for
from budgettune.probing import probe_study
from budgettune.records import EpochRecord, MachineInfo, TrialResult
from budgettune.roots import allowed_folders, check_paths
from budgettune.spec import DataSpec, StudySpec
from budgettune.spool import Spool, pauses
from budgettune.stopping import StopFlag
from budgettune.study import Claim, StudyHandle, load_study, study_names
from budgettune.training.data import ImageData, load_data
from budgettune.training.device import Device, pick_device
from budgettune.training.trainer import Trained, train
from budgettune.watchdog import Heartbeat, TrialLimit
from budgettune.worker_options import WorkerOptions, WorkerSummary

logger = logging.getLogger(__name__)

FAILURES_IN_A_ROW = 5
"""Unexpected failures after which a worker blames itself or the study's code, and stops using up attempts."""


class Listener:
    """Told what a worker does, for progress on a terminal; does nothing by itself."""

    def claimed(self, study: StudyHandle, claim: Claim) -> None:
        """Note that a trial begins."""

    def epoch(self, claim: Claim, spec: StudySpec, record: EpochRecord) -> None:
        """Note one more epoch."""

    def completed(self, study: StudyHandle, claim: Claim, result: TrialResult) -> None:
        """Note a finished trial."""

    def failed(self, claim: Claim, reason: str) -> None:
        """Note a failed or returned trial."""


@dataclass
class DataCache:
    """The last image set, on the device, kept between trials of one process."""

    device: torch.device
    allow_import: Collection[str] = ()
    _spec: DataSpec | None = None
    _data: ImageData | None = None

    def get(self, spec: DataSpec) -> tuple[ImageData, float]:
        """Return the images of a `[data]` table and the seconds that reading them took (0 where they were here)."""
        if self._data is not None and self._spec == spec:
            return self._data, 0.0
        self._data = None  # never two sets in memory
        began = time.perf_counter()
        self._data, self._spec = load_data(spec, allow_import=self.allow_import).to(self.device), spec
        return self._data, time.perf_counter() - began


def run_worker(
    url: str,
    study: str | None = None,
    options: WorkerOptions | None = None,
    *,
    stop: StopFlag | None = None,
    listener: Listener | None = None,
) -> WorkerSummary:
    """Work on a study, or on every open study in order of creation, until nothing is left.

    Trials that run elsewhere count as something left: should their worker die, their cells come back.

    Raises:
        StudyNotFound: where the study is not there and `wait` is off.
        StorageError: where the database does not answer, or for longer than `patience_seconds` once it has; a result
            that it has not taken waits in the spool.
        DataError: where this box cannot read a study's images; the trial goes back unharmed.
        BudgetTuneError: where trial after trial fails in code that is not ours.
    """
    worker = _Worker(url, study, options or WorkerOptions(), stop or StopFlag(), listener or Listener())
    return worker.run()


@dataclass
class _Worker:
    url: str
    study_name: str | None
    options: WorkerOptions
    stop: StopFlag
    listener: Listener
    completed: int = 0
    failed: int = 0
    spool: Spool = field(default_factory=Spool)
    _in_a_row: int = 0
    _handles: dict[str, StudyHandle] = field(default_factory=dict)
    _probed: set[str] = field(default_factory=set)
    _refused: set[str] = field(default_factory=set)
    _has_answered: bool = False
    _waits: Iterator[float] | None = None

    def run(self) -> WorkerSummary:
        self.device = pick_device(self.options.device)
        self.folders = allowed_folders(self.options.allow_root, self.url)
        self.data = DataCache(self.device, self.options.allow_import)
        self.machine, self.witness = prepare_process(self.device, self.options.threads)
        began = time.monotonic()
        while not self.stop.is_set and not self._is_spent(time.monotonic() - began):
            try:
                if not self._round():
                    break
                self._waits = None
            except StorageError as error:
                self._bear_with(error)
        return WorkerSummary(completed=self.completed, failed=self.failed, signal_number=self.stop.signal_number)

    def _round(self) -> bool:
        """Work on one trial, or wait a little for one; return false where nothing is left to do."""
        studies = self._studies()
        work = next(((study, claim) for study in studies if (claim := self._claim(study)) is not None), None)
        if work is not None:
            self._work_on(*work)
        elif self.spool.deliver_all(self.url):
            return True  # what is open has changed
        elif not self.options.wait and all(study.is_finished() for study in studies):
            return False
        else:
            self.stop.wait(self.options.poll_seconds)
        return True

    def _bear_with(self, error: StorageError) -> None:
        """Wait a little for a database that answered before; else, or where patience is over, raise the error."""
        self._waits = self._waits or pauses(self.options.patience_seconds)
        pause_seconds = next(self._waits, None)
        if not self._has_answered or pause_seconds is None or isinstance(error, StudyNotFound):
            raise error
        logger.warning("asking the database again in %g s: %s", pause_seconds, error)
        self.stop.wait(pause_seconds)

    def _is_spent(self, seconds: float) -> bool:
        trials, timeout_seconds = self.options.trials, self.options.timeout_seconds
        done = self.completed + self.failed
        return (trials is not None and done >= trials) or (timeout_seconds is not None and seconds >= timeout_seconds)

    def _studies(self) -> list[StudyHandle]:
        """Return the studies to serve, in order of creation."""
        try:
            names = [self.study_name] if self.study_name else study_names(self.url)
            for name in names:
                if name not in self._handles:
                    self._handles[name] = load_study(self.url, name)
            studies = [self._handles[name] for name in names]
        except StorageError:  # no database yet, no study of that name yet, or not reachable just now
            if self.options.wait:
                return []
            raise
        if not self._has_answered:
            self._has_answered = True
            self.spool.deliver_all(self.url)  # before a cell whose result is here is taken for open
        return [study for study in studies if self._fits(study)]

    def _fits(self, study: StudyHandle) -> bool:
        """Whether a study's times come from machines of this kind; where it was named and they do not, say so."""
        kind = None if self.options.allow_mixed else study.machine_kind()
        if kind in (None, self.machine.key):
            return True
        refusal = (
            f"study {study.name!r} takes its times on {kind}, and this worker is {self.machine.key}: run it on such "
            f"a machine (--threads tells how many of a CPU's), or mix their times knowingly with --allow-mixed"
        )
        if self.study_name:
            raise UsageError(refusal)
        if study.name not in self._refused:
            logger.warning("left out: %s", refusal)
            self._refused.add(study.name)
        return False

    def _claim(self, study: StudyHandle) -> Claim | None:
        """Return an open trial of a study, looking for lost ones only where none is waiting."""
        self._probe(study)
        claim = study.claim()
        if claim is None and not study.is_finished():
            study.reconcile(self.options.lease_seconds)
            claim = study.claim()
        return claim

    def _probe(self, study: StudyHandle) -> None:
        """Time steps that nobody has timed, where the study asks for it, before this worker's first trial of it."""
        limit_seconds = study.spec.predict.probe
        if limit_seconds is None or study.name in self._probed:
            return
        self._probed.add(study.name)
        probe_study(
            study.engine,
            study.study_id,
            study.spec,
            self.device,
            limit_seconds=limit_seconds,
            should_stop=lambda: self.stop.is_set,
            say=logger.info,
        )

    def _work_on(self, study: StudyHandle, claim: Claim) -> None:
        self.listener.claimed(study, claim)
        with Heartbeat(study, claim, self.options.heartbeat_seconds):
            try:
                result = self._train_in_time(study, claim)
            except (Interrupted, KeyboardInterrupt):
                self.stop.request()
                study.hand_back(claim)
                self.listener.failed(claim, "told to stop; its cell is open again")
            except (DataError, UsageError):
                study.hand_back(claim)  # this box's fault, not the configuration's
                raise
            except Exception as error:
                self._record_failure(study, claim, error)
            else:
                self._deliver(study, claim, result)

    def _train_in_time(self, study: StudyHandle, claim: Claim) -> TrialResult:
        options = self.options
        with TrialLimit(
            options.trial_timeout_seconds,
            options.hang_grace_seconds,
            record=lambda error: study.fail(claim, error.kind, str(error)),
        ) as limit:
            try:
                return self._train(study, claim, lambda: self.stop.cuts_short or limit.is_over)
            except Interrupted:
                if self.stop.cuts_short:
                    raise
                raise limit.error() from None

    def _train(self, study: StudyHandle, claim: Claim, should_stop: Callable[[], bool]) -> TrialResult:
        """Train a claim; again, where the study asks for it and something disturbed the clock."""
        tries, result = undisturbed(study.spec, lambda: self._train_once(study, claim, should_stop).result)
        if tries > 1:
            logger.info("trial %d was disturbed: trained %d times", claim.number, tries)
        return result

    def _train_once(self, study: StudyHandle, claim: Claim, should_stop: Callable[[], bool]) -> Trained:
        spec = study.spec
        config = spec.resolve(claim.params)
        check_files(config, self.folders)
        data, load_seconds = self.data.get(config.data)
        return train(
            spec,
            claim.params,
            seed=claim.seed,
            data=data,
            device=self.device,
            load_seconds=load_seconds,
            allow_import=self.options.allow_import,
            witness=self.witness,
            should_stop=should_stop,
            on_epoch=lambda record: self.listener.epoch(claim, spec, record),
        )

    def _deliver(self, study: StudyHandle, claim: Claim, result: TrialResult) -> None:
        allow_mixed, patience_seconds = self.options.allow_mixed, self.options.patience_seconds
        counts = self.spool.deliver(study, claim, result, patience_seconds, self.stop.wait, allow_mixed=allow_mixed)
        if counts is None:
            self.listener.failed(claim, "told to stop; the next worker on this box delivers its result")
            return
        self._in_a_row = 0
        if counts:
            self.completed += 1
            self.listener.completed(study, claim, result)
        else:
            self.failed += 1
            self.listener.failed(claim, "kept as an extra: another worker's result counts for its cell")

    def _record_failure(self, study: StudyHandle, claim: Claim, error: Exception) -> None:
        expected = isinstance(error, BudgetTuneError)
        kind = error.kind if isinstance(error, TrialFailed) else "error"
        message = str(error) if expected else f"{type(error).__name__}: {error}"
        if not expected:
            logger.exception("trial %d failed", claim.number)
        study.fail(claim, kind, message)
        self.failed += 1
        self.listener.failed(claim, message)
        self._in_a_row = 0 if expected else self._in_a_row + 1
        if self._in_a_row >= FAILURES_IN_A_ROW:
            raise BudgetTuneError(
                f"{self._in_a_row} trials in a row failed in code of the study, the last with {message}: "
                f"mend it, then queue the cells again with `budgettune study retry`"
            ) from error


def undisturbed(spec: StudySpec, train_once: Callable[[], TrialResult]) -> tuple[int, TrialResult]:
    """Train until nothing disturbs the clock, as often as `[clock]` allows; return the tries, and the last result."""
    most = 1 + (spec.clock.repeat_limit if spec.clock.on_disturbed == "repeat" else 0)
    tries, result = 1, train_once()
    while result.status == "disturbed" and tries < most:
        tries, result = tries + 1, train_once()
    return tries, result


def check_files(config: StudySpec, folders: frozenset[Path] | None) -> None:
    """Refuse files that a study names outside the folders of `allowed_folders`.

    Raises:
        UsageError: for the first one.
    """
    named = (
        ("data.root", config.data.root),
        ("data.cache", config.data.cache),
        ("pruning.scores", config.pruning.scores),
    )
    check_paths(named, folders)


def prepare_process(device: torch.device, threads: int | None) -> tuple[MachineInfo, Witness]:
    """Fix the number of threads for the whole process; return its machine, and a witness for what is trained in it."""
    torch.set_num_threads(threads or usable_cores())
    machine = Device(device).machine()
    return machine, witness_for(machine.device, threads=machine.threads, device_uuid=machine.device_uuid)


def train_one(
    study: StudyHandle | StudySpec,
    params: Mapping[str, Any],
    *,
    seed: int = 0,
    device: str = "auto",
    threads: int | None = None,
    allow_import: Collection[str] = (),
    folders: frozenset[Path] | None = None,
    stop: StopFlag | None = None,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Trained:
    """Train one configuration without recording it in a study, and return its result and model.

    Args:
        study: or its spec.
        params: values of what the study searches.
        seed: of everything random.
        device: auto, cpu, cuda or cuda:N.
        threads: of the CPU; None for every usable core.
        allow_import: packages that code named in the spec may come from.
        folders: that it may name files in, from `allowed_folders`; None for any.
        stop: ends it early, with Interrupted.
        on_epoch: told each point of the curve.
    """
    spec = study if isinstance(study, StudySpec) else study.spec
    chosen = pick_device(device)
    _, witness = prepare_process(chosen, threads)
    config = spec.resolve(params)
    check_files(config, folders)
    data, load_seconds = DataCache(chosen, allow_import).get(config.data)
    return train(
        spec,
        params,
        seed=seed,
        data=data,
        device=chosen,
        load_seconds=load_seconds,
        allow_import=allow_import,
        witness=witness,
        should_stop=lambda: stop is not None and stop.cuts_short,
        on_epoch=on_epoch,
    )


def save_model(path: str | Path, trained: Trained, spec: StudySpec, params: Mapping[str, Any]) -> None:
    """Write weights, spec, params and result to a file that `torch.load(path, weights_only=True)` reads."""
    document = {
        "state_dict": {name: tensor.cpu() for name, tensor in trained.model.state_dict().items()},
        "spec": spec.to_document(),
        "params": dict(params),
        "result": {**trained.result.to_json(), "batch_shapes": list(trained.result.batch_shapes)},
    }
    try:
        torch.save(document, path)
    except (OSError, RuntimeError) as error:
        raise UsageError(f"model file {path} cannot be written: {error}") from error
