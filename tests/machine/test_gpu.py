"""GPUs through a stand-in for NVML: what is read, and whether a time on them can be believed."""

import dataclasses
import sys
import threading
import time

import pytest
import torch

from budgettune.machine import gpu
from budgettune.machine.gpu import GpuSample, gpu_names, visible_gpus
from budgettune.machine.witness import GpuObserver, Witness, judge_gpu

QUIET_GPU = GpuSample(pids=(77,), reasons=0, sm_mhz=1900)


def test_a_gpu_of_our_own_at_full_clocks_is_clean():
    assert judge_gpu([QUIET_GPU] * 4, own_pid=77).status == "clean"


def test_another_process_on_the_gpu_disturbs():
    found = judge_gpu([QUIET_GPU, dataclasses.replace(QUIET_GPU, pids=(77, 99))], own_pid=77)
    assert found.status == "disturbed"
    assert found.evidence["gpu_others"] == 1


def test_in_a_container_one_unknown_process_is_us_and_two_are_one_too_many():
    assert judge_gpu([dataclasses.replace(QUIET_GPU, pids=(4711,))], own_pid=77).status == "clean"
    assert judge_gpu([dataclasses.replace(QUIET_GPU, pids=(4711, 4712))], own_pid=77).status == "disturbed"


def test_a_gpu_that_does_not_even_show_us_is_unverified():
    found = judge_gpu([dataclasses.replace(QUIET_GPU, pids=())], own_pid=77)
    assert found.status == "unverified"
    assert "container" in found.reasons[0]


@pytest.mark.parametrize("bit", [0x08, 0x20, 0x40, 0x80])
def test_heat_and_hardware_slowdown_disturb(bit):
    assert judge_gpu([dataclasses.replace(QUIET_GPU, reasons=bit)] * 2, own_pid=77).status == "disturbed"


def test_the_power_cap_is_on_record_but_belongs_to_the_work():
    found = judge_gpu([dataclasses.replace(QUIET_GPU, reasons=0x04, sm_mhz=1500)] * 2, own_pid=77)
    assert found.status == "clean"
    assert found.evidence["gpu_power_cap_share"] == 1.0


class FakeNvml:
    """What `pynvml` does, for one device."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def __init__(self, *, pids=(77,), reasons=0, broken=(), renamed=True):
        self.pids, self.reasons, self.broken, self.threads = pids, reasons, broken, set()
        self.opened = 0
        if not renamed:
            self.broken = (*broken, "nvmlDeviceGetCurrentClocksEventReasons")

    def _call(self, name, value):
        self.threads.add(threading.current_thread().name)
        if name in self.broken:
            raise self.NVMLError(f"{name}: not supported")
        return value

    def nvmlInit(self):  # noqa: N802
        self._call("nvmlInit", None)
        self.opened += 1

    def nvmlShutdown(self):  # noqa: N802
        self.opened -= 1

    def nvmlDeviceGetCount(self):  # noqa: N802
        return self._call("nvmlDeviceGetCount", 1)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return b"NVIDIA Test"

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        assert uuid == "GPU-1234"
        return self._call("nvmlDeviceGetHandleByUUID", 0)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        return [type("Process", (), {"pid": pid}) for pid in self.pids]

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        return self._call("nvmlDeviceGetCurrentClocksEventReasons", self.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return self.reasons

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        assert kind == self.NVML_CLOCK_SM
        return 1900


def watch(nvml, seconds=0.05):
    witness = Witness(GpuObserver("1234", module=nvml, interval_seconds=0.01, own_pid=77))
    with witness:
        time.sleep(seconds)
    return witness.verdict


def test_the_gpu_is_sampled_off_the_training_thread():
    nvml = FakeNvml()
    found = watch(nvml)
    assert found.status == "clean"
    assert found.evidence["gpu_samples"] >= 2
    assert nvml.threads == {"budgettune-nvml"}
    assert nvml.opened == 0


def test_drivers_that_still_speak_of_throttle_reasons_are_read():
    assert watch(FakeNvml(reasons=0x40, renamed=False)).status == "disturbed"


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_driver_that_refuses_leaves_the_trial_unverified_with_its_reason(call):
    found = watch(FakeNvml(broken=(call,)))
    assert found.status == "unverified"
    assert "not supported" in found.reasons[0]


def test_without_the_nvidia_package_the_trial_is_unverified(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    found = watch(None)
    assert found.status == "unverified"
    assert "budgettune[nvidia]" in found.reasons[0]


def test_a_watch_that_was_never_stopped_ends_when_the_next_one_starts():
    observer = GpuObserver("GPU-1234", module=FakeNvml(), interval_seconds=0.01, own_pid=77)
    observer.start()
    abandoned = observer._thread
    observer.start()
    abandoned.join(timeout=2)
    assert not abandoned.is_alive()
    assert observer.stop().status == "clean"


def test_devices_are_listed_by_name():
    assert gpu_names(FakeNvml()) == ["NVIDIA Test"]
    with pytest.raises(RuntimeError, match="does not list"):
        gpu_names(FakeNvml(broken=("nvmlDeviceGetCount",)))


@pytest.mark.parametrize(
    ("named", "torch_sees", "seen"),
    [
        ("0,GPU-b", 2, ["0", "GPU-b"]),
        ("0, 1", 1, ["0"]),
        ("0,1", 0, []),
        ("all", 0, ["all"]),  # one worker in any case, which asks torch itself
        ("", 0, []),
        ("-1", 0, []),
        ("NoDevFiles", 0, []),
        ("2,-1,3", 1, ["2"]),
    ],
)
def test_gpus_are_those_of_the_environment_that_torch_sees(monkeypatch, named, torch_sees, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(gpu, "_torch_count", lambda: torch_sees)
    assert visible_gpus() == seen


def test_torch_is_asked_in_a_process_of_its_own():
    assert gpu._torch_count() == torch.cuda.device_count()
