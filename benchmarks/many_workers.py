"""What do a thousand workers ask of one PostgreSQL server, and what does a worker hold while it trains or waits?

    python -m benchmarks.many_workers                      # all parts, about five minutes on two cores
    python -m benchmarks.many_workers --only pooler        # one part

Four parts. `pooler`: 1,000 workers work off 5,000 cells through PgBouncer in transaction mode, with 8 connections to
the server. `server`: 200 workers on a server of 100 connections, without a pooler. In both, workers are threads in
eight processes, each with an engine of its own, so with connections of its own; they start at the same moment, and a
trial costs nothing: claim, a sign of life, record, as fast as it goes. What ran twice or not at all is counted
afterwards. `connections`: what 50 workers hold whose trials last. `idle`: the statements of 200 workers that wait for
the last trial of somebody else. The server runs on this machine and waits for the disk. Linux with `pgbouncer` only.

The same on another checkout: put a link to its folder `budgettune` into an empty folder, and start the script there
with this checkout on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import psycopg
import psycopg.rows
import sqlalchemy as sa

from benchmarks.support import common, local_pgbouncer, local_postgresql, noop_workers, synthetic
from budgettune.errors import StorageBusy
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.patience import pauses
from budgettune.study.handle import create_study, load_study
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag
from budgettune.worker.watchdog import Heartbeat

PARTS = ("pooler", "server", "connections", "idle")
PATIENCE_SECONDS = WorkerOptions().patience_seconds
SERVER_CONNECTIONS = 8  # of the pooler
SEARCH = {"params.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "params.width": {"low": 1, "high": 512}}


@dataclass
class Done:
    """What some workers of one process did."""

    first_seconds: list[float] = field(default_factory=list)  # that a worker waits for its first trial
    claim_seconds: list[float] = field(default_factory=list)  # and for each after that
    completed: int = 0
    waits: int = 0  # times that a full server was asked again
    errors: list[str] = field(default_factory=list)
    cpu_seconds: float = 0.0
    began: float = 0.0
    ended: float = 0.0


def of_worker(url: str, number: int) -> str:
    """Return a URL that has an engine, and so connections, of its own within a process."""
    return f"{url}{'&' if '?' in url else '?'}application_name=worker-{number}"


# --- Workers that do nothing but the protocol -------------------------------------------------------------------------


def patiently(call: Callable[[], Any], done: Done) -> Any:
    """Return what a call returns, asking again as the worker's loop does where the database is busy."""
    waits = pauses(PATIENCE_SECONDS)
    while True:
        try:
            return call()
        except StorageBusy:
            if (pause_seconds := next(waits, None)) is None:
                raise
            done.waits += 1
            time.sleep(pause_seconds)


def work(url: str, done: Done, trial_seconds: float) -> None:
    """Claim, give signs of life, record, until nothing is left."""
    result = synthetic.result(random.Random(0))
    began, kept = time.perf_counter(), done.first_seconds
    study = patiently(lambda: load_study(url), done)
    while True:
        claim = patiently(study.claim, done)
        kept.append(time.perf_counter() - began)
        if claim is None:
            break
        with Heartbeat(study, claim, WorkerOptions().heartbeat_seconds):
            time.sleep(random.uniform(0.0, trial_seconds))
            done.completed += bool(patiently(lambda: study.complete(claim, result), done))  # noqa: B023
        began, kept = time.perf_counter(), done.claim_seconds
    study.close()


def gang(url: str, numbers: Sequence[int], trial_seconds: float, start: Any, ends: Any) -> None:
    """Be some workers, each a thread, and report what they did."""
    logging.disable(logging.CRITICAL)
    each = [Done() for _ in numbers]

    def be(number: int, done: Done) -> None:
        try:
            work(of_worker(url, number), done, trial_seconds)
        except Exception as error:
            done.errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=be, args=pair) for pair in zip(numbers, each, strict=True)]
    start.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ends.put(
        Done(
            first_seconds=[seconds for done in each for seconds in done.first_seconds],
            claim_seconds=[seconds for done in each for seconds in done.claim_seconds],
            completed=sum(done.completed for done in each),
            waits=sum(done.waits for done in each),
            errors=[error for done in each for error in done.errors],
            cpu_seconds=time.process_time(),
            began=began,
            ended=time.perf_counter(),
        )
    )


