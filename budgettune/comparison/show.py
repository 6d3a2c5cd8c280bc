"""A comparison in words: a row per strategy, and what the seeds can and cannot tell. No torch, no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budgettune.comparison.decision import decide
from budgettune.comparison.result import Comparison, Standing
from budgettune.comparison.significance import Estimate, pooled_deviation, smallest_detectable, smallest_exact_p

MORE_SEEDS = (5, 10, 20, 40)
LARGEST_P_SHOWN = 0.001


def table_rows(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return a row per arm as people read it; a column of failures where there are any."""
    rows = [_row(standing) for standing in standings]
    if any(standing.failed for standing in standings):
        rows = [row | {"failed": standing.failed} for row, standing in zip(rows, standings, strict=True)]
    return rows


def sentences(comparison: Comparison, budget_seconds: float) -> list[str]:
    """Return what the runs at a budget say, what they cannot say, and which of them to doubt."""
    standings = comparison.standings(budget_seconds)
    tested = [standing for standing in standings if standing.against_full is not None]
    runs, clean = sum(row.runs for row in standings), sum(row.clean for row in standings)
    return [
        f"supported: {decide(comparison, budget_seconds).sentence}",
        *_seeds_tell(tested),
        f"{clean} of {runs} runs had a clean clock",
        *(f"failed runs of {row.arm}: {row.failed} ({'; '.join(row.failures)})" for row in standings if row.failed),
    ]


def _seeds_tell(tested: Sequence[Standing]) -> list[str]:
    """Say how p was found, and which differences a number of seeds makes visible."""
    tests = [standing.against_full for standing in tested if standing.against_full is not None]
    if not tests:
        return []
    seeds = min(test.difference.count for test in tests)
    deviation = pooled_deviation([test.difference.deviation or 0.0 for test in tests])
    points = {
        count: 100 * smallest_detectable(deviation, count, comparisons=len(tests))
        for count in sorted({seeds, *(more for more in MORE_SEEDS if more > seeds)})
    }
    seen = ", ".join(f"{point:.2f} at {count}" for count, point in points.items())
    return [
        f"p: paired t-test over {seeds} seeds with Holm's correction (comparisons: {len(tests)}); "
        f"that of sign flips, which cannot be below {smallest_exact_p(seeds):.2g}, stands in JSON and CSV",
        f"differences from full, in points, that seeds show four times in five, going by these runs: {seen}",
    ]


def _row(standing: Standing) -> dict[str, Any]:
    test = standing.against_full
    return {
        "strategy": str(standing.arm),
        "accuracy %": _spread(standing.accuracy),
        "against full": _spread(None if test is None else test.difference, sign="+"),
        "p": _p(standing.corrected_p),
        "overhead": _percent(standing.overhead, 1),
        "pruned": _percent(standing.realised_prune_rate, 0),
        "epochs": standing.epochs,
    }


def _spread(found: Estimate | None, sign: str = "") -> str | None:
    """Return a mean in points with half its 95% interval."""
    if found is None:
        return None
    half = "" if found.high is None else f" ±{100 * (found.high - found.mean):.2f}"
    return f"{100 * found.mean:{sign}.2f}{half}"


def _p(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.2g}" if value >= LARGEST_P_SHOWN else f"<{LARGEST_P_SHOWN:g}"


def _percent(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}%}"
