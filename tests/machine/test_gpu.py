"""GPUs through a stand-in for NVML: what is read, and whether a time on them can be believed."""

import dataclasses
import sys
import threading
import time
from types import SimpleNamespace

import pytest
import torch

from budgettune.machine import gpu, gpu_observer
from budgettune.machine.gpu import Gpu, GpuSample, gpu_limits, gpu_names, missing_gpus, visible_gpus
from budgettune.machine.gpu_observer import GpuObserver, judge_gpu, judge_sentinel
from budgettune.machine.sentinel import GPU_SENTINEL_LIMIT, Sentinel, SentinelSeconds
from budgettune.machine.witness import CpuObserver, Witness, witness_for
from budgettune.training.device import Device

QUIET_GPU = GpuSample(pids=(77,), reasons=0, sm_mhz=1900)


def looks(*changes, every=0.5):
    """Return samples at equal distances: the quiet one, with these changes."""
    return [dataclasses.replace(QUIET_GPU, at_seconds=every * i, **change) for i, change in enumerate(changes)]


def test_a_gpu_of_our_own_at_full_clocks_is_clean():
    found = judge_gpu(looks({}, {}, {}, {}), own_pid=77)
    assert found.status == "clean"
    assert all(isinstance(value, int | float) for value in found.evidence.values())


def test_another_process_on_the_gpu_disturbs_where_nvml_does_not_tell_what_it_does():
    found = judge_gpu(looks({}, {"pids": (77, 99)}), own_pid=77)
    assert found.status == "disturbed"
    assert found.evidence["gpu_others"] == 1
    assert "does not tell what they do" in found.reasons[0]


def test_another_process_is_judged_by_what_it_does_where_nvml_tells():
    idle = judge_gpu(looks({"pids": (77, 99)}, {"pids": (77, 99), "use": {77: 0.9, 99: 0.01}}), own_pid=77)
    assert (idle.status, idle.evidence["gpu_others"], idle.evidence["gpu_own_use_share"]) == ("clean", 1, 0.9)
    busy = judge_gpu(looks({}, {"use": {77: 0.6, 99: 0.31}}), own_pid=77)
    assert (busy.status, busy.reasons) == ("disturbed", ("other processes kept the GPU busy for 31% of the time",))
    # Our number is known, so that a busy process is not taken for us before our own work is counted.
    assert judge_gpu(looks({}, {"use": {99: 0.31}}), own_pid=77).status == "disturbed"


def test_in_a_container_one_unknown_process_is_us_and_two_are_one_too_many():
    assert judge_gpu(looks({"pids": (4711,)}), own_pid=77).status == "clean"
    assert judge_gpu(looks({"pids": (4711, 4712)}), own_pid=77).status == "disturbed"
    strangers = {"pids": (4711, 4712)}
    assert judge_gpu(looks(strangers, strangers | {"use": {4711: 0.9}}), own_pid=77).status == "clean"
    assert judge_gpu(looks(strangers, strangers | {"use": {4711: 0.5, 4712: 0.4}}), own_pid=77).status == "disturbed"


def test_a_gpu_that_shows_neither_us_nor_what_heat_did_is_unverified():
    found = judge_gpu(looks({"pids": ()}), own_pid=77)
    assert found.status == "unverified"
    assert "container" in found.reasons[0]
    assert judge_gpu(looks({"pids": (), "heat_seconds": 3.0}), own_pid=77).status == "clean"


@pytest.mark.parametrize("bit", [0x08, 0x20, 0x40, 0x80])
def test_a_slowdown_disturbs_where_two_looks_in_a_row_see_it(bit):
    slow = {"reasons": bit}
    assert judge_gpu(looks(slow, {}, {}, {}), own_pid=77).status == "clean"
    assert judge_gpu(looks(slow, {}, slow, {}), own_pid=77).status == "clean"
    found = judge_gpu(looks(slow, slow, {}, {}), own_pid=77)
    assert (found.status, found.evidence["gpu_slowdown_share"]) == ("disturbed", pytest.approx(1 / 3, abs=1e-5))


def test_two_looks_at_almost_the_same_moment_are_no_two_looks():
    ends = dataclasses.replace(QUIET_GPU, reasons=0x08)
    samples = [
        *looks({}, {}, {}),
        dataclasses.replace(ends, at_seconds=1.5),
        dataclasses.replace(ends, at_seconds=1.51),
    ]
    assert judge_gpu(samples, own_pid=77).status == "clean"