def shift(what: str, url: str, server_url: str, server_pid: int, options: argparse.Namespace) -> common.Row:
    """Let many workers work off a grid, and return what happened as a row."""
    workers, cells = (options.workers, options.cells) if what == "pooler" else (options.direct, options.direct_cells)
    noop_workers.prepare_ours(url, cells)
    spawn = multiprocessing.get_context("spawn")
    start, ends = spawn.Barrier(options.processes), spawn.Queue()
    gangs = [
        spawn.Process(
            target=gang, args=(url, range(first, workers, options.processes), options.trial_seconds, start, ends)
        )
        for first in range(options.processes)
    ]
    with noop_workers.counted_connections(server_url) as most:
        cpu = cpu_seconds(server_pid)
        for process in gangs:
            process.start()
        parts = [ends.get() for _ in gangs]
        for process in gangs:
            process.join()
        server_seconds = cpu_seconds(server_pid) - cpu
    queue_ms, transaction_ms = pooler_ms(url) if what == "pooler" else (None, None)
    for error in sorted({error for part in parts for error in part.errors})[:5]:
        print(f"{what}: {error}", flush=True)
    seconds = max(part.ended for part in parts) - min(part.began for part in parts)
    firsts = sorted(latency for part in parts for latency in part.first_seconds)
    claims = sorted(latency for part in parts for latency in part.claim_seconds)
    with load_study(server_url) as study:
        verified = study.verify()
    return {
        "workers": workers,
        "through": f"PgBouncer, {SERVER_CONNECTIONS}" if what == "pooler" else "no pooler",
        "cells": cells,
        "complete": verified.complete,
        "doubled": len(verified.doubled),
        "recorded": sum(part.completed for part in parts),
        "ended by errors": sum(len(part.errors) for part in parts),
        "server connections": most[0],
        "asked again": sum(part.waits for part in parts),
        "seconds": seconds,
        "trials/s": cells / seconds,
        "first trial p99 s": firsts[int(0.99 * (len(firsts) - 1))],
        "claim p50 s": statistics.median(claims),
        "claim p99 s": claims[int(0.99 * (len(claims) - 1))],
        "queue ms": queue_ms,
        "transaction ms": transaction_ms,
        "CPU s, workers": sum(part.cpu_seconds for part in parts),
        "CPU s, server": server_seconds,
    }


