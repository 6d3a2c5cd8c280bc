"""Whether a time can be believed: the decision on made-up counters, and the real thing beside a real busy loop."""

import dataclasses
import math
import subprocess
import sys
import time

import pytest

from budgettune.machine.sentinel import SentinelSeconds
from budgettune.machine.verdict import ClockVerdict, combine
from budgettune.machine.witness import (
    CpuObserver,
    CpuSnapshot,
    NoObserver,
    Witness,
    cpu_evidence,
    judge_cpu,
    take_snapshot,
    witness_for,
)

STEADY = SentinelSeconds(before=0.002, after=0.0021, best=0.002)
START = CpuSnapshot(
    at_seconds=100.0,
    own_seconds=5.0,
    cores=2,
    busy_seconds=50.0,
    steal_seconds=1.0,
    waited_seconds={1: 0.1, 2: 0.2},
    pressure_seconds=3.0,
    throttled_seconds=0.0,
    preemptions=10,
)


def verdict(*, threads=2, sentinel=STEADY, start=START, seconds=2.0, own=3.4, others=0.04, waits=(0.01, 0.01), **later):
    """Judge a segment of so many seconds in which we and the others used so much CPU time."""
    waited = zip(start.waited_seconds.items(), waits, strict=True)
    end = dataclasses.replace(
        start,
        at_seconds=start.at_seconds + seconds,
        own_seconds=start.own_seconds + own,
        busy_seconds=start.busy_seconds + own + others,
        waited_seconds={thread: before + wait for (thread, before), wait in waited},
    )
    return judge_cpu(cpu_evidence(start, dataclasses.replace(end, **later), sentinel, threads))


def test_a_quiet_segment_is_clean_even_where_half_of_it_is_serial():
    assert verdict(own=2.1).status == "clean"


def test_a_process_that_was_suspended_is_disturbed():
    start = dataclasses.replace(START, still_seconds=7.0)
    assert verdict(start=start, still_seconds=7.0).status == "clean"
    found = verdict(start=start, still_seconds=8.0)
    assert found.status == "disturbed"
    assert found.reasons == ("this process stood still, suspended or frozen, for 50% of the time",)


def test_evidence_is_plain_finite_numbers():
    evidence = verdict().evidence
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in evidence.values())
    assert evidence["own_cores"] == pytest.approx(1.7)
    assert evidence["other_cores"] == pytest.approx(0.02)
    assert evidence["cpu_share"] == pytest.approx(0.85)


def test_busy_loops_on_both_cores_disturb():
    found = verdict(own=2.0, others=2.0, waits=(1.0, 1.0))
    assert found.status == "disturbed"
    assert len(found.reasons) == 2


def test_a_worker_on_the_spare_core_is_recorded_but_does_not_disturb():
    found = verdict(threads=1, own=2.0, others=2.0)
    assert found.status == "clean"
    assert found.evidence["other_cores"] == pytest.approx(1.0)
    assert found.evidence["spare_cores"] == 1


def test_two_workers_beside_us_are_one_too_many_for_two_cores():
    assert verdict(threads=1, own=1.33, others=2.67).status == "disturbed"


def test_waiting_for_a_core_disturbs_even_where_the_others_fit_beside_us():
    found = verdict(threads=1, own=1.8, others=2.0, waits=(0.2, 0.0))
    assert found.status == "disturbed"
    assert "ready to run" in found.reasons[0]


def test_threads_beyond_the_cores_wait_for_each_other_and_that_is_no_disturbance():
    assert verdict(threads=4, own=3.9, others=0.02, waits=(1.0, 1.0)).status == "clean"


def test_pressure_stands_in_where_the_waits_of_our_threads_are_unknown():
    blind = dataclasses.replace(START, waited_seconds=None)
    end = dataclasses.replace(
        blind, at_seconds=102.0, own_seconds=8.4, busy_seconds=53.4, pressure_seconds=START.pressure_seconds + 1.0
    )
    assert judge_cpu(cpu_evidence(blind, end, STEADY, 2)).status == "disturbed"


@pytest.mark.parametrize("field", ["steal_seconds", "throttled_seconds"])
def test_what_the_host_takes_disturbs(field):
    assert verdict(**{field: getattr(START, field) + 0.5}).status == "disturbed"
    assert verdict(**{field: getattr(START, field) + 0.01}).status == "clean"


