"""A fleet on a real Ray: whole studies, lost and added nodes, GPUs, Ctrl-C, and no password anywhere."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

import pytest

import budgettune as bt
from benchmarks.support import ray_cluster
from budgettune.spec.study_spec import StudySpec
from budgettune.study.handle import create_study
from tests.support.naps import notes, wake
from tests.support.processes import wait_until
from tests.support.studies import let_lease_run_out, records

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the package ray is not installed"),
]
ROOT = Path(__file__).parents[2]
PASSWORD = "s3cret-of-ray"
NAPS = ("--allow-import", "tests")


@pytest.fixture(scope="module")
def cluster():
    with ray_cluster.running(dashboard=True, PYTHONPATH=str(ROOT)) as running:
        running.add("second", cpus=1, gpus=1)
        yield running
        assert {address.removeprefix("::ffff:") for address in running.listening()} == {"127.0.0.1"}


@pytest.fixture
def url(postgresql_url):
    """Return a URL with a password, which the server does not look at."""
    return postgresql_url.replace("postgres:@", f"postgres:{PASSWORD}@")


def nap_study(url, folder, *, cells, **params):
    return create_study(
        StudySpec.from_document(
            {
                "name": "naps",
                "train": {"loop": "tests.support.naps:train", "epochs": 1},
                "params": {"notes": str(folder), **params},
                "objective": {"name": "distance", "direction": "minimize"},
                "search": {"params.x": list(range(cells))},
            }
        ),
        url,
    )


@contextmanager
def fleet(cluster, url, study, *words, program=("-m", "budgettune")):
    """Start `budgettune fleet` on a cluster, and end it where a test has failed."""
    log = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115
    process = subprocess.Popen(
        [sys.executable, *program, "fleet", study, "--on", "ray", "--address", cluster.address, *words],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, **ray_cluster.ENVIRONMENT, "PYTHONPATH": str(ROOT), "BUDGETTUNE_STORAGE": url},
    )
    with log:
        try:
            yield Running(process, log)
        finally:
            process.kill()
            process.wait()


class Running(NamedTuple):
    """A fleet that runs, and the file that it prints to."""

    process: subprocess.Popen
    log: TextIO

    def said(self):
        self.log.seek(0)
        return re.sub(r"\x1b\[\d+m", "", self.log.read())

    def ended(self, seconds=150):
        """Wait for its end, and return its exit status and what it said."""
        self.process.wait(timeout=seconds)
        assert PASSWORD not in self.said()
        return self.process.returncode, self.said()


def assert_whole(study):
    assert study.verify().whole
    assert study.counts()["RUNNING"] == study.counts()["WAITING"] == 0


def test_a_grid_of_digits_is_trained_by_workers_on_both_nodes(cluster, url):
    study = bt.create_study("digits", storage=url, overrides=["train.epochs=3", "data.train_size=600"])
    with fleet(cluster, url, "digits", "--workers", "2") as running:
        status, said = running.ended()
    assert status == 0, said
    assert_whole(study)
    assert len(records(study)) == 12
    done = re.findall(r"(worker \d): (\d+) trials completed, 0 failed", said)
    assert {name for name, _ in done} == {"worker 0", "worker 1"}
    assert all(int(count) > 0 for _, count in done)  # a node has one CPU: one worker each


def test_ctrl_c_hands_running_trials_back_and_the_password_is_nowhere(cluster, url, tmp_path):
    study = nap_study(url, tmp_path, cells=4, lingers=5)  # Ray repeats what is not obeyed in two seconds
    with fleet(cluster, url, "naps", "--workers", "3", "--", *NAPS) as running:
        wait_until(lambda: len(notes(tmp_path)) == 2)
        shown = "".join(
            urllib.request.urlopen(f"http://{cluster.dashboard}/{page}").read().decode()
            for page in (
                "api/jobs/",
                "api/v0/tasks?detail=1",
                "api/v0/workers?detail=1",
                "api/v0/jobs?detail=1",
                "api/v0/runtime_envs?detail=1",
                "nodes?view=summary",
            )
        )
        running.process.send_signal(signal.SIGINT)
        status, said = running.ended()
    assert status == 128 + signal.SIGINT, said
    assert study.counts()["RUNNING"] == 0
    assert study.counts()["WAITING"] == 4
    assert "budgettune worker naps" in shown
    assert "fleet naps --on ray" in shown  # Ray does show the driver's command line
    assert PASSWORD not in shown
    logs = [path for path in Path(cluster.session).rglob("*") if path.is_file()]
    assert any("told to stop" in path.read_text(errors="replace") for path in logs if path.suffix == ".err")
    assert not [path for path in logs if PASSWORD.encode() in path.read_bytes()]


def test_trials_are_handed_back_where_the_fleet_is_killed(cluster, url, tmp_path):
    study = nap_study(url, tmp_path, cells=4, lingers=5)
    with fleet(cluster, url, "naps", "--workers", "2", "--", *NAPS) as running:
        wait_until(lambda: len(notes(tmp_path)) == 2)
        running.process.kill()
        wait_until(lambda: study.counts()["RUNNING"] == 0)  # and no lease has run out
    assert study.counts()["WAITING"] == 4
    assert {record.attempt for record in records(study)} == {1}


def test_ray_job_stop_hands_trials_back_that_take_longer_than_it_waits(cluster, url, tmp_path):
    study = nap_study(url, tmp_path, cells=4, lingers=6)
    environment = {"env_vars": {"BUDGETTUNE_STORAGE": url}}
    words = [sys.executable, "-m", "budgettune", "fleet", "naps", "--on", "ray", "--workers", "2", "--", *NAPS]

    def job(order, *more):
        ray = [sys.executable, "-m", "ray.scripts.scripts", "job", order, "--address", f"http://{cluster.dashboard}"]
        subprocess.run([*ray, *more], env={**os.environ, **ray_cluster.ENVIRONMENT}, check=True, capture_output=True)

    job("submit", "--no-wait", "--submission-id=napping", f"--runtime-env-json={json.dumps(environment)}", "--", *words)
    wait_until(lambda: len(notes(tmp_path)) == 2)
    job("stop", "napping")  # it waits for three seconds, and kills the fleet then
    assert study.counts()["RUNNING"] == 2
    wait_until(lambda: study.counts()["RUNNING"] == 0)
    assert study.counts()["WAITING"] == 4
    assert {record.attempt for record in records(study)} == {1}


def test_a_trial_of_a_lost_node_is_trained_on_another_one_when_its_lease_is_over(cluster, url, tmp_path):
    study = nap_study(url, tmp_path, cells=3)
    cluster.add("doomed", cpus=1)
    with fleet(cluster, url, "naps", "--workers", "3", "--", *NAPS) as running:
        wait_until(lambda: len(notes(tmp_path)) == 3)  # one on each node
        cluster.lose("doomed")
        wake(tmp_path)
        wait_until(lambda: study.counts()["COMPLETE"] == 2)
        assert study.counts()["RUNNING"] == 1
        let_lease_run_out(study)
        status, said = running.ended()
    assert status == 0, said
    assert_whole(study)
    assert study.counts()["FAIL"] == 1
    assert {one["NODE"] for one in notes(tmp_path)} == {"head", "second", "doomed"}
    assert len(notes(tmp_path)) == 4


def test_workers_come_when_a_node_is_added_and_no_two_have_the_same_gpu(cluster, url, tmp_path):
    study = nap_study(url, tmp_path, cells=3)
    with fleet(cluster, url, "naps", "--workers", "3", "--gpus", "1", "--", *NAPS) as running:
        wait_until(lambda: notes(tmp_path))
        assert [(one["NODE"], one["CUDA_VISIBLE_DEVICES"]) for one in notes(tmp_path)] == [("second", "0")]
        cluster.add("third", cpus=2, gpus=2)
        wait_until(lambda: len(notes(tmp_path)) == 3)  # none has ended
        found = sorted((one["NODE"], one["CUDA_VISIBLE_DEVICES"]) for one in notes(tmp_path))
        wake(tmp_path)
        status, said = running.ended()
    cluster.lose("third")
    assert status == 0, said
    assert_whole(study)
    assert "room for 1 of 3 workers; the others begin when there is more" in said
    assert found == [("second", "0"), ("third", "0"), ("third", "1")]


def test_another_version_and_too_many_gpus_are_refused_in_a_sentence(cluster, url, tmp_path):
    nap_study(url, tmp_path, cells=1)
    older = ("-c", "import ray; ray.__version__ = '2.1'; from budgettune.cli.main import main; main()")
    wrong = {
        "differ in versions (Ray: ": {"program": older},
        "no node of the Ray cluster has 1 CPU and 8 GPUs for a worker: they have ": {"words": ("--gpus", "8")},
    }
    for sentence, how in wrong.items():
        with fleet(cluster, url, "naps", *how.pop("words", ()), "--", *NAPS, **how) as running:
            status, said = running.ended()
        assert status == 1, said
        assert sentence in said
        assert len(said.splitlines()) == 1, said