def pooler_ms(url: str) -> tuple[float, float]:
    """Return how long a transaction waited for a connection to the server, and had it, on average, by PgBouncer."""
    place, _, name = url.rpartition("/")
    with psycopg.connect(f"{place}/pgbouncer", autocommit=True, row_factory=psycopg.rows.dict_row) as own:
        row = next(row for row in own.execute("SHOW STATS").fetchall() if row["database"] == name)
    count = 1e3 * max(1, int(row["total_xact_count"]))
    waited, lasted = float(row["total_wait_time"]), float(row["total_xact_time"])  # the one is part of the other
    return waited / count, (lasted - waited) / count


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a server with all its processes, also those that have ended."""
    own = psutil.Process(pid)
    total = 0.0
    for process in (own, *own.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
        if process == own:
            total += times.children_user + times.children_system
    return total


# --- What is held while trials last -----------------------------------------------------------------------------------


def held(kind: str, url: str, options: argparse.Namespace) -> common.Row:
    """Return how many connections workers hold whose trials last."""
    axes: Any = {"params.x": list(range(options.training))} if kind == "grid" else SEARCH
    sampler = {"name": "grid"} if kind == "grid" else {"name": kind, "trials": options.training}
    document = {"name": kind, "train": {"loop": "nobody:calls"}, "search": axes, "sampler": sampler}
    create_study(StudySpec.from_document(document), url).close()
    training, over = threading.Barrier(options.training + 1), threading.Event()

    def train(number: int) -> None:
        study, done = load_study(of_worker(url, number)), Done()
        claim = patiently(study.claim, done)
        with Heartbeat(study, claim, WorkerOptions().heartbeat_seconds):
            training.wait()
            over.wait()
        study.close()

    threads = [threading.Thread(target=train, args=(number,)) for number in range(options.training)]
    for thread in threads:
        thread.start()
    training.wait()
    time.sleep(2.0)  # the first signs of life
    counts = []
    with psycopg.connect(url, autocommit=True) as own:
        ends = time.monotonic() + options.seconds
        while time.monotonic() < ends:
            counts.append(noop_workers.connections_beside(own))
            time.sleep(0.05)
    over.set()
    for thread in threads:
        thread.join()
    return {
        "training workers": options.training,
        "study": kind,
        "seconds": options.seconds,
        "connections, mean": statistics.fmean(counts),
        "at most": max(counts),
        "share of looks without any": counts.count(0) / len(counts),
    }


# --- What is asked while nothing is to do -----------------------------------------------------------------------------


def idle_gang(url: str, numbers: Sequence[int], settle_seconds: float, seconds: float, ends: Any) -> None:
    """Be some workers that find nothing to do, and report the statements of some seconds after a while."""
    logging.disable(logging.CRITICAL)
    counted = [0]

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        counted[0] += not statement.startswith("BEGIN")

    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    stops, errors = [StopFlag() for _ in numbers], []

    def be(number: int, stop: StopFlag) -> None:
        options = WorkerOptions(device="cpu", allow_mixed=True)
        try:
            run_worker(of_worker(url, number), "idle", options, stop=stop)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=be, args=pair) for pair in zip(numbers, stops, strict=True)]
    for thread in threads:
        thread.start()
    time.sleep(settle_seconds)
    before, cpu = counted[0], time.process_time()
    time.sleep(seconds)
    ends.put((counted[0] - before, time.process_time() - cpu, errors, sum(thread.is_alive() for thread in threads)))
    for stop in stops:
        stop.request()
    for thread in threads:
        thread.join()


def idle(url: str, server_pid: int, options: argparse.Namespace) -> common.Row:
    """Return what workers ask for who wait for the last trial of somebody else."""
    document = {"name": "idle", "train": {"loop": "nobody:calls"}, "search": {"params.x": list(range(400))}}
    study, result = create_study(StudySpec.from_document(document), url), synthetic.result(random.Random(0))
    *others, last = iter(study.claim, None)
    for claim in others:
        study.complete(claim, result, allow_mixed=True)
    spawn = multiprocessing.get_context("spawn")
    ends, processes = spawn.Queue(), min(options.processes, options.idle)
    with Heartbeat(study, last, WorkerOptions().heartbeat_seconds):
        gangs = [
            spawn.Process(
                target=idle_gang,
                args=(url, range(first, options.idle, processes), options.settle, options.seconds, ends),
            )
            for first in range(processes)
        ]
        for process in gangs:
            process.start()
        time.sleep(options.settle)
        cpu = cpu_seconds(server_pid)
        time.sleep(options.seconds)
        server_seconds = cpu_seconds(server_pid) - cpu
        parts = [ends.get() for _ in gangs]
        for process in gangs:
            process.join()
    study.close()
    for error in sorted({error for part in parts for error in part[2]})[:5]:
        print(f"idle: {error}", flush=True)
    return {
        "idle workers": sum(part[3] for part in parts),
        "cells": 400,
        "seconds": options.seconds,
        "statements a minute": round(60 * sum(part[0] for part in parts) / options.seconds),
        "CPU of workers": f"{sum(part[1] for part in parts) / options.seconds:.0%}",
        "CPU of server": f"{server_seconds / options.seconds:.0%}",
    }


# --- All ------------------------------------------------------------------------------------------------------------


@contextmanager
def databases() -> Iterator[tuple[Callable[[], str], int]]:
    """Yield what makes a database of a new server, and the server's process."""
    with ExitStack() as stack:
        server = stack.enter_context(local_postgresql.running(durable=True))
        yield lambda: stack.enter_context(local_postgresql.new_database(server.get_uri())), server.get_pid()


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, dest="parts")
    options.add_argument("--workers", type=int, default=1_000, help="through the pooler")
    options.add_argument("--cells", type=int, default=5_000, help="for them; a multiple of 40")
    options.add_argument("--direct", type=int, default=200, help="workers without a pooler")
    options.add_argument("--direct-cells", type=int, default=600, help="for them; a multiple of 40")
    options.add_argument("--trial-seconds", type=float, default=0.0, help="at most, of the trials of both")
    options.add_argument("--processes", type=int, default=8, help="that workers are threads of")
    options.add_argument("--training", type=int, default=50, help="workers whose trials last")
    options.add_argument("--idle", type=int, default=200, help="workers without anything to do")
    options.add_argument("--settle", type=float, default=45.0, help="seconds before idle workers are counted")
    options.add_argument("--seconds", type=float, default=30.0, help="for which is counted what is held or sent")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    return options.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    info = common.fingerprint(device="cpu", threads=common.usable_cores())
    print(common.describe(info))
    tables: dict[str, list[common.Row]] = {}
    with databases() as (new, pid):
        for part in options.parts:
            url = new()
            if part == "connections":
                tables[part] = [held(kind, new(), options) for kind in ("grid", "tpe")]
            elif part == "server":
                tables[part] = [shift(part, url, url, pid, options)]
            else:
                size = str(SERVER_CONNECTIONS)
                settings = {**local_pgbouncer.CONFIG, "default_pool_size": size, "admin_users": "postgres"}
                with local_pgbouncer.pooled(url, settings=settings) as through:
                    row = shift(part, through, url, pid, options) if part == "pooler" else idle(through, pid, options)
                tables[part] = [row]
            titles = {
                "pooler": "Many workers at once, through a pooler",
                "server": "More workers than the server has connections",
                "connections": "What workers hold that train",
                "idle": "What workers ask for that have nothing to do",
            }
            common.print_table(titles[part], tables[part])
    common.write_json(options, info, **tables)


if __name__ == "__main__":
    common.start(main)
