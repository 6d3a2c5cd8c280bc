"""A comparison as table rows, sentences and a figure. No torch, no terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from budgettune.comparison.decision import decide
from budgettune.comparison.result import FULL, Comparison, Standing
from budgettune.comparison.significance import Difference, Estimate, Noise
from budgettune.files import write_text
from budgettune.text import format_duration

if TYPE_CHECKING:
    import plotly.graph_objects as go

MORE_SEEDS = (10, 20, 40)
REASONS_SHOWN = 3
LARGEST_P_SHOWN = 0.001
ROW_PIXELS, GAP_PIXELS, FRAME_PIXELS = 24, 90, 180
LINE_COLOR, SEED_COLOR = "#475569", "#94a3b8"
COLORS = {"better": "#1d4ed8", "worse": "#c2410c", "no different": LINE_COLOR}
TITLE = (
    "Pruning strategies at equal training time: means, 95% intervals and single seeds, judged by {judges}<br>"
    "<sup>blue: better than full beyond chance; red: worse; grey: these seeds show no difference; {rates}</sup>"
)


def table_rows(standings: Sequence[Standing]) -> list[dict[str, Any]]:
    """Return a row per arm as people read it; a column of failures where there are any."""
    any_failed = any(standing.failed for standing in standings)
    return [_row(standing) | ({"failed": standing.failed} if any_failed else {}) for standing in standings]


def sentences(comparison: Comparison, budget_seconds: float) -> list[str]:
    """Return what the runs at a budget say, what they cannot say, and which of them to doubt."""
    standings = comparison.standings(budget_seconds)
    runs, clean = sum(row.runs for row in standings), sum(row.clean for row in standings)
    return [
        f"supported: {decide(comparison, budget_seconds).sentence}",
        *_seeds_tell(comparison, budget_seconds),
        *_rates_tell(comparison, budget_seconds, standings),
        f"judged by {judges(comparison)}, the same for all: intervals are over seeds, and hold for these images",
        f"{clean} of {runs} runs had a clean clock",
        *(f"failed runs of {row.arm}: {row.failed} ({'; '.join(row.failures)})" for row in standings if row.failed),
    ]


def judges(comparison: Comparison) -> str:
    """Say which images the scored runs are judged by."""
    scored = comparison.judged_on.get("scored")
    return "unknown images" if scored is None else str(scored)


def _seeds_tell(comparison: Comparison, budget_seconds: float) -> list[str]:
    """Say how p was found, and which differences a number of seeds makes visible."""
    fit = comparison.fit(budget_seconds)
    full = fit.accuracy.get(FULL)
    if not fit.differences or full is None:
        return []
    seeds = fit.most_runs
    said = []
    if fit.pool is not None:
        said += [
            f"p and the intervals of differences: Dunnett's test of {len(fit.differences)} against full, "
            f"{seeds} seeds and {full.count} of full, seeds as blocks; noise of a run "
            f"{100 * fit.pool.deviation:.2f} points ({fit.pool.freedom} degrees of freedom), {_whose(fit.pool)}"
        ]
        ratio = full.count / seeds
        points = {count: fit.detectable(count, round(ratio * count)) for count in sorted({seeds, *MORE_SEEDS})}
        shown = [f"{100 * point:.2f} at {count}" for count, point in points.items() if point and count >= seeds]
        if shown:
            said += [
                f"smallest difference from full, in points, that seeds show four times in five: {', '.join(shown)}"
            ]
    if fit.apart:
        said += [
            f"noise of their own, larger than that of the others, by Welch's test with Bonferroni's correction: "
            f"{', '.join(map(str, fit.apart))}"
        ]
    return said


def _whose(noise: Noise) -> str:
    """Say whether one noise is taken for all."""
    if noise.weight >= noise.freedom:
        return "one for all"
    return f"each strategy's own drawn towards a common one that counts for {noise.weight:.2g}"


def _rates_tell(comparison: Comparison, budget_seconds: float, standings: Sequence[Standing]) -> list[str]:
    """Say how the learning rates were chosen, and where a better one may lie beyond those tried."""
    untuned = [row for row in standings if row.tuned is None]
    if len(untuned) == len(standings):
        rates = ", ".join(f"{lr:g}" for lr in sorted({row.lr for row in standings}))
        return [f"learning rate {rates}, one for all: tuned for none, so a strategy may lead only because it suits it"]
    tuning = [run for run in comparison.runs if run.purpose == "tuning" and run.budget_seconds == budget_seconds]
    rates = ", ".join(f"{lr:g}" for lr in sorted({run.lr for run in tuning}))
    images = comparison.judged_on.get("tuning")
    said = [f"learning rate of each: the best of {rates} by {images}, on {len(tuning)} runs of other seeds"]
    if untuned:
        said += [f"not tuned: {', '.join(str(row.arm) for row in untuned)}"]
    for end, where in (("lowest", "below"), ("highest", "above")):
        if arms := [row for row in standings if row.tuned is not None and row.tuned.end == end]:
            listed = ", ".join(f"{row.arm} {row.lr:g}" for row in arms)
            said += [f"best at the {end} rate that was tried: {listed}; add rates {where} it with --lr and --resume"]
    if failed := [run for run in tuning if run.measured is None]:
        reasons = list(dict.fromkeys(run.failure or "" for run in failed))
        more = "; …" if len(reasons) > REASONS_SHOWN else ""
        said += [f"failed tuning runs, counted as worst: {len(failed)} ({'; '.join(reasons[:REASONS_SHOWN])}{more})"]
    return said


def _row(standing: Standing) -> dict[str, Any]:
    found = standing.against_full
    p = None if found is None else found.p
    return {
        "strategy": str(standing.arm),
        "lr": f"{standing.lr:g}",
        "accuracy %": _spread(standing.accuracy),
        "against full": _spread(found, sign="+"),
        "p": None if p is None else f"{p:.2g}" if p >= LARGEST_P_SHOWN else f"<{LARGEST_P_SHOWN:g}",
        "overhead": None if standing.overhead is None else f"{standing.overhead:.1%}",
        "pruned": None if standing.realised_prune_rate is None else f"{standing.realised_prune_rate:.0%}",
        "epochs": standing.epochs,
    }


def _spread(found: Estimate | Difference | None, sign: str = "") -> str | None:
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
    verdict: str  # better or worse than full beyond chance, all arms counted; or no different
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
                against_full.append(_mark(row, row.against_full, differences))
        found.append(Panel(budget_seconds=budget, accuracy=tuple(accuracy), against_full=tuple(against_full)))
    return tuple(found)


def draw(values: Sequence[Panel], title: str = "") -> go.Figure:
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
    figure.update_layout(height=inner + FRAME_PIXELS, showlegend=False, template="plotly_white", title=title)
    return figure


def write_figure(path: Path, comparison: Comparison) -> None:
    """Write the figure as one HTML page that needs nothing else.

    Raises:
        UsageError: where it cannot be written.
    """
    write_text(path, draw(panels(comparison), figure_title(comparison)).to_html(include_plotlyjs=True))


def figure_title(comparison: Comparison) -> str:
    """Return the figure's title: what it shows, by which images, and whose learning rates were tuned."""
    is_tuned = all(row.tuned for budget in comparison.budgets for row in comparison.standings(budget))
    rates = "each at its best learning rate" if is_tuned else "learning rate tuned for none, or not for all"
    return TITLE.format(judges=judges(comparison), rates=rates)


def _mark(row: Standing, found: Estimate | Difference, values: Sequence[float]) -> Mark:
    p = None if row.against_full is None else row.against_full.p
    what = f"rate {row.lr:g}, {row.realised_prune_rate or 0:.0%} pruned, {row.epochs or 0:.3g} epochs"
    note = f"{what}, overhead {row.overhead or 0:.2%}"
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
