"""How long a report takes to build and to open, how large it is; beside it Optuna's own plot of the same study's front.

    python -m benchmarks.report --trials 80 1000 10000

Times are wall-clock: run it where nothing else does. "drawn" is until a browser (headless Chromium through Playwright,
where both are there) has the page's first figure, and the figure of all trials, on the screen, by the page's own clock,
which starts when it is opened (Playwright itself only looks in between long tasks). "plotly.js" is the same
for a page with one figure of one point: what no page with plotly.js in it can be faster than.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.support.common import print_table
from benchmarks.support.synthetic import make_study

WATCH = """
window.drawn = new Promise((resolve) => {
  const selectors = %s, waiting = new Set(selectors), moments = {};
  const note = (each) => {
    moments[each] = performance.now() / 1000;
    if (selectors.every((one) => one in moments)) resolve(selectors.map((one) => moments[one]));
  };
  new MutationObserver(() => waiting.forEach((each) => {
    if (!document.querySelector(each)) return;
    waiting.delete(each);
    requestAnimationFrame(() => setTimeout(note, 0, each)); // when it is on the screen
  })).observe(document, { childList: true, subtree: true });
});
"""
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


def main(arguments: list[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--trials", type=int, nargs="+", default=[80, 1_000, 10_000])
    options.add_argument("--epochs", type=int, default=10, help="points of each trial's curve")
    options.add_argument("--rounds", type=int, default=3, help="turns of each; the table has medians")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, browser() as opened:
        rows = [measured(Path(folder), trials, chosen, opened) for trials in chosen.trials]
        if opened:
            floor = [opened(one_point(Path(folder)), (".main-svg",))[0] for _ in range(chosen.rounds)]
            print(f"plotly.js alone, drawn: {statistics.median(floor):.2f} s")
    print_table("report", rows)
    if chosen.json:
        chosen.json.write_text(json.dumps({"report": rows}, indent=2) + "\n", encoding="utf-8")


def measured(folder: Path, trials: int, chosen: argparse.Namespace, opened: Any) -> dict[str, Any]:
    """Return a row for a study of that many trials: medians over alternating turns."""
    url = f"sqlite:///{folder / f'{trials}.db'}"
    make_study(url, trials, epochs=chosen.epochs).close()
    ours, theirs = folder / "ours.html", folder / "theirs.html"
    turns = []
    for _ in range(chosen.rounds):
        turn = {"build s": seconds(build_report, url, ours), "optuna: build s": seconds(build_optuna, url, theirs)}
        if opened:
            first, all_trials = opened(ours, (".main-svg", "[data-figure=machine0-front] .points path"))
            turn |= {"first figure s": first, "all trials s": all_trials}
            turn["optuna: drawn s"] = opened(theirs, (".points path",))[0]
        turns.append(turn)
    medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
    sizes = {"page MB": ours.stat().st_size / 1e6, "optuna: page MB": theirs.stat().st_size / 1e6}
    return {"trials": trials, **medians, **sizes}


def seconds(function: Callable[..., None], *arguments: Any) -> float:
    began = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - began


def build_report(url: str, file: Path) -> None:
    from budgettune import write_report

    write_report(None, file, storage=url)


def build_optuna(url: str, file: Path) -> None:
    """Write the baseline: one figure in one page, as Optuna's documentation shows it."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.load_study(study_name=None, storage=url)
    optuna.visualization.plot_pareto_front(study).write_html(file)


def one_point(folder: Path) -> Path:
    import plotly.graph_objects as go

    file = folder / "floor.html"
    go.Figure(go.Scatter(x=[1], y=[1])).write_html(file)
    return file


@contextmanager
def browser() -> Iterator[Callable[[Path, tuple[str, ...]], list[float]] | None]:
    """Yield what opens a page and returns the seconds until each selector is there; None where there is no browser."""
    found = os.environ.get("BUDGETTUNE_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        found = None
    if found is None:
        print("no Playwright or no Chromium: how long pages take to open is left out")
        yield None
        return
    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found, args=FLAGS)

        def opened(file: Path, selectors: tuple[str, ...]) -> list[float]:
            page = chromium.new_page(viewport={"width": 1100, "height": 900})
            page.add_init_script(WATCH % json.dumps(selectors))
            page.goto(file.as_uri(), wait_until="commit")
            moments: list[float] = page.evaluate("drawn")
            page.close()
            return moments

        yield opened
        chromium.close()


if __name__ == "__main__":
    main()
