"""What is particular to a device; CUDA through a stand-in that writes down what it is asked."""

import math
import os
import random
import subprocess
import sys
import tempfile
import weakref
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.cuda._utils import _get_device_index

from budgettune.errors import OutOfMemory, UsageError
from budgettune.machine.gpu import missing_gpus
from budgettune.spec.study_spec import load_spec
from budgettune.text import warn_once
from budgettune.training import device as devices
from budgettune.training import trainer
from budgettune.training.data.load import load_data
from budgettune.training.device import (
    Device,
    compiled,
    is_out_of_memory,
    keep_freed_memory,
    pick_device,
    pick_precision,
    sentinel_seconds,
)
from budgettune.trial.schedule import BudgetProgress


class FakeCuda:
    """Stands in for torch.cuda: a device that ends its work one after the other, while the host's clock goes on."""

    def __init__(self):
        self.log = []
        self.now = 0.0  # the host's clock
        self.ends = 0.0  # when the device will have ended all that it was given

    def launch(self, host_seconds, device_seconds):
        """Give the device a step of many kernels: it begins with the first one, while the host launches the others."""
        begin = max(self.ends, self.now)
        self.now += host_seconds
        self.ends = max(begin + device_seconds, self.now)

    def synchronize(self, device):
        self.log.append("device")
        self.now = max(self.now, self.ends)

    def set_device(self, device):
        _get_device_index(device)  # which refuses one without a number
        self.log.append(f"set {device}")

    def Event(self, enable_timing=False):  # noqa: N802
        return FakeEvent(self)

    def manual_seed(self, seed):
        self.log.append(f"seed {seed}")

    def empty_cache(self):
        self.log.append("empty")

    def reset_peak_memory_stats(self, device):
        self.log.append("reset")

    def max_memory_allocated(self, device):
        return 3 * 2**20

    def get_device_properties(self, device):
        return SimpleNamespace(name="Fake 9000", uuid="GPU-1")


class FakeEvent:
    """Passed when what the device had been given before it is done."""

    def __init__(self, cuda):
        self.cuda = cuda

    def record(self):
        self.at = max(self.cuda.now, self.cuda.ends)

    def query(self):
        return self.cuda.now >= self.at

    def synchronize(self):
        self.cuda.now = max(self.cuda.now, self.at)

    def elapsed_time(self, end):
        return 1e3 * (end.at - self.at)


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def device(cuda):
    return Device("cuda:0", cuda)


def test_the_host_is_at_most_two_steps_ahead_and_learns_what_the_device_took(device, cuda):
    queued, learnt = [], []
    device.begin_steps(cuda.now)
    for _ in range(5):
        cuda.launch(1.0, 10.0)
        device.end_step(cuda.now)
        device.pace()
        queued.append(device.queued_steps())
        learnt += device.ended_steps()
    assert queued == [1, 2, 2, 2, 2]
    assert learnt == pytest.approx([10, 10, 10])
    cuda.synchronize(device.torch)
    assert device.ended_steps() == pytest.approx([10, 10])


@pytest.mark.parametrize(
    ("host", "step", "epoch_steps"),
    [(0.4, 13, 97), (0.4, 100, 10), (3, 13, 97), (8, 13, 97), (8, 500, 3), (13, 8, 20), (0.3, 500, 1)],
)
def test_a_budget_on_a_device_that_works_by_itself_ends_within_half_a_step(device, cuda, host, step, epoch_steps):
    for budget in (2e3, 2.1e3, 5e3, 5.03e3):
        cuda.now = cuda.ends = 0.0
        chance = random.Random(budget)
        progress = BudgetProgress(budget, lambda: cuda.now, device.queued_steps)
        rate, epoch, steps = 1.0, 0, 0
        while not progress.is_over(epoch):
            device.begin_steps(cuda.now)
            for number in range(epoch_steps):
                if number and progress.is_over(epoch):
                    break
                rate = 1.0 - progress.at(epoch, number / epoch_steps)
                cuda.launch(host, step * chance.lognormvariate(0.0, 0.02))
                device.end_step(cuda.now)
                device.pace()
                for seconds in device.ended_steps():
                    progress.learn(seconds)
                steps += 1
            cuda.synchronize(device.torch)
            for seconds in device.ended_steps():
                progress.learn(seconds)
            epoch += 1
        assert abs(cuda.now - budget) < 0.55 * max(step, host)
        assert rate < 0.015 or rate < 1 / steps


