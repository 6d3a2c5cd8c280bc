"""What this box offers, and what would spoil its timings: the checks of `budgettune doctor`. No torch."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from budgettune.machine import procfs
from budgettune.machine.fingerprint import THREAD_VARIABLES, asked_threads, memory_mb, torch_version, usable_cores
from budgettune.machine.gpu import CUDA_TORCH, gpu_names, torch_gpu_count

OLDEST_TORCH = (2, 9)
QUIET_LOAD_SHARE = 0.2
STEAL_SHARE = 0.01
LEAST_MEMORY_MB = 2_048
LEAST_DISK_MB = 1_024


@dataclass(frozen=True)
class Finding:
    """One fact about the box, as people read it."""

    name: str
    value: str
    ok: bool | None = None  # False where it would spoil timings or stop a trial, None where it is only good to know
    advice: str | None = None


def doctor_facts(folder: Path = Path(), root: Path = procfs.ROOT) -> list[Finding]:
    """Return what this box offers and what would spoil its timings.

    Args:
        folder: where image sets and the database would lie.
        root: of /proc and /sys.
    """
    facts = (_cores, _threads, _load, _pressure, _steal, _clock_speed, _turbo, _hyperthreads, _bf16, _memory)
    return [*(fact(root) for fact in facts), _gpu(), _torch(), _disk(folder)]


def _judged(name: str, value: str, ok: bool, advice: str) -> Finding:
    return Finding(name, value, ok, None if ok else advice)


def _cores(root: Path) -> Finding:
    quota = procfs.quota_cores(root)
    limit = "" if quota is None else f", cgroup quota of {quota:g}"
    whole = quota is None or (quota >= 1 and quota == int(quota))
    advice = "give the container a whole number of CPUs: a fraction stops every thread now and then"
    return _judged("cores", f"{usable_cores(root)} usable of {os.cpu_count()}{limit}", whole, advice)


def _threads(root: Path) -> Finding:
    asked, cores = asked_threads(), usable_cores(root)
    if asked is not None:
        name, count = asked
        value = f"{min(count, cores)}, by {name}={count} (--threads goes before it)"
        return _judged("threads", value, count <= cores, f"set {name} to at most {cores}, the usable cores")
    if odd := [name for name in THREAD_VARIABLES if os.environ.get(name)]:
        value = f"{cores}, one for each usable core: nothing heeds {odd[0]}={os.environ[odd[0]]}"
        return Finding("threads", value, False, f"unset {odd[0]}, or set it to a whole number above 0")
    return Finding("threads", f"{cores}, one for each usable core (--threads or OMP_NUM_THREADS changes it)")


def _load(root: Path) -> Finding:
    text = procfs.read(root / "proc/loadavg")
    if not text:
        return Finding("load", "unknown")
    load = float(text.split()[0])
    quiet = load <= QUIET_LOAD_SHARE * usable_cores(root)
    return _judged("load", f"{load:.2f} in the last minute", quiet, "end what else runs on this box")


def _pressure(root: Path) -> Finding:
    if procfs.pressure_seconds(root) is not None:
        return Finding("pressure", "the kernel tells how long tasks wait for a CPU", True)
    return Finding("pressure", "no pressure-stall information", None, "boot Linux with psi=1 for one more witness")


def _steal(root: Path) -> Finding:
    counted = procfs.cpu_seconds(procfs.affinity() or (), root)
    if counted is None:
        advice = "times will be called unverified: run on Linux with a readable /proc"
        return Finding("steal", "unknown: no readable /proc/stat", False, advice)
    busy, stolen = counted
    share = stolen / max(busy + stolen, 1e-9)
    value = f"{share:.1%} of the CPU time wanted since boot went to other guests of the host"
    advice = "rent a dedicated machine, or repeat trials and compare their spread"
    return _judged("steal", value, share <= STEAL_SHARE, advice)


def _clock_speed(root: Path) -> Finding:
    governor = procfs.read(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor is None:
        return Finding("governor", "not visible (usual in a virtual machine)")
    steady = governor in ("performance", "schedutil")
    return _judged("governor", governor, steady, "cpupower frequency-set -g performance")


def _turbo(root: Path) -> Finding:
    cpu = root / "sys/devices/system/cpu"
    intel, other = procfs.read(cpu / "intel_pstate/no_turbo"), procfs.read(cpu / "cpufreq/boost")
    if intel is None and other is None:
        return Finding("turbo", "not visible (usual in a virtual machine)")
    on = intel == "0" if intel is not None else other == "1"
    return Finding("turbo", "on: clocks depend on heat and on the other cores" if on else "off: clocks are steady")


def _hyperthreads(root: Path) -> Finding:
    active = procfs.read(root / "sys/devices/system/cpu/smt/active")
    if active is None:
        return Finding("hyper-threads", "not visible")
    return Finding("hyper-threads", "on: two threads may share a core" if active == "1" else "off, or not visible")


def _bf16(root: Path) -> Finding:
    flags = set((procfs.cpu_info("flags", root) or "").split())
    kinds = ", ".join(sorted(flags & {"amx_bf16", "avx512_bf16"}))
    return Finding("bf16", f"in hardware ({kinds})" if kinds else "not in this CPU's hardware: fp32 is faster")


def _memory(root: Path) -> Finding:
    free = procfs.memory_mb("MemAvailable", root)
    if free is None:
        return Finding("memory", "unknown")
    value = f"{free:,} MiB free of {memory_mb(root):,}"
    return _judged("memory", value, free >= LEAST_MEMORY_MB, "end other programs: swapping spoils every time")


def _gpu() -> Finding:
    try:
        names = ", ".join(gpu_names())
    except RuntimeError as reason:
        return Finding("gpu", f"none to be seen: {reason}")
    if not names:
        return Finding("gpu", "NVML counts no device")
    count = torch_gpu_count()
    if not count:
        return Finding("gpu", f"{names}: torch cannot use what NVML sees", False, CUDA_TORCH)
    return Finding("gpu", names, True)


def _torch() -> Finding:
    version = torch_version()
    if version is None:
        return Finding("torch", "not installed", False, "pip install torch")
    numbers = version.split("+")[0].split(".")[:2]
    recent = all(map(str.isdigit, numbers)) and tuple(map(int, numbers)) >= OLDEST_TORCH
    return _judged("torch", version, recent, "pip install 'torch>=2.9'")


def _disk(folder: Path) -> Finding:
    try:
        free = shutil.disk_usage(folder).free // 2**20
    except OSError:  # the working folder was deleted: torch does not load there
        return Finding("disk", "the working folder is gone", False, "change to a folder that is there")
    return _judged("disk", f"{free:,} MiB free in {folder.resolve()}", free >= LEAST_DISK_MB, "make room")
