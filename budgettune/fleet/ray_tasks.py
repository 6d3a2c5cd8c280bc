"""A fleet on Ray: a task per worker, placed by Ray and started again by it where a node is lost.

A task runs `budgettune worker` as a child, as `worker --processes` does: its words need no second parser, its orders
come on standard input, whose end tells it that the task is gone, and a worker that dies again and again is given up,
which a task that Ray repeats without end would not be. The database's URL is an argument of the task: the dashboard
shows command lines, runtime environments and the names of tasks, and no arguments.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from budgettune.errors import StopRequested, StorageError, UsageError
from budgettune.fleet.plan import FleetPlan, in_words
from budgettune.study.handle import StudyHandle, load_study
from budgettune.text import first_line, listing, redact
from budgettune.worker.options import WorkerOptions
from budgettune.worker.processes import OUT_OF_TIME_STATUS, STOPPED, Member, run_members
from budgettune.worker.signals import SIGNALS, StopFlag

CONNECT_SECONDS = 20
POLL_SECONDS = 0.5
LOOK_SECONDS = 5.0  # between two looks at the study
LEAVE_SECONDS = 10.0  # for workers of a finished study to end by themselves; those that still wait for room never began
LAST_LINES_SECONDS = 1.0  # for what members print at their end to come here

GROUP_LABEL = "ray.io/node-group"  # of nodes that KubeRay or Ray's launcher has started, and may start more of
# Where the fleet's program is killed, Ray ends its tasks at once, and would end the worker that each has for a child.
# That sees the end of its orders instead, hands its trial back, and is gone after ORPHAN_SECONDS at the latest.
UNHURRIED = {"RAY_kill_child_processes_on_worker_exit": "false"}

Say = Callable[[str], object]


def run(plan: FleetPlan, address: str | None, stop: StopFlag, *, say: Say) -> int:
    """Run a fleet until nothing is left, and return the exit status of the whole.

    A stop hands the running trials back; a second signal ends this program at once, and Ray its tasks.

    Returns:
        0 when the work is done, 128 + the signal that ended it, 1 where every worker was given up.

    Raises:
        UsageError: where Ray is not installed, no cluster answers, or none of its nodes has room for a worker.
        StorageError: where the study cannot be read.
    """
    if any(redact(word) != word for word in sys.argv):
        raise UsageError(
            "Ray's dashboard shows this program's command line, and a password is in it: leave out --storage, and put "
            "the URL into BUDGETTUNE_STORAGE"
        )
    address = checked_address(address or os.environ.get("RAY_ADDRESS") or "auto")
    ray = _import_ray()
    with load_study(plan.url, plan.study) as study:
        try:
            with stop.interrupting():
                _connect(ray, address)
                _say_room(plan, ray, say)
            return _Fleet(ray, plan, study, stop, say).run()
        except StopRequested:
            return 128 + (stop.signal_number or signal.SIGINT)
        finally:
            ray.shutdown()


def checked_address(address: str) -> str:
    """Return the address of a cluster, `auto` for that of this box.

    Raises:
        UsageError: where it is none, or nobody listens there: Ray would try for a minute.
    """
    if address == "auto":
        return address
    if "://" in address:
        raise UsageError(
            f"{redact(address)}: a fleet joins a cluster by HOST:PORT, from one of its nodes; from elsewhere, submit "
            f"it: ray job submit --address http://HEAD:8265 -- budgettune fleet …"
        )
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise UsageError(f"{address}: write the address of a Ray cluster as HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no Ray cluster at {address} ({first_line(error)}): look at `ray status`, or name its head with "
            f"--address HOST:6379"
        ) from None
    return address


def _import_ray() -> Any:
    """Load Ray, which reads variables when it is loaded."""
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")  # else lines of several workers that look alike are swallowed
    # By itself it knocks for a quarter of an hour at an address where something else listens.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    os.environ.setdefault("RAY_gcs_server_request_timeout_seconds", str(CONNECT_SECONDS))
    try:
        import ray
    except ImportError:
        raise UsageError(
            "--on ray needs the package `ray` here and on the nodes: pip install 'budgettune[ray]'"
        ) from None
    return ray


def _connect(ray: Any, address: str) -> None:
    """Join a cluster that runs; none is ever started."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        ray.init(address=address, logging_level="warning", log_to_driver=True)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(refusal(error, address)) from error
    finally:  # Ray takes SIGTERM for itself
        for number, handler in handlers.items():
            signal.signal(number, handler)


