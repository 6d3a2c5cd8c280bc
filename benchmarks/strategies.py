"""Tables of comparisons that `budgettune compare` wrote, and whether a second one by other seeds confirms them.

    python -m benchmarks.strategies benchmarks/tables/strategies-*.json
    python -m benchmarks.strategies FIRST.json --again SECOND.json

The files of one table share everything but their budgets: two processes on a core of their own write one each. How the
files here were made stands in README.md. `--again` holds every arm of the second file, at each of its budgets, against
the interval that the first one states of the difference from `full`, widened by the second's own noise: nine in ten or
more should lie inside.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from scipy.special import stdtrit

from benchmarks.support import common
from budgettune.comparison.result import Arm, Comparison, Standing, read_comparison
from budgettune.comparison.show import sentences
from budgettune.errors import UsageError
from budgettune.text import format_duration

LEAST_P_SHOWN = 1e-4
Standings = dict[float, dict[Arm, Standing]]
"""Where each arm stands, by budget in seconds."""


def standings_of(comparisons: Iterable[Comparison]) -> Standings:
    """Return the standings of several files together, smallest budget first."""
    found: Standings = {}
    for comparison in comparisons:
        for budget in comparison.budgets:
            if budget in found:
                raise UsageError(f"two files hold {format_duration(budget)}: give the files of one table")
            found[budget] = {row.arm: row for row in comparison.standings(budget)}
    return dict(sorted(found.items()))


def rows_of(found: Standings) -> list[common.Row]:
    """Return a row per arm, best at the largest budget first: accuracy, difference from full, learning rate."""
    last = found[max(found)]
    arms = sorted(last, key=lambda arm: -(last[arm].accuracy.mean if last[arm].accuracy else 0.0))
    return [_row(arm, found) for arm in arms]


def _row(arm: Arm, found: Standings) -> common.Row:
    row: common.Row = {"strategy": f"`{arm.strategy}`", "prune rate": f"{arm.prune_rate:g}"}
    for budget, standings in found.items():
        standing = standings.get(arm)
        name = format_duration(budget)
        if standing is None or standing.accuracy is None:
            row |= {f"{name}: %": "", "to full": "", "p": "", "rate": ""}
            continue
        row |= {
            f"{name}: %": f"{100 * standing.accuracy.mean:.2f}",
            f"{name}: to full": _difference(standing),
            f"{name}: p": _p(standing),
            f"{name}: rate": f"{standing.lr:g}" + {"lowest": " ↓", "highest": " ↑"}.get(_end(standing), ""),
        }
    shown = found[max(found)].get(arm)
    if shown is not None and shown.overhead is not None:
        row |= {"choosing": f"{shown.overhead:.1%}", "dropped": f"{shown.realised_prune_rate or 0:.0%}"}
    return row


def _end(standing: Standing) -> str:
    return (standing.tuned and standing.tuned.end) or ""


def _difference(standing: Standing) -> str:
    found = standing.against_full
    if found is None:
        return ""
    half = "" if found.high is None else f" ± {100 * (found.high - found.mean):.2f}"
    text = f"{100 * found.mean:+.2f}{half}".replace("-", "−")
    return f"**{text}**" if standing.verdict != "no different" else text


def _p(standing: Standing) -> str:
    found = standing.against_full
    if found is None or standing.verdict == "no different":
        return ""
    return f"{found.p:.1g}" if found.p > LEAST_P_SHOWN else f"<{LEAST_P_SHOWN:g}"


def again_rows(first: Standings, second: Standings) -> list[common.Row]:
    """Return a row per cell that was run again: what was stated, what came, and whether it lies inside.

    The second difference has noise of its own, so that the interval for it has the sum of both variances. It is one of
    95% for the single cell, which is narrower than the one that holds for all arms of a table at once.
    """
    rows = []
    for budget, standings in second.items():
        for arm, standing in standings.items():
            stated = first.get(budget, {}).get(arm)
            if stated is None or stated.against_full is None or standing.against_full is None:
                continue
            told, came = stated.against_full, standing.against_full
            if told.low is None:  # runs that show no noise at all state nothing
                continue
            half = float(stdtrit(told.freedom, 0.975)) * math.hypot(told.error, came.error)
            apart = came.mean - told.mean
            rows.append(
                {
                    "arm": str(arm),
                    "budget": format_duration(budget),
                    "to full, first": f"{100 * told.mean:+.2f} ± {100 * told.error:.2f}",
                    "again": f"{100 * came.mean:+.2f} ± {100 * came.error:.2f}",
                    "apart by": f"{100 * apart:+.2f}",
                    "95% of repetitions within": f"{100 * half:.2f}",
                    "inside": "yes" if abs(apart) <= half else "NO",
                }
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("files", nargs="+", type=Path, help="of one table, that `budgettune compare --out` wrote")
    options.add_argument("--again", nargs="+", type=Path, default=[], help="files of other seeds, to check it by")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    comparisons = [read_comparison(file) for file in chosen.files]
    document = {"table": rows_of(standings_of(comparisons))}
    common.print_table("Pruning strategies at equal seconds", document["table"])
    for comparison in comparisons:
        for budget in comparison.budgets:
            print(f"\n{format_duration(budget)}:")
            print(*(f"- {sentence}" for sentence in sentences(comparison, budget)), sep="\n")
    if chosen.again:
        second = standings_of(read_comparison(file) for file in chosen.again)
        document["again"] = again_rows(standings_of(comparisons), second)
        common.print_table("Run again by other seeds", document["again"])
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