def test_heat_is_judged_by_the_time_that_the_driver_counts():
    for held, status in ((0.04, "clean"), (0.2, "disturbed")):
        found = judge_gpu(looks({"heat_seconds": 900.0}, {}, {"heat_seconds": 900.0 + held}), own_pid=77)
        assert (found.status, found.evidence["gpu_heat_share"]) == (status, pytest.approx(held))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (({"reasons": 0x04, "sm_mhz": 1500}, {"reasons": 0x04}), "gpu_power_cap_share"),
        (({"reliability_seconds": 1.0}, {"reliability_seconds": 1.5}), "gpu_reliability_share"),
    ],
)
def test_the_limits_of_power_and_voltage_are_on_record_but_belong_to_the_work(changes, name):
    found = judge_gpu(looks(*changes), own_pid=77)
    assert (found.status, found.evidence[name]) == ("clean", 1.0)


class FakeNvml:
    """What `pynvml` does, for one card; `broken` are calls that it refuses, `instances` the UUIDs of a divided card.

    Rows of use are (process, microseconds, percent), and heat the nanoseconds of each answer, then the last for ever.
    """

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1
    NVML_PERF_POLICY_THERMAL, NVML_PERF_POLICY_RELIABILITY = 1, 5

    def __init__(self, *, pids=(77,), reasons=0, broken=(), renamed=True, use=(), heat=(), instances=None):
        self.pids, self.reasons, self.broken, self.threads = pids, reasons, broken, set()
        self.use, self.heat, self.instances = use, list(heat), instances
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

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return self._call("nvmlSystemGetDriverVersion", b"580.65")

    def nvmlDeviceGetCount(self):  # noqa: N802
        return self._call("nvmlDeviceGetCount", 1)

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return "GPU-1234"

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return b"NVIDIA Test"

    def nvmlDeviceGetHandleByUUID(self, uuid):  # noqa: N802
        if uuid not in ("GPU-1234", *(self.instances or ())):
            raise self.NVMLError("Not Found")
        return self._call("nvmlDeviceGetHandleByUUID", uuid)

    def nvmlDeviceGetMigMode(self, handle):  # noqa: N802
        assert handle == "GPU-1234"
        return self._call("nvmlDeviceGetMigMode", [int(self.instances is not None)] * 2)

    def nvmlDeviceGetMaxMigDeviceCount(self, handle):  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle, index):  # noqa: N802
        if index % 2 or index // 2 >= len(self.instances):  # every other place is empty
            raise self.NVMLError("Not Found")
        return self.instances[index // 2]

    def nvmlDeviceGetUUID(self, handle):  # noqa: N802
        return handle

    def nvmlDeviceGetDeviceHandleFromMigDeviceHandle(self, handle):  # noqa: N802
        assert handle in self.instances
        return "GPU-1234"

    def nvmlDeviceGetComputeRunningProcesses(self, handle):  # noqa: N802
        assert (self.instances is None) == (handle == "GPU-1234")
        return [SimpleNamespace(pid=pid) for pid in self._call("nvmlDeviceGetComputeRunningProcesses", self.pids)]

    def nvmlDeviceGetProcessUtilization(self, handle, since):  # noqa: N802
        rows = [
            SimpleNamespace(pid=pid, timeStamp=at, smUtil=percent) for pid, at, percent in self.use if at > since - 10
        ]
        if not rows:
            raise self.NVMLError("Not Found")
        return self._call("nvmlDeviceGetProcessUtilization", rows)

    def nvmlDeviceGetViolationStatus(self, handle, policy):  # noqa: N802
        assert handle == "GPU-1234"
        if not self.heat or policy != self.NVML_PERF_POLICY_THERMAL:
            raise self.NVMLError("Not Supported")
        return SimpleNamespace(violationTime=self.heat.pop(0) if len(self.heat) > 1 else self.heat[0])

    def nvmlDeviceGetCurrentClocksEventReasons(self, handle):  # noqa: N802
        assert handle == "GPU-1234"
        return self._call("nvmlDeviceGetCurrentClocksEventReasons", self.reasons)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle):  # noqa: N802
        return self.reasons

    def nvmlDeviceGetClockInfo(self, handle, kind):  # noqa: N802
        assert (handle, kind) == ("GPU-1234", self.NVML_CLOCK_SM)
        return 1900

    def nvmlDeviceGetMaxClockInfo(self, handle, kind):  # noqa: N802
        return self._call("nvmlDeviceGetMaxClockInfo", 1980)

    def nvmlDeviceGetApplicationsClock(self, handle, kind):  # noqa: N802
        return self._call("nvmlDeviceGetApplicationsClock", 1755)

    def nvmlDeviceGetEnforcedPowerLimit(self, handle):  # noqa: N802
        return self._call("nvmlDeviceGetEnforcedPowerLimit", 650_000)


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


