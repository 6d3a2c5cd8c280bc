"""What is particular to a device; CUDA through a stand-in that writes down what it is asked."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from budgettune.errors import UsageError
from budgettune.spec.study_spec import load_spec
from budgettune.training import trainer
from budgettune.training.data.load import load_data
from budgettune.training.device import Device, is_out_of_memory, keep_freed_memory, pick_device, pick_precision
from budgettune.training.schedule import BudgetProgress


class FakeCuda:
    """Stands in for torch.cuda: notes each wait for the whole device and for a single event."""

    def __init__(self):
        self.log = []
        self.recorded = 0

    def synchronize(self, device):
        self.log.append("device")

    def Event(self):  # noqa: N802
        number = self.recorded

        def record():
            self.recorded += 1

        return SimpleNamespace(record=record, synchronize=lambda: self.log.append(number))

    def reset_peak_memory_stats(self, device):
        self.log.append("reset")

    def max_memory_allocated(self, device):
        return 3 * 2**20

    def get_device_properties(self, device):
        return SimpleNamespace(name="Fake 9000", uuid="GPU-1")


@pytest.fixture
def cuda():
    return FakeCuda()


@pytest.fixture
def device(cuda):
    return Device("cuda:0", cuda)


def test_the_host_waits_for_the_step_before_the_last_but_one_and_near_the_end_for_each(device, cuda):
    for _ in range(5):
        device.pace(lead=2)
    assert cuda.log == [0, 1, 2]
    device.pace(lead=0)
    assert cuda.log == [0, 1, 2, 3, 4, 5]


def test_a_budget_lets_the_host_lead_only_while_the_end_is_far():
    now = [0.0]
    progress = BudgetProgress(60.0, lambda: now[0])
    progress.learn(1.0)
    leads = []
    for now[0] in (0.0, 51.0, 53.0, 59.0):
        leads.append(progress.lead())
    assert leads == [2, 2, 0, 0]


def test_memory_and_name_come_from_the_device(device, cuda):
    device.reset_peak_memory()
    assert device.peak_memory_mb() == 3
    machine = device.machine()
    assert (machine.device, machine.device_name, machine.device_uuid) == ("cuda", "Fake 9000", "GPU-1")
    assert machine.key == "Fake 9000"
    assert cuda.log == ["reset"]


def test_training_waits_for_the_device_at_borders_and_never_in_a_step(monkeypatch):
    spec = load_spec("digits").with_overrides(["train.epochs=3", "train.batch_size=100", "search={}"])
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
device.pace(lead=0)
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


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `pytest -m cuda` on a box with one")
def test_a_trial_on_a_gpu_is_whole_and_repeats_its_schedule():
    spec = load_spec("digits").with_overrides(["train.epochs=5", "search={}"])
    result = trainer.train(spec, seed=0, data=load_data(spec.data), device="cuda").result
    assert result.test_accuracy > 0.5
    assert 0.98 < result.phases.on_clock / result.train_seconds <= 1
    assert result.machine.device == "cuda"
