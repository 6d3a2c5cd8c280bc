"""Who watches a GPU while we time, and whether it was disturbed: the verdict is a pure function of the evidence.

Other processes and heat disturb:

- `gpu_others_use_share`: for how long others kept its multiprocessors busy. Where NVML does not tell, their presence
  counts (`gpu_shared_share`).
- `gpu_heat_share`: for how long heat held its clocks down, as the driver counts it; and `gpu_slowdown_share`: the time
  between two looks that both saw a slowdown. One look is not enough: NVIDIA has hardware slowdown reported during a
  mere change of clocks.
- `gpu_sentinel_slowdown`: a product and a copy on the device, before and after, against the process's best.

NVML shows no processes beyond a container's wall, a MIG instance's or a guest's, and in some containers none at all:
only the sentinel sees those. So a GPU is clean where nothing disturbed, the sentinel was read, and NVML either listed a
process or counted heat. What that misses is a neighbour out of sight who comes and goes between the sentinel's two
readings, or was there before this process and stays; in the host's pid namespace NVML lists him.

The power cap goes on record only, and so does the limit of voltage (`gpu_reliability_share`): the same work draws the
same power, so they slow a configuration the same each time.
"""

from __future__ import annotations

import math
import os
import statistics
import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from budgettune.machine.gpu import Gpu, GpuSample, open_nvml
from budgettune.machine.sentinel import Sentinel, SentinelSeconds
from budgettune.machine.verdict import HARM_LIMIT, ClockVerdict, verdict_on

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
PATIENCE_SECONDS = 2.0  # with a driver that hangs


def judge_gpu(samples: Sequence[GpuSample], own_pid: int) -> ClockVerdict:
    """Return the verdict on samples taken while this process, of that number, trained on the device."""
    if not samples:
        return ClockVerdict(status="unverified", evidence={}, reasons=("NVML gave no sample of the device",))
    evidence = gpu_evidence(samples, own_pid)
    hidden = "NVML does not show even our own process: in a container, start it in the host's pid namespace"
    gaps = [] if evidence["gpu_processes"] or "gpu_heat_share" in evidence else [hidden]
    return verdict_on(evidence, _gpu_harm(samples, evidence), gaps)


def gpu_evidence(samples: Sequence[GpuSample], own_pid: int) -> dict[str, float]:
    """Return what samples in order of time say of the device; what is unknown is left out."""
    first, last = samples[0], samples[-1]
    clocks = [sample.sm_mhz for sample in samples]
    seconds = max(last.at_seconds - first.at_seconds, 1e-9)

    def held(name: str) -> float | None:
        before, after = getattr(first, name), getattr(last, name)
        return None if before is None or after is None else min(max(after - before, 0.0) / seconds, 1.0)

    # In a container the driver's numbers may not be ours: the one that uses the device most is then us.
    are_ours = own_pid in last.use or any(own_pid in sample.pids for sample in samples)
    own_use = last.use.get(own_pid, 0.0) if are_ours else max(last.use.values(), default=0.0)
    evidence = {
        "gpu_samples": len(samples),
        "gpu_processes": max(len(sample.pids) for sample in samples),
        "gpu_others": max(_others(sample, own_pid) for sample in samples),
        "gpu_shared_share": sum(_others(sample, own_pid) > 0 for sample in samples) / len(samples),
        "gpu_own_use_share": own_use if last.use else None,
        "gpu_others_use_share": max(sum(last.use.values()) - own_use, 0.0) if last.use else None,
        "gpu_power_cap_share": sum(bool(sample.reasons & POWER_CAP) for sample in samples) / len(samples),
        "gpu_slowdown_share": sum(_slow_seconds(samples)) / seconds,
        "gpu_heat_share": held("heat_seconds"),
        "gpu_reliability_share": held("reliability_seconds"),
        "gpu_sm_mhz_median": statistics.median(clocks),
        "gpu_sm_mhz_min": min(clocks),
    }
    return {name: round(value, 6) for name, value in evidence.items() if value is not None}


def _others(sample: GpuSample, own_pid: int) -> int:
    # In a container one process of those on the device is us all the same.
    return max(len(sample.pids) - 1, 0) if own_pid not in sample.pids else len(set(sample.pids) - {own_pid})


def _slow_seconds(samples: Sequence[GpuSample]) -> list[float]:
    """Return the seconds between those looks of which both saw the same slowdown."""
    return [
        after.at_seconds - before.at_seconds
        for before, after in pairwise(samples)
        if any(before.reasons & after.reasons & bit for bit in SLOWDOWN_REASONS)
    ]