def refusal(error: BaseException, address: str) -> str:
    """Return in a sentence why Ray could not be joined, and what to do."""
    reasons = [error]
    while (cause := reasons[-1].__cause__ or reasons[-1].__context__) is not None:
        reasons.append(cause)
    said = "\n".join(map(str, reasons))
    if "ersion mismatch" in said:
        lines = [line.strip() for line in said.splitlines() if "Ray: " in line or "Python: " in line]
        return f"this box and the Ray cluster differ in versions ({', '.join(lines)}): use the same on both"
    if address == "auto":
        return (
            "no Ray cluster runs on this box: start one (`ray start --head`), join one (`ray start "
            "--address=HEAD:6379`), or name it with --address HOST:PORT"
        )
    if "node info" in said or "find" in said.lower():
        return (
            f"this box is no node of the Ray cluster at {address}: join it (`ray start --address={address}`), or "
            f"submit the fleet: ray job submit --address http://HEAD:8265 -- budgettune fleet …"
        )
    if "connect to GCS" in said:
        return (
            f"what listens at {address} gives no answer of a Ray cluster: name its head, whose port is 6379 by default"
        )
    return f"the Ray cluster at {address} cannot be joined: {redact(first_line(reasons[-1]))}"


def _say_room(plan: FleetPlan, ray: Any, say: Say) -> None:
    """Tell how many workers there is room for; refuse those for whom there is none and never will be."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    room = sum(room_on(node["Resources"], plan) for node in nodes)
    may_grow = any(GROUP_LABEL in node.get("Labels", {}) for node in nodes)
    if room == 0 and not may_grow:
        resources = [node["Resources"] for node in nodes]
        found = sorted({in_words(each.get("CPU", 0), each.get("GPU", 0)) for each in resources}, reverse=True)
        raise UsageError(
            f"no node of the Ray cluster has {plan.each} for a worker: they have "
            f"{listing(found)}; ask for less with --cpus and --gpus, or add a node"
        )
    if room < plan.workers:
        say(f"room for {room} of {plan.workers} workers; the others begin when there is more")


def room_on(node: Mapping[str, float], plan: FleetPlan) -> int:
    """Return how many workers a node with such resources takes when nothing else runs there."""
    return int(
        min(
            node.get("CPU", 0) // plan.cpus,
            node.get("GPU", 0) // plan.gpus if plan.gpus else plan.workers,
        )
    )


def work(name: str, words: Sequence[str], study: str, url: str, time_seconds: float | None) -> int:
    """Run one worker on a node, in a process that Ray starts for it, and return its exit status.

    `ray.cancel`, which interrupts the main thread, and the end of a node or of the fleet's program, which Ray tells by
    SIGTERM, hand the running trial back; so does the end of this process, be it by SIGKILL.
    """

    def command(_: Member, seconds_gone: float) -> list[str]:
        limit = [] if time_seconds is None else ["--timeout", f"{max(1e-3, time_seconds - seconds_gone)}"]
        return [sys.executable, "-m", "budgettune", "worker", *words, *limit, "--", study]

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201  (Ray takes it to its log, and to who started the fleet)

    with StopFlag() as stop:
        return run_members([Member(name, WorkerOptions())], command, url, stop, say=say, kills=False)


def reason(error: BaseException) -> str:
    """Return in a sentence why a task of Ray's has ended without an exit status."""
    said = redact(str(error))
    if "No module named 'budgettune" in said:
        return (
            "budgettune is not installed where Ray's tasks run: install it on every node, in the Python that Ray uses"
        )
    cause = getattr(error, "cause", None) or error  # of an exception in a task: its traceback comes first in its text
    return f"its task ended: {type(cause).__name__}: {redact(first_line(cause))}"


