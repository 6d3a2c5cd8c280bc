"""A study as it goes, on a terminal: states, throughput, time left and the front, renewed until nothing is left.

What is not a terminal gets the same as plain text, once per look.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from budgettune.cli.text_plot import ASCII, Glyphs, Point, scatter
from budgettune.records import TrialRecord
from budgettune.storage import answers as query
from budgettune.study.summary import StudySummary, trials_per_hour
from budgettune.text import format_duration
from budgettune.worker.signals import StopFlag

if TYPE_CHECKING:
    from budgettune.study.handle import StudyHandle

LATEST = 50  # trials that the throughput is taken from
WIDTH, PLOT_LINES, BAR = 78, 10, 30
RESTS_PER_LOOK = 5.0
"""Looking takes at most a sixth of the time, however large the study."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A study at one moment.

    Attributes:
        per_hour: trials that end in an hour at the present rate; None where nothing runs or ended yet.
        points: (train_seconds, test_accuracy) of every finished trial.
        front: those that no other beats.
        newest: the trial that ended last.
    """

    summary: StudySummary
    per_hour: float | None
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    newest: TrialRecord | None

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to run."""
        return self.summary.seconds_left == 0 and not self.summary.states["RUNNING"]

    @property
    def seconds_left(self) -> float | None:
        """Return the estimate by the present rate, else the summary's."""
        if self.summary.cells is None or not self.per_hour or self.summary.seconds_left == 0:
            return self.summary.seconds_left
        done = self.summary.states["COMPLETE"] + self.summary.states["PRUNED"]
        return 3600 * max(self.summary.cells - done, 0) / self.per_hour


def look(study: StudyHandle) -> Look:
    """Return how a study stands."""
    engine, study_id = study.engine, study.study_id
    summary = study.summary()
    latest = query.latest_trials(engine, study_id, LATEST)
    front = query.pareto_front(engine, study_id)
    return Look(
        summary=summary,
        per_hour=trials_per_hour(latest) if summary.states["RUNNING"] else None,
        points=tuple(query.objective_points(engine, study_id)),
        front=tuple((each.train_seconds or 0.0, each.test_accuracy or 0.0) for each in front),
        newest=latest[0] if latest else None,
    )


def watch(study: StudyHandle, console: Console, every_seconds: float, stop: StopFlag) -> None:
    """Show how a study stands until nothing is left to run, or until told to stop."""
    with _screen(console) as screen:
        while True:
            began = time.monotonic()
            seen = look(study)
            screen.update(drawn(seen, console), refresh=True)
            rest_seconds = max(every_seconds, RESTS_PER_LOOK * (time.monotonic() - began))
            if seen.is_over or stop.wait(rest_seconds):
                return


class _Screen(Protocol):
    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None: ...


@dataclass
class _Lines:
    """What is shown one below the other."""

    console: Console

    def update(self, renderable: RenderableType, *, refresh: bool = False) -> None:
        self.console.print(Text(f"{datetime.now():%Y-%m-%d %H:%M:%S}"), renderable, "", sep="\n", highlight=False)


@contextmanager
def _screen(console: Console) -> Iterator[_Screen]:
    if console.is_terminal and not console.is_dumb_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield live
    else:
        yield _Lines(console)


def drawn(seen: Look, console: Console) -> RenderableType:
    """Return what is shown of a study, at most 78 characters wide and 20 lines high."""
    summary = seen.summary
    title = Text(summary.name, style="bold", overflow="ellipsis", no_wrap=True)
    parts = [title, _states(summary), Text(_pace(seen))]
    parts += _plot(seen, min(console.width, WIDTH), ASCII if console.options.ascii_only else Glyphs())
    if seen.newest is not None:
        parts.append(Text(f"newest: {_told(seen.newest)}"))
    return Group(*parts)


def _states(summary: StudySummary) -> RenderableType:
    """Return a bar where it is known how many trials there will be, and the trials in each state."""
    done = summary.states["COMPLETE"]
    of = "" if summary.cells is None else f" of {summary.cells}"
    others = (f"{count} {state.lower()}" for state, count in summary.states.items() if count and state != "COMPLETE")
    text = Text(", ".join([f"{done}{of} complete", *others]))
    if not summary.cells:
        return text
    row = Table.grid(padding=(0, 2))
    row.add_row(ProgressBar(total=summary.cells, completed=done, width=BAR), text)
    return row


def _pace(seen: Look) -> str:
    if seen.is_over:
        rate = "nothing is left to run"
    elif not seen.summary.states["RUNNING"]:
        rate = "nothing runs"
    elif seen.per_hour is None:
        rate = "no trial has ended yet"
    else:
        left = "" if seen.seconds_left is None else f", about {format_duration(seen.seconds_left)} left"
        rate = f"{seen.per_hour:,.0f} trials/hour{left}"
    return f"{rate}, {format_duration(seen.summary.train_seconds)} trained"


def _plot(seen: Look, width: int, glyphs: Glyphs) -> list[RenderableType]:
    lines = scatter(
        seen.points,
        seen.front,
        width=width,
        height=PLOT_LINES,
        x_text=format_duration,
        y_text=lambda accuracy: f"{accuracy:.1%}",
        glyphs=glyphs,
    )
    if not lines:
        return []
    legend = f"accuracy over training time; {glyphs.marked} the front, {glyphs.other} other trials"
    texts = [Text(line, no_wrap=True) for line in (*lines, legend)]
    for text in texts:
        text.highlight_words([glyphs.marked], "green")
    return list(texts)


def _told(record: TrialRecord) -> str:
    seconds = format_duration(record.train_seconds or 0.0)
    return f"trial {record.number}, {seconds}, accuracy {record.test_accuracy or 0.0:.2%}, {record.status}"
