"""What does a dashboard cost those who look and those who work? Polls of visitors, and workers beside them.

    python -m benchmarks.dashboard                       # 10,000 trials, 20 visitors, 4 workers, SQLite and PostgreSQL

Visitors poll as the page does (every ten seconds, for what comes after the trials that can no longer change); workers
claim trials, sleep as if a GPU trained for a second, and complete them. The workers run alone, beside our dashboard
with its visitors, and beside Optuna's own server with as many, in alternating order. `--trial-seconds 0` leaves only
the database and the processor to wait for, which all of them share here.

`answers` is our dashboard too, with visitors of `/answers` in place of optuna-dashboard's page: they load the page of
the study, ask what to train within a budget, then poll how the study stands; when a newer page is there, they load it
and ask again, as the page does. Workers begin when all have had their first answers.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import random
import re
import socket
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from benchmarks.support import common, local_postgresql, synthetic
from budgettune.machine.fingerprint import fingerprint, usable_cores
from budgettune.records import Slot
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import open_engine, writing
from budgettune.storage.schema import TABLES_OF_A_TRIAL, trials
from budgettune.storage.writes import NewTrial, insert_trials
from budgettune.study.handle import StudyHandle, create_study, load_study
from budgettune.study.ledger import Queued

SPAWN = multiprocessing.get_context("spawn")
NAME = "dashboard"
PATIENCE_SECONDS = 120.0
BUDGET = "90s"  # of the question what to train
STATE = re.compile(rb'"state": "(\w+)"')


@dataclass
class Visits:
    """What visitors saw: seconds of first loads and of polls, and which requests failed."""

    first: list[float] = field(default_factory=list)
    polls: list[float] = field(default_factory=list)
    recommended: list[float] = field(default_factory=list)  # seconds until it was said what to train
    pages: int = 0  # that were loaded again
    failed: Counter[str] = field(default_factory=Counter)  # requests by what went wrong
    largest_bytes: int = 0

    def add(self, other: Visits) -> None:
        """Take in what others saw."""
        self.first += other.first
        self.polls += other.polls
        self.recommended += other.recommended
        self.pages += other.pages
        self.failed += other.failed
        self.largest_bytes = max(self.largest_bytes, other.largest_bytes)


# --- A study of finished trials, and more that wait --------------------------------------------------------------


def spec() -> StudySpec:
    """Return a grid of 10,000 cells, ten values to an axis."""
    search = {
        "prune_rate": [round(0.05 * step, 2) for step in range(10)],
        "batch_size": [16 * step for step in range(1, 11)],
        "train.lr": [round(1e-3 * step, 3) for step in range(1, 11)],
        "pruning.refresh_every": list(range(10, 20)),
    }
    return StudySpec.from_document({"name": NAME, "data": {"name": "digits"}, "search": search})


def make_study(url: str, finished: int) -> StudyHandle:
    """Make a study whose first trials are all complete."""
    study = create_study(spec(), url)
    queue(study, finished=0, waiting=0)
    params, rng = params_of(study.spec), random.Random(0)
    for begin in range(0, finished, 500):
        numbers = range(begin, min(begin + 500, finished))
        with writing(study.engine) as connection:
            rows = [
                synthetic.complete_row(study.spec, n, synthetic.result(rng), params[n % len(params)]) for n in numbers
            ]
            insert_trials(connection, study.study_id, rows)
    return study


def params_of(study_spec: StudySpec) -> list[Any]:
    from budgettune.study.sampling import grid_params

    return grid_params(study_spec)


def queue(study: StudyHandle, *, finished: int, waiting: int) -> None:
    """Take away all trials from a number on, and queue so many new ones."""
    own = sa.select(trials.c.trial_id).where(trials.c.study_id == study.study_id, trials.c.number >= finished)
    params = params_of(study.spec)
    rows = [
        NewTrial("WAITING", Queued(Slot(n, 0), attempt=1).row_keys(study.spec), params=params[n % len(params)])
        for n in range(finished, finished + waiting)
    ]
    with writing(study.engine) as connection:
        for table in (*TABLES_OF_A_TRIAL, trials):
            connection.execute(sa.delete(table).where(table.c.trial_id.in_(own)))
        insert_trials(connection, study.study_id, rows)


# --- Workers -----------------------------------------------------------------------------------------------------


def work(url: str, count: int, trial_seconds: float, start: Any, results: Any) -> None:
    """Claim and complete trials; hand back the seconds that each took beyond its training."""
    study, result, seconds = load_study(url, NAME), synthetic.result(random.Random(0)), []
    start.wait(PATIENCE_SECONDS)
    for _ in range(count):
        began = time.perf_counter()
        claim = study.claim()
        assert claim is not None, "the queue ran dry"
        time.sleep(trial_seconds)
        assert study.complete(claim, result)
        seconds.append(time.perf_counter() - began - trial_seconds)
    results.put(seconds)


def run_workers(url: str, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Return the trials per second of all workers together, and the seconds of every trial beyond its training."""
    start, results = SPAWN.Barrier(options.workers + 1), SPAWN.Queue()
    job = (url, options.each, options.trial_seconds, start, results)
    processes = [SPAWN.Process(target=work, args=job) for _ in range(options.workers)]
    for process in processes:
        process.start()
    start.wait(PATIENCE_SECONDS)
    began = time.perf_counter()
    per_worker = [results.get(timeout=20 * PATIENCE_SECONDS) for _ in processes]
    elapsed = time.perf_counter() - began
    for process in processes:
        process.join()
    return options.workers * options.each / elapsed, list(itertools.chain(*per_worker))


