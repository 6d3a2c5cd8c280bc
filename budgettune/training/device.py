"""Devices: the only file of training that knows one from another, and mentions CUDA."""

from __future__ import annotations

import ctypes
import functools
import getpass
import importlib
import logging
import math
import os
import re
import resource
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from budgettune.errors import DeviceLost, OutOfMemory, SpecError, UsageError
from budgettune.machine.fingerprint import fingerprint
from budgettune.machine.gpu import missing_gpus
from budgettune.machine.sentinel import GPU_SENTINEL_LIMIT, RUNS, Sentinel
from budgettune.machine.witness import Witness, witness_for
from budgettune.records import MachineInfo
from budgettune.spec.tables import ALIGNMENT
from budgettune.text import first_line, warn_once
from budgettune.training.group import ALONE, Alone

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_TORCH_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_NO_MEMORY = re.compile(
    r"out of memory|can't allocate memory|not enough memory|ALLOC(ATION)?_FAILED|unable to find an engine", re.I
)
Tensors = tuple[Tensor, ...]
MOST_SHAPES = 64  # of batches, that one network is compiled for
SPIN_UP_SECONDS = 0.05
LEAD = 2  # steps that the host may be ahead of a device that works by itself


def pick_device(name: str = "auto") -> torch.device:
    """Return the device that `auto`, `cpu`, `cuda` or `cuda:N` stands for.

    Raises:
        UsageError: where this box has no such device.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if note := missing_gpus(available):
            warn_once(logger, note)
        return torch.device("cuda", 0) if available else torch.device("cpu")
    if name == "cpu":
        return torch.device("cpu")
    match = re.fullmatch(r"cuda(?::(\d+))?", name)
    if not match:
        raise UsageError(f"device {name!r} is unknown: use auto, cpu, cuda or cuda:N")
    index = int(match[1] or 0)
    if index >= available:
        raise UsageError(f"device {name} is not here; this box has {available} CUDA devices: use --device cpu")
    return torch.device("cuda", index)


class Device:
    """What the trainer asks of a device: wait, measure, describe, pace.

    Steps that follow one another are timed from mark to mark: `begin_steps`, then `end_step` after each. CUDA works by
    itself, so its marks are events, read when the device has passed them; elsewhere the host's clock is read.
    """

    def __init__(
        self,
        device: torch.device | str,
        cuda: Any = torch.cuda,  # tests give a stand-in
        group: Alone = ALONE,
    ) -> None:
        self.torch, self.group = torch.device("cuda:0" if str(device) == "cuda" else device), group
        self.is_cuda = self.torch.type == "cuda"
        self._cuda = cuda
        self._marks: deque[Any] = deque()  # the last one that was passed, then those that were not
        self._pool: Any = None  # memory of all graphs; one at a time is replayed
        self._peak_of_graphs = 0  # bytes that were in use while they were captured: replays allocate nothing
        self.measures_kernels = True  # whether cuDNN times its kernels in warm-up, or goes by its heuristic

    def prepare(self) -> None:
        """Set what must hold for the whole process before anything runs."""
        name_torch_cache()
        if self.is_cuda:
            self._cuda.set_device(self.torch)  # events, pinned memory and the question for bf16 go to the current one
            torch.backends.cudnn.benchmark = False
        else:
            keep_freed_memory()

    def set_arithmetic(self, precision: str, *, deterministic: bool) -> None:
        """Set for the whole process what a GPU's convolutions and products do with numbers of 32 bits.

        PyTorch by itself takes TF32 in convolutions and IEEE arithmetic in products, and calls both fp32. Under
        `deterministic` cuDNN takes the same kernels in every process. (`torch.use_deterministic_algorithms` would
        refuse `kthvalue` and `cumsum`, which strategies use; nothing here adds atomically.)
        """
        if self.is_cuda:
            # Not `fp32_precision`, which replaces both: where it was set, torch's compiler fails as it reads these.
            with warnings.catch_warnings(action="ignore"):  # torch 2.9 would have the newer names
                torch.backends.cudnn.allow_tf32 = precision != "fp32"
                torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
            torch.backends.cudnn.deterministic = deterministic

    @contextmanager
    def measuring_kernels(self) -> Iterator[None]:
        """Have cuDNN time its kernels for every new shape of batch inside; outside it goes by its heuristic.

        The heuristic may pick an FFT kernel for odd channel counts, ten times slower. A search takes seconds and frees
        all cached memory: it belongs into warm-up. What was chosen for a shape, either way, serves the whole process.
        """
        cudnn = torch.backends.cudnn
        cudnn.benchmark = self.is_cuda and self.measures_kernels and not cudnn.deterministic
        try:
            yield
        finally:
            cudnn.benchmark = False

    def synchronize(self) -> None:
        """Return when the devices of all ranks have nothing left to do, so that a time covers the slowest."""
        if self.is_cuda:
            self._cuda.synchronize(self.torch)
        self.group.wait()

    @contextmanager
    def refusing_waits(self) -> Iterator[None]:
        """Raise RuntimeError inside where the host would wait for CUDA, as far as torch notices that."""
        before = self._cuda.get_sync_debug_mode()
        try:
            with warnings.catch_warnings(action="ignore"):  # torch calls it a prototype
                self._cuda.set_sync_debug_mode("error")
            yield
        finally:
            self._cuda.set_sync_debug_mode(before)

    def is_lost(self) -> bool:
        """Whether the device fails whatever is asked of it: after some errors of CUDA only a new process can use it."""
        try:
            self.synchronize()
        except RuntimeError:
            return True
        return False

    def begin_steps(self, now: float) -> None:
        """Mark where the first of several steps begins; `now` is the host's clock, for devices without one."""
        self._marks.clear()
        self.end_step(now)

    def end_step(self, now: float) -> None:
        """Mark where a step ends, and the next one begins."""
        self._marks.append(self.mark() if self.is_cuda else now)

    def mark(self) -> Any:
        """Return an event that CUDA passes when it has done what it was given before."""
        event = self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def ended_steps(self) -> list[float]:
        """Return the seconds of those steps that ended since this was asked last, oldest first, without waiting."""
        seconds = []
        while len(self._marks) > 1 and (not self.is_cuda or self._marks[1].query()):
            begin, end = self._marks.popleft(), self._marks[0]
            seconds.append(begin.elapsed_time(end) / 1e3 if self.is_cuda else end - begin)
        return seconds

    def queued_steps(self) -> int:
        """Return how many steps the device has not ended yet."""
        return sum(not mark.query() for mark in self._marks) if self.is_cuda else 0

    def pace(self) -> None:
        """Wait until the device is at most two steps behind, without draining its queue.

        Under a time budget the host's clock decides whether another step begins; a host that had queued a hundred
        steps would overshoot by all of them.
        """
        if self.is_cuda and len(self._marks) > LEAD + 1:
            self._marks[-1 - LEAD].synchronize()

    def reset_peak_memory(self) -> None:
        if self.is_cuda:
            self._cuda.reset_peak_memory_stats(self.torch)
        elif sys.platform == "linux":
            # A sandbox may forbid it: the peak is then that of the whole process, never too small.
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")

    def peak_memory_mb(self) -> float:
        """Return MiB at the peak: of the allocator on CUDA, of the process's resident set elsewhere."""
        if self.is_cuda:
            return float(max(self._cuda.max_memory_allocated(self.torch), self._peak_of_graphs)) / 2**20
        try:
            status = Path("/proc/self/status").read_text()
            return int(status.partition("VmHWM:")[2].split()[0]) / 1024
        except (OSError, ValueError, IndexError):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / (2**20 if sys.platform == "darwin" else 1024)

    def free_cache(self) -> None:
        """Have CUDA's allocator give back what nobody uses: blocks of one network's sizes do not fit the next one's."""
        if self.is_cuda:
            self._cuda.empty_cache()

    @property
    def captures(self) -> bool:
        """Whether `capture` makes graphs."""
        return self.is_cuda

    def capture(
        self, function: Callable[..., Tensors], inputs: Tensors, generator: torch.Generator
    ) -> Callable[..., Tensors]:
        """Return what does as `function` does, by replaying one CUDA graph; elsewhere the function itself.

        The kernels are the same, in the same order; what is saved is launching each of them. The function must have
        run on inputs of these shapes, so that nothing is chosen, compiled or built for the first time while it is
        captured, and must not look at values on the host. Numbers that it reads there, a learning rate say, are those
        of the capture for ever: hand in tensors.

        Args:
            function: from tensors to tensors. It may change others in place, and draw from the generator.
            inputs: where replays read: what a call gives is copied there, unless it is these very tensors.
            generator: on the device. Draws go on from replay to replay as they would from call to call.

        Returns:
            The function. What it returns is overwritten by its next call.
        """
        return _Graph(self, function, inputs, generator) if self.captures else function

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        return torch.autocast(self.torch.type, dtype=torch.bfloat16, enabled=precision == "bf16", cache_enabled=True)

    @contextmanager
    def own_chance(self, seed: int | None = None) -> Iterator[None]:
        """Leave the global random states as they were; inside they begin at the seed, where one is given."""
        with torch.random.fork_rng(devices=[self.torch.index] if self.is_cuda else []):
            if seed is not None:  # not by torch.manual_seed, which also seeds the GPUs that nobody puts back
                torch.default_generator.manual_seed(seed)
                if self.is_cuda:
                    self._cuda.manual_seed(seed)
            yield

    def chance(self) -> list[Tensor]:
        """Return the global random states that `own_chance` looks after."""
        return [torch.get_rng_state(), *([self._cuda.get_rng_state(self.torch)] if self.is_cuda else [])]

    def set_chance(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self.is_cuda:
            self._cuda.set_rng_state(states[1], self.torch)

    @contextmanager
    def full_memory_named(self, batch_size: int) -> Iterator[None]:
        """Raise OutOfMemory, which says what would fit, where what happens inside fails for want of memory."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # whoever looks at the error would hold all of a step's tensors
            self.free_cache()
            raise OutOfMemory(
                f"no memory left on {self.torch} at batch size {batch_size}: a smaller batch_size or scale would fit"
            ) from error

    def median_run_seconds(self, run: Callable[[], object]) -> float:
        """Return the median of several runs of some work on CUDA, by its own clock, once its clocks are up."""
        until = time.perf_counter() + SPIN_UP_SECONDS
        while time.perf_counter() < until:
            run()
            self.synchronize()
        self.begin_steps(0.0)
        for _ in range(RUNS):
            run()
            self.end_step(0.0)
        self.synchronize()
        return statistics.median(self.ended_steps())

    def witness(self) -> Witness:
        """Return who watches this process's device, with its sentinel on CUDA."""
        machine = self.machine()
        sentinel = _cuda_sentinel(self.torch) if self.is_cuda else None
        return witness_for(machine.device, threads=machine.threads, device_uuid=machine.device_uuid, sentinel=sentinel)

    def machine(self) -> MachineInfo:
        threads, processes = torch.get_num_threads(), self.group.size
        if not self.is_cuda:
            return fingerprint(device="cpu", threads=threads, processes=processes)
        properties = self._cuda.get_device_properties(self.torch)
        return fingerprint(
            device="cuda",
            threads=threads,
            processes=processes,
            device_name=properties.name,
            device_uuid=str(getattr(properties, "uuid", "")) or None,
            cuda=torch.version.cuda,
            cudnn=str(torch.backends.cudnn.version()),
        )


@functools.cache  # one for the process, so that a trial is held against the best of all trials before it
def _cuda_sentinel(device: torch.device) -> Sentinel:
    return Sentinel(partial(sentinel_seconds, Device(device)), GPU_SENTINEL_LIMIT)


def sentinel_seconds(device: Device, side: int = 4096, copied_bytes: int = 2**28) -> float:
    """Return the seconds of a fixed product and a copy beyond any cache, NaN where the device has no room for them.

    They leave nothing allocated, and the peak of memory is counted anew.
    """
    try:
        seconds = device.median_run_seconds(_fixed_work(device.torch, side, copied_bytes))
    except RuntimeError:  # whatever it is: this is asked where a trial failed, too
        seconds = math.nan
    with suppress(RuntimeError):
        device.reset_peak_memory()
    return seconds


def _fixed_work(device: torch.device, side: int, copied_bytes: int) -> Callable[[], None]:
    kind = torch.bfloat16 if has_fast_bf16(device) else torch.float16
    factor = torch.linspace(-1, 1, side * side, device=device).view(side, side).to(kind)
    product = torch.empty_like(factor)
    source = torch.zeros(copied_bytes, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)

    def run() -> None:
        torch.mm(factor, factor, out=product)
        copy.copy_(source)

    return run


class _Graph:
    """A CUDA graph of a function."""

    def __init__(
        self, device: Device, function: Callable[..., Tensors], inputs: Tensors, generator: torch.Generator
    ) -> None:
        cuda, self._inputs = device._cuda, inputs
        self._graph = cuda.CUDAGraph()
        if torch.__version__ < "2.14":  # which sees by itself what is drawn from, and warns at each call
            self._graph.register_generator_state(generator)
        device._pool = device._pool or cuda.graph_pool_handle()
        stream = _capture_stream(cuda, device.torch)
        stream.wait_stream(cuda.current_stream())
        torch.backends.cudnn.benchmark = False  # a kernel that has no room would be searched for, which ends a capture
        with cuda.stream(stream):  # a capture that fails leaves its own set
            with device.refusing_waits():  # one that meets a wait is lost, and with it the process
                function(*inputs)
            cuda.reset_peak_memory_stats(device.torch)
            self._outputs = self._capture(cuda.graph, device._pool, stream, function)
        cuda.current_stream().wait_stream(stream)
        device._peak_of_graphs = max(device._peak_of_graphs, cuda.max_memory_allocated(device.torch))

    def _capture(self, graph: Any, pool: Any, stream: Any, function: Callable[..., Tensors]) -> Tensors:
        fault: Exception | None = None
        try:
            with graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                try:
                    return function(*self._inputs)
                except Exception as error:
                    fault = error
                    raise
        except RuntimeError as error:
            if error is fault:
                raise
            # Its end has failed too: releases before 2.12 then take the capture for under way, for good.
            reason = f"a capture that CUDA does not get over ({first_line(fault or error)})"
            raise DeviceLost(f"{reason}: set train.cuda_graphs to false") from (fault or error)

    def __call__(self, *values: Tensor) -> Tensors:
        for kept, value in zip(self._inputs, values, strict=True):
            if kept is not value:
                kept.copy_(value)
        self._graph.replay()
        return self._outputs


@functools.cache  # libraries keep a workspace (32 MiB on an H100) for each thread and stream that they ever worked on
def _capture_stream(cuda: Any, device: torch.device) -> Any:
    return cuda.Stream(device)


def name_torch_cache() -> None:
    """Name a folder for torch's compiler where it would find none: any optimiser loads it, which fails then.

    It is called after the user (older releases fail where the box does not know this one) and lies in a folder for
    temporary files (a read-only box has none). Only compilation writes into it.
    """
    if _TORCH_CACHE in os.environ:
        return
    try:
        folder = tempfile.gettempdir()
    except OSError:  # what is there already need not be made
        os.environ[_TORCH_CACHE] = os.sep
        return
    try:
        getpass.getuser()
    except (KeyError, OSError):
        os.environ[_TORCH_CACHE] = str(Path(folder) / f"torchinductor_{os.getuid()}")


def compiled(model: torch.nn.Module) -> Any:
    """Return a model that is compiled when it is first called.

    Raises:
        UsageError: where this box has no folder for what the compiler writes.
    """
    try:
        tempfile.gettempdir()
    except OSError:
        raise UsageError(
            "train.compile: no folder for temporary files: set TMPDIR to one that can be written"
        ) from None
    # Compiled code belongs to `forward` and not to a model: without a reset a process's second network gets kernels for
    # any batch size, and from the eighth on none at all.
    torch.compiler.reset()
    # A limit of eight shapes, and then silently none, is for those who do not count them.
    dynamo: Any = importlib.import_module("torch._dynamo").config
    dynamo.recompile_limit, dynamo.fail_on_recompile_limit_hit = MOST_SHAPES, True
    return torch.compile(model, dynamic=False)


@contextmanager
def compilation_named() -> Iterator[None]:
    """Raise SpecError where torch's compiler fails inside."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = first_line(getattr(error, "inner_exception", error))  # which it wraps into lines of its own
        raise SpecError(f"train.compile: torch cannot compile it here ({reason}): set it to false") from error


def keep_freed_memory() -> bool:
    """Have glibc keep what a step frees for the next step, and return whether it could be told.

    By default blocks of activations (tens of megabytes) go back to the system after every step and come again as
    40,000 page faults: 12 to 20% of a step's time on the CPU.
    """
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_M_MMAP_THRESHOLD, 2**30)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):  # another C library
        return False


def host_bytes(shape: Sequence[int], device: torch.device) -> torch.Tensor:
    """Return an empty uint8 tensor on the host, pinned where it feeds CUDA, so that nobody waits for its copy."""
    return torch.empty(*shape, dtype=torch.uint8, pin_memory=device.type == "cuda")


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; on a processor without it, bf16 is emulated and slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    supported: Callable[[], bool] | None = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(supported and supported())


def has_tf32(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def pick_precision(precision: str, device: torch.device, widths: list[int] | None) -> str:
    """Return fp32, tf32 or bf16 for what a spec asks, which a device without TF32 runs in fp32.

    `auto` takes bf16 where the device has it and widths are aligned: others (no multiples of 8) run 3 to 16 times
    slower in bf16 on a CPU.
    """
    aligned = widths is not None and all(width % ALIGNMENT == 0 for width in widths)
    if precision == "auto":
        precision = "bf16" if aligned and has_fast_bf16(device) else "tf32"
    return "fp32" if precision == "tf32" and not has_tf32(device) else precision


def is_out_of_memory(error: BaseException) -> bool:
    is_named = isinstance(error, (torch.OutOfMemoryError, MemoryError, OutOfMemory))
    return is_named or (isinstance(error, RuntimeError) and bool(_NO_MEMORY.search(str(error))))
