"""Worker processes whose trials cost nothing: what is left is the price of the service. Ours, and plain Optuna's."""

from __future__ import annotations

import logging
import multiprocessing
import queue
import random
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
import psycopg

from benchmarks.support import synthetic
from budgettune.records import trial_attributes
from budgettune.spec.study_spec import StudySpec
from budgettune.study.handle import create_study, load_study
from budgettune.worker.watchdog import Heartbeat

HEARTBEAT_SECONDS = 60
WORKER_SECONDS = 150.0
STUDY = "no-op"


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What some workers did to a grid, all together.

    Attributes:
        seconds: from the first claim to the last result.
        complete: trials that ended well.
        doubled: those beyond the first of a cell.
        lost: cells without a complete trial.
        open_rows: rows that are left running.
        crashed: workers that an error ended, or that hung.
        connections: of all workers at once, at most; None where the database has none to count.
    """

    workers: int
    seconds: float
    complete: int
    doubled: int
    lost: int
    open_rows: int
    crashed: int
    connections: int | None


def axes(cells: int) -> dict[str, list[Any]]:
    """Return the lists of a grid over three params, of that many cells (a multiple of 40)."""
    return {
        "scale": [1.0, 2.0, 3.0, 4.0],
        "prune_rate": [rate / 20 for rate in range(10)],
        "train.batch_size": list(range(1, cells // 40 + 1)),
    }


# --- Ours -----------------------------------------------------------------------------------------------------------


def prepare_ours(url: str, cells: int) -> None:
    """Make the study."""
    document = {"name": STUDY, "data": {"name": "cifar10"}, "pruning": {"strategy": "random"}, "search": axes(cells)}
    create_study(StudySpec.from_document(document), url).close()


def work_ours(url: str, ready: Callable[[], object]) -> None:
    """Claim, give signs of life from a thread, record, as the worker does, until nothing is left."""
    result = synthetic.result(random.Random(0))
    with load_study(url) as study:
        ready()
        while (claim := study.claim()) is not None:
            study.machine_key()  # as the worker asks, before it claims
            with Heartbeat(study, claim, HEARTBEAT_SECONDS):
                study.complete(claim, result)


# --- Optuna's -------------------------------------------------------------------------------------------------------


def plain_storage(url: str, *, heartbeats: bool = False) -> optuna.storages.RDBStorage:
    """Return Optuna's storage as its documentation makes it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # heartbeats are experimental
        url = url.replace("postgresql:", "postgresql+psycopg:")
        return optuna.storages.RDBStorage(url, heartbeat_interval=HEARTBEAT_SECONDS if heartbeats else None)


def grid_sampler(cells: int) -> optuna.samplers.GridSampler:
    """Return the sampler for the same grid; one seed for all workers, or they would number its points differently."""
    return optuna.samplers.GridSampler(axes(cells), seed=0)


def suggest_all(trial: optuna.Trial, cells: int) -> None:
    """Ask for every param of the grid."""
    for name, choices in axes(cells).items():
        trial.suggest_categorical(name, choices)


def prepare_optunas(url: str) -> None:
    """Make the study; its sampler needs no rows."""
    optuna.create_study(storage=plain_storage(url), study_name=STUDY, directions=["minimize", "maximize"])


def work_optunas(url: str, ready: Callable[[], object], cells: int) -> None:
    """Optimize until the sampler says that the grid is done."""
    result = synthetic.result(random.Random(0))
    document = trial_attributes(result)

    def objective(trial: optuna.Trial) -> tuple[float, float]:
        suggest_all(trial, cells)
        trial.set_user_attr("result", document)
        return result.train_seconds, result.test_accuracy

    storage = plain_storage(url, heartbeats=True)
    study = optuna.load_study(study_name=STUDY, storage=storage, sampler=grid_sampler(cells))
    ready()
    study.optimize(objective)


# --- Both -----------------------------------------------------------------------------------------------------------


def shift(kind: str, url: str, cells: int, workers: int) -> Shift:
    """Let some processes work a grid off, and count what is there afterwards."""
    spawn = multiprocessing.get_context("spawn")
    barrier, ends = spawn.Barrier(workers), spawn.Queue()
    prepare_ours(url, cells) if kind == "ours" else prepare_optunas(url)
    processes = [spawn.Process(target=_run, args=(kind, url, cells, barrier, ends)) for _ in range(workers)]
    with counted_connections(url) as most:
        for process in processes:
            process.start()
        spans = list(_ends_of(workers, ends))
        for process in processes:
            process.terminate()  # one that hangs; the others have ended
            process.join()
    return Shift(
        workers=workers,
        seconds=max(span[1] for span in spans) - min(span[0] for span in spans),
        crashed=workers - sum(span[2] is None for span in spans),
        connections=most[0] if url.startswith("postgresql") else None,
        **_counts(url, cells),
    )


def _ends_of(workers: int, ends: Any) -> Iterator[tuple[float, float, str | None]]:
    """Yield what each worker reports; fewer where some report nothing in time."""
    with suppress(queue.Empty):
        for _ in range(workers):
            yield ends.get(timeout=WORKER_SECONDS)


def _run(kind: str, url: str, cells: int, barrier: Any, ends: Any) -> None:
    """Work as one process, and report when the work began and ended, and the error that ended it."""
    logging.disable(logging.CRITICAL)
    began: list[float] = []

    def ready() -> None:
        barrier.wait(WORKER_SECONDS)
        began.append(time.perf_counter())

    error = None
    try:
        work_ours(url, ready) if kind == "ours" else work_optunas(url, ready, cells)
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    ends.put((began[0] if began else time.perf_counter(), time.perf_counter(), error))


def _counts(url: str, cells: int) -> dict[str, int]:
    study = optuna.load_study(study_name=STUDY, storage=plain_storage(url))
    trials = study.get_trials(deepcopy=False)
    per_cell = Counter(
        tuple(sorted(trial.params.items())) for trial in trials if trial.state == optuna.trial.TrialState.COMPLETE
    )
    return {
        "complete": per_cell.total(),
        "doubled": per_cell.total() - len(per_cell),
        "lost": cells - len(per_cell),
        "open_rows": sum(not trial.state.is_finished() for trial in trials),
    }


def connections_beside(own: psycopg.Connection) -> int:
    """Return how many connections programs have to a connection's database, itself left out."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    row = own.execute(query).fetchone()
    return row[0] if row else 0


@contextmanager
def counted_connections(url: str) -> Iterator[list[int]]:
    """Yield a list whose one number grows to the most connections that a PostgreSQL database had meanwhile."""
    most, done = [0], threading.Event()

    def watch() -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            while not done.wait(0.05):
                most[0] = max(most[0], connections_beside(connection))

    thread = threading.Thread(target=watch) if url.startswith("postgresql") else None
    if thread is not None:
        thread.start()
    try:
        yield most
    finally:
        done.set()
        if thread is not None:
            thread.join()
