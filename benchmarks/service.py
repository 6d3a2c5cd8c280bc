"""What does the service cost beside plain Optuna: per trial, with many workers, and for an answer?

    python -m benchmarks.service                                   # SQLite and PostgreSQL, some minutes
    python -m benchmarks.service --databases sqlite --parts cost   # one part on one database

Three parts. `cost`: claim and record against Optuna's ask and tell, alternating, in one process; statements and
transactions counted by SQLAlchemy's events. `workers`: processes that do nothing but claim and record, against
`study.optimize` with a `GridSampler`; what ran twice and what was lost is counted afterwards. `answers`: `budgettune
best` and `front` against `study.best_trials`, whole processes from start to end, on studies of results with a curve
of 30 epochs. Optuna's storage is made as its documentation makes it, for `workers` with heartbeats. The PostgreSQL
server runs on this machine and waits for the disk. Linux only.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa

from benchmarks.support import common, local_postgresql, noop_workers, synthetic
from budgettune.records import trial_attributes
from budgettune.study.handle import load_study

PARTS = ("cost", "workers", "answers")
TARGET_SECONDS, TARGET_MB = 1.0, 200
BUDGET = "100s"
PEAK = """import atexit, re, runpy, sys
atexit.register(lambda: print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], file=sys.stderr))
"""
OURS = PEAK + "runpy.run_module('budgettune', run_name='__main__', alter_sys=True)"
OPTUNAS = PEAK + "import optuna\nprint(len(optuna.load_study(study_name=sys.argv[1], storage=sys.argv[2]).best_trials))"

NewDatabase = Callable[[], str]


# --- Cost of a trial ------------------------------------------------------------------------------------------------


class Counter:
    """Counts what an engine sends: statements, and commits."""

    def __init__(self, engine: sa.Engine) -> None:
        self.statements = self.commits = 0
        sa.event.listen(engine, "before_cursor_execute", self._on_statement)
        sa.event.listen(engine, "commit", self._on_commit)

    def _on_statement(self, _connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        self.statements += not statement.startswith("BEGIN")

    def _on_commit(self, _connection: Any) -> None:
        self.commits += 1


def ours(url: str, cells: int) -> tuple[Callable[[], object], Counter]:
    """Return what runs one trial of ours, and the counter of its database."""
    noop_workers.prepare_ours(url, cells)
    study, result = load_study(url), synthetic.result(random.Random(0))

    def one_trial() -> None:
        study.machine_key()  # as the worker asks, before it claims
        claim = study.claim()
        assert claim is not None
        study.complete(claim, result)

    return one_trial, Counter(study.engine)


def our_waiting(url: str, cells: int, *, is_idle: bool) -> tuple[Callable[[], object], Counter]:
    """Return a sign of life of ours, or what an idle worker asks while the rest runs elsewhere; and the counter."""
    noop_workers.prepare_ours(url, cells)
    study = load_study(url)
    claims = list(iter(study.claim, None))

    def look() -> None:
        if study.claim() is None and not study.is_finished():
            study.reconcile()
            study.claim()

    return (look if is_idle else lambda: study.heartbeat(claims[0].trial_id)), Counter(study.engine)


def optunas(
    url: str, cells: int, *, sampler: optuna.samplers.BaseSampler, attributes: bool
) -> tuple[Callable[[], object], Counter]:
    """Return what runs one trial by ask and tell, and the counter of its database."""
    noop_workers.prepare_optunas(url)
    storage, result = noop_workers.plain_storage(url), synthetic.result(random.Random(0))
    study = optuna.load_study(study_name=noop_workers.STUDY, storage=storage, sampler=sampler)
    document = trial_attributes(result)

    def one_trial() -> None:
        trial = study.ask()
        noop_workers.suggest_all(trial, cells)
        if attributes:
            trial.set_user_attr("result", document)
        study.tell(trial, [result.train_seconds, result.test_accuracy])

    return one_trial, Counter(storage.engine)


def optunas_heartbeat(url: str) -> tuple[Callable[[], object], Counter]:
    """Return a sign of life of Optuna's, and the counter of its database."""
    noop_workers.prepare_optunas(url)
    storage = noop_workers.plain_storage(url)
    trial_id = storage.create_new_trial(storage.get_study_id_from_name(noop_workers.STUDY))
    return (lambda: storage.record_heartbeat(trial_id)), Counter(storage.engine)


def cost(database: str, new: NewDatabase, cells: int, trials: int) -> Iterator[common.Row]:
    """Yield a row per way to run a trial and to wait for one, the cheapest of Optuna's first."""
    plain = optuna.samplers.RandomSampler(0)
    contestants = {
        "ask, tell": optunas(new(), cells, sampler=plain, attributes=False),
        "ask, tell, one attribute": optunas(new(), cells, sampler=plain, attributes=True),
        "the same, GridSampler": optunas(new(), cells, sampler=noop_workers.grid_sampler(cells), attributes=True),
        "claim, complete (ours)": ours(new(), cells),
        "heartbeat": optunas_heartbeat(new()),
        "heartbeat (ours)": our_waiting(new(), 40, is_idle=False),
        "look of an idle worker (ours)": our_waiting(new(), 40, is_idle=True),
    }
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for name in contestants:
        contestants[name][0]()  # imports, connections, caches
    before = {name: (counter.statements, counter.commits) for name, (_, counter) in contestants.items()}
    for _, name in common.alternate(list(contestants), trials):
        began = time.perf_counter()
        contestants[name][0]()
        times[name].append(1_000 * (time.perf_counter() - began))
    for name, (_, counter) in contestants.items():
        ms, spread = common.median_and_spread(times[name])
        yield {
            "database": database,
            "cells": cells,
            "what": name,
            "ms": ms,
            "±": f"{spread:.0%}",
            "statements": (counter.statements - before[name][0]) / trials,
            "transactions": (counter.commits - before[name][1]) / trials,
        }


