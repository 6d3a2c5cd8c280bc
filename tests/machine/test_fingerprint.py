"""The fingerprint of a box, its limits, and what would spoil its timings, on made-up /proc and /sys trees."""

import sys

import pytest

from budgettune.machine import fingerprint as machine
from budgettune.machine import procfs
from budgettune.machine.fingerprint import doctor_facts, fingerprint, usable_cores, witness_for

STAT = """cpu  400 0 200 4000 0 10 10 30 0 0
cpu0 100 0 100 2000 0 5 5 10 0 0
cpu1 300 0 100 2000 0 5 5 20 0 0
cpu2 999 0 999 2000 0 5 5 999 0 0
intr 1
"""


@pytest.fixture
def box(tmp_path):
    """Return a writer of files under a made-up root."""

    def write(path, text):
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return tmp_path

    write("proc/stat", STAT)
    return write


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


def test_busy_time_counts_only_the_cpus_that_we_may_use(box):
    root = box("proc/stat", STAT)
    assert procfs.cpu_seconds({0, 1}, root) == (pytest.approx(6.2), pytest.approx(0.3))
    assert procfs.cpu_seconds({0, 9}, root) is None
    assert procfs.cpu_seconds(set(), root) is None


def test_pressure_is_the_total_of_some(box):
    root = box("proc/pressure/cpu", "some avg10=0.0 total=2500000\nfull avg10=0.0 total=9\n")
    assert procfs.pressure_seconds(root) == pytest.approx(2.5)


def test_waits_are_read_for_each_thread_and_absent_where_the_kernel_counts_nothing(box):
    root = box("proc/self/task/11/schedstat", "100 2000000000 5\n")
    assert procfs.thread_waits(root) == {11: 2.0}
    box("proc/self/task/11/schedstat", "0 0 0\n")
    assert procfs.thread_waits(root) is None


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ({"sys/fs/cgroup/cpu.max": "400000 100000", "sys/fs/cgroup/a/cpu.max": "max 100000"}, 4.0),
        ({"sys/fs/cgroup/a/b/cpu.max": "100000 100000", "sys/fs/cgroup/cpu.max": "400000 100000"}, 1.0),
    ],
)
def test_the_tightest_cgroup_sets_the_quota(box, files, cores):
    for path, text in files.items():
        box(path, text)
    root = box("proc/self/cgroup", "0::/a/b\n")
    assert procfs.quota_cores(root) == cores


def test_the_first_version_of_cgroups_is_read_too(box):
    box("proc/self/cgroup", "4:memory:/host/path\n3:cpu,cpuacct:/host/path\n1:name=systemd:/\n0::/\n")
    box("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "200000")
    box("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000")
    box("sys/fs/cgroup/cpu,cpuacct/cpu.stat", "nr_throttled 3\nthrottled_time 1500000000\n")
    root = box("sys/fs/cgroup/memory/memory.limit_in_bytes", str(512 * 2**20))
    assert procfs.quota_cores(root) == 2.0
    assert procfs.throttled_seconds(root) == pytest.approx(1.5)
    assert procfs.memory_limit_mb(root) == 512


def test_a_quota_below_one_core_still_leaves_a_thread(box):
    box("proc/self/cgroup", "0::/\n")
    assert usable_cores(box("sys/fs/cgroup/cpu.max", "50000 100000")) == 1


def test_a_system_that_tells_nothing_is_described_without_guessing(tmp_path):
    assert procfs.cpu_seconds({0}, tmp_path) is None
    assert procfs.pressure_seconds(tmp_path) is None
    assert procfs.thread_waits(tmp_path) is None
    assert procfs.quota_cores(tmp_path) is None
    assert procfs.throttled_seconds(tmp_path) is None
    assert machine.memory_mb(tmp_path) == 0
    assert machine.cpu_model(tmp_path)
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
    monkeypatch.setattr(machine, "torch_version", lambda: "2.8.1+cpu")
    assert next(finding for finding in doctor_facts() if finding.name == "torch").ok is False


def test_a_device_that_nobody_can_watch_is_unverified_and_says_why():
    for device, uuid in [("mps", None), ("cuda:0", None)]:
        witness = witness_for(device, threads=1, device_uuid=uuid)
        with witness:
            pass
        assert witness.verdict.status != "clean"
        assert any("mps" in reason or "UUID" in reason for reason in witness.verdict.reasons)
