"""Workers of one box: what follows from a death, who gets which device; real processes die, stop and finish."""

import os
import signal
import sys
import threading
import time

import pytest

from budgettune.errors import UsageError
from budgettune.machine import gpu
from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import create_study
from budgettune.text import warn_once
from budgettune.worker import processes as module
from budgettune.worker import signals as stopping
from budgettune.worker.options import WorkerOptions
from budgettune.worker.processes import OUT_OF_TIME_STATUS, Aftermath, Member, after_end, plan_members, run_members
from budgettune.worker.signals import StopFlag

CPU = WorkerOptions(device="cpu")
OBEDIENT = "import sys; order = sys.stdin.readline().strip(); print('told', order, flush=True); sys.exit(0)"


def test_a_death_is_followed_by_a_longer_and_longer_pause_until_the_fifth_early_one():
    assert [after_end(-9, 1, deaths).pause_seconds for deaths in range(4)] == [1, 2, 4, 8]
    assert after_end(-9, 1, 4).action == "give-up"
    assert after_end(-9, 3600, 4) == Aftermath("restart", 0, 1.0)
    assert after_end(1, 3600, 4).action == "give-up"
    assert after_end(2, 1, 0).action == "give-up"
    assert {after_end(status, 1, 0).action for status in (0, 130, 143, OUT_OF_TIME_STATUS)} == {"done"}


def test_each_gpu_gets_one_process_that_sees_it_alone():
    members = plan_members(WorkerOptions(trials=3), None, ["0", "GPU-b"], cores=9)
    assert [member.environment for member in members] == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "GPU-b"},
    ]
    assert [(m.options.device, m.options.threads, m.options.trials) for m in members] == [
        ("cuda", 4, 2),
        ("cuda", 4, 1),
    ]


def test_instances_of_a_gpu_get_a_process_each():
    gpus = ["MIG-c7384736-a75d-5afc-978f-d2f1294409fd", "MIG-a28ad590-3fda-56dd-84fc-0a0b96edc58d"]
    members = plan_members(WorkerOptions(), None, gpus, cores=8)
    assert [member.environment["CUDA_VISIBLE_DEVICES"] for member in members] == gpus
    assert [member.name for member in members] == ["gpu MIG-c7384736", "gpu MIG-a28ad590"]


def test_cores_are_shared_out_on_the_cpu_unless_threads_are_given():
    assert [m.options.threads for m in plan_members(CPU, 3, [], cores=2)] == [1, 1, 1]
    assert [m.options.threads for m in plan_members(WorkerOptions(threads=5), 2, [], cores=8)] == [5, 5]
    assert [m.options.threads for m in plan_members(CPU, 2, [], cores=8, most_threads=1)] == [1, 1]  # OMP_NUM_THREADS=1
    assert plan_members(CPU, None, ["0", "1"], cores=8) == plan_members(WorkerOptions(), 1, ["0", "1"], cores=8) == []
    for device, gpus in (("cuda", ["0"]), ("auto", ["0", "1"])):
        with pytest.raises(UsageError, match="--device cpu"):
            plan_members(WorkerOptions(device=device), 3, gpus, cores=8)


def test_the_command_line_holds_every_option_and_no_url():
    options = WorkerOptions(device="cpu", threads=2, timeout_seconds=10, wait=True, allow_import=frozenset(["mine"]))
    words = module.worker_command("s", drain=True, debug=False)(Member("a", options), 4.0)
    text = " ".join(words[3:])
    assert text == "worker --device cpu --threads 2 --timeout 6.0 --wait --allow-import mine --drain -- s"


def run(scripts, stop=None):
    """Run a fleet of Python scripts and return its exit status and what it said."""
    lines = []
    members = [Member(name, CPU) for name in scripts]

    def command(member, seconds_gone):
        return [sys.executable, "-c", scripts[member.name]]

    status = run_members(members, command, "sqlite:///secret.db", stop or StopFlag(), say=lines.append)
    return status, lines