def test_nvml_is_started_once_for_all_trials_of_a_process():
    nvml = FakeNvml()
    assert [watch(nvml).status, watch(nvml).status] == ["clean", "clean"]
    assert nvml.opened == 1


def test_drivers_that_still_speak_of_throttle_reasons_are_read():
    assert watch(FakeNvml(reasons=0x40, renamed=False)).status == "disturbed"


@pytest.mark.parametrize("call", ["nvmlInit", "nvmlDeviceGetHandleByUUID"])
def test_a_driver_that_refuses_leaves_the_trial_unverified_with_its_reason(call):
    found = watch(FakeNvml(broken=(call,)))
    assert found.status == "unverified"
    assert "not" in found.reasons[0].lower()


@pytest.mark.parametrize(
    "error", [ValueError("odd answer"), AttributeError("no such call"), FakeNvml.NVMLError("lost")]
)
def test_a_watch_that_breaks_off_is_no_clean_one_whatever_broke_it(error):
    nvml, answers = FakeNvml(), iter([[SimpleNamespace(pid=77)]] * 2)

    def lose(handle):
        for answer in answers:
            return answer
        raise error

    nvml.nvmlDeviceGetComputeRunningProcesses = lose
    found = watch(nvml)
    assert found.evidence["gpu_samples"] >= 1
    assert (found.status, found.reasons) == ("unverified", (f"NVML cannot watch 1234: {error}",))


def test_a_driver_that_hangs_is_no_clean_one(monkeypatch):
    monkeypatch.setattr(gpu_observer, "PATIENCE_SECONDS", 0.05)
    nvml, hangs, released = FakeNvml(), iter([False]), threading.Event()

    def hang(handle):
        if next(hangs, True):
            released.wait(5)
        return [SimpleNamespace(pid=77)]

    nvml.nvmlDeviceGetComputeRunningProcesses = hang
    found = watch(nvml)
    released.set()
    assert found.status == "unverified"
    assert found.reasons == ("NVML has not answered for 0.05 s",)


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


def test_the_use_of_processes_adds_up_over_the_looks_and_padding_is_left_out():
    nvml = FakeNvml()
    device = Gpu(nvml, "1234", wall_clock=lambda: 100.0)
    assert device.sample().use == {}
    nvml.use = [
        (77, 100_500_000, 80),
        (99, 100_400_000, 10),
        (99, 99_999_999, 100),
        (0, 100_500_000, 50),
        (5, 100_500_000, 999),
    ]
    assert device.sample().use == pytest.approx({77: 0.8, 99: 0.1})
    nvml.use = []
    assert device.sample().use == pytest.approx({77: 0.8, 99: 0.1})
    nvml.use = [(77, 102_000_000, 100)]
    assert device.sample().use == pytest.approx({77: (0.5 * 0.8 + 1.5) / 2, 99: 0.5 * 0.1 / 2})


def test_a_driver_that_counts_heat_and_use_is_judged_by_its_counts():
    soon = int(1e6 * time.time()) + 100_000
    assert watch(FakeNvml(pids=(77, 99), use=[(77, soon, 90)], heat=[7_000_000_000])).status == "clean"
    assert watch(FakeNvml(pids=(77, 99), use=[(77, soon, 90), (99, soon, 50)])).status == "disturbed"
    assert watch(FakeNvml(heat=[0, 10_000_000_000])).reasons == (
        "heat held the GPU's clocks down for 100% of the time",
    )


