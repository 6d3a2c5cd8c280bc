"""One self-contained HTML page from a study's trials: it opens offline and asks nothing of the network.

Names in it may hold anything: the template escapes every text, and data stands in blocks that no browser runs.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from budgettune.errors import NothingToDraw
from budgettune.records import MachineInfo, TrialRecord
from budgettune.report.axes import Search, param_labels, value_text
from budgettune.report.figures import FIGURES, recommended, stopping
from budgettune.report.forecast import StudyForecast
from budgettune.report.runs import Notes
from budgettune.report.style import DARK, LIGHT
from budgettune.report.view import (
    Figure,
    Overview,
    configuration_key,
    finished,
    machine_counts,
    machine_name,
    measure_texts,
    objectives,
    of_machine,
    overview,
)
from budgettune.report.wording import Wording
from budgettune.spec.objective import Aim
from budgettune.text import format_duration

MOST_MACHINES = 6
MOST_FAILURES = 10
LONGEST_FAILURE = 300
MOST_FRONT_ROWS = 60
SLIDER_ENDS = (0.8, 1.1)
"""Where the slider begins and ends, as shares of the fastest and of the slowest answer."""
STATES = {
    "COMPLETE": "finished",
    "RUNNING": "running",
    "WAITING": "waiting",
    "FAIL": "failed",
    "PRUNED": "stopped early",
}
CLOCKS = {
    "clean": "clean",
    "disturbed": "disturbed: other work slowed it, take its time with care",
    "unverified": "unverified: nothing watched its clock",
}
COUNTED = "Training time counts choosing samples, batches and steps; loading, warm-up and evaluation are off the clock."
OWN_COUNTED = (
    "Training time is what the training code has put on the clock; building, loading and evaluation are off it."
)
FOLDER = Path(__file__).parent


# --- What the page says of the whole study --------------------------------------------------------------------------


@dataclass(frozen=True)
class Contents:
    """A whole report but for its drawings."""

    study: str
    views: tuple[Overview, ...]  # one for each kind of machine, most trials first: times of two never share a figure
    left_out: tuple[str, ...]  # kinds of machine beyond the MOST_MACHINES that are shown
    states: dict[str, int]  # trials of the study in each state
    foreign: int  # how many more another program has queued or runs
    failures: tuple[tuple[str, int], ...]  # reasons with their count, most frequent first
    machines: tuple[dict[str, str], ...]  # rows of a table
    clean_only: bool
    stopping: Notes = ()  # empty where nothing was judged
    aim: Aim = field(default_factory=Aim)

    @property
    def words(self) -> Wording:
        """How the objective is spoken of."""
        return Wording(self.aim.objective, self.aim.name)


def contents(
    study: str,
    records: Sequence[TrialRecord],
    search: Search | None = None,
    *,
    device_name: str | None = None,
    clean_only: bool = False,
    stopping: Notes = (),
    aim: Aim | None = None,
) -> Contents:
    """Return what a page says of a study from all its trials, or from those of one kind of machine.

    `search` and `aim` are of its spec, where that can be read.

    Raises:
        UsageError: where no finished trial is of that kind of machine.
    """
    trials = finished(records, clean_only=clean_only)
    if device_name is not None:
        trials = of_machine(trials, device_name)
    kinds = list(machine_counts(trials))
    # What another program has queued or runs in this study, nobody here will finish.
    counted = [record for record in records if record.cell is not None or record.state not in ("WAITING", "RUNNING")]
    reasons = (record.failure or "no reason was recorded" for record in records if record.state == "FAIL")
    return Contents(
        study=study,
        views=tuple(overview(of_machine(trials, kind), search, aim) for kind in kinds[:MOST_MACHINES]),
        left_out=tuple(kinds[MOST_MACHINES:]),
        states=dict(Counter(record.state for record in counted)),
        foreign=len(records) - len(counted),
        failures=tuple(Counter(reason[:LONGEST_FAILURE] for reason in reasons).most_common(MOST_FAILURES)),
        machines=_machine_rows(trials),
        clean_only=clean_only,
        stopping=tuple(stopping),
        aim=aim or Aim(),
    )


def _machine_rows(trials: Sequence[TrialRecord]) -> tuple[dict[str, str], ...]:
    """Return a row for each kind of machine; names of boxes stay out, because reports are handed on."""
    return tuple(
        {"machine": kind, "trials": f"{count:,}"}
        | _machine_facts([trial.machine for trial in trials if trial.machine and machine_name(trial) == kind])
        for kind, count in machine_counts(trials).items()
    )


def _machine_facts(infos: Sequence[MachineInfo]) -> dict[str, str]:
    facts = {
        "boxes": [str(len({info.hostname for info in infos}))] if infos else [],
        "processor": [info.cpu for info in infos],
        "cores": [str(info.cores) for info in infos],
        "threads": [str(info.threads) for info in infos],
        "memory": [f"{info.memory_mb / 1024:.0f} GiB" for info in infos],
        "Python": [info.python for info in infos],
        "torch": [info.torch for info in infos],
        "CUDA": [info.cuda or "-" for info in infos],
        "driver": [info.driver or "-" for info in infos],
    }
    return {name: ", ".join(dict.fromkeys(values)) for name, values in facts.items() if any(values)}


def states_sentence(states: Mapping[str, int], foreign: int) -> str:
    """Return how many trials are in which state; the foreign are what another program queued or runs."""
    total = sum(states.values())
    trials = "1 trial" if total == 1 else f"{total:,} trials"
    counts = [f"{states[state]:,} {word}" for state, word in STATES.items() if states.get(state)]
    others = f" Not counted: {foreign:,} that another program queued or runs." if foreign else ""
    return (f"{trials}: {', '.join(counts)}." if counts else "No trials yet.") + others


def _notices(contents: Contents) -> Iterator[str]:
    if not contents.views:
        what = "clean finished trial" if contents.clean_only else "finished trial"
        yield f"This study has no {what} yet: run `budgettune worker`, then `budgettune report` again."
    elif contents.clean_only:
        yield "Only times that nothing is known to have disturbed are in this report."
    if len(contents.views) > 1:
        kinds = f"{len(contents.machines)} kinds of machine"
        yield f"This study holds times from {kinds}. They cannot be compared, so each kind is shown by itself."
    if contents.left_out:
        yield (
            f"Left out are {len(contents.left_out)} kinds with fewer trials ({'; '.join(contents.left_out)}): "
            "`budgettune report --device-name NAME` shows one."
        )


# --- The configuration behind each answer ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """The best trial from a budget on."""

    seconds: float
    value: float  # of the objective, usually the accuracy
    text: str  # the same for people
    number: int
    facts: tuple[tuple[str, str], ...]  # names and texts that tell what to train and how far to trust it
    command: str  # trains it again and keeps the model


def answers(view: Overview, study: str) -> tuple[Answer, ...]:
    """Return the best trial from each budget on, smallest budget first."""
    file = "model.pt" if view.knows_pruning else "model.pkl"  # code of your own gives any value to keep
    return tuple(
        Answer(
            *objectives(trial),
            text=view.words.said(objectives(trial)[1]),
            number=trial.number,
            facts=(
                *_facts(trial, view),
                ("repeats", _repeats(view.configurations[configuration_key(trial)], view.words)),
            ),
            command=f"budgettune train {shlex.quote(study)} --trial {trial.number} --out {file}",
        )
        for trial in view.answers
    )


def _facts(trial: TrialRecord, view: Overview) -> list[tuple[str, str]]:
    labels = param_labels([*(axis.name for axis in view.axes), *trial.params])
    facts = {
        **{label: value_text(trial.params[name]) for name, label in labels.items() if name in trial.params},
        **measure_texts(trial, view.aim),
        "test accuracy": _on_test(trial, view),
        "samples kept": None if trial.keep_fraction is None else f"{trial.keep_fraction:.0%}",
        "epochs": trial.epochs,
        "parameters": None if trial.parameters is None else f"{trial.parameters:,}",
        "clock": CLOCKS.get(trial.status or "unverified", trial.status),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


def _on_test(trial: TrialRecord, view: Overview) -> str | None:
    """Return the accuracy on test images where they chose nothing, None where that is not known."""
    return None if trial.on_test is None else view.words.text(trial.on_test)


def _repeats(trials: Sequence[TrialRecord], words: Wording) -> str:
    if len(trials) < 2:
        return "ran once: nothing tells how much is chance"
    seconds, values = zip(*map(objectives, trials), strict=True)
    mean, deviation = words.text(statistics.fmean(values)), words.distance(statistics.stdev(values))
    times = f"{format_duration(statistics.fmean(seconds))} ± {format_duration(statistics.stdev(seconds))}"
    return f"{len(trials)}, mean {mean} ± {deviation} in {times}"


def front_rows(view: Overview) -> list[dict[str, str]]:
    """Return the front as rows of a table, at most MOST_FRONT_ROWS at even distances."""
    rows = []
    measures = dict.fromkeys(name for trial in view.front for name in measure_texts(trial, view.aim))
    for trial in view.front[:: max(1, math.ceil(len(view.front) / MOST_FRONT_ROWS))]:
        seconds, value = objectives(trial)
        kept = "-" if trial.keep_fraction is None else f"{trial.keep_fraction:.0%}"
        facts = {
            "trial": str(trial.number),
            "time": format_duration(seconds),
            view.words.label: view.words.text(value),
            **({"test": _on_test(trial, view) or "-"} if view.aim.judged_on else {}),
            **dict.fromkeys(measures, "-"),
            **measure_texts(trial, view.aim),
            **({"kept": kept} if view.knows_pruning else {}),
            "clock": trial.status or "unverified",
        }
        params = {axis.name if axis.label in facts else axis.label: axis.name for axis in view.axes}
        rows.append({**facts, **{column: value_text(trial.params.get(name)) for column, name in params.items()}})
    return rows


@dataclass(frozen=True)
class Served:
    """What a page has in place of its own scripts where a server keeps it up to date.

    Attributes:
        scripts: addresses of those of `script_sources`, and of the server's own, each with the hash of its source.
        settings: what the server's own script needs to know.
    """

    scripts: tuple[tuple[str, str], ...]
    settings: dict[str, str]


# --- The page -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Card:
    """A figure on the page; `key` is its element's id, `drawn` is None where the sentence says why there is none."""

    key: str
    name: str
    title: str
    guide: str
    sentence: str
    drawn: Any = None


