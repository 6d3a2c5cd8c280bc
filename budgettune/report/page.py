"""One self-contained HTML page from a report's values: it opens offline and asks nothing of the network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from itertools import zip_longest
from pathlib import Path
from string import Template
from typing import Any

from budgettune.errors import NothingToDraw
from budgettune.report.axes import Search
from budgettune.report.contents import Contents, answers, front_rows
from budgettune.report.figures import draw, stopping
from budgettune.report.findings import FINDINGS, FORECAST_FINDINGS
from budgettune.report.forecast import Forecast
from budgettune.report.markup import compact_json, content_policy, data_block, prose, table, text
from budgettune.report.sections import FORECAST_SECTIONS, SECTIONS, STOPPED, Section
from budgettune.report.style import DARK, LIGHT
from budgettune.report.view import Overview, machine_kind, objectives
from budgettune.study.early_stop import summary_of_notes

SLIDER_ENDS = (0.8, 1.1)
"""Where the slider begins and ends, as shares of the fastest and of the slowest answer."""


@dataclass(frozen=True)
class _View:
    """The part of the page for one kind of machine, and what prefixes the ids in it."""

    key: str
    overview: Overview
    search: Search | None
    forecast: Forecast | NothingToDraw | None

    @property
    def machine(self) -> str:
        return machine_kind(self.overview.trials[0])


def build_page(
    contents: Contents,
    *,
    search: Search | None = None,
    forecasts: Sequence[Forecast | NothingToDraw] = (),
    budget_seconds: float | None = None,
    now: datetime | None = None,
) -> str:
    """Return the page.

    Args:
        contents: what it says.
        search: the search space of the spec: it says which ranges are logarithmic.
        forecasts: for each view what is predicted of what never ran, or why nothing is.
        budget_seconds: where the slider stands at first; the most accurate trial's time where None.
        now: the date in the footer.
    """
    views = [
        _View(f"machine{place}", view, search, ahead)
        for place, (view, ahead) in enumerate(zip_longest(contents.views, forecasts))
    ]
    scripts = [_file("page.js"), _plotly_source()] if views else []
    data = {
        "templates": {"light": LIGHT, "dark": DARK},
        "views": {view.key: _answer_data(view.overview, contents.study, budget_seconds) for view in views},
    }
    return Template(_file("page.html")).substitute(
        title=text(f"{contents.study}: training time and accuracy"),
        policy=content_policy(scripts),
        style=_file("page.css"),
        study=text(contents.study),
        states=text(_states(contents)),
        notices="".join(f'<p class="notice">{prose(notice)}</p>' for notice in _notices(contents)),
        chooser=_chooser(views) if len(views) > 1 else "",
        views="".join(_view_html(view, is_first=view is views[0]) for view in views),
        machines=table(contents.machines) if contents.machines else "<p>No time has been taken yet.</p>",
        stopping=_stopping(contents),
        failures=_failures(contents),
        made=text(f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC by budgettune {_version()}"),
        data=data_block("page-data", compact_json(data)),
        scripts="".join(f"<script>{script}</script>" for script in scripts),
    )


# --- For one kind of machine ----------------------------------------------------------------------------------------


def _view_html(view: _View, *, is_first: bool) -> str:
    sections = [_section(view, section) for section in SECTIONS]
    ahead = [_section(view, section) for section in _forecast_sections(view)]
    rows = front_rows(view.overview)
    shown = "" if len(rows) == len(view.overview.front) else f" ({len(rows)} of {len(view.overview.front)} trials)"
    front_table = f'<details class="card"><summary>The front as a table{shown}</summary>{table(rows)}</details>'
    # The front is the second section: its table follows it.
    body = "".join([*sections[:2], front_table, *ahead, *sections[2:]])
    return f'<div class="view" id="{view.key}"{"" if is_first else " hidden"}>{body}</div>'


def _forecast_sections(view: _View) -> Sequence[Section]:
    """Return what is said of what never ran; where nothing is predicted, one section with the reason."""
    if view.forecast is None:
        return ()
    return FORECAST_SECTIONS if isinstance(view.forecast, Forecast) else FORECAST_SECTIONS[:1]


def _section(view: _View, section: Section) -> str:
    key = f"{view.key}-{section.figure}"
    try:
        finding, figure = _shown(view, section.figure)
    except NothingToDraw as reason:
        return _card(key, section, f"<p>{prose(reason)}</p>")
    form = _budget_form(view) if section.figure == "answer" else ""
    return _card(key, section, _plot(key, section, finding, figure, form))


def _card(key: str, section: Section, body: str) -> str:
    title = f"{key}-title"
    return f'<section class="card" aria-labelledby="{title}"><h2 id="{title}">{section.title}</h2>{body}</section>'


def _plot(key: str, section: Section, finding: str, figure: Any, form: str = "") -> str:
    figure.layout.template = None  # the page's own, light or dark
    figure.layout.title = figure.layout.margin = None
    return (
        f'<p class="finding">{text(finding)}</p>{form}'
        f'<div class="plot" data-figure="{key}" role="img" aria-label="{text(f"{section.title}. {finding}")}" '
        f'style="min-height:{figure.layout.height}px"></div>{data_block(key, figure.to_json())}'
        f'<p class="guide">{section.guide}</p>'
    )


def _shown(view: _View, name: str) -> tuple[str, Any]:
    """Return the finding and the figure of a section.

    Raises:
        NothingToDraw: where the study does not hold what it shows.
    """
    if name in FINDINGS:
        return FINDINGS[name](view.overview), draw(name, view.overview, view.search)
    if not isinstance(view.forecast, Forecast):
        raise view.forecast or NothingToDraw("nothing is predicted")
    figure = draw(name, view.overview, view.search, view.forecast)
    return FORECAST_FINDINGS[name](view.forecast), figure


def _budget_form(view: _View) -> str:
    key = view.key
    return (
        f'<form class="budget" data-view="{key}">'
        f'<p><label for="{key}-seconds">I have</label> '
        f'<input id="{key}-seconds" type="number" min="0" step="any" inputmode="decimal"> seconds of training time.</p>'
        f'<input id="{key}-slider" type="range" min="0" max="1000" step="1" aria-label="Training time that I have">'
        '</form><div class="result" role="status"></div>'
    )


def _answer_data(view: Overview, study: str, budget_seconds: float | None) -> dict[str, Any]:
    fastest, slowest = (max(objectives(trial)[0], 1e-3) for trial in (view.answers[0], view.answers[-1]))
    return {
        "unitSeconds": view.unit.seconds,
        "answers": [asdict(answer) for answer in answers(view, study)],
        "low": SLIDER_ENDS[0] * fastest,
        "high": SLIDER_ENDS[1] * slowest,
        "budget": slowest if budget_seconds is None else budget_seconds,
    }


# --- For the whole study --------------------------------------------------------------------------------------------


def _states(contents: Contents) -> str:
    words = {
        "COMPLETE": "finished",
        "RUNNING": "running",
        "WAITING": "waiting",
        "FAIL": "failed",
        "PRUNED": "stopped early",
    }
    total = sum(contents.states.values())
    trials = "1 trial" if total == 1 else f"{total:,} trials"
    counts = [f"{contents.states[state]:,} {word}" for state, word in words.items() if contents.states.get(state)]
    return f"{trials}: {', '.join(counts)}." if counts else "No trials yet."


def _notices(contents: Contents) -> Iterator[str]:
    if not contents.views:
        what = "clean finished trial" if contents.clean_only else "finished trial"
        yield f"This study has no {what} yet: run `budgettune worker`, then `budgettune report` again."
    elif contents.clean_only:
        yield "Only times that nothing is known to have disturbed are in this report."
    if len(contents.views) > 1:
        yield (
            f"This study holds times from {len(contents.machines)} kinds of machine. They cannot be compared, so each "
            "kind is shown by itself."
        )
    if contents.left_out:
        yield (
            f"Left out are {len(contents.left_out)} kinds with fewer trials ({'; '.join(contents.left_out)}): "
            "`budgettune report --device-name NAME` shows one."
        )


def _chooser(views: list[_View]) -> str:
    options = "".join(
        f'<option value="{view.key}">{text(f"{view.machine} ({len(view.overview.trials):,} trials)")}</option>'
        for view in views
    )
    return f'<p class="chooser"><label for="machine">Machine</label> <select id="machine">{options}</select></p>'


def _stopping(contents: Contents) -> str:
    """Return what stopping early did in the study, nothing where no trial was judged."""
    if not contents.stopping:
        return ""
    key, finding = STOPPED.figure, f"{summary_of_notes(contents.stopping).describe()}."
    try:
        return _card(key, STOPPED, _plot(key, STOPPED, finding, stopping(contents.stopping)))
    except NothingToDraw:  # controls only
        return _card(key, STOPPED, f"<p>{text(finding)}</p>")


def _failures(contents: Contents) -> str:
    if not contents.failures:
        return ""
    rows = [{"trials": count, "reason": reason} for reason, count in contents.failures]
    return f'<section class="card"><h2>What failed</h2>{table(rows)}</section>'


@cache
def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


@cache
def _plotly_source() -> str:
    from plotly.offline import get_plotlyjs

    # A page is read with plain line ends, and the hash of a script is that of what is read.
    return str(get_plotlyjs()).replace("\r\n", "\n")


def _version() -> str:
    try:
        return version("budgettune")
    except PackageNotFoundError:  # run from a checkout that was never installed
        return "(from source)"
