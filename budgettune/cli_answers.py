"""What a study answers: `budgettune best`, `front` and `report`. None of them loads torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from budgettune import api, render
from budgettune.cli_options import CleanOnly, Debug, DeviceName, FormatOption, Storage, Study, duration
from budgettune.render import Format, err, out

app = typer.Typer()


class ReportFormat(StrEnum):
    """File formats of a report: the page, or a picture of one figure."""

    html = "html"
    png = "png"
    svg = "svg"


@app.command()
def best(
    study: Study = None,
    budget: Annotated[
        float, typer.Option("--budget", parser=duration, metavar="60s", help="Training time allowed.")
    ] = ...,  # type: ignore[assignment]
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many.")] = 1,
    device_name: DeviceName = None,
    clean_only: CleanOnly = False,
    form: FormatOption = Format.table,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Show the most accurate trials whose training fits a budget."""
    kind, note = api.machines(study, device_name=device_name, storage=storage)
    records = api.best_under_budget(study, budget, top=top, device_name=kind, clean_only=clean_only, storage=storage)
    render.note(note)
    render.print_trials(records, form)


@app.command()
def front(
    study: Study = None,
    device_name: DeviceName = None,
    clean_only: CleanOnly = False,
    form: FormatOption = Format.table,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Show the Pareto front of time and accuracy, and its hypervolume."""
    kind, note = api.machines(study, device_name=device_name, storage=storage)
    records = api.pareto_front(study, device_name=kind, clean_only=clean_only, storage=storage)
    volume, reference = api.hypervolume_of(study, device_name=kind, clean_only=clean_only, storage=storage)
    render.note(note)
    if form is Format.json:
        documents = [render.trial_document(record) for record in records]
        render.print_json({"front": documents, "hypervolume": volume, "reference": reference})
        return
    render.print_trials(records, form)
    if form is Format.table:
        out.print(render.hypervolume_line(volume, reference), highlight=False)


@app.command()
def report(
    study: Study = None,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Where it goes; report.html, or FIGURE.png.")
    ] = None,
    form: Annotated[
        ReportFormat, typer.Option("--format", help="The whole page, or a picture of one figure.")
    ] = ReportFormat.html,
    figure: Annotated[
        str | None, typer.Option("--figure", metavar="NAME", help="Which figure, for png and svg: front, curves, …")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", parser=duration, metavar="60s", help="Where the page's slider stands at first."),
    ] = None,
    device_name: DeviceName = None,
    clean_only: CleanOnly = False,
    storage: Storage = None,
    debug: Debug = False,
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
    err.print(f"{to} written", highlight=False, markup=False)
