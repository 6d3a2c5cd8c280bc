"""The processes of a worker that train each of its trials together: rank 0 and its followers.

Rank 0 tells the followers what to train, and is told how it went, through a store of torch that listens on 127.0.0.1.
It starts them itself, with a pipe whose end ends them, and keeps them between trials; or torchrun has started them all.
Orders and answers are JSON. A follower has no state that matters: it may be ended at any time.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from budgettune import errors
from budgettune.errors import (
    BudgetTuneError,
    BudgetUsedUp,
    Interrupted,
    NonFiniteLoss,
    ProcessLost,
    SpecError,
    UsageError,
)
from budgettune.machine.fingerprint import usable_cores
from budgettune.machine.verdict import worst
from budgettune.machine.witness import Witness
from budgettune.records import MachineInfo, TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.text import warn_once
from budgettune.training.device import Device
from budgettune.training.group import ANSWER_SECONDS, Group, using_threads
from budgettune.training.trainer import train
from budgettune.trial.terms import Trained

logger = logging.getLogger(__name__)

FOLLOW = "from budgettune.training.session import follow_parent; follow_parent()"
FEW_PROCESSES = 4  # that any box can run
POLL_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.1
REASON_SECONDS = 3.0  # for which the reason of a lost process is waited for
END_SECONDS = 5.0  # that followers get to end by themselves
WATCH_SECONDS = 1.0  # between looks for a follower that has left, where rank 0 would wait for it for good
HANG_SECONDS = 10.0  # for which the trial may then go on
ALIKE = (BudgetUsedUp, Interrupted, NonFiniteLoss)
"""Errors that all ranks raise at the same place: they can go on together."""


def torchrun_store() -> Any:
    """Return the store of the processes that torchrun started."""
    if os.environ["MASTER_ADDR"] in ("127.0.0.1", "localhost", "::1"):
        _stay_on_this_box()
    return next(distributed.rendezvous("env://"))[0]


def _stay_on_this_box() -> None:
    """Have processes speak to each other where no other box can listen."""
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        loopback = next((each for _, each in socket.if_nameindex() if each.startswith("lo")), None)
        if loopback is not None:
            os.environ.setdefault(name, loopback)


class _Store:
    """JSON under names; what belongs to one order lies below its number.

    Raises:
        ConnectionError: by each method, where the store is gone.
    """

    def __init__(self, store: Any) -> None:
        self.torch = store

    def put(self, name: str, document: Any) -> None:
        self._call(self.torch.set, name, json.dumps(document))

    def has(self, name: str) -> bool:
        return bool(self._call(self.torch.check, [name]))

    def get(self, name: str) -> Any:
        """Return what lies there, however long it takes to come."""
        pause_seconds = POLL_SECONDS
        while not self.has(name):  # torch's own way to wait fills the log
            time.sleep(pause_seconds)
            pause_seconds = min(LONGEST_PAUSE_SECONDS, 1.1 * pause_seconds)
        return json.loads(self._call(self.torch.get, name))

    def forget(self, *names: str) -> None:
        for name in names:
            self._call(self.torch.delete_key, name)

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        try:
            return method(*args)
        except RuntimeError as error:
            raise ConnectionError(f"the first process is gone: {error}") from None


def follow(
    store: Any, rank: int, size: int, device: torch.device, carry_out: Callable[..., Callable[[Group], TrialResult]]
) -> None:
    """Train what rank 0 orders until it ends, or is gone.

    `carry_out` prepares an order, as spec, params, seed and threads, and returns what trains it in a group. Signals are
    rank 0's business.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):
        if hasattr(signal, name) and threading.current_thread() is threading.main_thread():
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    box = _Store(store)
    group: Group | None = None
    met = 0
    with suppress(ConnectionError):
        number = 0
        while (order := box.get(f"{number + 1}/order")) is not None:
            number += 1
            box.put(f"{number}/seen/{rank}", True)
            try:
                run = carry_out(StudySpec.from_json(order["spec"]), order["params"], order["seed"], order["threads"])
                box.put(f"{number}/ready/{rank}", True)
                if not box.get(f"{number}/go"):
                    continue
                if group is not None and met != order["meeting"]:  # rank 0 has left that one
                    group.close()
                    group = None
                if group is None:
                    met = order["meeting"]
                    group = Group(distributed.PrefixStore(f"meeting/{met}", store), rank, size, device)
                result = run(group)
                same = ("weights_sha256", "status", "evidence", "peak_memory_mb")
                said = {name: value for name, value in result.to_json().items() if name in same}
            except ConnectionError:
                raise
            except Exception as error:
                if not isinstance(error, BudgetTuneError):
                    logger.exception("process %d of %d failed", rank, size)  # rank 0 has another traceback
                said = {"error": type(error).__name__, "text": str(error)}
                if not isinstance(error, ALIKE):
                    if group is not None:
                        group.close()  # whoever waits for this process finds out
                    group = None
            box.put(f"{number}/said/{rank}", said)