def test_a_slow_sentinel_disturbs_whether_before_after_or_in_an_earlier_trial():
    for readings in [(0.004, 0.002, 0.002), (0.002, 0.004, 0.002), (0.003, 0.003, 0.002)]:
        found = verdict(sentinel=SentinelSeconds(before=readings[0], after=readings[1], best=readings[2]))
        assert found.status == "disturbed"
        assert "1.50 times slower" in found.reasons[0]


def test_one_reading_that_is_a_little_slow_is_held_against_the_other():
    assert verdict(sentinel=SentinelSeconds(before=0.0028, after=0.002, best=0.002)).status == "clean"
    assert verdict(sentinel=SentinelSeconds(before=0.0028, after=0.0024, best=0.002)).status == "disturbed"


def test_without_evidence_nothing_is_clean():
    bare = CpuSnapshot(at_seconds=0.0, own_seconds=0.0, cores=2)
    found = judge_cpu(cpu_evidence(bare, dataclasses.replace(bare, at_seconds=2.0, own_seconds=4.0), STEADY, 2))
    assert found.status == "unverified"
    assert "/proc/stat" in found.reasons[0]


def test_counters_that_stand_still_while_we_work_are_no_evidence():
    assert verdict(busy_seconds=START.busy_seconds).status == "unverified"


def test_a_segment_shorter_than_the_counters_can_show_is_unverified():
    assert verdict(seconds=0.1, own=0.19, others=0.0, waits=(0, 0)).status == "unverified"


def test_a_tick_on_the_wrong_side_does_not_disturb_a_short_segment():
    assert verdict(seconds=0.4, own=0.7, others=0.05, waits=(0, 0)).status == "clean"


def test_a_thread_born_in_the_segment_is_watched_too():
    assert verdict(waited_seconds={1: 0.1, 2: 0.2, 3: 1.0}).status == "disturbed"


def test_one_observer_that_sees_nothing_is_enough_to_doubt():
    clean = ClockVerdict(status="clean", evidence={"a": 1})
    unseen = NoObserver("no eyes").stop()
    disturbed = ClockVerdict(status="disturbed", evidence={"b": 2}, reasons=("noise",))
    assert combine([clean]).status == "clean"
    assert combine([clean, unseen]).status == "unverified"
    assert combine([unseen, disturbed, clean]) == ClockVerdict(
        status="disturbed", evidence={"b": 2, "a": 1}, reasons=("no eyes", "noise")
    )
    assert combine([]).status == "unverified"


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@needs_proc
def test_a_snapshot_of_this_box_has_every_counter_that_the_verdict_needs():
    snapshot = take_snapshot()
    assert snapshot.cores >= 1
    assert snapshot.busy_seconds > 0
    assert snapshot.steal_seconds >= 0
    assert snapshot.preemptions >= 0


@needs_proc
def test_busy_loops_on_all_cores_are_noticed():
    cores = take_snapshot().cores
    # Ends with its parent, even where the parent is killed.
    loop = "import os; parent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(cores)]
    try:
        witness = Witness(CpuObserver(threads=cores))
        with witness:
            deadline = time.perf_counter() + 2.0
            while time.perf_counter() < deadline:
                sum(range(1000))
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert witness.verdict.status == "disturbed"
    assert witness.verdict.evidence["other_cores"] > 0.3


def test_a_witness_can_be_started_and_stopped_without_a_with_block():
    witness = Witness(NoObserver("no eyes"))
    assert witness.verdict.status == "unverified"
    witness.start()
    assert witness.stop() == ("unverified", {"reasons": ["no eyes"]})


def test_a_witness_reaches_its_verdict_when_training_breaks_off():
    witness = Witness(NoObserver("no eyes"))
    with pytest.raises(ValueError, match="diverged"), witness:
        raise ValueError("diverged")
    assert witness.verdict.reasons == ("no eyes",)


def test_a_device_that_nobody_can_watch_is_unverified_and_says_why():
    for device, uuid in [("mps", None), ("cuda:0", None)]:
        witness = witness_for(device, threads=1, device_uuid=uuid)
        with witness:
            pass
        assert witness.verdict.status != "clean"
        assert any("mps" in reason or "UUID" in reason for reason in witness.verdict.reasons)


def test_the_time_of_programs_that_were_started_is_ones_own():
    before = take_snapshot().own_seconds
    spin = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", spin], check=True)
    assert take_snapshot().own_seconds - before >= 0.45
