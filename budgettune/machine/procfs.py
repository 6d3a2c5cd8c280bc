"""What Linux tells about processors, memory and limits. Thin readers: a fact, or None where it cannot be read.

Every reader takes `root`, so that a test can put a made-up /proc and /sys in its place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path

ROOT = Path("/")
# The kernel shows /proc/stat to programs in hundredths of a second, whatever its own tick is.
TICKS_PER_SECOND = 100


def read(path: Path) -> str | None:
    """Return the text of a small file, or None where there is none that we may read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def affinity() -> frozenset[int] | None:
    """Return the CPUs that this process may run on, None where the system does not say."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _field(path: Path, key: str) -> str | None:
    """Return the value of the first line `key: value`."""
    for line in (read(path) or "").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return None


def cpu_info(key: str, root: Path = ROOT) -> str | None:
    """Return what /proc/cpuinfo says of the first CPU under a key such as `model name` or `flags`."""
    return _field(root / "proc/cpuinfo", key)


def cpu_seconds(cpus: Collection[int], root: Path = ROOT) -> tuple[float, float] | None:
    """Return (busy, stolen) seconds since boot, added up over the given CPUs.

    Busy is everything but idle, waiting for a disk and stolen; guests are in the user column already.
    """
    busy = stolen = counted = 0
    for line in (read(root / "proc/stat") or "").splitlines():
        name, *columns = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in cpus and len(columns) >= 8:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, columns[:8])
            busy += user + nice + system + irq + softirq
            stolen += steal
            counted += 1
    return (busy / TICKS_PER_SECOND, stolen / TICKS_PER_SECOND) if counted == len(cpus) > 0 else None


def pressure_seconds(root: Path = ROOT) -> float | None:
    """Return the seconds since boot in which at least one task of the box waited for a CPU (pressure-stall `some`)."""
    for line in (read(root / "proc/pressure/cpu") or "").splitlines():
        if line.startswith("some") and "total=" in line:
            return int(line.rpartition("total=")[2]) / 1e6
    return None


def thread_waits(root: Path = ROOT) -> dict[int, float] | None:
    """Return, for each thread of this process, the seconds it was ready to run and had no CPU.

    The second number of /proc/self/task/TID/schedstat, kept by the scheduler in nanoseconds.
    """
    waits = {}
    for folder in (root / "proc/self/task").glob("[0-9]*"):
        columns = (read(folder / "schedstat") or "").split()
        # A thread may end between the listing and the reading; a kernel without the counters shows no time slices.
        if len(columns) == 3 and columns[2] != "0":
            waits[int(folder.name)] = int(columns[1]) / 1e9
    return waits or None


def memory_mb(key: str, root: Path = ROOT) -> int | None:
    """Return a line of /proc/meminfo, such as `MemTotal` or `MemAvailable`, in MiB."""
    value = _field(root / "proc/meminfo", key)
    return None if value is None else int(value.split()[0]) // 1024


def cgroup_folders(controller: str, root: Path = ROOT) -> Iterator[Path]:
    """Yield the cgroup folders that bind this process, its own first, then those above it."""
    for line in (read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / controllers
        folder = base / path.lstrip("/")
        yield folder
        # Inside a container the path is often that of the host, and the mount itself is our folder.
        yield from (parent for parent in folder.parents if parent == base or base in parent.parents)


def quota_cores(root: Path = ROOT) -> float | None:
    """Return how many CPUs' worth of time the cgroups allow, None where they set no limit."""
    quotas = []
    for folder in cgroup_folders("cpu", root):
        quota, period = [*(read(folder / "cpu.max") or "").split(), "", ""][:2]
        if not quota:
            quota, period = read(folder / "cpu.cfs_quota_us") or "", read(folder / "cpu.cfs_period_us") or ""
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def throttled_seconds(root: Path = ROOT) -> float | None:
    """Return for how long a cgroup's CPU quota has held tasks back so far, over all CPUs."""
    units = {"throttled_usec": 1e6, "throttled_time": 1e9}
    seconds = [
        int(value) / units[name]
        for folder in cgroup_folders("cpu", root)
        for name, _, value in (line.partition(" ") for line in (read(folder / "cpu.stat") or "").splitlines())
        if name in units
    ]
    return max(seconds, default=None)


def memory_limit_mb(root: Path = ROOT) -> int | None:
    """Return the memory that the cgroups allow in MiB, None where they set no limit."""
    limits = [
        int(text) // 2**20
        for folder in cgroup_folders("memory", root)
        for text in (read(folder / "memory.max"), read(folder / "memory.limit_in_bytes"))
        if text is not None and text.isdigit()
    ]
    return min(limits, default=None)


def memory_kills(root: Path = ROOT) -> tuple[int, int]:
    """Return how many processes were killed so far for want of memory: in the cgroups that bind this one, on the box.

    Zero where the system does not tell.
    """
    told = [
        int(value)
        for folder in cgroup_folders("memory", root)
        for file in ("memory.events", "memory.oom_control")
        for name, _, value in (line.partition(" ") for line in (read(folder / file) or "").splitlines())
        if name == "oom_kill" and value.isdigit()
    ]
    lines = (line.partition(" ") for line in (read(root / "proc/vmstat") or "").splitlines())
    return max(told, default=0), next((int(value) for name, _, value in lines if name == "oom_kill"), 0)


def processes_with(variable: str, value: str, root: Path = ROOT) -> list[int]:
    """Return the processes that were started with an environment variable of that value, whatever group they are in."""
    wanted, found = f"{variable}={value}".encode(), []
    for folder in (root / "proc").glob("[0-9]*"):
        try:
            told = (folder / "environ").read_bytes()
        except OSError:  # ended meanwhile, or not ours
            continue
        if wanted in told.split(b"\0"):
            found.append(int(folder.name))
    return found