class Team:
    """Rank 0's side: trains as `trainer.train` does, together with followers where more than one process is asked for.

    Args:
        device: of rank 0; followers take the devices behind it.
        trust: of the followers, too.
        usual: processes of a trial whose study does not say how many.
        is_fixed: whether a study that asks for another number is refused.
        store: where torchrun has started so many processes.
    """

    def __init__(
        self, device: torch.device, trust: Trust, *, usual: int = 1, is_fixed: bool = False, store: Any = None
    ) -> None:
        self.device, self.trust, self.usual, self.is_fixed = device, trust, usual, is_fixed or store is not None
        self._machine = Device(device).machine()
        self._by_torchrun = store is not None
        self._store = None if store is None else _Store(store)
        self._children: list[subprocess.Popen[bytes]] = []
        self._size = usual if self._by_torchrun else 1
        self._group: Group | None = None
        self._order = self._meeting = 0
        self.may_hang = device.type == "cuda"  # and not gloo, which notices
        self.is_broken = False  # whether a GPU may wait for good for a process that has left: no trial can follow

    def processes(self, spec: StudySpec) -> int:
        """Return how many processes train a trial of a study.

        Raises:
            UsageError: where this worker has another number.
        """
        asked = spec.train.processes or self.usual
        if asked != self.usual and self.is_fixed:
            has = f"{self.usual} process{'es' if self.usual > 1 else ''} for a trial"
            start = f"torchrun --nproc-per-node {asked}" if self._by_torchrun else f"--gpus-per-trial {asked}"
            raise UsageError(
                f"train.processes: the study asks for {asked}, and this worker has {has}: start it with {start}"
            )
        most = max(FEW_PROCESSES, 2 * usable_cores(), self.usual)
        if self.device.type == "cpu" and asked > most:  # a study of somebody else's may ask for a thousand
            raise UsageError(f"train.processes: {asked} are too many for {usable_cores()} cores: take {most} at most")
        has_too_few = self.device.type == "cuda" and (self.device.index or 0) + asked > torch.cuda.device_count()
        if has_too_few and not self._by_torchrun:
            raise UsageError(f"{asked} processes need a GPU each, and torch sees {torch.cuda.device_count()} GPUs here")
        return asked

    def machine(self, spec: StudySpec) -> MachineInfo:
        """Return the machine that the trials of a study are timed on."""
        count, machine = self.processes(spec), self._machine
        return replace(machine, processes=count, threads=_shared(machine.threads, count))

    def train(
        self,
        spec: StudySpec,
        params: Mapping[str, Any] | None = None,
        *,
        seed: int,
        witness: Witness | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        on_hang: Callable[[Exception], object] = lambda reason: None,
        **how: Any,
    ) -> Trained:
        """Train one configuration; arguments and errors are those of `trainer.train`.

        `on_hang` is told, from a thread, why a GPU waits for good for another process: the process should end.

        Raises:
            ProcessLost: where a follower has ended, or gives no answer.
        """
        config = spec.resolve(params or {})
        count = self.processes(config)
        how |= {"device": self.device, "trust": self.trust, "should_stop": should_stop}
        if count == 1:
            if self._children:
                self.close()  # those that stand by would take time from the clock
            return train(spec, params, seed=seed, witness=witness, **how)
        if not self._by_torchrun and "TORCHELASTIC_RUN_ID" in os.environ:
            raise UsageError("train.processes: torchrun goes with `budgettune worker` alone: start this without it")
        machine = self.machine(config)
        if count > torch.get_num_threads():
            warn_once(logger, f"{count} processes train a trial, with a thread each: more than --threads says")
        with using_threads(machine.threads):
            if witness is not None:
                witness = Device(self.device).witness()  # of fewer threads
            try:
                self._gather(count, should_stop)
                self._give_order(spec, params or {}, seed, machine.threads, should_stop)
                with self._watched(on_hang):
                    trained = train(spec, params, seed=seed, witness=witness, group=self._group_of(count), **how)
                answers = [self._answer(rank) for rank in range(1, count)]
            except ALIKE:
                raise
            except ProcessLost as error:
                reason = self._reason(error)
                self._part()
                if reason is error:
                    self._give_up()
                raise reason from None
            except BaseException:
                self._part()
                raise
        return replace(trained, result=together(trained.result, answers))

    def close(self) -> None:
        """End the followers."""
        with suppress(Exception):
            if self._store is not None:
                self._store.put(f"{self._order + 1}/order", None)
        self._part()
        for child in self._children:
            if child.stdin is not None:
                with suppress(OSError):
                    child.stdin.close()
        ends = time.monotonic() + END_SECONDS
        for child in self._children:
            try:
                child.wait(max(0.0, ends - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        self._children = []
        if not self._by_torchrun:
            self._store, self._size = None, 1

    def _part(self) -> None:
        group, self._group = self._group, None
        self.is_broken = self.is_broken or (group is not None and self.device.type == "cuda")
        if group is not None:
            group.close()

    def _give_up(self) -> None:
        """End followers that give no answer, for others to be started; those of torchrun only it can end."""
        self.is_broken = self.is_broken or self._by_torchrun
        for child in self._children:
            child.kill()
            child.wait()

    def _gather(self, count: int, should_stop: Callable[[], bool]) -> None:
        """See that there are so many processes."""
        if self._by_torchrun or (self._size == count and all(child.poll() is None for child in self._children)):
            return
        self.close()
        _stay_on_this_box()
        listener = socket.create_server(("127.0.0.1", 0))  # else the store would listen to every network
        port = listener.getsockname()[1]
        # Without waiting for the others: whether they come is seen below.
        store = distributed.TCPStore(
            "127.0.0.1", port, None, True, wait_for_workers=False, master_listen_fd=listener.detach()
        )
        self._store, self._size, self._order = _Store(store), count, 0
        for rank in range(1, count):
            self._children.append(self._start(rank, count, port))

    def _start(self, rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
        path = [entry or str(Path.cwd()) for entry in sys.path]
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", FOLLOW],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "TORCH_CPP_LOG_LEVEL": "ERROR"},
            start_new_session=True,  # Ctrl-C reaches rank 0 alone
        )
        device = str(self.device) if self.device.type == "cpu" else f"cuda:{(self.device.index or 0) + rank}"
        folders = None if self.trust.folders is None else sorted(map(str, self.trust.folders))
        terms = {"port": port, "rank": rank, "size": count, "device": device}
        terms |= {"packages": sorted(self.trust.packages), "folders": folders}
        assert child.stdin is not None
        with suppress(OSError):  # one that has ended already is found below
            child.stdin.write(json.dumps(terms).encode() + b"\n")
            child.stdin.flush()
        return child

    def _give_order(
        self, spec: StudySpec, params: Mapping[str, Any], seed: int, threads: int, should_stop: Callable[[], bool]
    ) -> None:
        """Tell the followers what to train, and return when all of them have the images, or raise what keeps one."""
        store, ranks, began = self._box, range(1, self._size), time.monotonic()
        last, self._order = self._order, self._order + 1
        self._meeting += self._group is None
        order = {"spec": spec.to_json(), "params": dict(params), "seed": seed, "threads": threads}
        store.put(f"{self._order}/order", {**order, "meeting": self._meeting})
        go = False
        try:
            while not all(store.has(f"{self._order}/ready/{rank}") for rank in ranks):
                if time.monotonic() - began > ANSWER_SECONDS:  # images may take longer, to hear of them may not
                    for rank in ranks:
                        if not store.has(f"{self._order}/seen/{rank}"):
                            raise ProcessLost(f"process {rank} of {self._size} gives no answer")
                if (fault := self._fault()) is not None:
                    raise fault
                if should_stop():
                    raise Interrupted("told to stop before training began: the configuration can be run again")
                time.sleep(POLL_SECONDS)
            go = True
        finally:
            store.put(f"{self._order}/go", go)
        if last:  # all are done with it
            names = ("order", "go", *(f"{name}/{rank}" for name in ("seen", "ready", "said") for rank in ranks))
            store.forget(*(f"{last}/{name}" for name in names))

    @property
    def _box(self) -> _Store:
        assert self._store is not None
        return self._store

    def _group_of(self, count: int) -> Group:
        if self._group is None:
            meeting = distributed.PrefixStore(f"meeting/{self._meeting}", self._box.torch)
            self._group = Group(meeting, 0, count, self.device)
        return self._group

    def _answer(self, rank: int) -> dict[str, Any]:
        """Return what a follower says of a trial that it trained to the end."""
        name = f"{self._order}/said/{rank}"
        while not self._box.has(name):
            if (fault := self._fault()) is not None:
                raise fault
            time.sleep(POLL_SECONDS)
        if (fault := self._fault()) is not None:
            raise fault
        answer: dict[str, Any] = self._box.get(name)
        return answer

    @contextmanager
    def _watched(self, on_hang: Callable[[Exception], object]) -> Iterator[None]:
        """Look after the followers meanwhile, where rank 0 may wait for one that has left."""
        done = threading.Event()

        def watch() -> None:
            while not done.wait(WATCH_SECONDS):
                if (fault := self._fault()) is not None and not done.wait(HANG_SECONDS):
                    on_hang(fault)
                    return

        if self.may_hang:
            threading.Thread(target=watch, name="followers", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _reason(self, error: ProcessLost) -> Exception:
        """Return why a process is lost, as soon as that is known."""
        ends = time.monotonic() + REASON_SECONDS
        while time.monotonic() < ends:
            if (fault := self._fault()) is not None:
                return fault
            time.sleep(POLL_SECONDS)
        return error

    def _fault(self) -> Exception | None:
        """Return what ended a follower's part in the order, None where nothing did."""
        for rank in range(1, self._size):
            name = f"{self._order}/said/{rank}"
            if self._box.has(name):
                said = self._box.get(name)
                if "error" in said and said["error"] != ProcessLost.__name__:
                    return _error_of(rank, self._size, said)
        for rank, child in enumerate(self._children, start=1):
            if (status := child.poll()) is not None:
                how = f"ended with status {status}"
                if status < 0:
                    how = f"was ended by {signal.Signals(-status).name}, which a box does that is out of memory"
                return ProcessLost(f"process {rank} of {self._size} {how}")
        return None


def _error_of(rank: int, size: int, said: Mapping[str, Any]) -> Exception:
    """Return a follower's error as one of rank 0's; what is not ours is as unexpected here as there."""
    text = f"process {rank} of {size}: {said['text']}"
    kind = getattr(errors, said["error"], None)
    if inspect.isclass(kind) and issubclass(kind, BudgetTuneError) and "__init__" not in vars(kind):
        return kind(text)
    return RuntimeError(f"process {rank} of {size}: {said['error']}: {said['text']}")


def _shared(threads: int, count: int) -> int:
    return max(1, threads // count)


def together(result: TrialResult, answers: Sequence[Mapping[str, Any]]) -> TrialResult:
    """Return rank 0's result with what the others say: the worst verdict and the largest peak of memory count.

    Raises:
        SpecError: where a process ended with other weights.
    """
    status, evidence, peak = result.status, dict(result.evidence), result.peak_memory_mb
    reasons = [f"process 0: {reason}" for reason in evidence.get("reasons", ())]
    for rank, answer in enumerate(answers, start=1):
        if answer["weights_sha256"] != result.weights_sha256:
            raise SpecError(
                f"train.processes: process {rank} ended with other weights than process 0, because the model or the "
                f"strategy has chance or memory of its own: train it with one process"
            )
        status = worst(status, answer["status"])
        reasons += [f"process {rank}: {reason}" for reason in answer["evidence"].get("reasons", ())]
        peak = max(peak, answer["peak_memory_mb"])
    if "reasons" in evidence:
        evidence["reasons"] = reasons
    return replace(result, status=status, evidence=evidence, peak_memory_mb=peak)
