"""The fingerprint of a box: what a time depends on. No torch."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
from pathlib import Path

from budgettune.machine import procfs
from budgettune.machine.gpu import gpu_limits
from budgettune.records import MachineInfo

THREAD_VARIABLES = ("MKL_NUM_THREADS", "OMP_NUM_THREADS")


def fingerprint(
    *,
    device: str,
    threads: int,
    device_name: str | None = None,
    device_uuid: str | None = None,
    cuda: str | None = None,
    cudnn: str | None = None,
    processes: int = 1,
) -> MachineInfo:
    """Return what a time depends on: this box, the device (`cpu` or `cuda`) and the versions.

    `threads` is what each process of a trial uses, `cuda` the version that torch was built for; a CPU goes by its
    model's name. The driver and the limits of a GPU are NVML's, where it answers.
    """
    return MachineInfo(
        hostname=socket.gethostname(),
        device=device,
        device_name=cpu_model() if device == "cpu" else device_name or device,
        device_uuid=device_uuid,
        cpu=cpu_model(),
        cores=usable_cores(),
        threads=threads,
        memory_mb=memory_mb(),
        platform=platform.platform(),
        python=platform.python_version(),
        torch=torch_version() or "",
        cuda=cuda,
        cudnn=cudnn,
        processes=processes,
        **(gpu_limits(device_uuid) if device_uuid else {}),
    )


@functools.cache
def cpu_model(root: Path = procfs.ROOT) -> str:
    """Return the CPU's name as its maker writes it, or the architecture where the system does not tell."""
    return procfs.cpu_info("model name", root) or platform.processor() or platform.machine() or "unknown CPU"


@functools.cache
def usable_cores(root: Path = procfs.ROOT) -> int:
    """Return how many threads can run at once: CPUs we may run on, cut by the cgroups' quota, at least 1."""
    cpus = len(procfs.affinity() or ()) or os.cpu_count() or 1
    quota = procfs.quota_cores(root)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def asked_threads() -> tuple[str, int] | None:
    """Return the variable that says how many threads to use, and how many; None where none says a number.

    Of both MKL's counts, as for torch. A list is one of nested levels, and its first number counts.
    """
    for name in THREAD_VARIABLES:
        first = os.environ.get(name, "").split(",")[0].strip()
        if first.isdecimal() and int(first) > 0:
            return name, int(first)
    return None


def default_threads() -> int:
    """Return the threads of training where no option says: what a variable asks for, at most every usable core."""
    asked = asked_threads()
    return usable_cores() if asked is None else min(asked[1], usable_cores())


@functools.cache
def memory_mb(root: Path = procfs.ROOT) -> int:
    """Return the memory that this process may use in MiB, 0 where the system does not tell."""
    amounts = [amount for amount in (procfs.memory_mb("MemTotal", root), procfs.memory_limit_mb(root)) if amount]
    return min(amounts, default=0)


@functools.cache
def torch_version() -> str | None:
    """Return torch's version without importing it, None where it is not installed."""
    try:
        return importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return None
