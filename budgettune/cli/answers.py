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
    trial_document,
    warn,
)
from budgettune.records import TrialRecord

if TYPE_CHECKING:
    from budgettune.spec.objective import ObjectiveSpec
    from budgettune.study.front import Certainty

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
    kind, note = api.machines(study, device_name=device_name, storage=storage)
    records = api.best_under_budget(study, budget, top=top, device_name=kind, clean_only=clean_only, storage=storage)
    sure = api.certainty(study, device_name=kind, clean_only=clean_only, storage=storage)
    aim = api.aim_of(study, storage=storage)
    warn(note)
    warn(api.limits_note(study, device_name=kind, clean_only=clean_only, storage=storage))
    print_trials(records, form, aim, also=lambda record: _over_seeds(sure, record, form, aim.objective))


def _over_seeds(sure: Certainty | None, record: TrialRecord, form: Format, objective: ObjectiveSpec) -> dict[str, Any]:
    """Return the 95% interval of the mean over seeds of a trial's configuration, where repeats tell it."""
    interval = None if sure is None or record.cell is None else sure.intervals.get(record.cell)
    if form is not Format.table:
        key = "accuracy" if objective.is_accuracy else objective.key
        return dict(zip((f"{key}_low", f"{key}_high"), interval or (None, None), strict=True))
    return {} if interval is None else {"over seeds (95%)": " to ".join(map(objective.text, interval))}


def _chance_on_front(sure: Certainty | None, record: TrialRecord, form: Format) -> dict[str, Any]:
    """Return how likely it is that nothing beats a trial's configuration in the mean over seeds."""
    chance = None if sure is None or record.cell is None else sure.front_chances.get(record.cell)
    if form is not Format.table:
        return {"front_chance": chance}
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
    kind, note = api.machines(study, device_name=device_name, storage=storage)
    records = api.pareto_front(study, device_name=kind, clean_only=clean_only, storage=storage)
    volume, reference = api.hypervolume_of(study, device_name=kind, clean_only=clean_only, storage=storage)
    sure = api.certainty(study, device_name=kind, clean_only=clean_only, storage=storage)
    aim = api.aim_of(study, storage=storage)
    warn(note)
    warn(api.limits_note(study, device_name=kind, clean_only=clean_only, storage=storage))
    if form is Format.json:
        documents = [{**trial_document(each, aim), **_chance_on_front(sure, each, form)} for each in records]
        print_json({"front": documents, "hypervolume": volume, "reference": reference})
        return
    print_trials(records, form, aim, also=lambda record: _chance_on_front(sure, record, form))
    if form is Format.table and records:
        say_figures(hypervolume_line(volume, reference, aim))
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
