"""Can a few trials say what never ran? Time, accuracy and recommendations, judged on a recorded table.

    python -m benchmarks.predict                                    # judge, on benchmarks/tables/fashion-table.json.xz
    python -m benchmarks.predict --probe STUDY --threads 2          # probe every step of a study, on its machine
    python -m benchmarks.predict --record STUDY --table FILE        # a finished study as a table

Random designs of some cells, one seed each, predict all others: time, accuracy, and the best cell for a budget. The
truth of a cell is the mean of its seeds; intervals are those of single runs. Baselines: the best observed within the
budget, a line in arithmetic, a Gaussian process and a random forest on raw params (scikit-learn), each with a normal
interval.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.support import common, own_table
from benchmarks.support.own_table import Floats, Grid, Ints
from benchmarks.support.predict_baselines import BASELINES, Guess, ours
from budgettune.predict.run_time import TimeModel
from budgettune.predict.workload import Workload
from budgettune.records import TrialRecord

TABLE = Path(__file__).parent / "tables" / "fashion-table.json.xz"
LEVELS = (0.5, 0.8, 0.9)
CONFIDENCE = 0.9
BUDGETS = 10
ALL_ONCE = "best observed of all cells"
ALL_KNOWN = "knowing all, confidence 0.9"

Method = Callable[[Sequence[TrialRecord], Sequence[Workload]], Guess]


def methods(grid: Grid) -> dict[str, Method]:
    """Return what is compared, ours first."""
    workloads, probes = grid.workloads, grid.table.probes
    compared: dict[str, Method] = {"BudgetTune": partial(ours, workloads)}
    if probes:
        compared["BudgetTune, probed"] = partial(ours, workloads, probes=probes)
    return compared | {name: partial(method, workloads) for name, method in BASELINES.items()}


# --- Prediction -----------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What one method's predictions were worth, over all draws of one design."""

    time_errors: list[Floats] = field(default_factory=list)
    measured: list[NDArray[np.bool_]] = field(default_factory=list)
    time_shares: list[Floats] = field(default_factory=list)
    accuracy_shares: list[Floats] = field(default_factory=list)
    misses: list[Floats] = field(default_factory=list)
    spreads: list[Floats] = field(default_factory=list)
    ranks: list[float] = field(default_factory=list)

    def add(self, guess: Guess, seconds: Floats, accuracies: Floats) -> None:
        """Take in the predictions of some cells: float64[cells, runs] each."""
        truth = accuracies.mean(1)
        self.time_errors.append(np.abs(np.exp(guess.log_seconds) / seconds.mean(1) - 1))
        known = guess.is_measured
        self.measured.append(np.zeros(len(truth), dtype=bool) if known is None else known)
        self.time_shares.append(np.array([guess.time_shares(runs) for runs in seconds.T]).ravel())
        self.accuracy_shares.append(np.array([guess.accuracy_shares(runs) for runs in accuracies.T]).ravel())
        self.misses.append((guess.accuracy - truth) ** 2)
        self.spreads.append((truth - truth.mean()) ** 2)
        ordered = np.ptp(guess.accuracy) > 0  # who says the same of all has no order
        self.ranks.append(float(spearmanr(guess.accuracy, truth).statistic) if ordered else 0.0)

    def time_row(self) -> dict[str, Any]:
        """Return errors of time in per cent where the step was timed and where not, and coverage."""
        errors, measured = np.concatenate(self.time_errors), np.concatenate(self.measured)
        return {
            **_errors("step timed", errors[measured]),
            **_errors("never timed", errors[~measured]),
            **_coverage(np.concatenate(self.time_shares)),
        }

    def accuracy_row(self) -> dict[str, Any]:
        """Return R² (median of the draws), rank correlation, error in points, and coverage."""
        explained = [1 - np.sum(miss) / np.sum(spread) for miss, spread in zip(self.misses, self.spreads, strict=True)]
        return {
            "R²": float(np.median(explained)),
            "rank correlation": float(np.median(self.ranks)),
            "error, points": 100 * float(np.sqrt(np.mean(np.concatenate(self.misses)))),
            **_coverage(np.concatenate(self.accuracy_shares)),
        }


def _errors(name: str, errors: Floats) -> dict[str, Any]:
    if not len(errors):
        return {f"{name}: median": None, f"{name}: 95%": None}
    return {
        f"{name}: median": f"{100 * np.median(errors):.1f}%",
        f"{name}: 95%": f"{100 * np.quantile(errors, 0.95):.1f}%",
    }


