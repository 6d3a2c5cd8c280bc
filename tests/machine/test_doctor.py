"""What would spoil the timings of a box, on made-up /proc and /sys trees."""

import pytest

from budgettune.machine import doctor
from budgettune.machine.doctor import doctor_facts


def test_a_system_that_tells_nothing_has_unverified_times(tmp_path):
    findings = {finding.name: finding for finding in doctor_facts(tmp_path, tmp_path)}
    assert findings["steal"].ok is False
    assert "unverified" in findings["steal"].advice


def test_the_doctor_names_what_would_spoil_timings_and_the_remedy(box, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "4096")
    box("proc/loadavg", "900.0 1.0 1.0 9/9 9")
    box("proc/meminfo", "MemTotal: 8388608 kB\nMemAvailable: 102400 kB\n")
    box("proc/cpuinfo", "model name : Test CPU\nflags : fpu avx512_bf16 amx_bf16\n")
    box("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    box("sys/devices/system/cpu/intel_pstate/no_turbo", "0\n")
    box("proc/self/cgroup", "0::/\n")
    root = box("sys/fs/cgroup/cpu.max", "150000 100000")
    findings = {finding.name: finding for finding in doctor_facts(root, root)}
    bad = {name for name, finding in findings.items() if finding.ok is False}
    assert {"cores", "threads", "load", "memory", "governor"} <= bad
    assert all(findings[name].advice for name in bad)
    assert "amx_bf16" in findings["bf16"].value
    assert findings["turbo"].value.startswith("on")


def test_the_doctor_speaks_about_this_box():
    findings = doctor_facts()
    assert len({finding.name for finding in findings}) == len(findings)
    assert all(finding.value for finding in findings)


def test_an_old_torch_is_found(monkeypatch):
    monkeypatch.setattr(doctor, "torch_version", lambda: "2.8.1+cpu")
    assert next(finding for finding in doctor_facts() if finding.name == "torch").ok is False


@pytest.mark.parametrize(
    ("asked", "value", "ok"),
    [
        ("", "2, one for each usable core", None),
        ("1", "1, by OMP_NUM_THREADS=1", True),
        ("8", "2, by OMP_NUM_THREADS=8", False),
        ("many", "2, one for each usable core: nothing heeds OMP_NUM_THREADS=many", False),
    ],
)
def test_the_doctor_says_how_many_threads_training_takes_and_why(asked, value, ok, monkeypatch):
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(doctor, "usable_cores", lambda *_: 2)
    found = next(finding for finding in doctor_facts() if finding.name == "threads")
    assert found.value.startswith(value)
    assert found.ok is ok


@pytest.mark.parametrize(("count", "ok"), [(1, True), (0, False)])
def test_the_doctor_says_where_torch_cannot_use_the_gpu_that_nvml_sees(count, ok, monkeypatch):
    monkeypatch.setattr(doctor, "gpu_names", lambda: ["NVIDIA Test"])
    monkeypatch.setattr(doctor, "torch_gpu_count", lambda: count)
    found = next(finding for finding in doctor_facts() if finding.name == "gpu")
    assert found.ok is ok
    assert found.value == ("NVIDIA Test" if ok else "NVIDIA Test: torch cannot use what NVML sees")
    assert (found.advice is None) is ok