# --- Servers and visitors ----------------------------------------------------------------------------------------


def serve_ours(url: str, port: int) -> None:
    from budgettune.dashboard.app import serve
    from budgettune.web.app import Answers

    serve(url, port=port, answers=Answers)


def serve_optunas(url: str, port: int) -> None:
    import optuna_dashboard

    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # it logs every request
    optuna_dashboard.run_server(url.replace("postgresql://", "postgresql+psycopg://"), port=port)


SERVE: dict[str, Callable[[str, int], None]] = {
    "budgettune": serve_ours,
    "answers": serve_ours,
    "optuna-dashboard": serve_optunas,
}


@contextmanager
def server(kind: str, url: str) -> Iterator[str]:
    """Run a dashboard in a process of its own; yield its address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = SPAWN.Process(target=SERVE[kind], args=(url, port))
    process.start()
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address)
        yield address
    finally:
        process.terminate()
        process.join()


def _wait_for(address: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            get(f"{address}/api/meta")
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no server on {address}")


def get(url: str, *, packed: bool = False) -> tuple[float, bytes]:
    began = time.perf_counter()
    request = urllib.request.Request(url, headers={"Accept-Encoding": "gzip"} if packed else {})
    with urllib.request.urlopen(request, timeout=PATIENCE_SECONDS) as response:
        body = response.read()
    return time.perf_counter() - began, body


def visit(page: str, pause: float, poll_seconds: float, loaded: Any, stop: Any) -> Visits:
    """Load a study once, then poll it as the page does until told to stop; polls begin after a pause."""
    seen, after = Visits(), 0
    try:
        seconds, body = get(f"{page}?after=0")
        seen.first.append(seconds)
        after = settled(body)
    except OSError as error:
        seen.failed[repr(error)] += 1
    loaded.release()
    wait_seconds = pause
    while not stop.wait(wait_seconds):
        wait_seconds = poll_seconds
        try:
            seconds, body = get(f"{page}?after={after}")
        except OSError as error:
            seen.failed[repr(error)] += 1
            continue
        seen.polls.append(seconds)
        seen.largest_bytes = max(seen.largest_bytes, len(body))
        after += settled(body)
    return seen


def visit_answers(address: str, pause: float, poll_seconds: float, loaded: Any, stop: Any) -> Visits:
    """Load a study's page of now, ask what to train, then poll as the page does until told to stop."""
    seen, mark = Visits(), ""
    page, api = f"{address}/answers/{NAME}", f"{address}/api/answers/{NAME}"
    began = time.perf_counter()
    try:
        while not mark:  # the first page of a study is made while its visitors see one that waits
            _, body = get(page, packed=True)
            mark = json.loads(get(f"{api}/standing")[1])["page"] or ""
            if not mark:
                time.sleep(1)
        seen.first.append(time.perf_counter() - began)
    except OSError as error:
        seen.failed[repr(error)] += 1
    _ask(api, seen, stop)
    loaded.release()
    wait_seconds = pause
    while not stop.wait(wait_seconds):
        wait_seconds, began = poll_seconds, time.perf_counter()
        try:
            now = json.loads(get(f"{api}/standing")[1])["page"]
            if now != mark:
                _, body = get(page, packed=True)
                mark, seen.pages = now, seen.pages + 1
                seen.largest_bytes = max(seen.largest_bytes, len(body))
        except OSError as error:
            seen.failed[repr(error)] += 1
            continue
        seen.polls.append(time.perf_counter() - began)
        if seen.pages > len(seen.recommended) - 1:
            _ask(api, seen, stop)
    return seen


def _ask(api: str, seen: Visits, stop: Any) -> None:
    """Ask what to train, and again as long as the server says that it is busy."""
    began = time.perf_counter()
    while not stop.is_set():
        try:
            get(f"{api}/recommend?budget={BUDGET}")
            break
        except urllib.error.HTTPError as refusal:
            if refusal.code != 503:
                raise
            stop.wait(float(refusal.headers["Retry-After"]))
        except OSError as error:
            seen.failed[repr(error)] += 1
    seen.recommended.append(time.perf_counter() - began)


def settled(body: bytes) -> int:
    """Return how many trials from the first on can no longer change."""
    # Not parsed: visitors' own work is none of the servers', and all share the processor here.
    states = STATE.findall(body.partition(b'"best_trials"')[0])
    return next((place for place, state in enumerate(states) if state in (b"Running", b"Waiting")), len(states))


