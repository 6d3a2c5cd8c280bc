"""Several processes at one study."""

import multiprocessing
import os
import signal
import time

import pytest

from budgettune.study.handle import create_study, load_study
from tests.support.studies import grid, records, result, sampled, work_off

SPAWN = multiprocessing.get_context("spawn")
EIGHTY = {"scale": [1.0, 1.1, 1.2, 1.4, 1.6], "prune_rate": [0.0, 0.1, 0.2, 0.3], "batch_size": [14, 16, 18, 20]}


def claim_all(url, start, done):
    """Work as four lines of a worker: claim, complete, until nothing is left."""
    with load_study(url) as study:
        start.wait(60)
        cells = []
        while (claim := study.claim()) is not None:
            study.heartbeat(claim.trial_id)
            study.complete(claim, result(train_seconds=1.0 + claim.cell))
            cells.append(claim.cell)
        done.put(cells)


def create_at_once(url, start, done):
    start.wait(60)
    with create_study(grid(), url, skip_if_exists=True) as study:
        done.put(study.study_id)


def claim_and_hang(url, done):
    with load_study(url) as study:
        done.put(study.claim().cell)
        time.sleep(60)


def run_at_once(target, url, count):
    """Run a function in processes that begin together; return what each put into its queue."""
    start, done = SPAWN.Barrier(count), SPAWN.Queue()
    processes = [SPAWN.Process(target=target, args=(url, start, done)) for _ in range(count)]
    for process in processes:
        process.start()
    answers = [done.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    return answers


@pytest.mark.slow
def test_four_processes_share_a_grid_and_run_every_cell_once(storage_url):
    with create_study(grid(search=EIGHTY), storage_url) as study:
        shares = run_at_once(claim_all, storage_url, 4)
        assert sorted(cell for share in shares for cell in share) == list(range(80))
        assert study.verify().whole
        assert study.counts()["COMPLETE"] == 80


def test_two_processes_share_a_sampled_study_without_overshoot_or_repetition(storage_url):
    with create_study(sampled("tpe", trials=15), storage_url) as study:
        shares = run_at_once(claim_all, storage_url, 2)
        assert sorted(cell for share in shares for cell in share) == list(range(15))
        assert len({tuple(record.params.items()) for record in records(study)}) == 15
        assert study.verify().whole


@pytest.mark.slow
def test_eight_processes_that_create_the_same_study_make_one(storage_url):
    assert len(set(run_at_once(create_at_once, storage_url, 8))) == 1
    with load_study(storage_url) as study:
        assert [claim.cell for claim in iter(study.claim, None)] == [0, 1, 2, 3]


def test_the_cell_of_a_killed_process_comes_back_after_its_lease(study):
    done = SPAWN.Queue()
    process = SPAWN.Process(target=claim_and_hang, args=(study.url, done))
    process.start()
    cell = done.get(timeout=60)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    work_off(study)
    assert study.reconcile().lost == 0
    deadline = time.monotonic() + 10
    while study.reconcile(lease_seconds=0.5).queued == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    claim = study.claim()
    assert (claim.cell, claim.attempt) == (cell, 2)
    study.complete(claim, result())
    assert study.verify().whole
