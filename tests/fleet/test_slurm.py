"""Fleets on a real Slurm of two nodes: whole, over a time limit, without a node, cancelled; GPUs and the password."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from budgettune.spec.study_spec import StudySpec, load_spec
from budgettune.storage.trials import trial_records
from budgettune.study.handle import create_study
from tests.support import slurm
from tests.support.documents import ROOT
from tests.support.processes import wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.skipif(slurm.why_not() is not None, reason=str(slurm.why_not()))]
PASSWORD = "correct-horse-battery"
STEPS = 5  # of an epoch of the training code
ALLOW = ("--", "--allow-import", "tests")


@pytest.fixture(scope="module")
def cluster():
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, slurm.running(Path(folder)) as started:
        yield started


@pytest.fixture
def fleet(cluster, postgresql_url, tmp_path):
    """Return what runs `budgettune fleet --on slurm` on an empty database, in an empty folder that is its home."""
    environment = {
        **cluster.environment,
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "BUDGETTUNE_STORAGE": postgresql_url.replace("postgres:@", f"postgres:{PASSWORD}@"),
    }

    def run(study, *words, **more):
        return subprocess.run(
            [sys.executable, "-m", "budgettune", "fleet", study, "--on", "slurm", *words],
            cwd=tmp_path,
            env={**environment, **more},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def submitted(done):
    """Return the number of the array that a fleet is."""
    assert done.returncode == 0, done.stderr
    return re.match(r"array (\d+):", done.stdout)[1]


def slow_study(url, seconds, *, epochs=40, cells=2, loop="train"):
    """Make a study whose trials take about so many seconds on any machine, and may be cut off after each epoch."""
    document = {
        "name": "slow",
        "train": {"loop": f"tests.support.own_training:{loop}", "epochs": epochs},
        "params": {"step_seconds": seconds / epochs / STEPS},
        "objective": {"name": "distance", "direction": "minimize"},
        "search": {"params.x": [float(x) for x in range(cells)]},
    }
    return create_study(StudySpec.from_document(document), url)


def logs(folder):
    return {path.stem.rpartition("_")[2]: path.read_text() for path in folder.glob("*.log")}


def states(tasks):
    return {task["JobState"] for task in tasks.values()}


def resumed(study):
    """Return the cells whose trial went on where another process had stopped."""
    kept = [
        trial.user_attrs for trial in study.storage.get_all_trials(study.study_id) if trial.state.name == "COMPLETE"
    ]
    return {each["cell"] for each in kept if each["details"].get("resumed")}


def test_every_cell_is_done_once_and_both_nodes_do_some(cluster, fleet, postgresql_url, tmp_path):
    study = create_study(load_spec("digits").with_overrides(["train.epochs=2"]), postgresql_url)
    job = submitted(fleet("digits", "--workers", "2", "--cpus", "2", "--time", "30m"))
    tasks = cluster.wait_for_end(job)
    assert states(tasks) == {"COMPLETED"}, logs(tmp_path)
    assert {task["Restarts"] for task in tasks.values()} == {"0"}  # one found nothing open, and stayed away
    assert study.verify().whole
    assert study.verify().complete == 12
    written = logs(tmp_path)
    assert {node for node in slurm.NODES for log in written.values() if f" on {node}," in log} == set(slurm.NODES)
    assert all(re.search(r"^trial \d+ .* accuracy", log, re.MULTILINE) for log in written.values())
    again = fleet("digits")
    assert (again.returncode, again.stdout) == (0, "")
    assert "nothing left to train" in again.stderr


@pytest.mark.parametrize("by_hand", [True, False])
def test_a_time_limit_in_the_middle_of_trials_begins_the_jobs_again_and_loses_nothing(
    by_hand, cluster, fleet, postgresql_url, tmp_path
):
    """By hand: the signal that Slurm sends some time before the limit, at a moment that is known."""
    study = slow_study(postgresql_url, seconds=20 if by_hand else 47)
    job = submitted(fleet("slow", "--workers", "2", "--time", "1h" if by_hand else "1m", *ALLOW))
    if by_hand:
        wait_until(lambda: len(list((tmp_path / ".local").rglob("*.half"))) == 2)
        cluster.ask("scancel", "--batch", "--signal=USR2", job)
    tasks = cluster.wait_for_end(job)
    assert states(tasks) == {"COMPLETED"}, logs(tmp_path)
    restarts = {int(task["Restarts"]) for task in tasks.values()}
    assert restarts == {1} if by_hand else min(restarts) >= 1, logs(tmp_path)
    assert study.verify().whole
    assert resumed(study) == {0, 1}
    records = trial_records(study.engine, study.study_id)
    assert {record.attempt for record in records} == {1}  # handed back, which uses up none
    for log in logs(tmp_path).values():
        assert "begun again 0 times" in log  # the second run has not erased it
        assert "begun again 1 times" in log


def test_a_job_at_its_time_limit_waits_for_a_controller_that_is_away(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=20, cells=1)
    job = submitted(fleet("slow", "--time", "1h", *ALLOW))
    wait_until(lambda: list((tmp_path / ".local").rglob("*.half")))
    (number,) = cluster.ask("squeue", "--noheader", f"--jobs={job}", "--format=%A").split()
    (batch,) = [pid for pid in slurm.processes_of(number) if "slurm_script" in slurm.command_line(pid)]
    with cluster.without_controller():
        os.kill(batch, signal.SIGUSR2)
        wait_until(lambda: logs(tmp_path)["1"].count(f"for job {job}_1") > 3, 180)  # that is how scontrol fails
        assert study.counts()["WAITING"] == 1
    (task,) = cluster.wait_for_end(job).values()
    assert (task["JobState"], task["Restarts"]) == ("COMPLETED", "1"), logs(tmp_path)
    assert study.verify().whole
    assert resumed(study) == {0}


def test_a_node_that_dies_costs_no_cell(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=20, cells=4)
    job = submitted(fleet("slow", "--workers", "2", "--cpus", "2", *ALLOW))
    wait_until(lambda: study.counts()["RUNNING"] == 2)
    cluster.kill_node("n2")
    try:
        tasks = cluster.wait_for_end(job)
    finally:
        cluster.start_node("n2")
    assert states(tasks) == {"COMPLETED"}, logs(tmp_path)
    assert sorted(task["Restarts"] for task in tasks.values()) == ["0", "1"]
    assert study.verify().whole, logs(tmp_path)


def test_scancel_hands_trials_back_and_nothing_begins_again(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=120)
    job = submitted(fleet("slow", "--workers", "2", "--time", "1h", *ALLOW))
    wait_until(lambda: study.counts()["RUNNING"] == 2)
    cluster.ask("scancel", f"{job}_1")
    wait_until(lambda: study.counts()["WAITING"] == 1)
    assert study.counts()["RUNNING"] == 1  # that of the other one
    cluster.ask("scancel", job)
    tasks = cluster.wait_for_end(job)
    assert states(tasks) == {"CANCELLED"}
    assert {task["Restarts"] for task in tasks.values()} == {"0"}
    assert (study.counts()["RUNNING"], study.counts()["WAITING"]) == (0, 2)
    assert {record.attempt for record in trial_records(study.engine, study.study_id)} == {1}
    assert all("its cell is open again" in log for log in logs(tmp_path).values())


def test_workers_that_find_too_little_time_begin_again_with_all_of_it(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=25, cells=3, loop="unsaved")
    job = submitted(fleet("slow", "--time", "2m", *ALLOW))
    (task,) = cluster.wait_for_end(job).values()
    assert (task["JobState"], task["Restarts"] >= "1") == ("COMPLETED", True), logs(tmp_path)
    assert study.verify().whole
    assert "nothing that is open is likely to end within" in logs(tmp_path)["1"]
    assert "told to stop" not in logs(tmp_path)["1"]


def test_a_trial_that_outlasts_every_limit_is_not_begun_for_ever(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=300, cells=1, loop="unsaved")
    job = submitted(fleet("slow", "--time", "1m", *ALLOW))
    (task,) = cluster.wait_for_end(job).values()
    assert (task["JobState"], task["Restarts"]) == ("FAILED", "0"), logs(tmp_path)
    assert "and nothing of it can be kept: give workers more time" in logs(tmp_path)["1"]
    assert study.counts()["WAITING"] == 1


def test_each_worker_gets_a_gpu_of_its_own(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=8, epochs=4, cells=4, loop="tell_gpus")
    job = submitted(fleet("slow", "--workers", "4", "--gpus", "1", *ALLOW, "--device", "cpu", "--threads", "1"))
    assert states(cluster.wait_for_end(job)) == {"COMPLETED"}, logs(tmp_path)
    assert study.verify().whole
    placed = [re.search(r"^job \S+ on (\w+), GPUs (\d),", log).groups() for log in logs(tmp_path).values()]
    assert sorted(placed) == [("n1", "0"), ("n1", "1"), ("n2", "0"), ("n2", "1")]
    told = [re.findall(r"^training sees GPU (\d)$", log, re.MULTILINE) for log in logs(tmp_path).values()]
    assert told == [[gpu] for _, gpu in placed]


def test_the_password_is_nowhere_to_be_read(cluster, fleet, postgresql_url, tmp_path):
    study = slow_study(postgresql_url, seconds=120)
    done = fleet("slow", "--workers", "2", *ALLOW)
    job = submitted(done)
    wait_until(lambda: study.counts()["RUNNING"] == 2)
    lines = b"\n".join(line.read_bytes() for line in Path("/proc").glob("[0-9]*/cmdline") if line.exists())
    shown = [
        done.stdout + done.stderr,
        cluster.ask("scontrol", "--details", "show", "job", job),
        cluster.ask("scontrol", "write", "batch_script", f"{job}_1", "-"),
        cluster.ask("squeue", "--format=%all"),
        lines.decode(errors="replace"),
        *logs(tmp_path).values(),
        *(path.read_text() for path in (cluster.folder / "log").iterdir()),
    ]
    cluster.ask("scancel", job)
    cluster.wait_for_end(job)
    assert "budgettune worker" in shown[2]
    assert "--leave" in lines.replace(b"\0", b" ").decode(errors="replace")
    assert not [text for text in [*shown, *logs(tmp_path).values()] if PASSWORD in text]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus", "3"], "no node of the partition has 1 CPU and 3 GPUs and the memory"),
        (["--cpus", "3"], "no node of the partition has 3 CPUs and the memory"),
        (["--time", "3h"], "the partition gives no job 3h00m: ask for less --time"),
        (["--workers", "5000"], "an array of this cluster is smaller than 5000 workers"),
    ],
)
def test_what_the_cluster_does_not_have_is_said_at_once(words, said, fleet, postgresql_url):
    slow_study(postgresql_url, seconds=1)
    done = fleet("slow", *words, *ALLOW)
    assert done.returncode == 1
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("study", "said"), [("another", "another"), ("slow", "does not allow the package tests")])
def test_what_no_worker_could_train_is_noticed_before_anything_is_submitted(
    study, said, fleet, cluster, postgresql_url
):
    slow_study(postgresql_url, seconds=1)
    before = cluster.ask("squeue", "--noheader", "--states=all")
    done = fleet(study)
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert cluster.ask("squeue", "--noheader", "--states=all") == before


def test_a_controller_that_does_not_answer_is_named(fleet, cluster, postgresql_url, tmp_path):
    slow_study(postgresql_url, seconds=1)
    text = (cluster.folder / "slurm.conf").read_text()
    (tmp_path / "slurm.conf").write_text(re.sub(r"(?m)^SlurmctldPort=.*$", "SlurmctldPort=1", text))
    done = fleet("slow", *ALLOW, SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert done.returncode == 1
    assert "Slurm's controller does not answer" in done.stderr


def test_the_cluster_of_the_tests_listens_on_the_loopback_alone(cluster):
    assert cluster.listening() == {"0100007F"}