def build_page(
    contents: Contents,
    *,
    forecast: Callable[[Overview], StudyForecast] | None = None,
    budget_seconds: float | None = None,
    now: datetime | None = None,
    served: Served | None = None,
) -> str:
    """Return the page.

    Args:
        contents: what it says.
        forecast: returns what is predicted of what never ran, or raises NothingToDraw.
        budget_seconds: where the slider stands at first; the most accurate trial's time where None.
        now: for the footer.
        served: where a server keeps it up to date; complete in itself where None.
    """
    views = [_view_values(f"machine{place}", view, forecast) for place, view in enumerate(contents.views)]
    scripts = script_sources() if views and served is None else []
    data = {
        "templates": {"light": LIGHT, "dark": DARK},
        "views": {
            view["key"]: _slider_data(of, contents.study, budget_seconds) | _machine_asked_for(of, contents)
            for view, of in zip(views, contents.views, strict=True)
            if of.answers
        },
        "objective": contents.aim.objective.model_dump(),
    }
    # No name of a study reaches the template's own text, so nothing but its author can write template code.
    loader = FileSystemLoader(FOLDER)
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters["prose"] = _prose
    return environment.get_template("page.html").render(
        contents=contents,
        states=states_sentence(contents.states, contents.foreign),
        clock=COUNTED if all(view.knows_pruning for view in contents.views) else OWN_COUNTED,
        notices=list(_notices(contents)),
        views=views,
        stopped=_card("stopping", stopping, contents.stopping, contents.words) if contents.stopping else None,
        failures=[{"trials": count, "reason": reason} for reason, count in contents.failures],
        served=served,
        policy=content_policy(scripts) if served is None else None,  # a server sends its own
        style=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        data=json.dumps(data, separators=(",", ":"), allow_nan=False),
        data_block=data_block,
        made=f"{now or datetime.now(UTC):%Y-%m-%d %H:%M} UTC by budgettune {_version()}",
        scripts=[Markup(script) for script in scripts],
    )


