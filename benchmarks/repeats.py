"""Are further seeds spent where they matter? `repeats = "auto"` against as many spread evenly, and against fixed ones.

    python -m benchmarks.repeats            # on benchmarks/tables/fashion-table.json.xz

The recorded table is taken for the truth: a cell's time is what all runs of its step say, its accuracy the mean of its
seeds. Made-up studies draw runs about it: times with the deviations that the recorded runs have (`--time-noise` times
those), accuracies with those of cells of equal prune rate and batch size. Every study begins with one run of each cell.
Then one adds runs by the rule that workers follow, round by round; the other adds as many to random cells. Judged is
what users see: the front by the means of the runs (which of it is on the true one, and the share of the true front's
hypervolume, of log time against accuracy, that its cells miss), and the chance that `front` gives each cell.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.support import common, own_table
from benchmarks.support.own_table import Floats, Grid
from budgettune.spec.tables import MOST_REPEATS
from budgettune.study.front import cell_means, cells_to_repeat, certainty_of
from budgettune.study.pareto import hypervolume, undominated

TABLE = Path(__file__).parent / "tables" / "fashion-table.json.xz"
SURE, DOUBTED = 0.9, 0.1
Runs = dict[int, list[tuple[float, float]]]


@dataclass(frozen=True)
class World:
    """What is taken for the truth, and how runs lie about it.

    Attributes:
        log_seconds: of each cell, float64[cells].
        accuracies: float64[cells].
        time_noise: log of what recorded runs took over what their step says, float64[runs].
        seed_noise: deviation of accuracies in each cell, float64[cells].
    """

    log_seconds: Floats
    accuracies: Floats
    time_noise: Floats
    seed_noise: Floats

    @classmethod
    def of(cls, grid: Grid, time_noise: float) -> World:
        """Return that of a recorded table, with so many times its deviations of time."""
        steady = np.log(np.median(grid.future, axis=1))
        alike = np.array([hash((cell.params["prune_rate"], cell.params["batch_size"])) for cell in grid.cells])
        variances = grid.accuracies.var(axis=1, ddof=1)
        return cls(
            log_seconds=steady,
            accuracies=grid.accuracies.mean(axis=1),
            time_noise=time_noise * (np.log(grid.seconds) - steady[:, None]).ravel(),
            seed_noise=np.sqrt([variances[alike == kind].mean() for kind in alike]),
        )

    def volume(self, members: NDArray[np.bool_]) -> float:
        """Return the hypervolume of some cells, bool[cells], against the table's slowest time and worst accuracy."""
        points = zip(self.log_seconds[members].tolist(), self.accuracies[members].tolist(), strict=True)
        return hypervolume(list(points), (float(self.log_seconds.max()), float(self.accuracies.min())))

    def run(self, cell: int, rng: np.random.Generator) -> tuple[float, float]:
        """Return seconds and accuracy of a further run."""
        seconds = float(np.exp(self.log_seconds[cell] + rng.choice(self.time_noise)))
        return seconds, float(self.accuracies[cell] + rng.normal(0.0, self.seed_noise[cell]))


def once(world: World, rng: np.random.Generator) -> Runs:
    """Return one run of each cell."""
    return {cell: [world.run(cell, rng)] for cell in range(len(world.accuracies))}


def fixed(repeats: int) -> Callable[[World, np.random.Generator], Runs]:
    """Return what runs each cell so often."""
    return lambda world, rng: {
        cell: [world.run(cell, rng) for _ in range(repeats)] for cell in range(len(world.accuracies))
    }


def auto(world: World, rng: np.random.Generator) -> Runs:
    """Return the runs that workers make with `repeats = "auto"`."""
    runs = once(world, rng)
    while doubtful := cells_to_repeat(runs, MOST_REPEATS):
        for cell in doubtful:
            runs[cell].append(world.run(cell, rng))
    return runs