# --- Many workers ---------------------------------------------------------------------------------------------------


def workers(database: str, new: NewDatabase, cells: int, counts: list[int]) -> Iterator[common.Row]:
    """Yield a row per number of workers and side."""
    for count in counts:
        for kind in ("Optuna", "ours"):
            shift = noop_workers.shift(kind, new(), cells, count)
            facts = asdict(shift)
            yield {
                "database": database,
                "workers": count,
                "by": kind,
                "trials/s": shift.complete / shift.seconds,
                **{
                    name.replace("_", " "): facts[name]
                    for name in ("complete", "doubled", "lost", "open_rows", "crashed")
                },
                "connections per worker": None if shift.connections is None else shift.connections / count,
            }


# --- Answers --------------------------------------------------------------------------------------------------------


def whole_process(code: str, *arguments: str) -> tuple[float, float]:
    """Return the seconds and the peak MiB of a Python process from start to end."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"error: {' '.join(arguments)}: {done.stderr}")
    return seconds, int(done.stderr.split()[-1]) / 1_024


def answers(database: str, new: NewDatabase, trials: int, rounds: int) -> Iterator[common.Row]:
    """Yield a row per question to a study of that size."""
    url = new()
    study = synthetic.make_study(url, trials)
    name = study.name
    study.close()
    questions = {
        "study.best_trials": (OPTUNAS, name, url.replace("postgresql:", "postgresql+psycopg:")),
        "budgettune best": (OURS, "best", "--budget", BUDGET, "--storage", url),
        "budgettune front": (OURS, "front", "--storage", url),
        "budgettune study show": (OURS, "study", "show", "--storage", url),
    }
    for question, words in questions.items():
        # Optuna takes the better part of a minute for the largest: once says enough.
        runs = [whole_process(*words) for _ in range(1 if words[0] == OPTUNAS and trials > 1_000 else rounds)]
        seconds, peak_mb = statistics.median(run[0] for run in runs), max(run[1] for run in runs)
        within = seconds < TARGET_SECONDS and peak_mb < TARGET_MB
        yield {
            "database": database,
            "trials": trials,
            "question": question,
            "s": seconds,
            "MiB": peak_mb,
            f"under {TARGET_SECONDS:g} s and {TARGET_MB} MiB": within,
        }


# --- All of it ------------------------------------------------------------------------------------------------------


@contextmanager
def databases(names: list[str]) -> Iterator[dict[str, NewDatabase]]:
    """Yield what makes an empty database, for each kind."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="budgettune-service-"))
        makers: dict[str, NewDatabase] = {}
        if "sqlite" in names:
            makers["SQLite"] = lambda: f"sqlite:///{folder}/{random.getrandbits(64):x}.db"
        if "postgresql" in names:
            server = stack.enter_context(local_postgresql.server(durable=True))
            makers["PostgreSQL"] = lambda: stack.enter_context(local_postgresql.new_database(server))
        yield makers


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["sqlite", "postgresql"])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--cells", type=int, nargs="+", default=[400, 10_000], help="grids of `cost`")
    options.add_argument("--trials", type=int, default=60, help="of each kind in `cost`")
    options.add_argument("--workers", type=int, nargs="+", default=[1, 4, 8, 16])
    options.add_argument("--grid", type=int, default=200, help="cells that the workers share: a multiple of 40")
    options.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 50_000], help="studies of `answers`")
    options.add_argument("--rounds", type=int, default=3, help="of each question")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Run the parts on each kind of database, and print a table for each part."""
    options = parse(arguments)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    info = common.fingerprint(device="cpu", threads=common.usable_cores())
    print(common.describe(info), f"Optuna {optuna.__version__}, SQLAlchemy {sa.__version__}", sep="\n")
    tables: dict[str, list[common.Row]] = {part: [] for part in options.parts}
    with databases(options.databases) as makers:
        for database, new in makers.items():
            rows = {
                "cost": lambda d=database, n=new: (r for c in options.cells for r in cost(d, n, c, options.trials)),
                "workers": lambda d=database, n=new: workers(d, n, options.grid, options.workers),
                "answers": lambda d=database, n=new: (
                    r for size in options.sizes for r in answers(d, n, size, options.rounds)
                ),
            }
            for part in options.parts:
                for row in rows[part]():
                    print(part, *row.values(), file=sys.stderr, flush=True)
                    tables[part].append(row)
    titles = {
        "cost": "One trial, one process",
        "workers": f"A grid of {options.grid} cells whose trials cost nothing",
        "answers": f"A whole process per question (best within {BUDGET})",
    }
    for part, rows in tables.items():
        common.print_table(titles[part], rows)
    common.write_json(options, info, **tables)


if __name__ == "__main__":
    common.start(main)
