"""Bad days: the database goes away, the disk fills up, a clock is wrong. Real servers, processes and file systems."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.support import local_postgresql
from budgettune.spec.study_spec import load_spec
from budgettune.study.handle import LEASE_SECONDS, create_study, load_study
from tests.support.processes import command, wait_until

pytestmark = pytest.mark.chaos

OUTAGE_SECONDS = 30
SEARCH = "search={scale = [1.0], prune_rate = [0, 0.25, 0.5], batch_size = [128, 160, 192, 200, 224, 240, 256, 300]}"


def make(url, *overrides):
    return create_study(load_spec("digits").with_overrides([SEARCH, "train.epochs=4", *overrides]), url)


def finish(workers, seconds=300):
    """Wait for workers to end by themselves, and return what they said."""
    said = [worker.communicate(timeout=seconds)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * len(workers), said
    assert not any("Traceback" in text for text in said), said
    return said


def exactly_once(study):
    counts = study.counts()
    return study.verify().whole and counts["RUNNING"] == counts["WAITING"] == 0


@pytest.fixture
def own_server():
    """Return a PostgreSQL server that a test may stop."""
    with local_postgresql.running(durable=True) as server:
        yield server


def test_no_result_is_lost_and_no_worker_dies_when_postgresql_stops_for_half_a_minute(own_server):
    with local_postgresql.new_database(own_server.get_uri()) as url:
        study = make(url)
        workers = [command(url) for _ in range(3)]
        wait_until(lambda: study.counts()["COMPLETE"] >= 3)
        os.kill(own_server.get_pid(), signal.SIGQUIT)  # what PostgreSQL calls an immediate shutdown
        time.sleep(OUTAGE_SECONDS)
        assert all(worker.poll() is None for worker in workers)
        own_server.start()
        finish(workers)
        assert exactly_once(study)
        # Nothing was trained twice: every result that was ready while the server was away has been delivered.
        assert study.counts()["FAIL"] == 0
        study.close()


@contextmanager
def small_disk(megabytes):
    """Yield a folder on a file system of its own."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", folder], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("mounting a small file system takes root: run it with sudo")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def test_work_goes_on_when_a_full_disk_has_room_again():
    with small_disk(megabytes=16) as folder:
        url, ballast = f"sqlite:///{folder}/study.db", Path(folder, "ballast")
        study = make(url)
        workers = [command(url) for _ in range(2)]
        wait_until(lambda: study.counts()["COMPLETE"] >= 3)
        with ballast.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space"):
            while True:
                file.write(b"x" * 4096)
        time.sleep(15)
        assert all(worker.poll() is None for worker in workers)
        ballast.unlink()
        said = finish(workers)
        assert any("the disk is full" in text for text in said)
        assert exactly_once(study)
        study.close()


@pytest.mark.parametrize("offset", ["+1h", "-1h"])
def test_a_box_whose_clock_is_wrong_neither_reaps_the_living_nor_keeps_the_dead(postgresql_url, offset):
    faketime = shutil.which("faketime")
    if faketime is None:
        pytest.skip("needs faketime: apt-get install faketime")
    script = (
        "import sys; from budgettune.api import load_study; print(load_study(storage=sys.argv[1]).reconcile().lost)"
    )

    def lost():
        # Only the look at the study has the wrong clock: faketime breaks time.sleep, so no worker runs under it.
        words = [faketime, "-f", offset, sys.executable, "-c", script, postgresql_url]
        return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)

    study = make(postgresql_url, "train.epochs=100000", "search={scale = [1.0]}", "sampler.repeats=2")
    doomed, living = command(postgresql_url), command(postgresql_url)
    wait_until(lambda: study.counts()["RUNNING"] == 2)
    doomed.kill()
    doomed.communicate()
    assert lost() == 0
    time.sleep(LEASE_SECONDS + 5)
    assert lost() == 1
    assert study.counts()["RUNNING"] == 1
    living.send_signal(signal.SIGTERM)
    living.communicate(timeout=60)
    assert living.returncode == 143


def test_workers_that_were_started_first_take_up_the_study_that_eight_boxes_create_at_once(storage_url):
    waiting = [command(storage_url, "--wait") for _ in range(2)]
    time.sleep(8)
    overrides = [word for text in (SEARCH, "train.epochs=1", "pruning.strategy=random") for word in ("--set", text)]
    words = ["study", "create", "digits", "--grid", "--skip-if-exists", "--storage", storage_url, *overrides]
    makers = [
        subprocess.Popen([sys.executable, "-m", "budgettune", *words], stderr=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    finish(makers)
    study = load_study(storage_url)
    wait_until(study.is_finished, seconds=120)
    assert exactly_once(study)
    assert sum(study.counts().values()) == 24
    for worker in waiting:
        worker.send_signal(signal.SIGTERM)
        worker.communicate(timeout=30)
        assert worker.returncode == 143