def test_work_for_a_second_gpu_is_marked_and_paced_on_the_second_gpu(cuda, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    Device("cuda:1", cuda).prepare()
    Device("cuda", cuda).prepare()
    assert cuda.log == ["set cuda:1", "set cuda:0"]


def test_the_sentinel_is_timed_by_the_device_and_leaves_no_peak_of_memory(device, cuda, monkeypatch):
    durations = iter([2e-3, 9e-3])
    work = lambda: cuda.launch(1e-5, next(durations, 3e-3))  # noqa: E731
    monkeypatch.setattr(devices, "_fixed_work", lambda *_: work)
    monkeypatch.setattr(devices, "SPIN_UP_SECONDS", 1e-3)
    assert sentinel_seconds(device) == pytest.approx(3e-3)
    assert cuda.log[-1] == "reset"


def test_a_sentinel_without_room_has_no_reading(device, cuda, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(devices, "_fixed_work", fail)
    assert math.isnan(sentinel_seconds(device))
    assert cuda.log == ["reset"]


def test_the_fixed_work_of_the_sentinel_is_something_that_torch_takes():
    devices._fixed_work(torch.device("cpu"), 8, 64)()


def test_a_gpu_is_watched_with_its_sentinel(device):
    kinds = [type(observer).__name__ for observer in device.witness()._observers]
    assert kinds == ["SentinelObserver", "CpuObserver", "GpuObserver"]


def test_all_trials_of_a_process_are_held_against_one_sentinel():
    assert devices._cuda_sentinel(torch.device("cuda", 0)) is devices._cuda_sentinel(torch.device("cuda:0"))


def test_memory_and_name_come_from_the_device(device, cuda):
    device.reset_peak_memory()
    assert device.peak_memory_mb() == 3
    machine = device.machine()
    assert (machine.device, machine.device_name, machine.device_uuid) == ("cuda", "Fake 9000", "GPU-1")
    assert machine.key == "Fake 9000"
    assert cuda.log == ["reset"]


def test_a_device_that_fails_whatever_is_asked_of_it_is_lost(device, cuda, monkeypatch):
    assert not device.is_lost()

    def fail(device):
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(cuda, "synchronize", fail, raising=False)
    assert device.is_lost()
    assert not Device("cpu").is_lost()


def test_chance_of_its_own_leaves_the_other_gpus_alone(cuda, monkeypatch):
    saved, seeded = [], []
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: saved.append(devices) or nullcontext())
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    try:
        with Device("cuda:1", cuda).own_chance(7):
            drawn = torch.rand(3)
    finally:
        torch.set_rng_state(before)
    assert (saved, seeded, cuda.log) == ([[1]], [], ["seed 7"])
    with torch.random.fork_rng(devices=[]):
        assert torch.equal(drawn, torch.rand(3, generator=torch.manual_seed(7)))


def test_running_out_of_memory_frees_what_the_step_held_though_somebody_looks_at_the_error(device, cuda):
    def step():
        activations = torch.zeros(10)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    held = []
    with (
        pytest.raises(OutOfMemory, match="batch size 500: a smaller batch_size") as found,
        device.full_memory_named(500),
    ):
        step()
    assert found.value.__cause__ is not None
    assert held[0]() is None
    assert cuda.log == ["empty"]


def test_training_waits_for_the_device_at_borders_and_never_in_a_step(monkeypatch):
    small = ["train.epochs=3", "train.batch_size=100", "search={}", "data.evaluate_on=test"]
    spec = load_spec("digits").with_overrides(small)
    waits, steps = [], []

    class Watched(Device):
        def synchronize(self):
            waits.append(len(steps))

    take_step = trainer.TrainingRun.step
    monkeypatch.setattr(trainer, "Device", Watched)
    monkeypatch.setattr(trainer.TrainingRun, "step", lambda run, *args: (steps.append(1), take_step(run, *args)))
    trainer.train(spec, seed=0, data=load_data(spec.data))
    assert len(steps) == 45
    assert set(waits) == {0, 15, 30, 45}  # before the first step, and where epochs end: nowhere between


def test_the_processor_has_nothing_to_wait_for_and_measures_its_process():
    # In a process of its own: one that has run other tests may hold freed memory, which a block then takes.
    script = """
import torch
from budgettune.training.device import Device
device = Device("cpu")
device.synchronize()
device.pace()
device.reset_peak_memory()
before = device.peak_memory_mb()
block = torch.ones(64, 2**20)
assert block.sum() == 2**26
print(device.peak_memory_mb() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 200 < float(done.stdout) < 400


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("GET was unable to find an engine to execute this computation"), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error, verdict):
    assert is_out_of_memory(error) is verdict


@pytest.mark.parametrize(("name", "message"), [("tpu", "use auto"), ("cuda:99", "use --device cpu")])
def test_a_device_that_is_not_here_is_refused(name, message):
    with pytest.raises(UsageError, match=message):
        pick_device(name)


def test_bf16_is_picked_only_where_the_device_has_it_and_widths_are_aligned(monkeypatch):
    cpu = torch.device("cpu")
    for has_it, widths, expected in [
        (True, [16, 32, 64], "bf16"),
        (True, [17, 32, 64], "fp32"),
        (True, None, "fp32"),
        (False, [16, 32, 64], "fp32"),
    ]:
        monkeypatch.setattr("budgettune.training.device.has_fast_bf16", lambda device, answer=has_it: answer)
        assert pick_precision("auto", cpu, widths) == expected
        assert pick_precision("bf16", cpu, widths) == "bf16"


@pytest.mark.skipif(not keep_freed_memory(), reason="the C library here is not glibc")
def test_freed_blocks_stay_with_the_process():
    code = """
import resource, torch
from budgettune.training.device import keep_freed_memory
keep_freed_memory()
for _ in range(10):  # until the heap has found where such a block goes
    torch.ones(16, 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    torch.ones(16, 2**20)  # 64 MB are 16,384 pages
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    # In a process of its own: what else a session has left in memory decides where blocks come from.
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16_384


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a box without a GPU")
@pytest.mark.parametrize(
    ("named", "said"),
    [
        (None, ""),
        ("", ""),
        ("-1", ""),
        ("NoDevFiles", ""),  # Slurm's
        ("0", "names 1 GPU, and torch sees none: training on the CPU"),
        ("GPU-8932f937", "names 1 GPU, and torch sees none: training on the CPU"),
        ("0,1", "names 2 GPUs, and torch sees none: training on the CPU"),
    ],
)
def test_a_variable_that_names_gpus_where_there_are_none_is_answered_by_the_cpu(named, said, monkeypatch, caplog):
    warn_once.cache_clear()
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert pick_device("auto").type == "cpu"
    assert said in caplog.text
    assert bool(said) == bool(caplog.records)
    caplog.clear()
    assert pick_device("cpu").type == "cpu"
    assert not caplog.records


def test_a_variable_that_names_more_gpus_than_there_are_says_how_many(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert missing_gpus(1) == "CUDA_VISIBLE_DEVICES names 3 GPUs, and torch sees only 1"
    assert missing_gpus(3) is None


@pytest.fixture
def cache_unnamed(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "put back when the test ends")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")


@pytest.fixture
def no_temporary_folder(monkeypatch, cache_unnamed):
    """Have no folder for temporary files, as on a read-only file system."""

    def none():
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    monkeypatch.setattr(tempfile, "_get_default_tempdir", none)
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_on_a_read_only_box_torch_finds_a_place_for_what_it_does_not_write(no_temporary_folder):
    Device("cpu").prepare()
    folder = os.environ["TORCHINDUCTOR_CACHE_DIR"]
    os.makedirs(folder, exist_ok=True)  # noqa: PTH103 (as torch does, whenever an optimiser is made)
    with pytest.raises(UsageError, match=r"train\.compile: no folder for temporary files: set TMPDIR"):
        compiled(torch.nn.Linear(1, 1))


def test_a_user_that_the_box_does_not_know_has_a_cache_of_torch_by_number(no_home, cache_unnamed):
    Device("cpu").prepare()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith(f"torchinductor_{os.getuid()}")


def test_a_cache_of_torch_that_is_named_or_found_is_left_alone(monkeypatch, cache_unnamed):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/mine")
    Device("cpu").prepare()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "/mine"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("USER", "anna")
    Device("cpu").prepare()
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
