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

On a GPU other processes and heat disturb. The power cap goes on record only: the same work draws the same power, so it
slows a configuration the same each time.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, Self

from budgettune.machine import procfs
from budgettune.machine.gpu import GpuSample, open_nvml, sample
from budgettune.machine.pulse import PULSE
from budgettune.machine.sentinel import SENTINEL, SENTINEL_LIMIT, Sentinel, SentinelSeconds

HARM_LIMIT = 0.05
"""Share of the cores, or of the time, that may be lost: the spread that repeated clean trials are held to."""
SHORTEST_SECONDS = 0.25
"""Below it, counters that move in hundredths of a second tell nothing."""
TICK_SECONDS = 1 / procfs.TICKS_PER_SECOND

POWER_CAP = 0x04
"""nvmlClocksEventReasonSwPowerCap."""
SLOWDOWN_REASONS = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""nvmlClocksEventReason… bits that depend on the room and the box, not on the work."""
SAMPLE_SECONDS = 0.5

Status = Literal["clean", "disturbed", "unverified"]


@dataclass(frozen=True, kw_only=True)
class ClockVerdict:
    """Whether a time can be believed, and why.

    Attributes:
        status: `clean` only on evidence; `disturbed` with at least one reason; else `unverified`, with what is missing.
        evidence: plain finite numbers by name.
    """

    status: Status
    evidence: Mapping[str, float]
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CpuSnapshot:
    """Counters of this process and its box at one moment; None where the system does not have them.

    Attributes:
        at_seconds: of a monotonic clock.
        own_seconds: CPU time of all threads of this process.
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
    return _verdict(evidence, _cpu_harm(evidence), _cpu_gaps(evidence))


def _verdict(evidence: Mapping[str, float], harm: Sequence[str], gaps: Sequence[str]) -> ClockVerdict:
    status: Status = "disturbed" if harm else "unverified" if gaps else "clean"
    return ClockVerdict(status=status, evidence=evidence, reasons=tuple(harm or gaps))


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


def judge_gpu(samples: Sequence[GpuSample], own_pid: int) -> ClockVerdict:
    """Return the verdict on samples taken while this process, of that number, trained on the device."""
    if not samples:
        return ClockVerdict(status="unverified", evidence={}, reasons=("NVML gave no sample of the device",))
    evidence = gpu_evidence(samples, own_pid)
    hidden = "NVML does not show even our own process: in a container, start it in the host's pid namespace"
    gaps = [] if evidence["gpu_processes"] else [hidden]
    return _verdict(evidence, _gpu_harm(samples, evidence), gaps)


def gpu_evidence(samples: Sequence[GpuSample], own_pid: int) -> dict[str, float]:
    clocks = [sample.sm_mhz for sample in samples]
    return {
        "gpu_samples": len(samples),
        "gpu_processes": max(len(sample.pids) for sample in samples),
        "gpu_others": max(_others(sample, own_pid) for sample in samples),
        "gpu_shared_share": _share(samples, lambda sample: _others(sample, own_pid) > 0),
        "gpu_power_cap_share": _share(samples, lambda sample: bool(sample.reasons & POWER_CAP)),
        "gpu_slowdown_share": _share(samples, lambda sample: any(sample.reasons & bit for bit in SLOWDOWN_REASONS)),
        "gpu_sm_mhz_median": statistics.median(clocks),
        "gpu_sm_mhz_min": min(clocks),
    }


def _others(sample: GpuSample, own_pid: int) -> int:
    # In a container the driver's numbers are not ours; one process of those on the device is then us all the same.
    return max(len(sample.pids) - 1, 0) if own_pid not in sample.pids else len(set(sample.pids) - {own_pid})


def _share(samples: Sequence[GpuSample], holds: Callable[[GpuSample], bool]) -> float:
    return round(sum(map(holds, samples)) / len(samples), 6)


def _gpu_harm(samples: Sequence[GpuSample], evidence: dict[str, float]) -> list[str]:
    reasons = []
    if evidence["gpu_shared_share"] > HARM_LIMIT:
        others, share = evidence["gpu_others"], evidence["gpu_shared_share"]
        reasons.append(f"{others:.0f} other process(es) on the GPU in {share:.0%} of the samples")
    if evidence["gpu_slowdown_share"] > HARM_LIMIT:
        causes = [name for bit, name in SLOWDOWN_REASONS.items() if any(sample.reasons & bit for sample in samples)]
        reasons.append(f"the GPU held its clocks down in {evidence['gpu_slowdown_share']:.0%}: {', '.join(causes)}")
    return reasons


