"""Which kernels a step runs: names, launches, time, and which of them are known to be slow ways out.

On CUDA the profiler names device kernels. On a CPU it names operators only, and all convolutions look alike; there
oneDNN itself says, in its verbose mode, which implementation each of its primitives took.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO

import torch
from torch.profiler import ProfilerActivity, profile

from budgettune.training.device import Device

KERNEL_KINDS = {
    # cuDNN's convolution by Fourier transform, and its product of complex matrices (the paper's gcgemm).
    "fft": re.compile(r"fft|cgemm", re.IGNORECASE),
    # oneDNN's plain loops: right for every shape, fast for none.
    "reference": re.compile(r"(?:^|[ :_])(?:ref|simple)(?:[ :_]|$)"),
    # Convolution as a matrix product on unfolded images, where no direct kernel fits.
    "fallback": re.compile(r"(?:^|[ +])gemm:|im2col|col2im|slow_conv|thnn_conv|implicit_convolve|naive", re.IGNORECASE),
    # Nothing but a copy into another memory order.
    "reorder": re.compile(r"^reorder |nchwToNhwc|nhwcToNchw|transpose", re.IGNORECASE),
}
"""Kinds of kernels to look out for, by name; the first that matches counts."""

_WRAPPERS = re.compile(r"convolution|^autograd::|^profiler::", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of a step, by the name that its library gives it."""

    name: str
    kind: str  # fft, reference, fallback or reorder; empty for one that nothing speaks against
    launches: int  # per step
    ms: float  # per step, on its own
    share: float  # of all kernels' time


def kernels_of(step: Callable[[], None], device: Device, passes: int = 3) -> tuple[Kernel, ...]:
    """Return the kernels of a step, dearest first.

    Of several passes the quickest counts. While they run, what other threads print may be lost.
    """
    events = _quickest(partial(_profiler_events, step, device), passes)
    if not device.is_cuda:
        primitives = _quickest(partial(_onednn_events, step), passes)
        # Their time is told again by the primitives inside, with better names.
        events = [event for event in events if not (primitives and _WRAPPERS.search(event[0]))] + primitives
    return summarise(events)


def kernel_kind(name: str) -> str:
    """Return the kind of slow kernel that a name gives away, or an empty text."""
    return next((kind for kind, pattern in KERNEL_KINDS.items() if pattern.search(name)), "")


def summarise(events: Iterable[tuple[str, int, float]]) -> tuple[Kernel, ...]:
    """Return kernels from (name, launches, milliseconds), equal names added up."""
    totals: dict[str, tuple[int, float]] = {}
    for name, launches, ms in events:
        before = totals.get(name, (0, 0.0))
        totals[name] = (before[0] + launches, before[1] + ms)
    whole = sum(ms for _, ms in totals.values()) or 1.0
    kernels = [
        Kernel(name=name, kind=kernel_kind(name), launches=launches, ms=ms, share=ms / whole)
        for name, (launches, ms) in totals.items()
    ]
    return tuple(sorted(kernels, key=lambda kernel: -kernel.ms))


def parse_onednn(text: str) -> list[tuple[str, int, float]]:
    """Return (name, launches, milliseconds) of each primitive that oneDNN's verbose text says was executed.

    A line is `onednn_verbose,v1,primitive,exec,cpu,convolution,jit:avx512_core,backward_weights,…,0.41`; a name is
    made of the primitive, its direction and the implementation.
    """
    events = []
    for line in text.splitlines():
        fields = line.split(",")
        if not fields[0].endswith("onednn_verbose") or "exec" not in fields:
            continue
        _, primitive, implementation, direction, *_ = fields[fields.index("exec") + 1 :]
        with suppress(ValueError):  # a line that another thread's output cut in two
            words = [primitive, *([] if direction == "undef" else [direction]), implementation]
            events.append((" ".join(words), 1, float(fields[-1])))
    return events


def _quickest(take: Callable[[], list[tuple[str, int, float]]], passes: int) -> list[tuple[str, int, float]]:
    return min((take() for _ in range(passes)), key=lambda events: (not events, sum(ms for *_, ms in events)))


def _profiler_events(step: Callable[[], None], device: Device) -> list[tuple[str, int, float]]:
    """Return device kernels on CUDA, operators with their own time elsewhere."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.is_cuda else [])]
    # The profiler's library logs to standard error, also that there is no GPU.
    with _captured(2), profile(activities=activities, acc_events=True) as profiler:
        step()
        device.synchronize()
    where = torch.autograd.DeviceType.CUDA if device.is_cuda else torch.autograd.DeviceType.CPU
    return [
        (event.key, event.count, (event.self_device_time_total if device.is_cuda else event.self_cpu_time_total) / 1e3)
        for event in profiler.key_averages()
        if event.device_type == where and not event.is_user_annotation
    ]


def _onednn_events(step: Callable[[], None]) -> list[tuple[str, int, float]]:
    """Return the primitives of a step by oneDNN's own account; none where torch was built without it."""
    if not torch.backends.mkldnn.is_available():
        return []
    with _captured(1) as output:
        with torch.backends.mkldnn.verbose(torch.backends.mkldnn.VERBOSE_ON):
            step()
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).fflush(None)  # oneDNN writes with C's stdio, which may hold lines back
        output.seek(0)
        return parse_onednn(output.read())


def _scratch_file() -> IO[str]:
    """Return a file without a name; on Linux it needs no folder either, which a read-only box has not."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("captured"), "w+", encoding="utf-8", errors="replace")
    return tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")


@contextmanager
def _captured(descriptor: int) -> Iterator[IO[str]]:
    """Send what libraries write to a file descriptor into a file: they know nothing of sys.stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    with ExitStack() as stack:
        kept = os.dup(descriptor)
        stack.callback(os.close, kept)
        output = stack.enter_context(_scratch_file())
        os.dup2(output.fileno(), descriptor)
        stack.callback(os.dup2, kept, descriptor)
        yield output
