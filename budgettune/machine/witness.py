"""Who watches the box while we time, and whether it was disturbed: the verdict is a pure function of the evidence.

    with witness:
        train()
    witness.verdict.status          # clean | disturbed | unverified

Why these signals. A training process need not keep all its threads busy (choosing samples is serial, a barrier
waits), so its own CPU share says little and only goes on record. What says much is what others did:

- `taken_share`: CPU time of everyone else on the CPUs that we may use, beyond the cores that our threads leave spare,
  as a share of the cores that training asked for. Two workers with a thread each on two cores fill each other's spare
  core and take nothing; a third one does.
- `waited_share`: how long our worst-off thread was ready to run and had no CPU. This is the harm itself, whoever
  did it. Left out where we ask for more threads than there are cores: then they wait for each other.
- `still_share`: for how long the process stood still, suspended or frozen, while the clock went on.
- `steal_share`, `throttled_share`: what the hypervisor and a cgroup's quota kept from us.
- `sentinel_slowdown`: a fixed computation before and after, against the best that this process has seen. It is the
  only witness of what no counter shows: a hot or throttled processor, a neighbour on the same physical core.

A GPU is watched by `gpu_observer`, and the host's thread that feeds it by what is here.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from budgettune.machine import procfs
from budgettune.machine.gpu_observer import GpuObserver, SentinelObserver
from budgettune.machine.pulse import PULSE
from budgettune.machine.sentinel import SENTINEL, SENTINEL_LIMIT, Sentinel, SentinelSeconds
from budgettune.machine.verdict import HARM_LIMIT, ClockVerdict, Status, combine, verdict_on

SHORTEST_SECONDS = 0.25
"""Below it, counters that move in hundredths of a second tell nothing."""
TICK_SECONDS = 1 / procfs.TICKS_PER_SECOND


@dataclass(frozen=True, kw_only=True)
class CpuSnapshot:
    """Counters of this process and its box at one moment; None where the system does not have them.

    Attributes:
        at_seconds: of a monotonic clock.
        own_seconds: CPU time of all threads of this process, and of the processes that it started and that have ended.
        cores: CPUs that this process may run on.
        busy_seconds: CPU time of everyone on those CPUs.
        steal_seconds: what the hypervisor took from those CPUs.
        waited_seconds: for each thread of ours, the time it was ready to run and had no CPU.
        pressure_seconds: time in which any task of the box waited for a CPU.
        throttled_seconds: time for which a cgroup's quota held tasks back, over all CPUs.
        still_seconds: for which this process stood still so far.
        preemptions: involuntary context switches of this process.
    """

    at_seconds: float
    own_seconds: float
    cores: int
    busy_seconds: float | None = None
    steal_seconds: float | None = None
    waited_seconds: Mapping[int, float] | None = None
    pressure_seconds: float | None = None
    throttled_seconds: float | None = None
    still_seconds: float | None = None
    preemptions: int | None = None


def cpu_evidence(before: CpuSnapshot, after: CpuSnapshot, sentinel: SentinelSeconds, threads: int) -> dict[str, float]:
    """Return what two snapshots and the sentinel say of training that was told to use so many threads.

    Rates and shares by name; what is unknown is left out.
    """
    seconds = max(after.at_seconds - before.at_seconds, 1e-9)
    own_cores = (after.own_seconds - before.own_seconds) / seconds
    used = max(min(threads, after.cores), 1)  # cores that training can fill
    spare_cores = max(after.cores - threads, 0)

    def rate(name: str) -> float | None:
        first, last = getattr(before, name), getattr(after, name)
        return None if first is None or last is None else max(last - first, 0.0) / seconds

    busy, steal, throttled = rate("busy_seconds"), rate("steal_seconds"), rate("throttled_seconds")
    # Counters that show less than we used ourselves (some sandboxes have them at zero) tell nothing about others.
    credible = busy is not None and busy + (steal or 0.0) > own_cores / 2
    other = max(busy - own_cores, 0.0) if busy is not None and credible else None
    # A tick that the kernel put down on the wrong side, on each core, is no theft.
    blur = after.cores * TICK_SECONDS / seconds
    rates = {
        "seconds": seconds,
        "threads": threads,
        "cores": after.cores,
        "own_cores": own_cores,
        "cpu_share": own_cores / threads,
        "other_cores": other,
        "spare_cores": spare_cores,
        "taken_share": None if other is None else max(other - spare_cores - blur, 0.0) / used,
        "steal_share": None if steal is None else steal / used,
        "throttled_share": None if throttled is None else throttled / used,
        "waited_share": _worst_wait(before.waited_seconds, after.waited_seconds, seconds),
        "pressure_share": rate("pressure_seconds"),
        "still_share": rate("still_seconds"),
        "preemptions_per_second": rate("preemptions"),
        "sentinel_before_ms": 1e3 * sentinel.before,
        "sentinel_after_ms": 1e3 * sentinel.after,
        "sentinel_best_ms": 1e3 * sentinel.best,
        "sentinel_slowdown": sentinel.slowdown,
    }
    return {name: round(value, 6) for name, value in rates.items() if value is not None and math.isfinite(value)}


def _worst_wait(before: Mapping[int, float] | None, after: Mapping[int, float] | None, seconds: float) -> float | None:
    """Return the share of the time that the worst-off thread waited; one born in between counts from its birth."""
    if before is None or after is None:
        return None
    return max((waited - before.get(thread, 0.0) for thread, waited in after.items()), default=0.0) / seconds


def judge_cpu(evidence: Mapping[str, float]) -> ClockVerdict:
    return verdict_on(evidence, _cpu_harm(evidence), _cpu_gaps(evidence))


def _cpu_harm(evidence: Mapping[str, float]) -> list[str]:
    """Return what did harm. Preemptions and the CPU share stay on record only: kernels and work differ too much."""
    threads, cores = evidence["threads"], evidence["cores"]
    shares = {
        "taken_share": "other processes took {:.0%} of the cores that training uses",
        "steal_share": "the hypervisor took {:.0%} of the cores that training uses",
        "throttled_share": "the cgroup's CPU quota held training back for {:.0%} of the time",
        "still_share": "this process stood still, suspended or frozen, for {:.0%} of the time",
    }
    if threads <= cores:
        # Pressure is of the whole box, where others may squeeze each other: it stands in where we cannot see our own.
        wait = "waited_share" if "waited_share" in evidence else "pressure_share"
        shares[wait] = "a thread that was ready to run had no core for {:.0%} of the time"
    reasons = [text.format(evidence[name]) for name, text in shares.items() if evidence.get(name, 0.0) > HARM_LIMIT]
    slowdown = evidence.get("sentinel_slowdown", 1.0)
    if slowdown > SENTINEL_LIMIT:
        reasons.append(f"a fixed computation ran {slowdown:.2f} times slower than at its best")
    return reasons


def _cpu_gaps(evidence: Mapping[str, float]) -> list[str]:
    gaps = []
    if evidence["seconds"] < SHORTEST_SECONDS:
        gaps.append(f"{evidence['seconds']:.2f} s is too short to judge: train for at least {SHORTEST_SECONDS} s")
    if "taken_share" not in evidence:
        gaps.append("this system does not tell what other processes do (no readable /proc/stat)")
    if "sentinel_slowdown" not in evidence:
        gaps.append("there is no reading of the sentinel")
    return gaps


def take_snapshot(clock: Callable[[], float] = time.perf_counter, root: Path = procfs.ROOT) -> CpuSnapshot:
    PULSE.start()
    cpus = procfs.affinity()
    busy, steal = (cpus and procfs.cpu_seconds(cpus, root)) or (None, None)
    return CpuSnapshot(
        at_seconds=clock(),
        own_seconds=_own_seconds(),
        cores=len(cpus) if cpus else os.cpu_count() or 1,
        busy_seconds=busy,
        steal_seconds=steal,
        waited_seconds=procfs.thread_waits(root),
        pressure_seconds=procfs.pressure_seconds(root),
        throttled_seconds=procfs.throttled_seconds(root),
        still_seconds=PULSE.beat(),
        preemptions=_preemptions(),
    )


def _own_seconds() -> float:
    """Return the CPU time of this process, and of those that it started and has waited for: programs that train."""
    ended = os.times()
    return time.process_time() + ended.children_user + ended.children_system


def _preemptions() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Observer(Protocol):
    """Someone who looks on between start and stop."""

    def start(self) -> None: ...

    def look(self) -> ClockVerdict:
        """Return the verdict on the time since the start, and go on; what disturbs the run itself is left out."""
        ...

    def stop(self) -> ClockVerdict: ...


class CpuObserver:
    """Looks at the processors while training uses so many threads."""

    def __init__(
        self, threads: int, sentinel: Sentinel | None = None, snapshot: Callable[[], CpuSnapshot] = take_snapshot
    ) -> None:
        self._threads = threads
        self._sentinel = sentinel or SENTINEL
        self._snapshot = snapshot

    def start(self) -> None:
        self._sentinel_before = self._sentinel.read()
        self._before = self._snapshot()

    def look(self) -> ClockVerdict:
        return self.stop()

    def stop(self) -> ClockVerdict:
        after = self._snapshot()
        before, now = self._sentinel_before, self._sentinel.read()
        readings = SentinelSeconds(before=before, after=now, best=self._sentinel.best_seconds)
        return judge_cpu(cpu_evidence(self._before, after, readings, self._threads))


@dataclass(frozen=True)
class NoObserver:
    """An observer of what nobody can see: always unverified, with the reason."""

    reason: str

    def start(self) -> None: ...

    def look(self) -> ClockVerdict:
        return self.stop()

    def stop(self) -> ClockVerdict:
        return ClockVerdict(status="unverified", evidence={}, reasons=(self.reason,))


class Witness:
    """Watches a training segment: `with witness: …` (or start and stop), then `witness.verdict`; again and again.

    It is clean where all observers call it so.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers
        self.verdict = ClockVerdict(status="unverified", evidence={}, reasons=("nothing has been watched yet",))

    def start(self) -> None:
        for observer in self._observers:
            observer.start()

    def look(self) -> tuple[Status, Mapping[str, Any]]:
        """Return what `stop` would, so far as can be told in between, and go on watching."""
        return _told(combine([observer.look() for observer in reversed(self._observers)]))

    def stop(self) -> tuple[Status, Mapping[str, Any]]:
        """Return the status and the evidence, the reasons among it, as a trial stores them."""
        self.verdict = combine([observer.stop() for observer in reversed(self._observers)])
        return _told(self.verdict)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class NoWitness(Witness):
    """Watches nothing: unverified, without evidence."""

    def look(self) -> tuple[Status, Mapping[str, Any]]:
        return self.stop()

    def stop(self) -> tuple[Status, Mapping[str, Any]]:
        return "unverified", {}


def _told(verdict: ClockVerdict) -> tuple[Status, Mapping[str, Any]]:
    return verdict.status, {**verdict.evidence, "reasons": list(verdict.reasons)}


def witness_for(
    device: str, *, threads: int, device_uuid: str | None = None, sentinel: Sentinel | None = None
) -> Witness:
    """Return who watches a device (`cpu`, `cuda` or `cuda:N`) while it is timed.

    A GPU goes by torch's UUID, and its sentinel is handed in: it takes torch.
    """
    if device == "cpu":
        return Witness(CpuObserver(threads))
    observer: Observer
    if device.split(":")[0] != "cuda":
        observer = NoObserver(f"nobody can watch the device {device}")
    elif not device_uuid:
        observer = NoObserver("torch does not tell the GPU's UUID: use torch 2.9 or later")
    else:
        observer = GpuObserver(device_uuid)
    # One thread of the host feeds the device; if that thread is held up, so is the device. The sentinel comes first and
    # last, so that the others do not see it at work.
    reader = NoObserver("no sentinel was given for the device") if sentinel is None else SentinelObserver(sentinel)
    return Witness(reader, CpuObserver(threads=1), observer)
