"""A device that behaves as CUDA does towards its host, on the CPU: events, memory in use, graphs that are captured."""

import time
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from budgettune.training.device import Device


class PretendGpu(Device):
    """Tensors lie on the CPU; whatever the trainer does for CUDA is done."""

    def __init__(self, device="cpu", cuda=None, **kwargs):
        super().__init__("cpu", cuda or PretendCuda(), **kwargs)
        self.is_cuda = True

    @contextmanager
    def own_chance(self, seed=None):
        with torch.random.fork_rng(devices=[]):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            yield


class PretendCuda:
    """What `torch.cuda` has, as far as training uses it; `log` says in which order the rest was asked for."""

    def __init__(self):
        self.log = []
        self.in_use = [3 * 2**20]  # peaks since the last reset, the last one again and again
        self.streams = [PretendStream()]  # the first is that of everything else
        self.current = self.streams[0]
        self.captured_on = []
        self.waits = None  # what refuses them

    def Event(self, enable_timing=False):  # noqa: N802
        return PretendEvent()

    def CUDAGraph(self):  # noqa: N802
        return RecordedGraph()

    def Stream(self, device):  # noqa: N802
        self.streams.append(PretendStream())
        return self.streams[-1]

    def current_stream(self):
        return self.current

    @contextmanager
    def stream(self, stream):
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def get_sync_debug_mode(self):
        return 0 if self.waits is None else 2

    def set_sync_debug_mode(self, mode):
        if mode == "error":
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)
            self.waits = RefusedWaits()
            self.waits.__enter__()
        elif self.waits is not None:
            self.waits.__exit__(None, None, None)
            self.waits = None

    def graph_pool_handle(self):
        return "pool"

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        """As torch's own: after an error of CUDA the end fails too, with words of its own and the stream left set."""
        self.log.append("capture")
        self.captured_on.append((self.current, stream))
        before, self.current = self.current, stream
        try:
            with graph:
                yield
        finally:
            if graph.is_spoilt:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
            self.current = before

    def max_memory_allocated(self, device):
        return self.in_use.pop(0) if len(self.in_use) > 1 else self.in_use[0]

    def get_device_properties(self, device):
        return SimpleNamespace(name="Fake 9000", uuid="GPU-1")

    def __getattr__(self, name):  # synchronize, set_device, empty_cache, reset_peak_memory_stats
        return lambda *args: self.log.append(name)


class PretendStream:
    def wait_stream(self, other):
        pass


class RefusedWaits(TorchDispatchMode):
    """Refuses to look at values, as torch does in its debug mode."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(function):
            raise RuntimeError("called a synchronizing CUDA operation")
        return function(*args, **(kwargs or {}))


class PretendEvent:
    def record(self):
        self.at = time.perf_counter()

    def query(self):
        return True

    def synchronize(self):
        pass

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


class RecordedGraph(TorchDispatchMode):
    """Writes down the operations between enter and exit with the very tensors that they read and wrote.

    A replay does them again into the same tensors, with the same numbers: what a function reads on the host, and what
    it does in Python, is that of the capture. As CUDA does, it refuses to look at values, and before torch 2.14 to draw
    from a generator that it was not told of.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.generators = [], []
        self.is_spoilt = False  # by what CUDA refuses

    def register_generator_state(self, generator):
        if torch.__version__ >= "2.14":
            warnings.warn("register_generator_state() is deprecated", DeprecationWarning, stacklevel=2)
        self.generators.append(generator)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "_local_scalar_dense" in str(function):
            self.is_spoilt = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if torch.__version__ < "2.14" and (drawn_from := kwargs.get("generator")) is not None:
            states = [generator.get_state() for generator in self.generators]  # its wrapper here is another object
            if not any(torch.equal(state, drawn_from.get_state()) for state in states):
                raise RuntimeError("a generator that the graph was not told of")
        results = function(*args, **kwargs)
        self.operations.append((function, args, kwargs, results))
        return results

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, results in self.operations:
                for kept, now in zip(tensors_of(results), tensors_of(function(*args, **kwargs)), strict=True):
                    if kept.data_ptr() != now.data_ptr():  # neither a view nor in place
                        kept.copy_(now)


def tensors_of(results):
    results = results if isinstance(results, (tuple, list)) else [results]
    return [one for one in results if isinstance(one, torch.Tensor)]
