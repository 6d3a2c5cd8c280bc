"""A worker's progress, and a study as it goes (`study show --watch`).

A terminal gets it in place; what is not a terminal gets plain text, line by line.
"""

from __future__ import annotations

import os
import select
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.status import Status
from rich.table import Table
from rich.text import Text

from budgettune.cli.output import GAP, Screen, say, say_figures, shown
from budgettune.cli.text_plot import ASCII, Glyphs, Point, scatter
from budgettune.records import Claim, EpochRecord, TrialRecord, TrialResult
from budgettune.spec.objective import ObjectiveSpec
from budgettune.storage.answers import latest_trials, score_points
from budgettune.storage.patience import READING_PATIENCE_SECONDS, asking_again
from budgettune.study.pareto import pareto_front
from budgettune.study.summary import StudySummary, prospect_note, trials_per_hour
from budgettune.text import format_duration, one_line, short_names
from budgettune.worker.options import Listener
from budgettune.worker.signals import StopFlag

if TYPE_CHECKING:
    from budgettune.spec.study_spec import StudySpec
    from budgettune.study.handle import StudyHandle

LATEST = 50  # trials that the throughput is taken from
WIDTH, PLOT_LINES, BAR = 78, 10, 30
RESTS_PER_LOOK = 5.0
"""Looking takes at most a sixth of the time, however large the study."""


class TerminalProgress(Listener):
    """Prints one line per finished trial; while one runs, a live line says which, how far, and what remains."""

    def __init__(self, console: Screen) -> None:
        self.console = console
        self._status: Status | None = None
        self._began = 0.0
        self._wall_seconds: list[float] = []
        self._remaining = ""

    def claimed(self, study: StudyHandle, claim: Claim) -> None:
        self._began = time.monotonic()
        if self.console.is_live and self._status is None:
            self._status = self.console.status("")
            self._status.start()
        self._show(f"{_label(claim)}: reading images, warming up")

    def epoch(self, claim: Claim, spec: StudySpec, record: EpochRecord) -> None:
        budget_seconds = spec.train.budget
        of = f"/{spec.train.epochs}" if budget_seconds is None else f", {format_duration(budget_seconds)} allowed"
        value = "" if record.value is None else f", {spec.objective.named(record.value, 1)}"
        seconds = format_duration(record.train_seconds)
        self._show(f"{_label(claim)}: epoch {record.epoch + 1}{of}, {seconds} on the clock{value}{self._remaining}")

    def completed(self, study: StudyHandle, claim: Claim, result: TrialResult) -> None:
        self._wall_seconds.append(time.monotonic() - self._began)
        counts = study.counts()
        waiting, running = counts.get("WAITING", 0), counts.get("RUNNING", 0)
        left = format_duration(waiting * median(self._wall_seconds) / (1 + running))
        trials = "trial" if waiting == 1 else "trials"
        self._remaining = f"; {waiting} {trials} waiting, about {left}" if waiting else ""
        value = study.spec.objective.named(result.value)
        outcome = f"{format_duration(result.train_seconds)}, {value}, {result.status}"
        if result.stopping is not None and result.stopping.stopped:
            outcome = f"stopped early {result.stopping.reason}"
        say_figures(f"{_label(claim)}: {outcome}{self._remaining}", self.console)

    def failed(self, claim: Claim, reason: str) -> None:
        say(f"{_label(claim)}: {reason}", self.console)

    def close(self) -> None:
        """Take the live line away."""
        if self._status is not None:
            self._status.stop()
            self._status = None

    def abandon(self) -> None:
        """Bring the cursor back as the process ends at once: past locks, and only where the terminal takes it."""
        if self._status is not None:
            terminal = self.console.file.fileno()
            if select.select([], [terminal], [], 0)[1]:
                os.write(terminal, b"\r\x1b[2K\x1b[?25h")

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(Text(one_line(text)))


def _label(claim: Claim) -> str:
    names = short_names(claim.params)
    params = ", ".join(f"{names[name]} {shown(value)}" for name, value in claim.params.items())
    repeat = f", repeat {claim.repeat}" if claim.repeat else ""
    return f"trial {claim.number} ({params}{repeat})"


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A study at one moment."""

    summary: StudySummary
    per_hour: float | None  # trials that end in an hour at the present rate; None where nothing runs or ended yet
    points: tuple[Point, ...]  # (train_seconds, score) of every finished trial; the usual score is its accuracy
    front: tuple[Point, ...]  # those that no other beats
    newest: TrialRecord | None  # the trial that ended last
    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    prospect_note: str = ""  # how near a search is to its end by the price of a point

    @property
    def is_over(self) -> bool:
        return self.summary.seconds_left == 0 and not self.summary.states["RUNNING"]

    @property
    def seconds_left(self) -> float | None:
        """Return the estimate by the present rate, else the summary's."""
        if self.summary.cells is None or not self.per_hour or self.summary.seconds_left == 0:
            return self.summary.seconds_left
        done = self.summary.states["COMPLETE"] + self.summary.states["PRUNED"]
        return 3600 * max(self.summary.cells - done, 0) / self.per_hour


