"""Workers of one box: a process per GPU, or as many as asked for on the CPU, started again when they die.

The parent loads neither torch nor Optuna. Children take their orders on standard input, whose end tells them that the
parent is gone; the database's URL goes to them through the environment, because everybody may read a command line.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from budgettune.errors import UsageError
from budgettune.machine.fingerprint import default_threads, usable_cores
from budgettune.machine.gpu import missing_gpus, visible_gpus
from budgettune.text import format_duration, warn_once
from budgettune.worker.options import Ranks, WorkerOptions
from budgettune.worker.signals import DRAIN_ORDER, ORDERS_VARIABLE, SIGNALS, StopFlag

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
EARLY_SECONDS = 60.0  # a child that lives longer did useful work: its death begins a new count
EARLY_DEATHS = 5
POLL_SECONDS = 0.1
STOPPED = tuple(128 + number for number in SIGNALS)
USAGE_STATUS = 2
FRUITLESS_STATUS = 3  # of a child for whom another try would change nothing: all failed, or it cannot take part
OUT_OF_TIME_STATUS = 4  # of a worker with --leave: its time is over, or is too short for what is open

WorkerCommand = Callable[["Member", float], list[str]]


@dataclass(frozen=True)
class Member:
    """One worker among several."""

    name: str  # in front of each line that its process prints
    options: WorkerOptions
    environment: Mapping[str, str] = field(default_factory=dict)  # added to the parent's


class Aftermath(NamedTuple):
    """What follows from the end of a child."""

    action: str  # done, restart or give-up
    early_deaths: int = 0  # in a row, this one included
    pause_seconds: float = 0.0  # before the restart


def after_end(status: int, lived_seconds: float, early_deaths: int) -> Aftermath:
    """Decide what follows when a child ends by itself, after so many early deaths in a row before this one.

    A negative status is that of a signal that killed it.
    """
    # Nothing is left to do, or no time for it, or somebody told this child alone to stop.
    if status in (0, OUT_OF_TIME_STATUS, *STOPPED):
        return Aftermath("done")
    # A worker that leaves with status 1 found that it cannot go on, however long that took it.
    deaths = early_deaths + 1 if lived_seconds < EARLY_SECONDS or status == 1 else 0
    if status in (USAGE_STATUS, FRUITLESS_STATUS) or deaths >= EARLY_DEATHS:
        return Aftermath("give-up", deaths)
    return Aftermath("restart", deaths, min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** max(0, deaths - 1)))


def plan_members(
    options: WorkerOptions, processes: int | None, gpus: Sequence[str], cores: int, most_threads: int | None = None
) -> list[Member]:
    """Return the workers that a box is to have; none where one worker in this process will do.

    The trials of the options, and the cores, are shared out; no process gets more threads than `most_threads`.
    Processes None means one per GPU (or per so many GPUs as a trial takes), or one on the CPU; GPUs are named as
    CUDA_VISIBLE_DEVICES takes them.

    Raises:
        UsageError: for several processes on one GPU, whose times would disturb each other, and for too few GPUs.
    """
    on_gpus = options.device == "auto" and bool(gpus)
    each = options.gpus_per_trial or 1
    if on_gpus and each > len(gpus):
        raise UsageError(f"--gpus-per-trial {each}: this box has {len(gpus)}: ask for at most that")
    groups = [gpus[first : first + each] for first in range(0, len(gpus) - each + 1, each)]
    count = (len(groups) if on_gpus else 1) if processes is None else processes
    if options.trials is not None:
        count = min(count, options.trials)
    if count == 1:
        return []
    if options.device.startswith("cuda") or (on_gpus and count > len(groups)):
        raise UsageError("--processes is for CPUs, and a GPU takes one worker: add --device cpu, or leave it out")
    device, threads = (
        "cuda" if on_gpus else "cpu",
        options.threads or max(1, min(cores // count, most_threads or cores)),
    )
    members = []
    for index in range(count):
        name, environment = f"worker {index}", {}
        if on_gpus:
            # Of a UUID its first group tells devices apart in a log.
            short = ",".join(gpu[:12] for gpu in groups[index])
            name, environment = f"gpu {short}", {"CUDA_VISIBLE_DEVICES": ",".join(groups[index])}
        trials = None if options.trials is None else options.trials // count + (index < options.trials % count)
        members.append(Member(name, replace(options, device=device, threads=threads, trials=trials), environment))
    return members


def members_here(options: WorkerOptions, processes: int | None) -> list[Member]:
    """Return the workers that this box is to have; GPUs are counted only where the answer depends on them."""
    if (ranks := Ranks.of_torchrun()) is not None:
        if processes not in (None, 1) or options.gpus_per_trial not in (None, ranks.size):
            raise UsageError(
                f"torchrun has started {ranks.size} processes for a trial: leave out --processes and --gpus-per-trial"
            )
        return []
    asks = options.device == "auto" and processes != 1
    gpus = visible_gpus() if asks else []
    members = plan_members(options, processes, gpus, usable_cores(), default_threads())
    if asks and members and (note := missing_gpus(len(gpus))):  # a worker alone says it itself
        warn_once(logger, note)
    return members


def worker_command(study: str | None, *, drain: bool, debug: bool) -> WorkerCommand:
    """Return the function that gives a member's command line, its time limit cut by the seconds gone by."""

    def command(member: Member, seconds_gone: float) -> list[str]:
        options = member.options
        if options.timeout_seconds is not None:
            options = replace(options, timeout_seconds=max(1e-3, options.timeout_seconds - seconds_gone))
        words = [*options.words(), *["--drain"] * drain, *["--debug"] * debug]
        return [sys.executable, "-m", "budgettune", "worker", *words, *([] if study is None else ["--", study])]

    return command