@pytest.mark.parametrize(
    ("uuid", "visible"), [("5-6", None), ("MIG-5-6", None), ("1234", "MIG-5-6,MIG-7"), ("1234", None)]
)
def test_an_instance_is_watched_by_its_processes_and_by_the_clocks_of_its_card(uuid, visible, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = FakeNvml(instances=["MIG-5-6"])
    assert Gpu(nvml, uuid).sample().pids == (77,)  # the stand-in refuses every call with the wrong one of both handles


def test_the_limits_of_a_device_are_told_as_far_as_it_tells_them():
    assert gpu_limits("1234", FakeNvml()) == {"driver": "580.65", "power_limit_w": 650, "sm_clock_limit_mhz": 1755}
    shy = ("nvmlDeviceGetApplicationsClock", "nvmlDeviceGetEnforcedPowerLimit", "nvmlSystemGetDriverVersion")
    assert gpu_limits("1234", FakeNvml(broken=shy)) == {
        "driver": None,
        "power_limit_w": None,
        "sm_clock_limit_mhz": 1980,
    }
    assert gpu_limits("9", FakeNvml()) == gpu_limits("1234", FakeNvml(broken=("nvmlInit",))) == {}


def test_a_slow_gpu_sentinel_disturbs_and_one_without_a_reading_leaves_the_trial_unverified():
    slow = SentinelSeconds(before=0.0006, after=0.0006, best=0.0005)
    found = judge_sentinel(slow, GPU_SENTINEL_LIMIT)
    assert (found.status, found.evidence["gpu_sentinel_slowdown"]) == ("disturbed", pytest.approx(1.2))
    assert judge_sentinel(dataclasses.replace(slow, after=0.0005), GPU_SENTINEL_LIMIT).status == "clean"
    found = judge_sentinel(dataclasses.replace(slow, after=float("nan")), GPU_SENTINEL_LIMIT)
    assert found.status == "unverified"
    assert set(found.evidence) == {"gpu_sentinel_before_ms", "gpu_sentinel_best_ms"}


def test_the_sentinel_of_a_gpu_is_read_around_what_the_others_watch(monkeypatch):
    log = []
    monkeypatch.setattr("budgettune.machine.witness.CpuObserver.start", lambda self: log.append("cpu"))
    monkeypatch.setattr("budgettune.machine.gpu_observer.GpuObserver.start", lambda self: log.append("nvml"))
    sentinel = Sentinel(lambda: log.append("sentinel") or 0.001, GPU_SENTINEL_LIMIT, sleep=lambda seconds: None)
    witness_for("cuda", threads=1, device_uuid="1234", sentinel=sentinel).start()
    assert log[-2:] == ["cpu", "nvml"]
    assert set(log[:-2]) == {"sentinel"}


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
        ("MIG-a,MIG-b", 1, ["MIG-a", "MIG-b"]),  # CUDA shows a process one of them
        ("MIG-a,MIG-b", 0, []),
    ],
)
def test_gpus_are_those_of_the_environment_that_torch_sees(monkeypatch, named, torch_sees, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(gpu, "torch_gpu_count", lambda: torch_sees)
    assert visible_gpus() == seen


def test_a_divided_card_is_listed_by_its_instances(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpu, "torch_gpu_count", lambda: 1)
    monkeypatch.setattr(gpu, "open_nvml", lambda module: FakeNvml(instances=["MIG-a", "MIG-b"]))
    assert visible_gpus() == ["MIG-a", "MIG-b"]
    monkeypatch.setattr(gpu, "open_nvml", lambda module: FakeNvml(broken=("nvmlDeviceGetMigMode",)))
    assert visible_gpus() == ["GPU-1234"]


def test_the_drivers_tool_lists_cards_and_instances():
    listing = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-0a)
  MIG 3g.20gb     Device  0: (UUID: MIG-0b)
  MIG 1g.5gb      Device  1: (UUID: MIG-GPU-0a/9/0)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-1a)
"""
    assert gpu._listed_in(listing) == ["MIG-0b", "MIG-GPU-0a/9/0", "GPU-1a"]


@pytest.mark.parametrize(
    ("named", "here", "count", "said"),
    [
        (None, ["0"], 0, "this box has 1 GPU that torch cannot use: training on the CPU"),
        (None, ["0", "1"], 1, None),
        (None, [], 0, None),
        ("", ["0"], 0, None),  # told to do without
        ("0,1", [], 1, "CUDA_VISIBLE_DEVICES names 2 GPUs, and torch sees only 1"),
        ("MIG-a,MIG-b", [], 1, None),
        ("MIG-a,MIG-b", [], 0, "CUDA_VISIBLE_DEVICES names 2 GPUs, and torch sees none: training on the CPU"),
    ],
)
def test_gpus_that_torch_cannot_use_are_named(named, here, count, said, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    monkeypatch.setattr(gpu, "_listed_gpus", lambda: here)
    note = missing_gpus(count)
    assert note is None if said is None else note.startswith(said)


def test_torch_is_asked_in_a_process_of_its_own():
    assert gpu.torch_gpu_count() == torch.cuda.device_count()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU: run `pytest -m cuda` on a box with one")
def test_a_gpu_that_nobody_else_uses_is_clean():
    pytest.importorskip("pynvml")
    device = Device("cuda:0")
    device.prepare()
    work = torch.rand(4096, 4096, device=device.torch)
    # Not the host's processors: whether others use them is not what is tested.
    witness = Witness(*(one for one in device.witness()._observers if not isinstance(one, CpuObserver)))
    with witness:
        until = time.perf_counter() + 2
        while time.perf_counter() < until:
            work @ work
            device.synchronize()
    assert witness.verdict.status == "clean", witness.verdict
    assert device.machine().driver
