"""What does it cost the database to have a large study: to draw, to wait, and to be made?

    python -m benchmarks.claims                                   # this checkout alone
    python -m benchmarks.claims --before FOLDER --rounds 5        # beside another one, alternating

Three parts. `draw`: the claim of a point from a sampled study that holds so many finished trials, and of it what runs
while the study is locked, so that no other worker can draw; the first claim of a fresh process is shown apart.
`idle`: statements and time of one look of a worker that finds nothing, because the last trial runs elsewhere. `create`:
`study create` from the text of a study file, for an axis of many values and for a grid of many cells. FOLDER is another
checkout: this file is run with its package.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import sqlalchemy as sa

from benchmarks.support import common, local_postgresql, synthetic
from budgettune.spec.study_spec import StudySpec
from budgettune.storage import transactions
from budgettune.storage.connection import writing
from budgettune.storage.schema import trial_params, trial_values, trials
from budgettune.storage.writes import insert_trials
from budgettune.study.handle import StudyHandle, create_study, load_study
from budgettune.study.sampling import search_space, storing
from budgettune.worker.loop import run_worker
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag

PARTS = ("draw", "idle", "create")
ROWS_PER_TRANSACTION = 2_000
CURVE_EPOCHS = 2
LONGEST_AXIS = 10_000
Search = dict[str, Any]
RANGES: Search = {"train.lr": {"low": 1e-4, "high": 1e-1, "log": True}, "scale": {"low": 1.0, "high": 1.4}}
UNDER_THE_LOCK = ("reserve", "fill_reserved")


# --- One measurement, with whichever package this process has ---------------------------------------------------------


def sampled_study(url: str, finished: int) -> StudyHandle:
    """Make a study without an end that holds so many finished trials, each with all that a worker records."""
    spec = StudySpec.from_document({"name": "claims", "search": RANGES, "sampler": {"name": "random"}})
    study, rng, space = create_study(spec, url), random.Random(0), search_space(spec)
    for first in range(0, finished, ROWS_PER_TRANSACTION):
        rows = []
        for cell in range(first, min(first + ROWS_PER_TRANSACTION, finished)):
            params = {"train.lr": 10 ** rng.uniform(-4, -1), "scale": rng.uniform(1.0, 1.4)}
            made = synthetic.result(rng, params, epochs=CURVE_EPOCHS)
            rows.append(synthetic.complete_row(spec, cell, made, storing(space)(params)))
        with writing(study.engine) as connection:
            insert_trials(connection, study.study_id, rows)
    refresh(study)
    return study


def refresh(study: StudyHandle) -> None:
    """Let the planner know of many new rows, as a server does by itself within minutes."""
    with writing(study.engine) as connection:
        connection.execute(sa.text("ANALYZE"))


def draw(url: str, finished: int, rounds: int) -> common.Row:
    """Return ms of a claim, and of what it does under the study's lock."""
    study = sampled_study(url, finished)
    locked_ms: list[float] = []

    def timed(name: str) -> Any:
        function = getattr(transactions, name)

        def call(*args: Any, **options: Any) -> Any:
            began = time.perf_counter()
            answer = function(*args, **options)
            locked_ms[-1] += 1_000 * (time.perf_counter() - began)
            reserve_ms.append(1_000 * (time.perf_counter() - began)) if name == "reserve" else None
            return answer

        return mock.patch.object(transactions, name, call)

    reserve_ms: list[float] = []
    claim_ms: list[float] = []
    fresh_ms: list[float] = []
    with ExitStack() as stack:
        for name in UNDER_THE_LOCK:
            stack.enter_context(timed(name))
        for times in (fresh_ms, claim_ms):
            for _ in range(3 if times is fresh_ms else rounds):
                if times is fresh_ms:
                    study.close()
                    study = load_study(url)
                locked_ms.append(0.0)
                began = time.perf_counter()
                assert study.claim() is not None
                times.append(1_000 * (time.perf_counter() - began))
            if times is fresh_ms:  # imports, connections
                locked_ms.clear()
                reserve_ms.clear()
    study.close()
    return {
        "reserve, ms": statistics.median(reserve_ms),
        "locked, ms": statistics.median(locked_ms),
        "claim, ms": statistics.median(claim_ms),
        "first claim of a handle, ms": statistics.median(fresh_ms),
    }