def test_a_child_that_keeps_dying_is_given_up_with_its_last_line_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE_SECONDS", 0.01)
    status, lines = run({"bad": "raise SystemExit('no such thing')", "good": "print('did it')"})
    assert status == 0
    assert "good: did it" in lines
    assert lines[-1] == "bad: given up after status 1: no such thing"
    assert sum("starts again" in line for line in lines) == 4
    assert run({"bad": "raise SystemExit(2)"})[0] == 1


def test_a_child_that_had_no_time_for_what_is_open_is_not_started_again_and_the_whole_says_so():
    out_of_time = f"raise SystemExit({OUT_OF_TIME_STATUS})"
    assert run({"a": out_of_time, "b": "print('did it')"}) == (OUT_OF_TIME_STATUS, ["b: did it"])


def test_children_get_the_url_through_the_environment():
    script = "import os, sys; print(os.environ['BUDGETTUNE_STORAGE'], os.environ['BUDGETTUNE_ORDERS_ON_STDIN'])"
    assert run({"a": script})[1] == ["a: sqlite:///secret.db 1"]


def test_a_request_to_stop_reaches_every_child_once():
    for act, order, expected in (
        (lambda stop: stop._on_signal(signal.SIGTERM, None), "15", 143),
        (lambda stop: stop.drain(), "drain", 0),
    ):
        stop = StopFlag()
        timer = threading.Timer(1.0, act, [stop])
        timer.start()
        status, lines = run({"a": OBEDIENT, "b": OBEDIENT}, stop)
        assert (status, sorted(lines)) == (expected, [f"a: told {order}", f"b: told {order}"])


def test_a_child_stops_when_its_parent_is_gone(monkeypatch):
    monkeypatch.setattr(stopping, "ORPHAN_SECONDS", 1e6)  # the orphan here is the test's own process
    stop = StopFlag()
    read, write = os.pipe()
    thread = threading.Thread(target=stop._read_orders, args=(read,), daemon=True)
    thread.start()
    os.write(write, b"drain\n")
    assert stop.wait(5)
    assert not stop.cuts_short
    os.close(write)
    deadline = time.monotonic() + 5
    while not stop.cuts_short and time.monotonic() < deadline:
        time.sleep(0.01)
    assert stop.cuts_short


@pytest.mark.slow
def test_two_processes_of_the_real_command_finish_a_study(sqlite_url, tmp_path, monkeypatch):
    monkeypatch.setenv("BUDGETTUNE_SPOOL", str(tmp_path / "spool"))
    search = "search={scale = [1.0], prune_rate = [0, 0.5]}"
    overrides = ["train.epochs=1", "pruning.strategy=random", search, "clock.warmup_steps=1"]
    study = create_study(load_spec("digits").with_overrides(overrides), sqlite_url)
    lines = []
    members = plan_members(CPU, 2, [], cores=2)
    command = module.worker_command(study.name, drain=False, debug=False)
    assert run_members(members, command, sqlite_url, StopFlag(), say=lines.append) == 0, lines
    assert study.verify().whole
    assert {line.partition(":")[0] for line in lines} == {"worker 0", "worker 1"}


@pytest.mark.parametrize("processes", [None, 2])
def test_gpus_that_are_named_and_not_here_start_no_children_for_them(processes, monkeypatch, caplog):
    warn_once.cache_clear()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setattr(gpu, "torch_gpu_count", lambda: 0)
    members = module.members_here(WorkerOptions(), processes)
    assert [member.options.device for member in members] == ["cpu"] * (processes or 0)
    # A worker alone says it itself, when it picks its device.
    assert ("CUDA_VISIBLE_DEVICES names 2 GPUs" in caplog.text) == bool(processes)


def test_orders_are_not_for_what_a_child_starts(monkeypatch):
    monkeypatch.setenv(stopping.ORDERS_VARIABLE, "1")
    monkeypatch.setattr(StopFlag, "_read_orders", lambda *_: None)
    StopFlag().obey_parent()
    assert stopping.ORDERS_VARIABLE not in os.environ
