"""Is a small network on pruned data the best at tight budgets, once full data may train for as long?

    for scale in 0.5 1.0 1.5; do
        budgettune compare benchmarks/tables/claim.toml --set data.root=FOLDER --set model.scale=$scale --threads 1 \
            --budget 1.5s --budget 3s --budget 6s --strategies stale-quantile --prune-rate 0.2 --prune-rate 0.3 \
            --lr 3e-3,9e-3,2.7e-2 --seeds 8 --full-seeds 8 --out claim-$scale.json
    done
    python -m benchmarks.paper_claim claim-*.json

The paper's grid drops data at a fixed number of epochs, so a tight budget can only be met by pruning or by a smaller
network, and pruning looks good. Here networks of several sizes train until a budget is over, on pruned and on all data,
each at a learning rate of its own. Each side answers with the network, the prune rate and the learning rate that were
best by validation images on the seeds that tune; what both are worth is told by other seeds and the test images.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.support import common
from budgettune.comparison.result import FULL, Arm, Comparison, Standing, read_comparison
from budgettune.comparison.significance import Estimate, estimate
from budgettune.errors import UsageError
from budgettune.text import format_duration

RANDOM = "random"  # the baseline of pruning: no strategy, so no side of the claim


class Answer(NamedTuple):
    """What a side would train at a budget."""

    scale: float
    standing: Standing

    def __str__(self) -> str:
        return f"scale {self.scale:g}, {self.standing.arm}, rate {self.standing.lr:g}"


Scales = Mapping[float, Comparison]


def answer(scales: Scales, budget_seconds: float, *, pruned: bool) -> Answer:
    """Return what a side would train: the best mean accuracy on the seeds that tune, by validation images."""
    found = [
        (tuned.means[tuned.lr] or 0.0, Answer(scale, standing))
        for scale, comparison in scales.items()
        for standing in comparison.standings(budget_seconds)
        if standing.arm.strategy != RANDOM and (standing.arm != FULL) == pruned and (tuned := standing.tuned)
    ]
    if not found:
        raise UsageError("the files hold no tuned runs of both sides: give several rates with --lr")
    return max(found, key=lambda pair: pair[0])[1]


def budget_rows(scales: Scales) -> list[common.Row]:
    """Return a row per budget: the answer of each side, and by how much pruning is ahead."""
    rows = []
    for budget in budgets_of(scales):
        sides = [answer(scales, budget, pruned=pruned) for pruned in (True, False)]
        ahead = estimate(list(ahead_by_seed(*(side.standing for side in sides)).values()))
        rows.append(
            {
                "budget": format_duration(budget),
                "with pruning": str(sides[0]),
                "accuracy %": _percent(sides[0].standing),
                "all data": str(sides[1]),
                "its accuracy %": _percent(sides[1].standing),
                "pruning ahead by": spelled(ahead),
                "seeds": ahead.count,
            }
        )
    return rows


def pair_rows(scales: Scales) -> list[common.Row]:
    """Return for each pruned arm and budget how far it is ahead of all data in the same network, mean over scales.

    Each seed is one observation: what the networks have in common at a seed is then in its mean, not in the interval.
    """
    arms = dict.fromkeys(row.arm for one in scales.values() for row in one.standings(one.budgets[0]) if row.arm != FULL)
    rows = []
    for arm in arms:
        row: common.Row = {"arm": str(arm)}
        for budget in budgets_of(scales):
            ahead = [_ahead_of_full(comparison, arm, budget) for comparison in scales.values()]
            if len(seeds := set.intersection(*map(set, ahead))) < 2:
                raise UsageError(
                    "the files share no two seeds: give files of the same strategies, prune rates and seeds"
                )
            row[format_duration(budget)] = spelled(estimate([fmean(of[seed] for of in ahead) for seed in seeds]))
        rows.append(row)
    return rows


def _ahead_of_full(comparison: Comparison, arm: Arm, budget_seconds: float) -> dict[int, float]:
    found = {row.arm: row for row in comparison.standings(budget_seconds)}
    if arm not in found:
        raise UsageError(f"a file has no {arm}: give files of the same strategies, prune rates and seeds")
    return ahead_by_seed(found[arm], found[FULL])


def ahead_by_seed(one: Standing, other: Standing) -> dict[int, float]:
    """Return by how many points one is ahead at each seed that both have."""
    shared = {
        seed: 100 * (accuracy - other.by_seed[seed]) for seed, accuracy in one.by_seed.items() if seed in other.by_seed
    }
    if len(shared) < 2:
        raise UsageError(f"{one.arm} has no two runs at the seeds of {other.arm}: resume the comparison")
    return shared


def spelled(ahead: Estimate) -> str:
    """Return a difference with half its 95% interval, bold where zero lies outside of it."""
    if ahead.low is None or ahead.high is None:
        return f"{ahead.mean:+.2f}"
    text = f"{ahead.mean:+.2f} ± {ahead.high - ahead.mean:.2f}".replace("-", "−")
    return f"**{text}**" if ahead.low > 0 or ahead.high < 0 else text


def _percent(standing: Standing) -> str:
    return f"{100 * standing.accuracy.mean:.2f}" if standing.accuracy else ""


def budgets_of(scales: Scales) -> list[float]:
    """Return the budgets that every file has, smallest first."""
    shared = set.intersection(*(set(comparison.budgets) for comparison in scales.values()))
    return sorted(shared)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path, help="of `budgettune compare --out`, one for each scale")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    comparisons = [read_comparison(file) for file in chosen.files]
    scales = {float(one.spec["model"]["scale"]): one for one in comparisons}
    if len(scales) < len(comparisons):
        raise UsageError("two files have the same scale: give one for each")
    scales = dict(sorted(scales.items()))
    document = {"answers": budget_rows(scales), "pairs": pair_rows(scales)}
    common.print_table("The answer at a budget, chosen by other seeds and other images", document["answers"])
    common.print_table("Pruned ahead of all data in the same network, mean over scales", document["pairs"])
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
