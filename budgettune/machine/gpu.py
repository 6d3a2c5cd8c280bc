"""What NVML tells about NVIDIA devices. Thin readers.

NVML is read through the package `nvidia-ml-py` (the optional extra `nvidia`, imported as `pynvml`). Written against its
documentation and tested through a stand-in.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

_NO_GPU = ("", "-1", "NoDevFiles")  # the last is Slurm's, for a job that asked for none


@dataclass(frozen=True, kw_only=True)
class GpuSample:
    """One look at the device."""

    pids: tuple[int, ...]  # of the processes that compute on it, as the driver numbers them
    reasons: int  # NVML's bit mask of why clocks are held down
    sm_mhz: int  # clock of the streaming multiprocessors


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


def visible_gpus() -> list[str]:
    """Return the NVIDIA devices that this process may use, as CUDA_VISIBLE_DEVICES takes them.

    Drivers and variables name devices that training cannot use: of several, torch has the last word.
    """
    listed = _named_gpus()
    listed = _listed_gpus() if listed is None else listed
    return listed[: _torch_count()] if len(listed) > 1 else listed


def missing_gpus(count: int) -> str | None:
    """Return a sentence where CUDA_VISIBLE_DEVICES names more devices than the `count` that torch sees."""
    named = len(_named_gpus() or ())
    if count >= named:
        return None
    seen = f"only {count}" if count else "none: training on the CPU"
    return f"CUDA_VISIBLE_DEVICES names {named} GPU{'s' if named > 1 else ''}, and torch sees {seen}"


def _named_gpus() -> list[str] | None:
    """Return what CUDA_VISIBLE_DEVICES lists up to the first name that stands for none; None where it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        return None
    listed = [name.strip() for name in named.split(",")]
    return listed[: next((i for i, name in enumerate(listed) if name in _NO_GPU), len(listed))]


def _torch_count() -> int:
    """Return how many devices torch sees, asked in a process of its own; 0 where it cannot be asked."""
    script = "import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)"
    try:
        asked = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
        return int(asked.stdout.split()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return 0


def _listed_gpus() -> list[str]:
    try:
        return [str(index) for index in range(len(gpu_names()))]
    except RuntimeError:  # no such package, or no driver: the driver's own tool tells the two apart
        tool = shutil.which("nvidia-smi")
        return [] if tool is None else _listed_by(tool)


def _listed_by(tool: str) -> list[str]:
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return re.findall(r"UUID: (GPU-[^)\s]+)\)", listing)


def sample(nvml: Any, handle: Any) -> GpuSample:
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