class Child:
    """A member's process, and what became of those before it."""

    def __init__(self, member: Member, say: Callable[[str], object]) -> None:
        self.member = member
        self.outcome: str | None = None
        self.last_line = ""
        self.status = 0
        self._say = say
        self._early_deaths = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._began = 0.0
        self._due: float | None = 0.0

    def tend(self, command: WorkerCommand, environment: Mapping[str, str], now: float, *, is_stopping: bool) -> None:
        """Look after the child once: start it where that is due, and decide where it has ended."""
        if self.outcome is not None:
            return
        if self._process is not None:
            status = self._process.poll()
            if status is not None:
                self._bury(status, now, is_stopping)
        elif is_stopping:
            self.outcome = "stopped"
        elif self._due is not None and now >= self._due:
            self._start(command(self.member, now), environment, now)

    def order(self, word: bytes) -> None:
        """Write an order to the child's standard input; one that has just died needs none."""
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.write(word + b"\n")
                self._process.stdin.flush()

    def kill(self) -> None:
        """End the child at once; its lease expires by itself."""
        if self._process is not None:
            self._process.kill()

    def _start(self, words: list[str], environment: Mapping[str, str], now: float) -> None:
        self._began = now
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**environment, **self.member.environment, ORDERS_VARIABLE: "1", "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C reaches the parent alone, which passes it on once
        )
        self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        for raw in process.stdout or ():
            line = raw.decode(errors="replace").rstrip()
            self.last_line = line or self.last_line
            self._say(f"{self.member.name}: {line}")

    def _bury(self, status: int, now: float, is_stopping: bool) -> None:
        if self._reader is not None:
            self._reader.join(timeout=2)  # its last line is the reason
        for pipe in (self._process.stdin, self._process.stdout) if self._process else ():
            if pipe is not None:
                pipe.close()
        self._process, self.status = None, status
        aftermath = after_end(status, now - self._began, self._early_deaths)
        self._early_deaths = aftermath.early_deaths
        if aftermath.action == "restart" and not is_stopping:
            self._due = now + aftermath.pause_seconds
            pause = format_duration(aftermath.pause_seconds)
            self._say(f"{self.member.name}: ended with status {status}; starts again in {pause}")
            return
        self.outcome = "stopped" if is_stopping else aftermath.action
        if self.outcome == "give-up":
            self._say(f"{self.member.name}: given up after status {status}: {self.last_line or 'it said nothing'}")


def run_members(
    members: Sequence[Member],
    command: WorkerCommand,
    url: str,
    stop: StopFlag,
    *,
    say: Callable[[str], object],
    clock: Callable[[], float] = time.monotonic,
    kills: bool = True,
) -> int:
    """Run a process per member until all have ended, and return the exit status of the whole.

    A stop is passed on to the children; a second signal kills them where this `kills`, else they have `ORPHAN_SECONDS`
    to end by themselves. `say` takes their lines, each behind its name.

    Returns:
        0 when the work is done, 128 + the signal that ended it, 1 where every child was given up, else
        OUT_OF_TIME_STATUS where a child left with it.
    """
    children = [Child(member, say) for member in members]
    environment = {**os.environ, "BUDGETTUNE_STORAGE": url}

    def kill_all() -> None:
        for child in children:
            child.kill()

    if kills:
        stop.before_exit = kill_all
    began, last_order = clock(), b""
    while any(child.outcome is None for child in children):
        order = DRAIN_ORDER if stop.is_set else b""
        if stop.signal_number is not None:
            order = str(int(stop.signal_number)).encode()
        if order != last_order:
            last_order = order
            for child in children:
                child.order(order)
        for child in children:
            child.tend(command, environment, clock() - began, is_stopping=bool(last_order))
        time.sleep(POLL_SECONDS)
    if stop.signal_number is not None:
        return 128 + stop.signal_number
    if all(child.outcome == "give-up" for child in children):
        return 1
    return OUT_OF_TIME_STATUS if any(child.status == OUT_OF_TIME_STATUS for child in children) else 0