def snapshot(study: StudyHandle) -> Snapshot:
    engine, study_id = study.engine, study.study_id
    summary = study.summary()
    latest, objective = latest_trials(engine, study_id, LATEST), study.spec.objective
    members = pareto_front(engine, study_id)
    return Snapshot(
        summary=summary,
        per_hour=trials_per_hour(latest) if summary.states["RUNNING"] else None,
        points=tuple(score_points(engine, study_id)),
        front=tuple((one.train_seconds or 0.0, objective.score(one.value or 0.0)) for one in members),
        newest=latest[0] if latest else None,
        objective=objective,
        prospect_note="" if summary.prospect is None else prospect_note(study.spec, summary.prospect),
    )


def watch(study: StudyHandle, console: Screen, every_seconds: float, stop: StopFlag) -> None:
    """Show how a study stands until nothing is left to run, or until told to stop."""
    with Live(console=console, auto_refresh=False) if console.is_live else nullcontext() as live:
        while True:
            began = time.monotonic()
            now = asking_again(lambda: snapshot(study), READING_PATIENCE_SECONDS)
            if live is not None:
                live.update(drawn(now, console), refresh=True)
            else:
                moment = Text(datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"))
                console.print(moment, drawn(now, console), "", sep="\n", soft_wrap=True)
            rest_seconds = max(every_seconds, RESTS_PER_LOOK * (time.monotonic() - began))
            if now.is_over or stop.wait(rest_seconds):
                return


def drawn(now: Snapshot, console: Console) -> RenderableType:
    """Return what is shown of a study: what is said of it, and a plot where a terminal has room for one."""
    width = min(console.width, WIDTH)
    title, states = Text(one_line(now.summary.name), style="bold"), _states(now.summary, console)
    above = [title, states, Text(_pace(now))]
    below = []
    if now.newest is not None:
        seconds, value = now.newest.train_seconds or 0.0, now.objective.named(now.newest.value or 0.0)
        outcome = f"{format_duration(seconds)}, {value}, {now.newest.status}"
        below.append(Text(f"newest: trial {now.newest.number}, {outcome}"))
    if now.prospect_note:
        below.append(Text(now.prospect_note))
    plot = _plot(now, width, ASCII if console.options.ascii_only else Glyphs())
    whole = Group(*above, *plot, *below)
    has_room = not console.is_terminal or len(console.render_lines(whole, pad=False)) < console.height
    return whole if has_room else Group(*above, *below)


def _states(summary: StudySummary, console: Console) -> RenderableType:
    """Return the trials in each state, on a terminal beside a bar where it is known how many there will be."""
    done = summary.states["COMPLETE"]
    of = "" if summary.cells is None else f" of {summary.cells}"
    others = (f"{count} {state.lower()}" for state, count in summary.states.items() if count and state != "COMPLETE")
    text = Text(", ".join([f"{done}{of} complete", *others]))
    if not summary.cells or not console.is_terminal or BAR + GAP + text.cell_len > console.width:
        return text
    row = Table.grid(padding=(0, GAP))
    row.add_row(ProgressBar(total=summary.cells, completed=done, width=BAR), text)
    return row


def _pace(now: Snapshot) -> str:
    if now.is_over:
        rate = "nothing is left to run"
    elif not now.summary.states["RUNNING"]:
        rate = "nothing runs"
    elif now.per_hour is None:
        rate = "no trial has ended yet"
    else:
        left = "" if now.seconds_left is None else f", about {format_duration(now.seconds_left)} left"
        rate = f"{now.per_hour:,.0f} trials/hour{left}"
    return f"{rate}, {format_duration(now.summary.train_seconds)} trained"


def _plot(now: Snapshot, width: int, glyphs: Glyphs) -> list[RenderableType]:
    objective = now.objective
    lines = scatter(
        now.points,
        now.front,
        width=width,
        height=PLOT_LINES,
        x_text=format_duration,
        y_text=lambda score: objective.text(objective.score(score), 1),
        glyphs=glyphs,
    )
    if not lines or max(map(len, lines)) > width:
        return []
    legend = f"{objective.label} over training time; {glyphs.marked} the front, {glyphs.other} other trials"
    texts = [Text(line) for line in (*lines, legend)]
    for text in texts:
        text.highlight_words([glyphs.marked], "green")
    return list(texts)
