"""A comparison as table rows, sentences and a figure. No torch, no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from budgettune.comparison.decision import decide
from budgettune.comparison.result import FULL, Comparison, Standing
from budgettune.comparison.significance import Estimate, pooled_deviation, smallest_detectable, smallest_exact_p
from budgettune.files import write_text
from budgettune.text import format_duration

if TYPE_CHECKING:
    import plotly.graph_objects as go

MORE_SEEDS = (5, 10, 20, 40)
LARGEST_P_SHOWN = 0.001
ROW_PIXELS, GAP_PIXELS, FRAME_PIXELS = 24, 90, 180
LINE_COLOR, SEED_COLOR = "#475569", "#94a3b8"
COLORS = {"better": "#1d4ed8", "worse": "#c2410c", "no different": LINE_COLOR}
TITLE = (
    "Pruning strategies at equal training time: means, 95% intervals and single seeds<br>"
    "<sup>blue: better than full beyond chance; red: worse; grey: these seeds show no difference</sup>"
)


def table_rows(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return a row per arm as people read it; a column of failures where there are any."""
    any_failed = any(standing.failed for standing in standings)
    return [_row(standing) | ({"failed": standing.failed} if any_failed else {}) for standing in standings]


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
    test, p = standing.against_full, standing.corrected_p
    return {
        "strategy": str(standing.arm),
        "accuracy %": _spread(standing.accuracy),
        "against full": _spread(None if test is None else test.difference, sign="+"),
        "p": None if p is None else f"{p:.2g}" if p >= LARGEST_P_SHOWN else f"<{LARGEST_P_SHOWN:g}",
        "overhead": None if standing.overhead is None else f"{standing.overhead:.1%}",
        "pruned": None if standing.realised_prune_rate is None else f"{standing.realised_prune_rate:.0%}",
        "epochs": standing.epochs,
    }


def _spread(found: Estimate | None, sign: str = "") -> str | None:
    """Return a mean in points with half its 95% interval."""
    if found is None:
        return None
    half = "" if found.high is None else f" ±{100 * (found.high - found.mean):.2f}"
    return f"{100 * found.mean:{sign}.2f}{half}"


class Mark(NamedTuple):
    """One arm in a panel, in percent and points."""

    label: str
    mean: float  # over seeds
    half: float | None  # of its 95% interval; None where it is not known
    seeds: tuple[float, ...]  # the single values
    verdict: str  # better or worse than full beyond chance, after correction; or no different
    note: str  # shown where the pointer rests on it


class Panel(NamedTuple):
    """One budget: accuracy of each arm, and its difference from full."""

    budget_seconds: float
    accuracy: tuple[Mark, ...]
    against_full: tuple[Mark, ...]


def panels(comparison: Comparison) -> tuple[Panel, ...]:
    """Return the values of the figure, a panel per budget; an arm whose runs all failed is in none."""
    found = []
    for budget in comparison.budgets:
        standings = comparison.standings(budget)
        full = next((row.by_seed for row in standings if row.arm == FULL), {})
        accuracy, against_full = [], []
        for row in standings:
            if row.accuracy is not None:
                accuracy.append(_mark(row, row.accuracy, list(row.by_seed.values())))
            if row.against_full is not None:
                differences = [row.by_seed[seed] - full[seed] for seed in row.by_seed if seed in full]
                against_full.append(_mark(row, row.against_full.difference, differences))
        found.append(Panel(budget_seconds=budget, accuracy=tuple(accuracy), against_full=tuple(against_full)))
    return tuple(found)


def draw(values: Sequence[Panel]) -> go.Figure:
    """Return the drawing: a row per budget, accuracy on the left, differences from full on the right."""
    from plotly.subplots import make_subplots

    titles = [
        title
        for panel in values
        for title in (f"accuracy at {format_duration(panel.budget_seconds)}, %", "difference from full, points")
    ]
    heights = [ROW_PIXELS * (len(panel.accuracy) + 1) for panel in values]
    inner = sum(heights) + GAP_PIXELS * (len(values) - 1)
    figure = make_subplots(
        rows=len(values),
        cols=2,
        shared_yaxes=True,
        row_heights=heights,
        subplot_titles=titles,
        horizontal_spacing=0.03,
        vertical_spacing=GAP_PIXELS / inner if len(values) > 1 else 0,
    )
    for row, panel in enumerate(values, start=1):
        for column, marks in enumerate((panel.accuracy, panel.against_full), start=1):
            _draw_marks(figure, marks, row, column)
        figure.add_vline(x=0, line_dash="dot", line_color=LINE_COLOR, row=row, col=2)
    figure.update_yaxes(autorange="reversed")
    figure.update_layout(height=inner + FRAME_PIXELS, showlegend=False, template="plotly_white", title=TITLE)
    return figure


def write_figure(path: Path, comparison: Comparison) -> None:
    """Write the figure as one HTML page that needs nothing else.

    Raises:
        UsageError: where it cannot be written.
    """
    write_text(path, draw(panels(comparison)).to_html(include_plotlyjs=True))


def _mark(row: Standing, found: Estimate, values: Sequence[float]) -> Mark:
    p = row.corrected_p
    note = f"{row.realised_prune_rate or 0:.0%} pruned, {row.epochs or 0:.3g} epochs, overhead {row.overhead or 0:.2%}"
    return Mark(
        label=str(row.arm),
        mean=100 * found.mean,
        half=None if found.high is None else 100 * (found.high - found.mean),
        seeds=tuple(100 * value for value in values),
        verdict=row.verdict,
        note=note if p is None else f"{note}, p {p:.2g}",
    )


def _draw_marks(figure: go.Figure, marks: Sequence[Mark], row: int, column: int) -> None:
    figure.add_scatter(
        x=[mark.mean for mark in marks],
        y=[mark.label for mark in marks],
        error_x={"array": [mark.half or 0.0 for mark in marks], "color": LINE_COLOR},
        mode="markers",
        marker={"color": [COLORS[mark.verdict] for mark in marks], "size": 10, "symbol": "diamond"},
        text=[mark.note for mark in marks],
        hovertemplate="%{y}: %{x:.2f}<br>%{text}<extra></extra>",
        row=row,
        col=column,
    )
    figure.add_scatter(
        x=[value for mark in marks for value in mark.seeds],
        y=[mark.label for mark in marks for _ in mark.seeds],
        mode="markers",
        marker={"color": SEED_COLOR, "size": 7, "symbol": "circle-open"},
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
        row=row,
        col=column,
    )
