"""What NVML tells about NVIDIA devices. Thin readers.

NVML is read through the package `nvidia-ml-py` (the optional extra `nvidia`, imported as `pynvml`). Written against its
documentation and tested through a stand-in.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

CUDA_TORCH = "pytorch.org names the torch that is built for CUDA and for your driver"
_NO_GPU = ("", "-1", "NoDevFiles")  # the last is Slurm's, for a job that asked for none
_MIG = "MIG-"  # in front of the UUID of an instance, a slice of a GPU that is a device of its own to CUDA


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """One look at the device.

    Attributes:
        at_seconds: of a monotonic clock.
        pids: of the processes that compute on it, as the driver numbers them.
        reasons: NVML's bit mask of why clocks are held down.
        sm_mhz: clock of the streaming multiprocessors.
        use: share of the time since the first look for which each process kept multiprocessors busy; empty where NVML
            does not tell.
        heat_seconds: for which heat has held clocks down so far; None where the driver does not count it.
        reliability_seconds: for which the board's limit of voltage has, likewise.
    """

    at_seconds: float = 0.0
    pids: tuple[int, ...]
    reasons: int
    sm_mhz: int
    use: Mapping[int, float] = field(default_factory=dict)
    heat_seconds: float | None = None
    reliability_seconds: float | None = None


@functools.cache  # starting it takes tens of milliseconds; it lasts until the process ends
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


class Gpu:
    """One device as NVML knows it, by the UUID that torch gives, with or without `GPU-` or `MIG-` in front.

    Raises:
        nvml.NVMLError: where NVML does not know the device; so do its methods where the driver refuses.
    """

    def __init__(
        self,
        nvml: Any,
        uuid: str,
        clock: Callable[[], float] = time.perf_counter,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._nvml, self._clock = nvml, clock
        self._handle, self._card = _handles(nvml, uuid)
        self._used_seconds: dict[int, float] = {}
        self._since = self._first = int(1e6 * wall_clock())  # microseconds, as NVML stamps the use of processes

    def sample(self) -> GpuSample:
        nvml, handle, card = self._nvml, self._handle, self._card
        return GpuSample(
            at_seconds=self._clock(),
            pids=tuple(process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(handle)),
            reasons=self._clock_reasons(),
            sm_mhz=int(nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM)),
            use=self._use(),
            heat_seconds=self._held_seconds(nvml.NVML_PERF_POLICY_THERMAL),
            reliability_seconds=self._held_seconds(nvml.NVML_PERF_POLICY_RELIABILITY),
        )

    def limits(self) -> dict[str, Any]:
        """Return the driver and what the device is allowed, as `MachineInfo` names them; None for what is not told."""
        nvml, card = self._nvml, self._card
        milliwatts = self._ask("nvmlDeviceGetEnforcedPowerLimit", card)
        clocks = [
            self._ask(name, card, nvml.NVML_CLOCK_SM)
            for name in ("nvmlDeviceGetMaxClockInfo", "nvmlDeviceGetApplicationsClock")
        ]
        driver = self._ask("nvmlSystemGetDriverVersion")
        return {
            "driver": None if driver is None else _text(driver),
            "power_limit_w": None if milliwatts is None else round(milliwatts / 1e3),
            "sm_clock_limit_mhz": min((int(clock) for clock in clocks if clock), default=None),
        }

    def _ask(self, name: str, *arguments: Any) -> Any:
        """Return what NVML answers, None where the package, the driver or the device has no answer."""
        try:
            return getattr(self._nvml, name)(*arguments)
        except (AttributeError, self._nvml.NVMLError):
            return None

    def _clock_reasons(self) -> int:
        # Throttle reasons became event reasons, same bits: old drivers lack the one, new ones may lack the other.
        reasons = self._ask("nvmlDeviceGetCurrentClocksEventReasons", self._card)
        return int(self._nvml.nvmlDeviceGetCurrentClocksThrottleReasons(self._card) if reasons is None else reasons)

    def _held_seconds(self, policy: int) -> float | None:
        held = self._ask("nvmlDeviceGetViolationStatus", self._card, policy)
        return None if held is None else held.violationTime / 1e9

    def _use(self) -> dict[int, float]:
        # An answer is about the time since a stamp, of the processes that did something in it. Some drivers pad it with
        # rows of older times, or of more than 100%.
        rows = [
            row
            for row in self._ask("nvmlDeviceGetProcessUtilization", self._handle, self._since) or ()
            if row.pid and row.timeStamp > self._since and row.smUtil <= 100
        ]
        if rows:
            until = max(row.timeStamp for row in rows)
            for row in rows:
                seconds = row.smUtil / 100 * (until - self._since) / 1e6
                self._used_seconds[row.pid] = self._used_seconds.get(row.pid, 0.0) + seconds
            self._since = until
        told_seconds = (self._since - self._first) / 1e6
        return {pid: used / told_seconds for pid, used in self._used_seconds.items()}


def _handles(nvml: Any, uuid: str) -> tuple[Any, Any]:
    """Return NVML's handles of the device, which has the processes, and of its whole card, which has the clocks."""
    bare = uuid.removeprefix("GPU-").removeprefix(_MIG)
    # Torch may give the card's UUID for an instance; CUDA takes the first instance that is named.
    named = [name for name in _named_gpus() or () if name.startswith(_MIG)][:1]
    for name in (*named, f"GPU-{bare}"):
        with suppress(nvml.NVMLError):
            return _handles_of(nvml, name)
    return _handles_of(nvml, f"{_MIG}{bare}")