def idle(url: str, cells: int, rounds: int) -> common.Row:
    """Return statements and ms of a worker's look at a grid whose last trial runs elsewhere."""
    search = {"train.lr": [0.001 * (1 + step) for step in range(cells // 4)], "scale": [1.0, 2.0, 3.0, 4.0]}
    study = create_study(StudySpec.from_document({"name": "claims", "search": search}), url)
    claim = study.claim()
    assert claim is not None
    with writing(study.engine) as connection:
        ended = sa.select(trials.c.trial_id).where(trials.c.trial_id != claim.trial_id)
        for objective, value in enumerate((10.0, 0.9)):
            columns = [
                ended.selected_columns[0],
                sa.literal(objective),
                sa.literal(value),
                sa.literal("FINITE", trial_values.c.value_type.type),
            ]
            rows = sa.select(*columns).where(trials.c.trial_id != claim.trial_id)
            connection.execute(sa.insert(trial_values).from_select(list(VALUE_COLUMNS), rows))
        connection.execute(sa.update(trials).where(trials.c.trial_id.in_(ended)).values(state="COMPLETE"))
    refresh(study)
    sent, moments = [0], [0.0]
    statements: list[int] = []
    ms: list[float] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        sent[0] += not statement.startswith(("BEGIN", "PRAGMA"))

    def wait(stop: StopFlag, *_: Any) -> bool:
        study.heartbeat(claim.trial_id)
        now = time.perf_counter()
        statements.append(sent[0])
        ms.append(1_000 * (now - moments[0]))
        if len(ms) >= rounds + 3:
            stop.request()
        sent[0], moments[0] = 0, time.perf_counter()
        return False

    sa.event.listen(sa.Engine, "before_cursor_execute", note)
    try:
        with mock.patch.object(StopFlag, "wait", wait):
            run_worker(url, study.name, WorkerOptions(device="cpu", allow_mixed=True))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", note)
    study.close()
    # One of the statements, and its time, is the heartbeat that keeps the trial alive.
    return {"statements": statistics.median(statements[3:]) - 1, "look, ms": statistics.median(ms[3:])}


VALUE_COLUMNS = ("trial_id", "objective", "value", "value_type")


def create(url: str, search: Search, name: str) -> common.Row:
    """Return seconds of what `study create` does with a grid, of that its check, and what is stored of the axes."""
    head = f'name = "{name}"\n[train]\nloop = "mine:train"\n[search]\n'
    text = head + "".join(f'"params.{key}" = {json.dumps(axis)}\n' for key, axis in search.items())
    began = time.perf_counter()
    spec = StudySpec.from_toml(text)
    checked = time.perf_counter()
    with create_study(spec, url) as study:
        seconds = time.perf_counter() - began
        with study.engine.connect() as connection:
            own = sa.select(trials.c.trial_id).where(trials.c.study_id == study.study_id)
            lengths = sa.select(sa.func.sum(sa.func.length(trial_params.c.distribution_json)))
            size = connection.scalar(lengths.where(trial_params.c.trial_id.in_(own)))
    figures = {"checked, s": checked - began, "created, s": seconds, "distributions, MB": int(size or 0) / 1e6}
    return {f"{name}: {figure}": value for figure, value in figures.items()}


def grids(url: str, size: int) -> common.Row:
    """Return the same of an axis of so many numbers, and of so many texts; or where they are many, of so many cells."""
    create_study(StudySpec.from_document({"name": "first"}), url).close()  # which makes the tables
    numbers = [0.0001 * (1 + step) for step in range(size)]
    if size > LONGEST_AXIS:
        return create(url, {"a": numbers[: size // 100], "b": [1, 2, 3, 4], "c": list(range(25))}, "cells")
    texts = [f"recipe {place}" for place in range(size)]
    return {**create(url, {"a": numbers}, "numbers"), **create(url, {"a": texts}, "texts")}


def measure(part: str, url: str, size: int, rounds: int) -> common.Row:
    """Return what one part measured at one size."""
    logging.disable(logging.INFO)
    if part == "draw":
        return draw(url, size, rounds)
    if part == "idle":
        return idle(url, size, rounds)
    return grids(url, size)


# --- Both sides, alternating ----------------------------------------------------------------------------------------


def in_a_process(folder: Path | None, part: str, url: str, size: int, rounds: int) -> common.Row:
    """Return the same, measured by the package of a checkout; None is this one."""
    if folder is None:
        return common.fresh_process(measure, part, url, size, rounds)
    words = [sys.executable, __file__, "--measure", part, url, str(size), str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"error: {folder}: {done.stderr}")
    row: common.Row = json.loads(done.stdout.splitlines()[-1])
    return row


@contextmanager
def databases(names: list[str]) -> Iterator[dict[str, Any]]:
    """Yield what opens an empty database, for each kind."""
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="budgettune-claims-"))
        makers: dict[str, Any] = {}
        if "postgresql" in names:
            server = stack.enter_context(local_postgresql.server())
            makers["PostgreSQL"] = lambda: local_postgresql.new_database(server)
        if "sqlite" in names:
            makers["SQLite"] = lambda: _new_file(folder)
        yield makers


@contextmanager
def _new_file(folder: str) -> Iterator[str]:
    path = Path(folder) / f"{random.getrandbits(64):x}.db"
    yield f"sqlite:///{path}"
    path.unlink()


def rows_of(part: str, options: argparse.Namespace, makers: dict[str, Any]) -> Iterator[common.Row]:
    """Yield a row for each database, size and figure of a part: before, after, and how many times less."""
    sides: dict[str, Path | None] = {"before": options.before, "after": None} if options.before else {"after": None}
    for database, new in makers.items():
        for size in getattr(options, part):
            found = {}
            for side, folder in sides.items():
                with new() as url:
                    found[side] = in_a_process(folder, part, url, size, options.rounds)
                print(database, part, size, side, dict(found[side]), file=sys.stderr, flush=True)
            for figure, value in found["after"].items():
                row = {"database": database, NOUNS[part]: size, "figure": figure}
                if "before" in found:
                    row |= {"before": found["before"][figure], "after": value}
                    row |= {"times less": found["before"][figure] / value if value else None}
                yield row if "before" in found else row | {"value": value}


NOUNS = {"draw": "finished trials", "idle": "cells", "create": "values of an axis, or cells"}
TITLES = {
    "draw": "A claim that draws a point",
    "idle": "A look of a worker that finds nothing",
    "create": "study create",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--before", type=Path, metavar="FOLDER", help="another checkout, measured beside this one")
    options.add_argument("--databases", nargs="+", choices=["sqlite", "postgresql"], default=["postgresql", "sqlite"])
    options.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options.add_argument("--draw", type=int, nargs="+", default=[400, 10_000, 50_000], help="finished trials")
    options.add_argument("--idle", type=int, nargs="+", default=[400, 10_000], help="cells: multiples of 4")
    options.add_argument(
        "--create", type=int, nargs="+", default=[1_000, 10_000, 100_000], help="values of an axis; more are cells"
    )
    options.add_argument("--rounds", type=int, default=15, help="of a draw and of a look; the median counts")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    options.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    return options.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure the parts on each kind of database, and print a table for each part."""
    options = parse(arguments)
    if options.measure:
        part, url, size, rounds = options.measure
        print(json.dumps(measure(part, url, int(size), int(rounds))))
        return
    info = common.fingerprint(device="cpu", threads=common.usable_cores())
    print(common.describe(info))
    with databases(options.databases) as makers:
        tables = {part: list(rows_of(part, options, makers)) for part in options.parts}
    for part, rows in tables.items():
        common.print_table(TITLES[part], rows)
    common.write_json(options, info, **tables)


if __name__ == "__main__":
    common.start(main)
