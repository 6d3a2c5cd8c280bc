"""Output of commands: lines and tables for people, JSON and CSV for programs, and the status of a signal."""

from __future__ import annotations

import codecs
import csv
import io
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

import typer
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.status import Status
from rich.text import Text

from budgettune.records import TrialRecord
from budgettune.spec.objective import Aim
from budgettune.text import csv_safe, format_duration, one_line, printable, short_names
from budgettune.web.documents import json_text

if TYPE_CHECKING:
    from budgettune.predict.predictor import Prediction
    from budgettune.predict.recommend import Recommendation

GAP = 2  # columns between those of a table
LEAST_SENTENCE = 24  # columns in which a sentence still reads well


class Screen(Console):
    """A terminal that shows the control characters of its texts instead of obeying them."""

    def __init__(self, **options: Any) -> None:
        if os.environ.get("COLUMNS") == "0":  # of a terminal without a size; the help of commands would have no room
            del os.environ["COLUMNS"]
        super().__init__(emoji=False, **options)

    @property
    def room(self) -> int:
        """The columns that a line may take: what is not a terminal has no end."""
        return self.width if self.is_terminal else sys.maxsize

    @property
    def is_live(self) -> bool:
        """Whether lines can be shown in place. FORCE_COLOR makes a terminal of a log, which keeps every move."""
        return self.is_terminal and not self.is_dumb_terminal and self.file.isatty()

    def status(self, status: RenderableType, **options: Any) -> Status:
        """Return a line in place that says what goes on; where there can be none, one that is not seen."""
        console = self if self.is_live else Console(file=io.StringIO())
        return Status(status, console=console, spinner="line" if self.options.ascii_only else "dots", **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as the base class does; a text is broken where it has a line break, and nowhere else."""
        soft_wrap = all(isinstance(item, str) for item in objects)
        texts = (printable(item) if isinstance(item, str) else item for item in objects)
        super().print(*texts, **{"soft_wrap": soft_wrap, **options})


out = Screen()
err = Screen(stderr=True)


LOOKALIKES = str.maketrans({"×": "x", "±": "+-", "…": "...", "²": "^2", "–": "-", "—": "-", "’": "'"})


def _spelled_out(error: UnicodeError) -> tuple[str, int]:
    """Return what to write in place of characters that an encoding lacks: what looks like them, else escapes."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(LOOKALIKES)
    return text.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error("budgettune", _spelled_out)


class Remarks:
    """Standard error for what nobody must read: a full disk, or a terminal that is gone, ends no training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def make_streams_take_anything() -> None:
    """Let no command fail of what standard output or error cannot encode (LANG=C, code pages), nor of a closed one."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="budgettune")
    if not isinstance(sys.stderr, Remarks):
        sys.stderr = cast(TextIO, Remarks(sys.stderr))


class Format(StrEnum):
    """How a command prints data."""

    table = "table"
    json = "json"
    csv = "csv"


def say(line: str, screen: Screen = err) -> None:
    """Print a line as it is, with its commands to copy: remarks to standard error, and answers to `out`."""
    screen.print(line, highlight=False, markup=False)


def say_figures(text: str, screen: Screen = out) -> None:
    """Print lines with figures in them, none of which is broken where a terminal is too narrow for its line."""
    for line in printable(text).splitlines():
        _print_line(Text(line), screen, indent=2 * GAP)


def warn(text: str | None) -> None:
    """Print a sentence that a user should not miss on standard error."""
    if text is not None:
        err.print(Text.assemble(("note: ", "yellow"), one_line(text)), highlight=False, soft_wrap=True)


def leave_if_stopped(signal_number: int | None) -> None:
    """Leave with the exit status of a program that a signal ended, such as 130, where one did."""
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


def print_rows(
    rows: Sequence[Mapping[str, Any]], form: Format, *, title: str | None = None, sentences: str | None = None
) -> None:
    """Print rows: a table for people (`print_table`), else JSON or CSV alone on standard output."""
    if form is Format.json:
        print_json(list(rows))
    elif form is Format.csv:
        keys = _keys(rows)
        writer = csv.DictWriter(sys.stdout, keys, lineterminator="\n")
        if keys:
            writer.writerow({key: csv_safe(key) for key in keys})
        writer.writerows({key: csv_safe(value) for key, value in row.items()} for row in rows)
    else:
        print_table(rows, title=title, sentences=sentences)


def print_table(
    rows: Sequence[Mapping[str, Any]], *, title: str | None = None, sentences: str | None = None, screen: Screen = out
) -> None:
    """Print rows for people: a table where it fits the terminal, else a block of lines for each row.

    No value is cut, broken or left out. What is not a terminal has no width: its lines are as long as they need to be.

    Args:
        rows: of values that `shown` spells, or of a `Text` with colours of its own.
        sentences: the last column, where it holds texts that may go on in the next line.
    """
    if title is not None:
        screen.print(Text(title, style="italic"), soft_wrap=True)
    keys = _keys(rows)
    if not keys:
        return
    heads = {key: Text(one_line(key.replace("_", " ")), style="bold") for key in keys}
    cells = [{key: _cell(row.get(key)) for key in keys} for row in rows]
    widths = {key: max(text.cell_len for text in (heads[key], *(row[key] for row in cells))) for key in keys}
    last = keys[-1]
    before_last = sum(widths[key] + GAP for key in keys[:-1])
    if screen.room < before_last + (min(widths[last], LEAST_SENTENCE) if last == sentences else widths[last]):
        for row in cells:
            _print_block([Text.assemble(heads[key], " ", row[key]) for key in keys], screen)
        return
    numeric = {key for key in keys if all(_is_number(row.get(key)) for row in rows)}
    for row in (heads, *cells):
        padded = [_padded(row[key], widths[key], to_the_right=key in numeric) for key in keys]
        _print_line(Text(" " * GAP).join(padded), screen, indent=before_last)


def print_fields(fields: Iterable[tuple[str, str]], screen: Screen = out) -> None:
    """Print named texts, each beside its name, where it goes on in the next line."""
    pairs = [(one_line(name), one_line(text)) for name, text in fields]
    indent = max(cell_len(name) for name, _ in pairs) + GAP
    for name, text in pairs:
        _print_line(Text(name + " " * (indent - cell_len(name)) + text), screen, indent=indent)


def _print_block(fields: Sequence[Text], screen: Screen) -> None:
    """Print a row as its fields side by side, as many in a line as a terminal has room for."""
    line = fields[0]
    for field in fields[1:]:
        if line.cell_len + GAP + field.cell_len > screen.room:
            _print_line(line, screen, indent=2 * GAP)
            line = Text()
        line = Text.assemble(line, " " * GAP, field)
    _print_line(line, screen, indent=2 * GAP)


def _print_line(line: Text, screen: Screen, *, indent: int) -> None:
    """Print a line; where a terminal is too narrow, it goes on below its indent. No word is broken."""
    line.rstrip()
    if screen.room - indent < LEAST_SENTENCE:
        indent = 2 * GAP
    breaks, start, room = [], 0, screen.room
    for word in re.finditer(r"\S+", line.plain if line.cell_len > room else ""):
        is_movable = word.start() > start and cell_len(line.plain[: word.start()]) > indent
        if is_movable and cell_len(line.plain[start : word.end()]) > room:
            breaks.append(word.start())
            start, room = word.start(), screen.room - indent
    for number, part in enumerate(line.divide(breaks)):
        part.rstrip()
        screen.print(Text.assemble(" " * indent if number else "", part), soft_wrap=True)


def _padded(text: Text, width: int, *, to_the_right: bool) -> Text:
    spaces = " " * (width - text.cell_len)
    return Text.assemble(spaces, text) if to_the_right else Text.assemble(text, spaces)


def _keys(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row))


