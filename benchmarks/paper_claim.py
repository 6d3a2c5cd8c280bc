"""Is a small network on pruned data the best at tight budgets, once full data for fewer epochs is allowed?

    budgettune study create benchmarks/tables/fashion-table.toml --set data.root=FOLDER
    budgettune study create benchmarks/tables/fashion-epochs.toml --set data.root=FOLDER
    budgettune worker --threads 2
    python -m benchmarks.paper_claim

The paper's grid drops data at a fixed number of epochs, so a tight budget can only be met by pruning or by a smaller
network, and pruning looks good. Here the same networks and batches also train on everything for fewer epochs, about as
many sample visits. Both sides have as many configurations and seeds, so neither gains by being chosen from more.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

import budgettune as bt
from benchmarks.support import common
from budgettune.records import TrialRecord

PRUNED, FEWER, WHOLE = "pruned", "fewer epochs", "all data"
BUDGETS = 8


class Point(NamedTuple):
    """A configuration: all its repeats train with it."""

    scale: float
    batch_size: int
    prune_rate: float
    epochs: int

    @property
    def kind(self) -> str:
        """What makes it cheaper than everything for all epochs, if anything does."""
        return PRUNED if self.prune_rate else WHOLE if self.epochs == LONGEST else FEWER


LONGEST = 12
Runs = dict[Point, list[tuple[float, float]]]
"""Seconds and accuracy of each repeat."""


def runs_of(records: Iterable[TrialRecord]) -> Runs:
    """Return the finished trials by configuration, in order of repeat; what one side alone has run is left out."""
    found: Runs = defaultdict(list)
    for one in sorted(records, key=lambda record: (record.cell or 0, record.repeat or 0)):
        if one.state == "COMPLETE" and not one.extra:
            point = Point(
                one.params["scale"], one.params["batch_size"], one.params.get("prune_rate", 0.0), one.epochs or 0
            )
            found[point].append((one.train_seconds or math.nan, one.test_accuracy or math.nan))
    sides = [{point[:2] for point in found if point.kind == kind} for kind in (PRUNED, FEWER)]
    return {point: values for point, values in found.items() if all(point[:2] in side for side in sides)}


def mean(values: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return mean seconds and mean accuracy."""
    seconds, accuracies = zip(*values, strict=True)
    return statistics.fmean(seconds), statistics.fmean(accuracies)


def answers(runs: Runs, kinds: Sequence[str], budget_seconds: float) -> list[tuple[Point, float]]:
    """Return what to train within a budget, and how accurate it is, once for each repeat.

    It is chosen by the other repeats, so that a lucky seed does not count for itself.
    """
    found = []
    for held_out in range(min(map(len, runs.values()))):
        others = {
            point: mean([*values[:held_out], *values[held_out + 1 :]])
            for point, values in runs.items()
            if point.kind in kinds
        }
        fitting = {point: accuracy for point, (seconds, accuracy) in others.items() if seconds <= budget_seconds}
        best = max(fitting, key=fitting.__getitem__)
        found.append((best, runs[best][held_out][1]))
    return found


def budget_rows(runs: Runs) -> list[common.Row]:
    """Return a row per budget: the best of each side, and by how much pruning is ahead."""
    fastest = max(
        min(mean(values)[0] for point, values in runs.items() if point.kind == kind) for kind in (PRUNED, FEWER)
    )
    slowest = max(mean(values)[0] for values in runs.values())
    rows = []
    for budget_seconds in np.geomspace(1.02 * fastest, slowest, BUDGETS).tolist():
        pruned = answers(runs, (PRUNED, WHOLE), budget_seconds)
        full = answers(runs, (FEWER, WHOLE), budget_seconds)
        ahead, error = common.mean_and_error([100 * (a - b) for (_, a), (_, b) in zip(pruned, full, strict=True)])
        rows.append(
            {
                "budget s": budget_seconds,
                "with pruning": _spelled(pruned),
                "accuracy %": f"{100 * statistics.fmean(accuracy for _, accuracy in pruned):.2f}",
                "with fewer epochs": _spelled(full),
                "its accuracy %": f"{100 * statistics.fmean(accuracy for _, accuracy in full):.2f}",
                "pruning ahead by": f"{ahead:+.2f} ± {error:.2f}",
            }
        )
    return rows


def _spelled(answer: Sequence[tuple[Point, float]]) -> str:
    """Return the configuration that was chosen most often."""
    point, _ = Counter(point for point, _ in answer).most_common(1)[0]
    dropped = f"prune {point.prune_rate:g}" if point.prune_rate else f"{point.epochs} epochs"
    return f"scale {point.scale:g}, batch {point.batch_size}, {dropped}"


def front_rows(runs: Runs) -> list[common.Row]:
    """Return the Pareto front of mean time and mean accuracy of all configurations."""
    rows, best = [], -math.inf
    for point, values in sorted(runs.items(), key=lambda item: mean(item[1])):
        seconds, accuracy = mean(values)
        if accuracy > best:
            best = accuracy
            error = common.mean_and_error([100 * one for _, one in values])[1]
            rows.append(
                {"time s": seconds, "accuracy %": f"{100 * accuracy:.2f} ± {error:.2f}", **point._asdict()}
                | {"": point.kind}
            )
    return rows


def pair_rows(runs: Runs) -> list[common.Row]:
    """Return for each prune rate how far it is ahead of all data at the same seconds, network and batch.

    All data trained for that long is read off a line through its lengths, in the logarithm of seconds; a pruned run
    that lies outside of them is left out.
    """
    lengths: dict[tuple[float, int], list[tuple[float, float]]] = defaultdict(list)
    for point, values in runs.items():
        if point.kind != PRUNED:
            lengths[point.scale, point.batch_size].append(mean(values))
    gaps: dict[tuple[str, float], list[float]] = defaultdict(list)
    for point, values in runs.items():
        seconds, accuracy = mean(values)
        line = sorted(lengths[point.scale, point.batch_size])
        if point.kind != PRUNED or not line[0][0] <= seconds <= line[-1][0]:
            continue
        times, accuracies = zip(*line, strict=True)
        gap = 100 * (accuracy - float(np.interp(math.log(seconds), np.log(times), accuracies)))
        for key in (("prune rate", point.prune_rate), ("scale", point.scale), ("all", 0.0)):
            gaps[key].append(gap)
    rows = []
    for (name, value), found in sorted(gaps.items()):
        ahead, error = common.mean_and_error(found)
        rows.append(
            {
                "": f"{name} {value:g}" if name != "all" else "all",
                "pairs": len(found),
                "pruning ahead by (points)": f"{ahead:+.2f} ± {error:.2f}",
                "says": common.verdict(ahead, error, len(found)),
            }
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--storage", help="URL; as `budgettune` finds it where left out")
    options.add_argument("--studies", nargs="+", default=["fashion-table", "fashion-epochs"])
    chosen = options.parse_args(arguments)
    runs = runs_of(one for name in chosen.studies for one in bt.trial_records(name, storage=chosen.storage))
    common.print_table("The front of both", front_rows(runs))
    common.print_table("The answer at a budget, chosen without the seed that it is scored on", budget_rows(runs))
    common.print_table("At equal seconds, network and batch", pair_rows(runs))


if __name__ == "__main__":
    common.start(main)