@dataclass
class _Fleet:
    ray: Any
    plan: FleetPlan
    study: StudyHandle
    stop: StopFlag
    say: Say
    clock: Callable[[], float] = time.monotonic
    given_up: int = 0
    _started: int = 0
    _is_cancelled: bool = False
    _finished_at: float | None = None
    _trouble: str | None = None
    _ended_when_back: int | None = None
    _running: dict[Any, str] = field(default_factory=dict)

    def run(self) -> int:
        began = looked = self.clock()
        self._start(self.plan.workers, self.plan.time_seconds)
        is_over = False
        while self._running or not is_over:
            has_ended = self._gather()
            now = self.clock()
            if self.stop.is_set:
                self._cancel()
                is_over = True
            elif has_ended or now - looked >= LOOK_SECONDS:
                looked = now
                is_over = self._look(now, now - began)
        time.sleep(LAST_LINES_SECONDS)
        self.say(f"all workers have ended. Next: budgettune study show {self.study.name}")
        if self.stop.signal_number is not None:
            return 128 + self.stop.signal_number
        return int(self.given_up >= self.plan.workers)

    def _start(self, count: int, time_seconds: float | None) -> None:
        # A process for each: what a worker leaves behind ends with it.
        task = self.ray.remote(max_calls=1)(work).options(
            num_cpus=self.plan.cpus,
            num_gpus=self.plan.gpus,
            max_retries=-1,  # a lost node, not an exception
            retry_exceptions=False,
            name=f"budgettune worker {self.plan.study}",
            runtime_env={"env_vars": UNHURRIED},
        )
        for _ in range(count):
            name = f"worker {self._started}"
            self._started += 1
            arguments = (name, self.plan.words(), self.plan.study, self.plan.url, time_seconds)
            self._running[task.remote(*arguments)] = name

    def _cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            for reference in self._running:
                self.ray.cancel(reference, force=False, recursive=False)

    def _gather(self) -> bool:
        """Wait a moment for workers to end, see to those that did, and return whether there were any."""
        if not self._running:
            self.stop.wait(POLL_SECONDS)
            return False
        ended, _ = self.ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
        for reference in ended:
            name, status = self._running.pop(reference), None
            try:
                status = self.ray.get(reference)
            except self.ray.exceptions.TaskCancelledError:
                continue
            except self.ray.exceptions.RayError as error:
                self.say(f"{name}: {reason(error)}")
            if self._is_cancelled or status in (0, OUT_OF_TIME_STATUS):
                continue
            if status in STOPPED:  # its node is told to go
                self.say(f"{name}: stopped with its node; another one takes its place")
                self._start(1, self.plan.time_seconds)
            else:
                self.given_up += 1
        return bool(ended)

    def _look(self, now: float, seconds_gone: float) -> bool:
        """Bring workers back for trials that came open after they left; return whether none is needed any more."""
        absent = self.plan.workers - self.given_up - len(self._running)
        left = None if self.plan.time_seconds is None else self.plan.time_seconds - seconds_gone
        try:
            if self.study.is_finished():
                self._finished_at = now if self._finished_at is None else self._finished_at
                if now - self._finished_at >= LEAVE_SECONDS:
                    self._cancel()
                return True
            self._finished_at = None
            if absent <= 0 or (left is not None and left <= 0):
                return True
            queued, counts = self.study.reconcile().queued, self.study.counts()
        except StorageError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                self.say(f"the study cannot be looked at, which is tried again: {error}")
            return absent <= 0
        # Beside lost ones, trials that others handed back, but not those that these workers were told to leave.
        may_take_all = not self._running and not any(word.startswith("--trials") for word in self.plan.worker_words)
        opened = counts["WAITING"] if may_take_all else queued
        ended = sum(counts.values()) - counts["WAITING"] - counts["RUNNING"]
        if opened and ended != self._ended_when_back:  # who came back for it and did nothing would do so again
            self._ended_when_back = ended
            self.say(f"{opened} of its trials are open again: workers come back")
            self._start(min(absent, opened), left)
            return False
        return counts["RUNNING"] == 0  # while trials of others run, one of them may be lost yet