def _cell(value: Any) -> Text:
    return value if isinstance(value, Text) else Text(shown(value))


def _is_number(value: Any) -> bool:
    try:
        return value is None or math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):  # the last for whole numbers beyond floats
        return False


def print_json(value: Any) -> None:
    """Print one JSON document, and nothing else, to standard output."""
    sys.stdout.write(json_text(value))


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def trial_rows(records: Sequence[TrialRecord], aim: Aim | None = None) -> list[dict[str, Any]]:
    """Return trials as people read them: short and rounded, with what the study limits."""
    aim = aim or Aim()
    objective = aim.objective
    test = ("test",) if aim.judged_on else ()
    own = ("trial", "time", objective.label, *test, *aim.limits, "kept", "epochs", "clock")
    params = dict.fromkeys(name for record in records for name in record.params)
    names = short_names([*own, *params])
    kept = {"kept": None} if any(record.keep_fraction is not None for record in records) else {}
    return [
        {
            "trial": record.number,
            "time": None if record.train_seconds is None else format_duration(record.train_seconds),
            objective.label: None if record.value is None else objective.text(record.value),
            **dict.fromkeys(test, None if record.on_test is None else objective.text(record.on_test)),
            **aim.told(record),
            **{names[name]: record.params.get(name) for name in params},
            **dict.fromkeys(kept, None if record.keep_fraction is None else f"{record.keep_fraction:.0%}"),
            "epochs": record.epochs,
            "clock": record.status,
        }
        for record in records
    ]


def print_trials(
    records: Sequence[TrialRecord],
    form: Format,
    aim: Aim | None = None,
    *,
    title: str | None = None,
    also: Callable[[TrialRecord], Mapping[str, Any]] = lambda record: {},
) -> None:
    """Print trials, one a row, as a table or CSV, with what else is known of each."""
    rows = trial_rows(records, aim) if form is Format.table else _flat_rows(records, aim or Aim())
    print_rows([{**row, **also(record)} for row, record in zip(rows, records, strict=True)], form, title=title)


def _flat_rows(records: Sequence[TrialRecord], aim: Aim) -> list[dict[str, Any]]:
    measures = sorted({name for record in records for name in record.measures})
    return [aim.flat_row(record, record.params, measures) for record in records]


def say_images(aim: Aim) -> None:
    """Print which images judged what stands above, where that is known."""
    if aim.images is not None:
        say_figures(aim.images.sentence)


def hypervolume_line(volume: float, reference: tuple[float, float], aim: Aim | None = None) -> str:
    seconds, worst = reference
    label = (aim or Aim()).objective.label
    return f"hypervolume {volume:.4g} (seconds × {label}) against {format_duration(seconds)}, {label} {worst:.4g}"


def promise_line(answer: Recommendation) -> str:
    """Return in one line what training an answer's choice until its deadline is expected to give."""
    choice = answer.choice
    return (
        f"{answer.study}: {settings_text(choice.params)} until {format_duration(answer.budget_seconds)} are over, "
        f"about {choice.epochs} epochs; predicted {answer.objective.label} {expected_text(answer.aim, choice)}"
    )


def settings_text(params: Mapping[str, Any]) -> str:
    named = ((name.removeprefix("params."), shown(value)) for name, value in params.items())
    return ", ".join(f"{name} {value}" for name, value in named) or "the study's settings"


def expected_text(aim: Aim, prediction: Prediction) -> str:
    """Return the objective that a run is expected to reach, with its interval, and the images that it is of."""
    value, low, high = map(aim.objective.text, (prediction.value, prediction.value_low, prediction.value_high))
    return f"{value} ({low} to {high})" + (f" on {aim.images.part} images" if aim.images else "")
