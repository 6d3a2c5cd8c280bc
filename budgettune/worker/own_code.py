"""Training code of the study's own as a worker uses it: a function is called, a program is started."""

from __future__ import annotations

import gc
import os
import pickle
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from budgettune.errors import BudgetTuneError, Interrupted, OutOfMemory, SpecError, TrialFailed, UsageError
from budgettune.files import replacing
from budgettune.machine.fingerprint import THREAD_VARIABLES, default_threads, fingerprint, usable_cores
from budgettune.machine.gpu import named_gpus
from budgettune.machine.witness import Witness, witness_for
from budgettune.predict.predictor import unmeasured
from budgettune.records import EpochRecord, MachineInfo, StepProbe, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust, contained
from budgettune.storage.studies import add_probes, read_probes
from budgettune.storage.trials import trial_records
from budgettune.study.handle import StudyHandle
from budgettune.text import message_of
from budgettune.trial.checkpoint import NOWHERE, Checkpoint
from budgettune.trial.program import run_program, worded
from budgettune.trial.terms import ALONE, Outside, Terms, Trained
from budgettune.trial.told import ToldTrial
from budgettune.trial.trial import Trial
from budgettune.worker.options import Ranks, WorkerOptions, gpu_of

SECRETS = ("BUDGETTUNE_STORAGE", "OPTUNA_STORAGE", "BUDGETTUNE_DASHBOARD_PASSWORD", "PGPASSWORD")
"""Variables that no program of a study gets: it needs no database, and may print its environment."""


def save_own(path: str | Path, trained: Trained, spec: StudySpec, params: Mapping[str, Any]) -> None:
    """Write state, spec, params and result as a pickle of plain values and of whatever the code has saved.

    Raises:
        UsageError: where it cannot be written.
    """
    document = {
        "state": trained.model,
        "spec": spec.to_document(),
        "params": dict(params),
        "result": trained.result.to_json(),
    }
    try:
        content = pickle.dumps(document)
        with replacing(Path(path)) as file:
            file.write(content)
    except OSError as error:
        raise UsageError(f"file {path} cannot be written: {error.strerror}") from error
    except Exception as error:
        raise UsageError(
            f"what the code saved cannot be written ({message_of(error)}): save what pickle takes"
        ) from error


