"""Counters and limits of a box, on made-up /proc and /sys trees."""

import pytest

from budgettune.machine import procfs


@pytest.mark.usefixtures("box")
def test_busy_time_counts_only_the_cpus_that_we_may_use(tmp_path):
    assert procfs.cpu_seconds({0, 1}, tmp_path) == (pytest.approx(6.2), pytest.approx(0.3))
    assert procfs.cpu_seconds({0, 9}, tmp_path) is None
    assert procfs.cpu_seconds(set(), tmp_path) is None


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


def test_a_system_that_tells_nothing_is_read_without_guessing(tmp_path):
    assert procfs.cpu_seconds({0}, tmp_path) is None
    assert procfs.pressure_seconds(tmp_path) is None
    assert procfs.thread_waits(tmp_path) is None
    assert procfs.quota_cores(tmp_path) is None
    assert procfs.throttled_seconds(tmp_path) is None
