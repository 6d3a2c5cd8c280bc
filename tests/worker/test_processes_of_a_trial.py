"""Workers whose trials are trained by several processes: by our own hand, by torchrun, and how they end."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from torch import distributed

from budgettune.errors import UsageError
from budgettune.machine import procfs
from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import create_study
from budgettune.worker.loop import run_worker
from budgettune.worker.options import Listener, Ranks, WorkerOptions
from budgettune.worker.processes import members_here, plan_members
from tests.support.processes import command, wait_until
from tests.support.studies import records
from tests.training.test_team import Plain

SHORT = ["search={}", "data.train_size=200", "train.batch_size=50", "train.epochs=2", "clock.warmup_steps=1"]
needs_proc = pytest.mark.skipif(procfs.affinity() is None or not Path("/proc/self").exists(), reason="needs /proc")


@pytest.fixture
def study(tmp_path):
    def study(*overrides):
        return create_study(load_spec("digits").with_overrides([*SHORT, *overrides]), f"sqlite:///{tmp_path}/s.db")

    return study


def followers_of(pid):
    """Return the processes that a worker has started to train with it."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):  # gone meanwhile
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == pid and b"follow_parent" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class Marked(Plain):
    """A network that leaves a file where it trains in a follower."""

    def forward(self, images):
        if distributed.is_initialized() and distributed.get_rank() == 1:
            Path(os.environ["MARK"]).touch()
        return super().forward(images)


MARKED = ["train.processes=2", "train.epochs=1000000", f"model.name={__name__}:Marked", "model.scale=1.0"]


@needs_proc
def test_a_worker_trains_with_a_follower_that_ends_with_it(study):
    handle = study("train.processes=2", "sampler.repeats=2")
    summary = run_worker(handle.url, handle.name, WorkerOptions(device="cpu", threads=2))
    assert (summary.completed, summary.failed) == (2, 0)
    assert [record.machine.processes for record in records(handle)] == [2, 2]
    assert followers_of(os.getpid()) == []
    key = handle.machine_key()
    assert key.endswith("x1 ×2")
    other = study("name=other", f"machine.device_name={key}")
    with pytest.raises(UsageError, match=r"takes its times on .* x1 ×2, and this worker is .* x2"):
        run_worker(other.url, other.name, WorkerOptions(device="cpu", threads=2))
    assert run_worker(other.url, other.name, WorkerOptions(device="cpu", threads=2, gpus_per_trial=2)).completed == 1


@needs_proc
@pytest.mark.slow
def test_a_killed_follower_fails_the_trial_with_its_reason_and_the_worker_goes_on(study):
    class Killing(Listener):
        def epoch(self, claim, spec, record):
            if claim.number == 0:
                os.kill(followers_of(os.getpid())[0], signal.SIGKILL)

    handle = study("train.processes=2", "sampler.max_attempts=2")
    summary = run_worker(handle.url, handle.name, WorkerOptions(device="cpu", threads=2), listener=Killing())
    assert (summary.completed, summary.failed) == (1, 1)
    first, second = records(handle)
    assert first.failure.startswith("process-lost: process 1 of 2 was ended by SIGKILL")
    assert (second.state, second.attempt) == ("COMPLETE", 2)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.slow
def test_a_worker_that_is_told_to_end_or_killed_leaves_no_follower(study, number, tmp_path):
    handle, mark = study(*MARKED), tmp_path / "mark"
    with command(handle.url, "--device", "cpu", "--allow-import", "tests", MARK=str(mark)) as worker:
        wait_until(mark.exists)
        followers = followers_of(worker.pid)
        worker.send_signal(number)
        assert worker.wait(60) == (143 if number == signal.SIGTERM else -signal.SIGKILL)
    assert followers
    wait_until(lambda: not any(map(is_there, followers)), 30)
    states = sorted(record.state for record in records(handle))
    assert states == (["FAIL", "WAITING"] if number == signal.SIGTERM else ["RUNNING"])


@pytest.mark.slow
def test_torchrun_starts_the_processes_of_a_trial(study):
    handle = study("sampler.repeats=2")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words += ["-m", "budgettune", "worker", "--storage", handle.url, "--device", "cpu"]
    done = subprocess.run(
        words,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 trials completed") == 1  # rank 0 alone speaks
    assert {record.device_name[-5:] for record in records(handle)} == {"x1 ×2"}


# --- who trains where -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "each", "expected"),
    [
        ("0123", 1, ["0", "1", "2", "3"]),
        ("0123", 2, ["0,1", "2,3"]),
        ("01234", 2, ["0,1", "2,3"]),  # one stays idle
        ("01", 2, []),  # one worker in this process
    ],
)
def test_a_fleet_gives_each_worker_the_gpus_of_a_trial(gpus, each, expected):
    members = plan_members(WorkerOptions(gpus_per_trial=each), None, list(gpus), cores=8)
    assert [member.environment["CUDA_VISIBLE_DEVICES"] for member in members] == expected
    assert all(member.options.gpus_per_trial == each for member in members)
    assert all(f"--gpus-per-trial {each}" in " ".join(member.options.words()) for member in members)


def test_a_trial_cannot_have_more_gpus_than_there_are():
    with pytest.raises(UsageError, match="--gpus-per-trial 4: this box has 2"):
        plan_members(WorkerOptions(gpus_per_trial=4), None, ["0", "1"], cores=8)
    with pytest.raises(UsageError, match="a GPU takes one worker"):
        plan_members(WorkerOptions(gpus_per_trial=2), 2, ["0", "1"], cores=8)


def test_workers_on_a_cpu_may_train_each_trial_by_several_processes():
    members = plan_members(WorkerOptions(gpus_per_trial=2, device="cpu"), 2, [], cores=8)
    assert [member.options.threads for member in members] == [4, 4]


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "127.0.0.1"}


def test_torchruns_ranks_are_read_where_it_started_several():
    assert Ranks.of_torchrun(TORCHRUN) == Ranks(1, 4, 1)
    assert Ranks.of_torchrun({**TORCHRUN, "WORLD_SIZE": "1"}) is None
    assert Ranks.of_torchrun({"RANK": "1"}) is None


def test_under_torchrun_there_is_no_fleet(monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert members_here(WorkerOptions(), None) == []
    with pytest.raises(UsageError, match="torchrun has started 4 processes"):
        members_here(WorkerOptions(), 2)
    with pytest.raises(UsageError, match="torchrun has started 4 processes"):
        members_here(WorkerOptions(gpus_per_trial=2), None)