def _coverage(shares: Floats) -> dict[str, str]:
    """Return how many runs lay inside the interval that should hold a level of them."""
    return {f"in {level:.0%}": f"{np.mean(np.abs(shares - 0.5) <= level / 2):.0%}" for level in LEVELS}


def random_designs(grid: Grid, size: int, draws: int) -> Iterator[tuple[list[TrialRecord], Ints]]:
    """Yield trials of random cells and the cells that never ran."""
    for draw in range(draws):
        rng = np.random.default_rng([size, draw])
        order = rng.permutation(len(grid.cells))
        yield grid.draw(order[:size], rng), order[size:]


def left_out(grid: Grid, name: str) -> Iterator[tuple[list[TrialRecord], Ints]]:
    """Yield one trial of each cell but those of one value of a setting, and the cells of that value."""
    values = np.array([cell.params[name] for cell in grid.cells])
    for value in np.unique(values):
        rng = np.random.default_rng(0)
        yield grid.draw(np.flatnonzero(values != value), rng), np.flatnonzero(values == value)


def predicted(grid: Grid, designs: Iterator[tuple[list[TrialRecord], Ints]]) -> dict[str, Tally]:
    """Return what each method's predictions of the cells that never ran are worth."""
    tallies: dict[str, Tally] = {name: Tally() for name in methods(grid)}
    for trials, rest in designs:
        for name, method in methods(grid).items():
            guess = method(trials, [grid.cells[cell] for cell in rest.tolist()])
            tallies[name].add(guess, grid.seconds[rest], grid.accuracies[rest])
    return tallies


def time_floor(grid: Grid) -> Floats:
    """Return the error of each cell's time when every run of all other cells is known: what the clock itself allows."""
    errors = []
    for place, cell in enumerate(grid.cells):
        others = [trial for trial in grid.table.trials if grid.workloads.of(trial.params) is not cell]
        (time,) = TimeModel(grid.workloads, others).of([cell])
        errors.append(abs(time.at(len(others[0].curve)).median_seconds / grid.seconds[place].mean() - 1))
    return np.array(errors)


# --- Recommendation -------------------------------------------------------------------------------------------------


@dataclass
class Advice:
    """What one method's recommendations were worth."""

    regrets: list[float] = field(default_factory=list)
    broken: list[float] = field(default_factory=list)
    hopes: list[float] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    unanswered: int = 0

    def add(self, grid: Grid, budget_seconds: float, choice: int | None, guess: Guess | None = None) -> None:
        """Take in one answer: a cell, or none; and what was predicted of all cells, where it rests on that."""
        if choice is None:
            self.unanswered += 1
            return
        truth = grid.accuracies.mean(1)
        oracle = truth[np.median(grid.future, axis=1) <= budget_seconds].max()
        self.regrets.append(100 * float(oracle - truth[choice]))
        self.broken.append(float(np.mean(grid.future[choice] > budget_seconds)))
        if guess is not None:
            self.hopes.append(100 * float(guess.accuracy[choice] - truth[choice]))
            shares = np.array([guess.accuracy_shares(runs)[choice] for runs in grid.accuracies.T])
            self.inside.append(float(np.mean(np.abs(shares - 0.5) <= LEVELS[-1] / 2)))

    def row(self) -> dict[str, Any]:
        """Return regret and hope in points of accuracy, budgets that were broken, and questions without an answer."""
        asked = len(self.regrets) + self.unanswered
        if not self.regrets:
            names = ("regret: median", "mean", "90%", "over budget", "hoped for beyond", f"in {LEVELS[-1]:.0%}")
            return {**dict.fromkeys(names), "no answer": "100%"}
        return {
            "regret: median": f"{np.median(self.regrets):.2f}",
            "mean": f"{np.mean(self.regrets):.2f}",
            "90%": f"{np.quantile(self.regrets, 0.9):.2f}",
            "over budget": f"{np.mean(self.broken):.1%}",
            "hoped for beyond": f"{np.mean(self.hopes):+.2f}" if self.hopes else None,
            f"in {LEVELS[-1]:.0%}": f"{np.mean(self.inside):.0%}" if self.inside else None,
            "no answer": f"{self.unanswered / asked:.0%}",
        }


