"""NVIDIA devices as NVML sees them: who else is on the device, and does it hold its clocks.

NVML is read through the package `nvidia-ml-py` (the optional extra `nvidia`, imported as `pynvml`). Written against its
documentation and tested through a stand-in. Other processes and heat disturb. The power cap goes on record only: the
same work draws the same power, so it slows a configuration the same each time.
"""

from __future__ import annotations

import importlib
import os
import statistics
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from budgettune.machine.witness import HARM_LIMIT, Verdict

POWER_CAP = 0x04
"""nvmlClocksEventReasonSwPowerCap."""
SLOWDOWN_REASONS = {
    0x08: "hardware slowdown",
    0x20: "thermal slowdown (software)",
    0x40: "thermal slowdown (hardware)",
    0x80: "power brake",
}
"""nvmlClocksEventReason… bits that depend on the room and the box, not on the work."""
INTERVAL_SECONDS = 0.5


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """One look at the device.

    Attributes:
        pids: of the processes that compute on it, as the driver numbers them.
        reasons: NVML's bit mask of why clocks are held down.
        sm_mhz: clock of the streaming multiprocessors.
    """

    pids: tuple[int, ...]
    reasons: int
    sm_mhz: int


def judge_gpu(samples: Sequence[GpuSample], own_pid: int) -> Verdict:
    """Return the verdict on samples taken while this process, of that number, trained on the device."""
    if not samples:
        return Verdict(status="unverified", evidence={}, reasons=("NVML gave no sample of the device",))
    evidence = gpu_evidence(samples, own_pid)
    reasons = _gpu_harm(samples, evidence)
    if reasons:
        return Verdict(status="disturbed", evidence=evidence, reasons=tuple(reasons))
    if not evidence["gpu_processes"]:
        gap = "NVML does not show even our own process: in a container, start it in the host's pid namespace"
        return Verdict(status="unverified", evidence=evidence, reasons=(gap,))
    return Verdict(status="clean", evidence=evidence)


def gpu_evidence(samples: Sequence[GpuSample], own_pid: int) -> dict[str, float]:
    """Return what the samples say, as plain numbers."""
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
        seen = [name for bit, name in SLOWDOWN_REASONS.items() if any(sample.reasons & bit for sample in samples)]
        reasons.append(f"the GPU held its clocks down in {evidence['gpu_slowdown_share']:.0%}: {', '.join(seen)}")
    return reasons


def open_nvml(module: Any = None) -> Any:
    """Return the initialised `pynvml` module.

    Raises:
        RuntimeError: where there is no such package, no driver or no device, with the reason.
    """
    try:
        module = module or importlib.import_module("pynvml")
    except ImportError:
        raise RuntimeError("nvidia-ml-py is not installed: pip install 'budgettune[nvidia]'") from None
    try:
        module.nvmlInit()
    except module.NVMLError as error:
        raise RuntimeError(f"NVML does not start: {error}") from None
    return module


def gpu_names(module: Any = None) -> list[str]:
    """Return the names of the devices of this box, or raise RuntimeError with the reason why there are none."""
    nvml = open_nvml(module)
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
        return [_text(nvml.nvmlDeviceGetName(handle)) for handle in handles]
    except nvml.NVMLError as error:
        raise RuntimeError(f"NVML does not list its devices: {error}") from None
    finally:
        nvml.nvmlShutdown()


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before version 12


class GpuObserver:
    """Looks at one device from a thread of its own, because a call to NVML can take milliseconds.

    Args:
        uuid: of the device, with or without NVML's `GPU-` in front. An index would mislead: CUDA and NVML count
            devices in different orders.
        module: stands in for `pynvml`.
        interval_seconds: from sample to sample; one is taken at the start and one at the end in any case.
        own_pid: this process's number.
    """

    def __init__(
        self,
        uuid: str,
        module: Any = None,
        interval_seconds: float = INTERVAL_SECONDS,
        own_pid: int | None = None,
    ) -> None:
        self._uuid = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
        self._module = module
        self._interval_seconds = interval_seconds
        self._own_pid = own_pid or os.getpid()
        self._finished = threading.Event()

    def start(self) -> None:
        """Begin to sample."""
        self._finished.set()  # a trial that broke off may not have stopped the watch before this one
        self._samples: list[GpuSample] = []
        self._failure: str | None = None
        self._finished = threading.Event()
        self._thread = threading.Thread(
            target=self._watch, args=(self._samples, self._finished), name="budgettune-nvml", daemon=True
        )
        self._thread.start()

    def stop(self) -> Verdict:
        """Take a last sample and judge them all; a driver that hangs costs two seconds, not the trial."""
        self._finished.set()
        self._thread.join(timeout=2.0)
        verdict = judge_gpu(tuple(self._samples), self._own_pid)
        if self._failure is None or verdict.status == "disturbed":
            return verdict
        return Verdict(status="unverified", evidence=verdict.evidence, reasons=(self._failure,))

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


def sample(nvml: Any, handle: Any) -> GpuSample:
    """Return one look at a device through NVML."""
    return GpuSample(
        pids=tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
        reasons=_clock_reasons(nvml, handle),
        sm_mhz=int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
    )


def _clock_reasons(nvml: Any, handle: Any) -> int:
    # Throttle reasons were renamed to event reasons, same bits: old drivers lack the one, new ones may lack the other.
    try:
        return int(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except (AttributeError, nvml.NVMLError):
        return int(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
