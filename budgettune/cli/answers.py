"""`budgettune best`, `front` and `report`: what a study answers. None of them loads torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune import api
from budgettune.cli import options
from budgettune.cli.output import (
    Format,
    hypervolume_line,
    print_json,
    print_trials,
    say,
    say_figures,
    say_images,
    warn,
)
from budgettune.records import TrialRecord
from budgettune.web import documents

if TYPE_CHECKING:
    from budgettune.web.documents import TrialsAnswer

app = typer.Typer()


ReportFormat = StrEnum("ReportFormat", ["html", "png", "svg"])  # the page, or a picture of one figure


@app.command(
    rich_help_panel=options.ANSWERS,
    epilog=options.examples("best --budget 60s", "best mine --budget 10m --top 5 --clean-only"),
)
def best(
    study: options.Study = None,
    budget: Annotated[float, options.lasting("--budget", help="Training time allowed, such as 60s or 10m.")] = ...,  # type: ignore[assignment]
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many trials to show.")] = 1,
    device_name: options.DeviceName = None,
    clean_only: options.CleanOnly = False,
    form: options.FormatOption = Format.table,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Show the best trials whose training fits a budget: the most accurate, or by the study's own objective."""
    answer = documents.best(study, budget, top=top, device_name=device_name, clean_only=clean_only, storage=storage)
    _warn(answer)
    if form is Format.json:
        print_json(documents.best_document(answer))
        return
    print_trials(answer.records, form, answer.aim, also=lambda record: _over_seeds(answer, record, form))
    if form is Format.table:
        say_images(answer.aim)


def _warn(answer: TrialsAnswer) -> None:
    for note in answer.notes:
        warn(note)


def _over_seeds(answer: TrialsAnswer, record: TrialRecord, form: Format) -> dict[str, Any]:
    if form is not Format.table:
        return answer.interval_document(record)
    interval = answer.over_seeds(record)
    return {} if interval is None else {"over seeds (95%)": " to ".join(map(answer.aim.objective.text, interval))}


def _chance_on_front(answer: TrialsAnswer, record: TrialRecord, form: Format) -> dict[str, Any]:
    if form is not Format.table:
        return answer.chance_document(record)
    chance = answer.chance_on_front(record)
    return {} if chance is None else {"on front": f"{chance:.0%}"}


@app.command(rich_help_panel=options.ANSWERS, epilog=options.examples("front", "front mine --clean-only --format csv"))
def front(
    study: options.Study = None,
    device_name: options.DeviceName = None,
    clean_only: options.CleanOnly = False,
    form: options.FormatOption = Format.table,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Show the Pareto front of time and accuracy (or the study's own objective), and its hypervolume."""
    answer, volume = documents.front(study, device_name=device_name, clean_only=clean_only, storage=storage)
    _warn(answer)
    if form is Format.json:
        print_json(documents.front_document(answer, volume))
        return
    print_trials(answer.records, form, answer.aim, also=lambda record: _chance_on_front(answer, record, form))
    if form is Format.table and answer.records:
        say_figures(hypervolume_line(*volume, answer.aim))
        say_images(answer.aim)
    elif form is Format.table:
        say("no trial to show has finished: `budgettune study show` says how the study stands")


@app.command(
    rich_help_panel=options.ANSWERS,
    epilog=options.examples(
        "report --budget 60s", "report mine --out mine.html", "report mine --format svg --figure front"
    ),
)
def report(
    study: options.Study = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="File to write; report.html where left out, or FIGURE.png."),
    ] = None,
    form: Annotated[
        ReportFormat, typer.Option("--format", help="The whole page, or a picture of one figure.")
    ] = ReportFormat.html,
    figure: Annotated[
        str | None, typer.Option("--figure", metavar="NAME", help="Figure for png and svg, such as front or curves.")
    ] = None,
    budget: Annotated[
        float | None, options.lasting("--budget", help="Where the page's slider stands at first, such as 60s.")
    ] = None,
    device_name: options.DeviceName = None,
    clean_only: options.CleanOnly = False,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Write the study's figures and answers as one page that opens without a network."""
    to = to or Path("report.html" if figure is None else f"{figure}.{form.value}")
    api.write_report(
        study,
        to,
        format=form.value,
        figure=figure,
        budget=budget,
        device_name=device_name,
        clean_only=clean_only,
        storage=storage,
    )
    say(f"{to} written")