class OwnCode:
    """Trains a study's own function or program. It loads no torch; the function may.

    Attributes:
        device: that trials are told to train on: cpu, cuda:0, …

    Raises:
        UsageError: where this box has no such device.
    """

    is_broken = False

    def __init__(self, options: WorkerOptions, trust: Trust) -> None:
        if Ranks.of_torchrun() is not None:
            raise UsageError(
                "torchrun started several workers, and own training code starts its processes itself: "
                "put torchrun into train.command, and start one worker"
            )
        self._trust = trust
        self._threads = options.threads or default_threads()
        self._usual = options.gpus_per_trial or 1
        self.device, name, uuid = _pick(options.device)
        self._machine = fingerprint(
            device=self.device.partition(":")[0], threads=self._threads, device_name=name, device_uuid=uuid
        )

    def machine(self, spec: StudySpec) -> MachineInfo:
        """Return the machine that the trials of a study are timed on.

        Raises:
            UsageError: where it has no room for so many processes.
        """
        count = spec.train.processes or self._usual if spec.train.command is not None else 1
        if count == 1:
            return self._machine
        if self.device == "cpu" and count > (most := max(8, 2 * usable_cores(), self._usual)):
            raise UsageError(f"train.processes: {count} are too many for {usable_cores()} cores: take {most} at most")
        if self.device != "cpu" and len(named_gpus()) - int(self.device.partition(":")[2]) < count:
            raise UsageError(f"{count} processes need a GPU each, and this box has {len(named_gpus())} GPUs")
        return replace(self._machine, processes=count, threads=max(1, self._threads // count))

    def witness(self) -> Witness:
        """Return who watches the device."""
        return witness_for(self.device, threads=self._threads, device_uuid=self._machine.device_uuid)

    def probe(
        self,
        study: StudyHandle,
        limit_seconds: float,
        should_stop: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Time one epoch of what nobody has timed on this kind of machine, in any order.

        The times are kept with the study, and nothing else is. When `limit_seconds` are over, an epoch ends unfinished.
        """
        key, probes, ends = self._machine.key, [], time.perf_counter() + limit_seconds
        known = read_probes(study.engine, study.study_id).get(key, [])
        steps = unmeasured(study.spec, trial_records(study.engine, study.study_id), known, key)

        def is_over() -> bool:
            return should_stop() or time.perf_counter() >= ends

        for place, workload in enumerate(random.Random(0).sample(steps, len(steps))):
            if is_over():
                break
            say(f"probe {place + 1} of {len(steps)}: {workload.step}")
            began, epoch = time.perf_counter(), {"train.budget": None, "train.epochs": 1}
            try:
                result = self.train(study.spec, {**workload.params, **epoch}, seed=0, should_stop=is_over)
            except Interrupted:
                say("left out: the time for probes is over")
                break
            except TrialFailed as error:
                say(f"left out: {error}")
                continue
            seconds, ms = time.perf_counter() - began, 1e3 * result.train_seconds
            probes.append(
                StepProbe(
                    params=workload.params, step=workload.step, ms_mean=ms, ms_error=0.0, steps=1, seconds=seconds
                )
            )
        if probes:
            add_probes(study.engine, study.study_id, key, probes)

    def train(
        self,
        spec: StudySpec,
        params: Mapping[str, Any],
        *,
        seed: int,
        should_stop: Callable[[], bool] = lambda: False,
        on_epoch: Callable[[EpochRecord], None] = lambda record: None,
        ends_early: Callable[[EpochRecord], bool] = lambda record: False,
        checkpoint: Checkpoint = NOWHERE,
        **_: Any,
    ) -> TrialResult:
        """Train one configuration; the arguments are those of `Outside`, and where a half-trained trial is kept.

        Raises:
            SpecError: where the code is not there.
            UsageError: where this machine does not allow its package.
            TrialFailed: where it cannot go on.
        """
        outside = Outside(should_stop=should_stop, on_epoch=on_epoch, ends_early=ends_early)
        return self.trained(spec, params, seed, outside, checkpoint).result

    def trained(
        self,
        spec: StudySpec,
        params: Mapping[str, Any],
        seed: int,
        outside: Outside = ALONE,
        checkpoint: Checkpoint = NOWHERE,
    ) -> Trained:
        """Train one configuration, and return the result with what its code saved last; errors are those of `train`."""
        config = spec.resolve(params)
        if config.train.command is not None:
            return Trained(self._run(config, seed, outside, checkpoint), None)
        with _threads(self._threads):
            function = self._function(config.train.loop or "")
            trial = Trial(Terms.of(config, seed, self.device), outside, checkpoint=checkpoint)
            with watched(self.witness(), trial, self._machine) as finish, contained(), _left_as_found(), memory_named():
                _start_chance(seed)
                function(trial)
            result, saved = finish(), trial.saved
        del trial
        _free()
        return Trained(result, saved)

    def _run(self, config: StudySpec, seed: int, outside: Outside, checkpoint: Checkpoint) -> TrialResult:
        """Train by a program."""
        command = config.train.command or ()
        self._trust.check_command(command)
        machine = self.machine(config)
        device, visible = _visible(self.device, machine.processes)
        terms = Terms.of(config, seed, device)
        values = {**terms.params, "seed": seed, "device": device, "processes": machine.processes}
        values |= {"epochs": terms.epochs, "budget_seconds": terms.budget_seconds}
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        environment |= dict.fromkeys(THREAD_VARIABLES, str(machine.threads)) | {"CUDA_VISIBLE_DEVICES": visible}
        trial = ToldTrial(terms, outside, checkpoint)
        with watched(self.witness(), trial, machine) as finish:
            # The time of a process counts as ours when it has ended: until then a program looks like somebody else.
            trial.look = lambda: ("unverified", {"reasons": ["the program still ran: who used the cores is not known"]})
            run_program(
                trial,
                worded(command, values),
                terms,
                environment=environment,
                should_stop=outside.should_stop,
            )
        return finish()

    def _function(self, name: str) -> Callable[[Trial], object]:
        function: Callable[[Trial], object] = self._trust.import_code(name)
        if not callable(function):
            raise SpecError(f"train.loop: {name} is a {type(function).__name__}: name a function that takes a trial")
        return function

    def is_lost(self) -> bool:
        """Whether the code's GPU answers this process no more."""
        if self.device == "cpu" or "torch" not in sys.modules:
            return False
        from budgettune.training.device import Device

        return Device(self.device).is_lost()

    def close(self) -> None:
        """Do nothing: nothing stays between trials."""


@contextmanager
def watched(witness: Witness, trial: Trial, machine: MachineInfo) -> Iterator[Callable[[], TrialResult]]:
    """Watch the clock inside; yields what returns the result afterwards."""
    verdict: tuple[str, Mapping[str, Any]] = ("unverified", {})
    trial.look = witness.look
    witness.start()
    try:
        yield lambda: trial.result(machine, *verdict)
    finally:
        verdict = witness.stop()


@contextmanager
def memory_named() -> Iterator[None]:
    """Raise an error of full memory, of Python, torch or JAX, as OutOfMemory."""
    try:
        yield
    except BudgetTuneError:
        raise
    except Exception as error:
        is_named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
        if is_named or str(error).startswith("RESOURCE_EXHAUSTED"):  # torch's, and JAX's
            said = str(error).splitlines()[0] if str(error) else "no memory is left"
            raise OutOfMemory(f"{type(error).__name__}: {said}") from None
        raise


@contextmanager
def _left_as_found() -> Iterator[None]:
    """Put back what code changes of the process, so that the next trial begins as this one did."""
    folder, variables, streams = Path.cwd(), dict(os.environ), (sys.stdout, sys.stderr)
    torch = sys.modules.get("torch")
    usual = torch and (torch.get_default_dtype(), torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled())
    try:
        with warnings.catch_warnings():
            yield
    finally:
        os.chdir(folder)
        for name in os.environ.keys() - variables.keys():
            del os.environ[name]
        os.environ.update(variables)
        sys.stdout, sys.stderr = streams
        if (torch := sys.modules.get("torch")) is not None:
            kind, has_gradients, is_deterministic = usual or (torch.float32, True, False)
            torch.set_default_dtype(kind)
            torch.set_grad_enabled(has_gradients)
            torch.use_deterministic_algorithms(is_deterministic)


def _start_chance(seed: int) -> None:
    """Begin the generators of the process with a trial's seed, those of loaded libraries too."""
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed(seed % 2**32)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)


def _free() -> None:
    """Give back what a trial held before the next one begins."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        with suppress(Exception):  # a device that is lost
            torch.cuda.empty_cache()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Have libraries compute with so many threads: those that are loaded, and those that the code loads."""
    unset = [name for name in THREAD_VARIABLES if name not in os.environ]
    os.environ.update(dict.fromkeys(unset, str(count)))
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(count)
    from threadpoolctl import threadpool_limits

    try:
        with threadpool_limits(count):
            yield
    finally:
        for name in unset:
            os.environ.pop(name, None)


def _visible(device: str, processes: int) -> tuple[str, str]:
    """Return what a program calls the device that it is given, and what CUDA_VISIBLE_DEVICES says to it."""
    if device == "cpu":
        return device, ""
    first, here = int(device.partition(":")[2]), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    places = range(first, first + processes)
    return "cuda:0", ",".join(here[place] if place < len(here) and here[0] else str(place) for place in places)


def _pick(name: str) -> tuple[str, str | None, str | None]:
    """Return the device that an option stands for, with its name and its UUID where it is a GPU."""
    index = gpu_of(name) or 0
    gpus = [] if name == "cpu" else named_gpus()
    if index < len(gpus):
        return f"cuda:{index}", *gpus[index]
    if name.startswith("cuda"):
        raise UsageError(f"device {name} is not here; this box has {len(gpus)} CUDA devices: use --device cpu")
    return "cpu", None, None