def take_snapshot(clock: Callable[[], float] = time.perf_counter, root: Path = procfs.ROOT) -> CpuSnapshot:
    PULSE.start()
    cpus = procfs.affinity()
    busy, steal = (cpus and procfs.cpu_seconds(cpus, root)) or (None, None)
    return CpuSnapshot(
        at_seconds=clock(),
        own_seconds=time.process_time(),
        cores=len(cpus) if cpus else os.cpu_count() or 1,
        busy_seconds=busy,
        steal_seconds=steal,
        waited_seconds=procfs.thread_waits(root),
        pressure_seconds=procfs.pressure_seconds(root),
        throttled_seconds=procfs.throttled_seconds(root),
        still_seconds=PULSE.beat(),
        preemptions=_preemptions(),
    )


def _preemptions() -> int | None:
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


class Observer(Protocol):
    """Someone who looks on between start and stop."""

    def start(self) -> None: ...

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

    def stop(self) -> ClockVerdict:
        after = self._snapshot()
        before, now = self._sentinel_before, self._sentinel.read()
        readings = SentinelSeconds(before=before, after=now, best=self._sentinel.best_seconds)
        return judge_cpu(cpu_evidence(self._before, after, readings, self._threads))


class GpuObserver:
    """Looks at one device from a thread of its own, because a call to NVML can take milliseconds.

    The UUID may lack NVML's `GPU-` in front. An index would mislead: CUDA and NVML count devices in different orders.
    One sample is taken at the start and one at the end, whatever the interval. `module` stands in for `pynvml`.
    """

    def __init__(
        self, uuid: str, module: Any = None, interval_seconds: float = SAMPLE_SECONDS, own_pid: int | None = None
    ) -> None:
        self._uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._module = module
        self._interval_seconds = interval_seconds
        self._own_pid = own_pid or os.getpid()
        self._finished = threading.Event()

    def start(self) -> None:
        self._finished.set()  # a trial that broke off may not have stopped the watch before this one
        self._samples: list[GpuSample] = []
        self._failure: str | None = None
        self._finished = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(self._samples, self._finished), name="budgettune-nvml", daemon=True
        )
        self._thread.start()

    def stop(self) -> ClockVerdict:
        """Take a last sample and judge them all; a driver that hangs costs two seconds, not the trial."""
        self._finished.set()
        self._thread.join(timeout=2.0)
        verdict = judge_gpu(tuple(self._samples), self._own_pid)
        if self._failure is None or verdict.status == "disturbed":
            return verdict
        return ClockVerdict(status="unverified", evidence=verdict.evidence, reasons=(self._failure,))

    def _watch(self, samples: list[GpuSample], finished: threading.Event) -> None:
        try:
            nvml = open_nvml(self._module)
        except RuntimeError as error:
            self._failure = str(error)
            return
        try:
            handle = nvml.nvmlDeviceGetHandleByUUID(self._uuid)
            samples.append(sample(nvml, handle))
            while not finished.wait(self._interval_seconds):
                samples.append(sample(nvml, handle))
            samples.append(sample(nvml, handle))
        except nvml.NVMLError as error:
            self._failure = f"NVML cannot watch {self._uuid}: {error}"
        finally:
            nvml.nvmlShutdown()


@dataclass(frozen=True)
class NoObserver:
    """An observer of what nobody can see: always unverified, with the reason."""

    reason: str

    def start(self) -> None: ...

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

    def stop(self) -> tuple[Status, Mapping[str, Any]]:
        """Return the status and the evidence, the reasons among it, as a trial stores them."""
        self.verdict = combine([observer.stop() for observer in reversed(self._observers)])
        return self.verdict.status, {**self.verdict.evidence, "reasons": list(self.verdict.reasons)}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class NoWitness(Witness):
    """Watches nothing: unverified, without evidence."""

    def stop(self) -> tuple[Status, Mapping[str, Any]]:
        return "unverified", {}


def combine(verdicts: Sequence[ClockVerdict]) -> ClockVerdict:
    """Return one verdict on several: disturbed if one is, else unverified if one is (or there is none), else clean."""
    statuses = {verdict.status for verdict in verdicts} or {"unverified"}
    order: tuple[Status, ...] = ("disturbed", "unverified", "clean")
    return ClockVerdict(
        status=next(status for status in order if status in statuses),
        evidence={name: value for verdict in verdicts for name, value in verdict.evidence.items()},
        reasons=tuple(reason for verdict in verdicts for reason in verdict.reasons),
    )


def witness_for(device: str, *, threads: int, device_uuid: str | None = None) -> Witness:
    """Return who watches a device (`cpu`, `cuda` or `cuda:N`) while it is timed; a GPU goes by torch's UUID."""
    if device == "cpu":
        return Witness(CpuObserver(threads))
    observer: Observer
    if device.split(":")[0] != "cuda":
        observer = NoObserver(f"nobody can watch the device {device}")
    elif not device_uuid:
        observer = NoObserver("torch does not tell the GPU's UUID: use torch 2.9 or later")
    else:
        observer = GpuObserver(device_uuid)
    # One thread of the host feeds the device; if that thread is held up, so is the device.
    return Witness(CpuObserver(threads=1), observer)