def evenly(world: World, rng: np.random.Generator, count: int) -> Runs:
    """Return as many runs in all, each cell's number equal to within one."""
    runs = once(world, rng)
    cells = np.concatenate([rng.permutation(len(runs)) for _ in range(count // len(runs) + 1)])
    for cell in cells[: count - len(runs)].tolist():
        runs[cell].append(world.run(cell, rng))
    return runs


@dataclass
class Tally:
    """What one way to spend runs was worth, over all studies."""

    runs: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)
    right: list[float] = field(default_factory=list)
    found: list[float] = field(default_factory=list)
    chances: list[Floats] = field(default_factory=list)
    members: list[NDArray[np.bool_]] = field(default_factory=list)

    def add(self, world: World, runs: Runs) -> None:
        """Take in one study."""
        means, sure = cell_means(runs), certainty_of(runs)
        seconds = np.array([mean.log_seconds for mean in means.values()])
        accuracies = np.array([mean.accuracy for mean in means.values()])
        truth, seen = on_front(world.log_seconds, world.accuracies), on_front(seconds, accuracies)
        self.runs.append(sum(map(len, runs.values())))
        self.seconds.append(sum(one for repeats in runs.values() for one, _ in repeats))
        self.right.append(float(truth[seen].mean()))
        self.found.append(float(seen[truth].mean()))
        self.missed.append(1 - world.volume(seen) / world.volume(truth))
        if sure is not None:
            self.chances.append(np.array(list(sure.front_chances.values())))
            self.members.append(truth)

    def row(self) -> dict[str, Any]:
        """Return it as a line; "sure" and "ruled out" are cells with chances over 90% and under 10%."""
        chances = np.concatenate(self.chances) if self.chances else np.array([])
        members = np.concatenate(self.members) if self.members else np.array([], dtype=bool)
        return {
            "runs": f"{np.median(self.runs):.0f}",
            "training s": f"{np.median(self.seconds):.0f}",
            "hypervolume missed": f"{np.mean(self.missed):.2%}",
            "of the front seen, on it": f"{np.mean(self.right):.0%}",
            "of the front, seen": f"{np.mean(self.found):.0%}",
            "of the sure, on it": share(members[chances > SURE]),
            "of the ruled out, on it": share(members[chances < DOUBTED]),
        }


def share(members: NDArray[np.bool_]) -> str:
    return f"{members.mean():.0%} of {len(members)}" if len(members) else "-"


def on_front(log_seconds: Floats, accuracies: Floats) -> NDArray[np.bool_]:
    """Return which cells no other beats: bool[cells]."""
    rows = sorted((log_seconds[cell], -accuracies[cell], cell, cell) for cell in range(len(accuracies)))
    members = np.zeros(len(rows), dtype=bool)
    members[[row[3] for row in undominated(rows)]] = True
    return members


def judged(world: World, studies: int) -> dict[str, Tally]:
    """Return what each way was worth over so many studies."""
    ways = {
        "each cell once": once,
        "each cell 3 times": fixed(3),
        f"each cell {MOST_REPEATS} times": fixed(MOST_REPEATS),
    }
    tallies: dict[str, Tally] = {name: Tally() for name in ('repeats = "auto"', "as many, spread evenly", *ways)}
    for study in range(studies):
        mine = auto(world, np.random.default_rng([study, 0]))
        tallies['repeats = "auto"'].add(world, mine)
        count = sum(map(len, mine.values()))
        tallies["as many, spread evenly"].add(world, evenly(world, np.random.default_rng([study, 1]), count))
        for place, (name, way) in enumerate(ways.items()):
            tallies[name].add(world, way(world, np.random.default_rng([study, 2 + place])))
    return tallies


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--table", type=Path, default=TABLE, help="a recorded table")
    options.add_argument("--time-noise", type=float, default=1.0, help="times that of the recorded runs")
    options.add_argument("--studies", type=int, default=200, help="made-up ones, for each way")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    world = World.of(Grid(own_table.read(chosen.table)), chosen.time_noise)
    rows = [{"": name, **tally.row()} for name, tally in judged(world, chosen.studies).items()]
    common.print_table(f"{chosen.studies} studies of {len(world.accuracies)} cells", rows)
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
