"""The fingerprint of a box."""

import sys

import pytest

import budgettune.machine.fingerprint as fingerprints
from budgettune.machine.fingerprint import cpu_model, fingerprint, memory_mb, usable_cores


def test_the_fingerprint_names_the_cpu_and_does_not_load_torch():
    info = fingerprint(device="cpu", threads=2)
    assert info.device_name == info.cpu != ""
    assert info.key == f"{info.cpu} x2"
    assert info.cores >= 1
    assert info.memory_mb > 0 or sys.platform != "linux"
    assert info.torch
    assert info.python.startswith(f"{sys.version_info.major}.")


def test_a_gpu_is_told_apart_by_what_the_caller_knows():
    info = fingerprint(device="cuda", threads=4, device_name="NVIDIA Test", device_uuid="1234", cuda="13.0")
    assert info.key == "NVIDIA Test"
    assert (info.device_uuid, info.cuda, info.cudnn) == ("1234", "13.0", None)


def test_what_nvml_says_of_a_gpu_is_on_record(monkeypatch):
    limits = {"driver": "580.65", "power_limit_w": 650, "sm_clock_limit_mhz": 1755}
    monkeypatch.setattr(fingerprints, "gpu_limits", lambda uuid: limits if uuid == "1234" else {})
    info = fingerprint(device="cuda", threads=4, device_name="NVIDIA Test", device_uuid="1234")
    assert (info.driver, info.power_limit_w, info.sm_clock_limit_mhz, info.key) == ("580.65", 650, 1755, "NVIDIA Test")
    assert fingerprint(device="cuda", threads=4, device_name="NVIDIA Test", device_uuid="5").driver is None


def test_a_quota_below_one_core_still_leaves_a_thread(box):
    box("proc/self/cgroup", "0::/\n")
    assert usable_cores(box("sys/fs/cgroup/cpu.max", "50000 100000")) == 1


def test_a_system_that_tells_nothing_has_a_fingerprint_all_the_same(tmp_path):
    assert memory_mb(tmp_path) == 0
    assert cpu_model(tmp_path)


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 4),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"MKL_NUM_THREADS": "2"}, 2),
        ({"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "2,1"}, 2),
        ({"OMP_NUM_THREADS": "64"}, 4),
        *(({"OMP_NUM_THREADS": odd}, 4) for odd in ("", "0", "-1", "abc", "²", "1.5")),
    ],
)
def test_threads_are_what_a_variable_asks_for_up_to_the_usable_cores(environment, threads, monkeypatch):
    for name in fingerprints.THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(fingerprints, "usable_cores", lambda *_: 4)
    assert fingerprints.default_threads() == threads