def recommended(grid: Grid, designs: Iterator[tuple[list[TrialRecord], Ints]]) -> dict[str, Advice]:
    """Return what each method's choices of a cell are worth, at budgets from the fastest cell to the slowest."""
    middles, safe = np.median(grid.future, axis=1), np.quantile(grid.future, CONFIDENCE, axis=1)
    budgets = np.geomspace(1.05 * middles.min(), middles.max(), BUDGETS)
    advice: dict[str, Advice] = {name: Advice() for name in (*methods(grid), "best observed", ALL_ONCE, ALL_KNOWN)}
    place = {cell: index for index, cell in enumerate(grid.cells)}
    for draw, (trials, _) in enumerate(designs):
        every = grid.draw(np.arange(len(grid.cells)), np.random.default_rng(draw))
        guesses = {name: method(trials, grid.cells) for name, method in methods(grid).items()}
        for budget in budgets.tolist():
            for name, guess in guesses.items():
                advice[name].add(grid, budget, _best(guess.fits(budget, CONFIDENCE), guess.accuracy), guess)
            advice[ALL_KNOWN].add(grid, budget, _best(safe <= budget, grid.accuracies.mean(1)))
            for name, ran in (("best observed", trials), (ALL_ONCE, every)):
                within = [trial for trial in ran if (trial.train_seconds or 0.0) <= budget]
                best = max(within, key=lambda trial: trial.test_accuracy or 0.0, default=None)
                advice[name].add(grid, budget, None if best is None else place[grid.workloads.of(best.params)])
    return advice


def _best(fits: NDArray[np.bool_], accuracy: Floats) -> int | None:
    return int(np.argmax(np.where(fits, accuracy, -np.inf))) if fits.any() else None


# --- The script -----------------------------------------------------------------------------------------------------


def judge(grid: Grid, sizes: Sequence[int], draws: int) -> dict[str, list[dict[str, Any]]]:
    """Print every table; return their rows."""
    tables: dict[str, list[dict[str, Any]]] = {}

    def show(title: str, rows: list[dict[str, Any]]) -> None:
        tables[title] = rows
        common.print_table(title, rows)

    tallies = {f"{size} random cells": predicted(grid, random_designs(grid, size, draws)) for size in sizes}
    tallies |= {f"no {name} of its own": predicted(grid, left_out(grid, name)) for name in ("scale", "batch_size")}
    for title, row in (("Time", Tally.time_row), ("Accuracy", Tally.accuracy_row)):
        names = [name for name in methods(grid) if title == "Time" or name != "BudgetTune, probed"]
        show(title, [{"from": design, "": name, **row(tallies[design][name])} for design in tallies for name in names])
    floor = _errors("with every other run known", time_floor(grid))
    print(f"\nErrors of time {', '.join(f'{key} {value}' for key, value in floor.items())}")
    print(f"Noise ceiling of R² (seeds of a mean of {grid.accuracies.shape[1]} runs): {grid.noise_ceiling:.3f}")
    rows = []
    for size in sizes:
        advice = recommended(grid, random_designs(grid, size, draws))
        rows += [{"from": f"{size} random cells", "": name, **one.row()} for name, one in advice.items()]
    show(f"Recommendation at {BUDGETS} budgets, confidence {CONFIDENCE:g}", rows)
    return tables


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--table", type=Path, default=TABLE, help="file to judge on, or to write with --record")
    options.add_argument("--record", metavar="STUDY", help="write a finished study as --table")
    options.add_argument("--probe", metavar="STUDY", help="time the steps of a study on this machine")
    options.add_argument("--storage", metavar="URL", help="database of that study")
    options.add_argument(
        "--threads", type=int, default=2, help="of the CPU, to probe with: those of the study's trials"
    )
    options.add_argument("--sizes", type=int, nargs="+", default=[8, 12, 16, 24], help="cells of a random design")
    options.add_argument("--draws", type=int, default=20, help="random designs of each size")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    if chosen.probe:
        probes = own_table.probe(chosen.probe, chosen.storage, chosen.threads)
        print(f"{len(probes)} steps probed in {sum(probe.seconds for probe in probes):.1f} s")
    if chosen.record:
        own_table.write(own_table.of_study(chosen.record, chosen.storage), chosen.table)
        print(f"{chosen.table}: {chosen.table.stat().st_size / 1e6:.2f} MB")
    if not chosen.probe and not chosen.record:
        table = own_table.read(chosen.table)
        print(f"{len(table.trials)} trials on {common.describe(table.machine)}")
        print(f"{len(table.probes)} probes took {sum(probe.seconds for probe in table.probes):.1f} s")
        tables = judge(Grid(table), chosen.sizes, chosen.draws)
        if chosen.json:
            chosen.json.write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