def _handles_of(nvml: Any, name: str) -> tuple[Any, Any]:
    handle = nvml.nvmlDeviceGetHandleByUUID(name)
    if name.startswith(_MIG):
        return handle, nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle)
    return next(iter(_instances(nvml, handle) or ()), handle), handle


def _instances(nvml: Any, card: Any) -> list[Any] | None:
    """Return the handles of a card's instances; None where it is not divided (MIG)."""
    try:
        if not nvml.nvmlDeviceGetMigMode(card)[0]:
            return None
        places = range(nvml.nvmlDeviceGetMaxMigDeviceCount(card))
    except (AttributeError, nvml.NVMLError):
        return None
    instances = []
    for place in places:
        with suppress(nvml.NVMLError):  # an empty place
            instances.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(card, place))
    return instances


def gpu_names(module: Any = None) -> list[str]:
    """Return the names of the cards of this box, or raise RuntimeError with the reason why there are none."""
    return [name for name, _ in _cards(module)]


def gpu_limits(uuid: str, module: Any = None) -> dict[str, Any]:
    """Return the driver and the limits of a device, as `MachineInfo` names them; nothing where NVML cannot be asked."""
    try:
        nvml = open_nvml(module)
        return Gpu(nvml, uuid).limits()
    except Exception:  # for the record only: no driver's whim may cost a trial
        return {}


def _cards(module: Any = None) -> list[tuple[str, list[str]]]:
    """Return of each card its name, and the UUIDs that CUDA_VISIBLE_DEVICES takes: its own, or its instances'.

    An index would not do: CUDA counts from the fastest card, the driver by their places.
    """
    nvml = open_nvml(module)
    cards = []
    try:
        for index in range(nvml.nvmlDeviceGetCount()):
            card = nvml.nvmlDeviceGetHandleByIndex(index)
            instances = _instances(nvml, card)
            devices = [card] if instances is None else instances
            uuids = [_text(nvml.nvmlDeviceGetUUID(device)) for device in devices]
            cards.append((_text(nvml.nvmlDeviceGetName(card)), uuids))
    except nvml.NVMLError as error:
        raise RuntimeError(f"NVML does not list its devices: {error}") from None
    return cards


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value  # bytes before version 12


def visible_gpus() -> list[str]:
    """Return the NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES takes them; of MIG, each instance.

    Drivers and variables name devices that training cannot use: of several, torch has the last word. Of instances it
    sees one at a time.
    """
    listed = _named_gpus()
    listed = _listed_gpus() if listed is None else listed
    if len(listed) < 2:
        return listed
    count = torch_gpu_count()
    return listed if count and any(name.startswith(_MIG) for name in listed) else listed[:count]


def named_gpus(module: Any = None) -> list[tuple[str, str | None]]:
    """Return name and UUID of each device that this process may use, without torch; no UUID where NVML is not there."""
    try:
        cards = [(name, uuid) for name, uuids in _cards(module) for uuid in uuids]
    except RuntimeError:
        return [("CUDA device", None) for _ in visible_gpus()]
    known = {uuid: name for name, uuid in cards}
    found: list[tuple[str, str | None]] = []
    for device in visible_gpus():
        place = int(device) if device.isdecimal() and int(device) < len(cards) else None
        name, uuid = cards[place] if place is not None else (known.get(device, "CUDA device"), device)
        found.append((name, uuid))
    return found


def missing_gpus(count: int) -> str | None:
    """Return a sentence where there are more devices than the `count` that torch sees.

    That is where CUDA_VISIBLE_DEVICES names more, or where it is not set and torch sees none of those that are here.
    """
    named = _named_gpus()
    if named is None:
        here = 0 if count else len(_listed_gpus())
        return f"this box has {_gpus(here)} that torch cannot use: training on the CPU ({CUDA_TORCH})" if here else None
    wanted = 1 if any(name.startswith(_MIG) for name in named) else len(named)
    if count >= wanted:
        return None
    seen = f"only {count}" if count else "none: training on the CPU"
    return f"CUDA_VISIBLE_DEVICES names {_gpus(len(named))}, and torch sees {seen}"


def _gpus(count: int) -> str:
    return f"{count} GPU{'s' if count > 1 else ''}"


def _named_gpus() -> list[str] | None:
    """Return what CUDA_VISIBLE_DEVICES lists up to the first name that stands for none; None where it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    listed = [name.strip() for name in named.split(",")]
    return listed[: next((i for i, name in enumerate(listed) if name in _NO_GPU), len(listed))]


def torch_gpu_count() -> int:
    """Return how many devices torch sees, asked in a process of its own; 0 where it cannot be asked."""
    script = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    try:
        asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
        return int(asked.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _listed_gpus() -> list[str]:
    try:
        return [uuid for _, uuids in _cards() for uuid in uuids]
    except RuntimeError:  # no such package, or no driver: the driver's own tool tells the two apart
        tool = shutil.which("nvidia-smi")
        return [] if tool is None else _listed_by(tool)


def _listed_by(tool: str) -> list[str]:
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return _listed_in(listing)


def _listed_in(listing: str) -> list[str]:
    """Return the devices of what `nvidia-smi -L` prints; a card's instances follow it, and stand in for it."""
    cards = re.findall(r"UUID: (GPU-[^)\s]+)\)((?:\s+MIG .*)*)", listing)
    return [uuid for card, instances in cards for uuid in re.findall(r"UUID: (MIG-[^)\s]+)\)", instances) or [card]]