def _view_values(key: str, view: Overview, forecast: Callable[[Overview], StudyForecast] | None) -> dict[str, Any]:
    """Return what the template asks of one kind of machine; the key is a prefix of the ids in its part."""
    rows = front_rows(view)
    return {
        "key": key,
        "machine": machine_name(view.trials[0]),
        "trials": f"{len(view.trials):,}",
        "cards": list(_cards(key, view, forecast)),
        "front_rows": rows,
        "front_shown": "" if len(rows) == len(view.front) else f" ({len(rows)} of {len(view.front)} trials)",
    }


def _cards(key: str, view: Overview, forecast: Callable[[Overview], StudyForecast] | None) -> Iterator[Card]:
    subjects: dict[str, Any] = {"trials": view}
    why_not = ""
    try:
        if forecast is not None:
            subjects["forecast"] = forecast(view)
    except NothingToDraw as reason:
        why_not = str(reason)
    for figure in FIGURES.values():
        if figure.is_of_pruning and not view.knows_pruning:
            continue
        if figure.about in subjects:
            yield _card(f"{key}-{figure.name}", figure, subjects[figure.about], view.words)
        elif figure is recommended and why_not:  # said once, for all that would follow from a forecast
            yield _empty_card(f"{key}-{figure.name}", figure, view.words, why_not)


