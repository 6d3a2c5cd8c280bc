"""Output of commands: lines and tables for people, JSON and CSV for programs, and the status of a signal."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from budgettune.records import RECORD_COLUMNS, TrialRecord, flat_row
from budgettune.storage.writes import finite
from budgettune.text import csv_safe, format_duration, one_line, printable

if TYPE_CHECKING:
    from budgettune.predict.predictor import Prediction
    from budgettune.predict.recommend import Recommendation


class Screen(Console):
    """A terminal that shows the control characters of its texts instead of obeying them."""

    def print(self, *objects: Any, **options: Any) -> None:
        """Print as the base class does; a text is broken where it has a line break, and nowhere else."""
        soft_wrap = all(isinstance(item, str) for item in objects)
        texts = (printable(item) if isinstance(item, str) else item for item in objects)
        super().print(*texts, **{"soft_wrap": soft_wrap, **options})


out = Screen(emoji=False)
err = Screen(stderr=True, emoji=False)


class Format(StrEnum):
    """How a command prints data."""

    table = "table"
    json = "json"
    csv = "csv"


def say(line: str, screen: Screen = err) -> None:
    """Print a line as it is: remarks to standard error, and answers to `out`."""
    screen.print(line, highlight=False, markup=False)


def warn(text: str | None) -> None:
    """Print a sentence that a user should not miss on standard error."""
    if text is not None:
        err.print(Text.assemble(("note: ", "yellow"), one_line(text)), highlight=False, soft_wrap=True)


def leave_if_stopped(signal_number: int | None) -> None:
    """Leave with the exit status of a program that a signal ended, such as 130, where one did."""
    if signal_number is not None:
        raise typer.Exit(128 + signal_number)


def print_rows(rows: Sequence[Mapping[str, Any]], form: Format, *, title: str | None = None) -> None:
    """Print rows with equal keys; JSON and CSV go alone to standard output."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    if form is Format.json:
        print_json(list(rows))
    elif form is Format.csv:
        writer = csv.DictWriter(sys.stdout, keys)
        writer.writerow({key: csv_safe(key) for key in keys})
        writer.writerows({key: csv_safe(value) for key, value in row.items()} for row in rows)
    else:
        table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
        for key in keys:
            numeric = all(isinstance(row.get(key), (int, float, type(None))) for row in rows)
            heading = Text(one_line(key.replace("_", " ")))
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric, overflow="fold")
        for row in rows:
            table.add_row(*(Text(shown(row.get(key))) for key in keys))
        out.print(table)


def print_json(value: Any) -> None:
    """Print one JSON document, and nothing else, to standard output."""
    sys.stdout.write(json.dumps(finite(value), indent=2, default=list) + "\n")


def shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else one_line(str(value))


def trial_row(record: TrialRecord, form: Format) -> dict[str, Any]:
    """Return one trial: short and rounded for people, complete for programs."""
    if form is not Format.table:
        return flat_row(record)
    return {
        "trial": record.number,
        "time": None if record.train_seconds is None else format_duration(record.train_seconds),
        "accuracy": None if record.test_accuracy is None else f"{record.test_accuracy:.2%}",
        **{name.rpartition(".")[2]: value for name, value in record.params.items()},
        "kept": None if record.keep_fraction is None else f"{record.keep_fraction:.0%}",
        "epochs": record.epochs,
        "clock": record.status,
    }


def trial_document(record: TrialRecord) -> dict[str, Any]:
    """Return one trial as a JSON object with its params in an object of their own."""
    return {name: getattr(record, name) for name in RECORD_COLUMNS} | {"params": dict(record.params)}


def print_trials(
    records: Sequence[TrialRecord],
    form: Format,
    *,
    title: str | None = None,
    also: Callable[[TrialRecord], Mapping[str, Any]] = lambda record: {},
) -> None:
    """Print trials, one a row, with what else is known of each."""
    if form is Format.json:
        print_json([{**trial_document(record), **also(record)} for record in records])
    else:
        print_rows([{**trial_row(record, form), **also(record)} for record in records], form, title=title)


def hypervolume_line(volume: float, reference: tuple[float, float]) -> str:
    seconds, accuracy = reference
    return f"hypervolume {volume:.4g} (seconds × accuracy) against {format_duration(seconds)}, accuracy {accuracy:g}"


def promise_line(answer: Recommendation) -> str:
    """Return in one line what training an answer's choice until its deadline is expected to give."""
    choice = answer.choice
    return (
        f"{answer.study}: {settings_text(choice.params)} until {format_duration(answer.budget_seconds)} are over, "
        f"about {choice.epochs} epochs; predicted accuracy {accuracy_text(choice)}"
    )


def settings_text(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {shown(value)}" for name, value in params.items()) or "the study's settings"


def accuracy_text(prediction: Prediction) -> str:
    return f"{prediction.accuracy:.2%} ({prediction.accuracy_low:.2%} to {prediction.accuracy_high:.2%})"