def visitors(
    kind: str, address: str, study_id: int, count: int, poll_seconds: float, loaded: Any, stop: Any, results: Any
) -> None:
    """Be so many visitors, a thread each."""
    look, page = (visit_answers, address) if kind == "answers" else (visit, f"{address}/api/studies/{study_id}")
    with ThreadPoolExecutor(count) as pool:
        pauses = [poll_seconds * number / count for number in range(count)]
        visits = Visits()
        for seen in pool.map(lambda pause: look(page, pause, poll_seconds, loaded, stop), pauses):
            visits.add(seen)
    results.put(visits)


@contextmanager
def crowd(kind: str, address: str, study_id: int, options: argparse.Namespace) -> Iterator[Visits]:
    """Have visitors on a page; yield what they saw, complete once they have left."""
    loaded, stop, results, seen = SPAWN.Semaphore(0), SPAWN.Event(), SPAWN.Queue(), Visits()
    job = (kind, address, study_id, options.clients, options.poll_seconds, loaded, stop, results)
    process = SPAWN.Process(target=visitors, args=job)
    process.start()
    try:
        for _ in range(options.clients):
            loaded.acquire(timeout=10 * PATIENCE_SECONDS)
        yield seen
    finally:
        stop.set()
        seen.add(results.get(timeout=10 * PATIENCE_SECONDS))
        process.join()


# --- The comparison ----------------------------------------------------------------------------------------------


def compare(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return what workers and visitors saw on one database."""
    study = make_study(url, options.trials)
    waiting = options.workers * options.each
    rates, seconds, visits = defaultdict(list), defaultdict(list), defaultdict(Visits)
    for _, kind in common.alternate(("nobody", *options.servers), options.rounds):
        queue(study, finished=options.trials, waiting=waiting)
        if kind == "nobody":
            rate, each = run_workers(url, options)
        else:
            with server(kind, url) as address, crowd(kind, address, study.study_id, options) as seen:
                rate, each = run_workers(url, options)
                time.sleep(options.poll_seconds)  # a round of polls with nobody writing
            visits[kind].add(seen)
        rates[kind].append(rate)
        seconds[kind] += each
    return {"rates": rates, "seconds": seconds, "visits": visits}


def worker_rows(measured: dict[str, Any]) -> list[dict[str, Any]]:
    alone = statistics.median(measured["rates"]["nobody"])
    return [
        {
            "beside": kind,
            "trials/s": statistics.median(rates),
            "of rounds": f"{min(rates):.3g} to {max(rates):.3g}",
            "slower by": f"{alone / statistics.median(rates) - 1:.1%}",
            "database ms": 1e3 * statistics.median(measured["seconds"][kind]),
            "worst ms": 1e3 * max(measured["seconds"][kind]),
        }
        for kind, rates in measured["rates"].items()
    ]


def visitor_rows(measured: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "server": kind,
            "first load s": statistics.median(seen.first) if seen.first else None,
            "worst": max(seen.first, default=None),
            "polls": len(seen.polls),
            "poll s": statistics.median(seen.polls) if seen.polls else None,
            "worst poll s": max(seen.polls, default=None),
            "recommend s": statistics.median(seen.recommended) if seen.recommended else None,
            "pages again": seen.pages,
            "largest MB": seen.largest_bytes / 1e6,
            "failed": seen.failed.total(),
            "of what": ", ".join(f"{count} {reason}" for reason, count in seen.failed.items()),
        }
        for kind, seen in measured["visits"].items()
    ]


@contextmanager
def database(kind: str) -> Iterator[str]:
    """Yield the URL of an empty database."""
    with ExitStack() as stack:
        if kind == "sqlite":
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="budgettune-", ignore_cleanup_errors=True))
            yield f"sqlite:///{folder}/study.db"
        else:
            server_url = stack.enter_context(local_postgresql.server(durable=True))
            yield stack.enter_context(local_postgresql.new_database(server_url))


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    options.add_argument("--servers", nargs="+", choices=list(SERVE), default=list(SERVE))
    options.add_argument("--trials", type=int, default=10_000, help="finished trials of the study")
    options.add_argument("--clients", type=int, default=20, help="visitors")
    options.add_argument("--poll-seconds", type=float, default=10.0, help="between two polls of a visitor")
    options.add_argument("--workers", type=int, default=4)
    options.add_argument("--each", type=int, default=40, help="trials that each worker completes in a round")
    options.add_argument("--trial-seconds", type=float, default=1.0, help="that each trial would train")
    options.add_argument("--rounds", type=int, default=3, help="in alternating order")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    options = options.parse_args(arguments)
    info = fingerprint(device="cpu", threads=usable_cores())
    print(common.describe(info))
    tables: dict[str, Any] = {}
    for kind in options.databases:
        with database(kind) as url:
            measured = compare(url, options)
            open_engine(url).dispose()
        tables[kind] = {"workers": worker_rows(measured), "visitors": visitor_rows(measured)}
        common.print_table(
            f"{kind}: {options.workers} workers, trials of {options.trial_seconds:g} s", tables[kind]["workers"]
        )
        common.print_table(f"{kind}: {options.clients} visitors of {options.trials:,} trials", tables[kind]["visitors"])
    common.write_json(options, info, **tables)


if __name__ == "__main__":
    common.start(main)