def _gpu_harm(samples: Sequence[GpuSample], evidence: dict[str, float]) -> list[str]:
    reasons = []
    use, shared = evidence.get("gpu_others_use_share"), evidence["gpu_shared_share"]
    if use is not None and use > HARM_LIMIT:
        reasons.append(f"other processes kept the GPU busy for {use:.0%} of the time")
    if use is None and shared > HARM_LIMIT:
        others = f"{evidence['gpu_others']:.0f} other process(es) on the GPU in {shared:.0%} of the samples"
        reasons.append(f"{others}, and NVML does not tell what they do")
    if (heat := evidence.get("gpu_heat_share", 0.0)) > HARM_LIMIT:
        reasons.append(f"heat held the GPU's clocks down for {heat:.0%} of the time")
    if evidence["gpu_slowdown_share"] > HARM_LIMIT:
        causes = [name for bit, name in SLOWDOWN_REASONS.items() if any(sample.reasons & bit for sample in samples)]
        reasons.append(f"the GPU held its clocks down in {evidence['gpu_slowdown_share']:.0%}: {', '.join(causes)}")
    return reasons


def judge_sentinel(readings: SentinelSeconds, limit: float) -> ClockVerdict:
    """Return the verdict of a GPU's sentinel."""
    values = {
        "gpu_sentinel_before_ms": 1e3 * readings.before,
        "gpu_sentinel_after_ms": 1e3 * readings.after,
        "gpu_sentinel_best_ms": 1e3 * readings.best,
        "gpu_sentinel_slowdown": readings.slowdown,
    }
    evidence = {name: round(value, 6) for name, value in values.items() if math.isfinite(value)}
    slowdown = evidence.get("gpu_sentinel_slowdown")
    if slowdown is None:
        return verdict_on(evidence, [], ["there is no reading of the GPU's sentinel: the device had no room for it"])
    harm = f"a fixed computation on the GPU ran {slowdown:.2f} times slower than at its best"
    return verdict_on(evidence, [harm] if slowdown > limit else [], [])


class GpuObserver:
    """Looks at one device, by torch's UUID, from a thread of its own, because a call to NVML can take milliseconds.

    One sample is taken at the start and one at the end, whatever the interval. `module` stands in for `pynvml`.
    """

    def __init__(
        self, uuid: str, module: Any = None, interval_seconds: float = SAMPLE_SECONDS, own_pid: int | None = None
    ) -> None:
        self._uuid = uuid
        self._module = module
        self._interval_seconds = interval_seconds
        self._own_pid = own_pid or os.getpid()
        self._finished = threading.Event()

    def start(self) -> None:
        self._finished.set()  # a trial that broke off may not have stopped the watch before this one
        self._samples: list[GpuSample] = []
        self._failures: list[str] = []
        self._finished = threading.Event()
        self._thread = threading.Thread(
            target=self._watch,
            args=(self._samples, self._failures, self._finished),
            name="budgettune-nvml",
            daemon=True,
        )
        self._thread.start()

    def look(self) -> ClockVerdict:
        """Judge the samples so far."""
        return self._judged(tuple(self._failures))

    def stop(self) -> ClockVerdict:
        """Take a last sample and judge them all; a driver that hangs costs two seconds, not the trial."""
        self._finished.set()
        self._thread.join(timeout=PATIENCE_SECONDS)
        failures = list(self._failures)
        if self._thread.is_alive():
            failures.append(f"NVML has not answered for {PATIENCE_SECONDS:g} s")
        return self._judged(tuple(failures))

    def _judged(self, failures: tuple[str, ...]) -> ClockVerdict:
        verdict = judge_gpu(tuple(self._samples), self._own_pid)
        if not failures or verdict.status == "disturbed":
            return verdict
        return ClockVerdict(status="unverified", evidence=verdict.evidence, reasons=failures)

    def _watch(self, samples: list[GpuSample], failures: list[str], finished: threading.Event) -> None:
        try:
            nvml = open_nvml(self._module)
        except RuntimeError as error:
            failures.append(str(error))
            return
        try:
            gpu = Gpu(nvml, self._uuid)
            samples.append(gpu.sample())
            while not finished.wait(self._interval_seconds):
                samples.append(gpu.sample())
            samples.append(gpu.sample())
        except Exception as error:  # whatever ends the watch, half of it is no evidence
            failures.append(f"NVML cannot watch {self._uuid}: {error or type(error).__name__}")


class SentinelObserver:
    """Reads a device's sentinel before and after."""

    def __init__(self, sentinel: Sentinel) -> None:
        self._sentinel = sentinel

    def start(self) -> None:
        self._before = self._sentinel.read()

    def look(self) -> ClockVerdict:
        """Judge the first reading: another one would take memory from the trial."""
        return self._judged(self._before)

    def stop(self) -> ClockVerdict:
        return self._judged(self._sentinel.read())

    def _judged(self, after: float) -> ClockVerdict:
        readings = SentinelSeconds(before=self._before, after=after, best=self._sentinel.best_seconds)
        return judge_sentinel(readings, self._sentinel.limit)