def _empty_card(key: str, figure: Figure[Any, Any], words: Wording, sentence: str) -> Card:
    return Card(key, figure.name, words.of(figure.title), words.of(figure.guide), sentence)


def _card(key: str, figure: Figure[Any, Any], subject: Any, words: Wording) -> Card:
    sentence = ""
    try:
        values = figure.values(subject)
        sentence = figure.say(subject, values)
        drawn = figure.draw(subject, values)
    except NothingToDraw as reason:
        # Controls without a stopped trial have a sentence and no drawing.
        return _empty_card(key, figure, words, sentence or str(reason))
    drawn.layout.template = None  # the page's own, light or dark
    drawn.layout.title = drawn.layout.margin = None
    return replace(_empty_card(key, figure, words, sentence), drawn=drawn)


def _slider_data(view: Overview, study: str, budget_seconds: float | None) -> dict[str, Any]:
    fastest, slowest = (max(objectives(trial)[0], 1e-3) for trial in (view.answers[0], view.answers[-1]))
    return {
        "unitSeconds": view.unit.seconds,
        "answers": [asdict(answer) for answer in answers(view, study)],
        "low": SLIDER_ENDS[0] * fastest,
        "high": SLIDER_ENDS[1] * slowest,
        "budget": slowest if budget_seconds is None else budget_seconds,
    }


def _machine_asked_for(view: Overview, contents: Contents) -> dict[str, str]:
    """Return the kind of machine of a view, where a study has times of several."""
    name = view.trials[0].device_name
    return {"machine": name} if name and len(contents.machines) > 1 else {}


def _prose(sentence: str) -> Markup:
    """Return a sentence as text of a page, with what stands between backticks as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(sentence))))


def data_block(key: str, json_text: str) -> Markup:
    """Return JSON in an element that scripts read and browsers do not run; nothing in it can end the element."""
    inert = Markup(json_text.replace("<", r"\u003c"))
    return Markup('<script type="application/json" id="{}">{}</script>').format(key, inert)


def content_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy: no network at all, and no script but these."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    # plotly.js puts style elements into the page, and hands pictures of a figure over as data.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_sources() -> list[str]:
    """Return the scripts of a page: its own, and plotly's."""
    return [(FOLDER / "page.js").read_text(encoding="utf-8"), _plotly_source()]


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
