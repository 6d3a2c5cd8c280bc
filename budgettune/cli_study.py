"""`budgettune study …`: create, list, show, check, export, delete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune import api, render
from budgettune.cli_options import (
    HELP,
    Debug,
    ExportFormat,
    FormatOption,
    SamplerName,
    Sets,
    Storage,
    Study,
    duration,
)
from budgettune.errors import UsageError
from budgettune.render import Format, err, out
from budgettune.storage import storage_url
from budgettune.units import format_duration

if TYPE_CHECKING:
    from budgettune.study import StudyHandle, StudySummary

app = typer.Typer(
    no_args_is_help=True, context_settings=HELP, help="Create, list, show, check, export, delete studies."
)


@app.command("create")
def study_create(
    spec: Annotated[str, typer.Argument(metavar="[SPEC]", help="TOML file, or the name of a bundled one.")] = "paper",
    name: Annotated[str | None, typer.Option("--name", help="Study name in place of the file's.")] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Run every point of the search lists.")] = False,
    sampler: Annotated[SamplerName | None, typer.Option("--sampler", help="Let Optuna choose points.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="All trials' seeds follow from it.")] = None,
    repeats: Annotated[int | None, typer.Option("--repeats", min=1, help="Trials per point.")] = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="Points that a sampler ends at.")] = None,
    skip_if_exists: Annotated[bool, typer.Option("--skip-if-exists", help="Leave a study of that name alone.")] = False,
    sets: Sets = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Create a study and its open trials."""
    if grid and sampler:
        raise typer.BadParameter("--grid and --sampler exclude each other")
    chosen = {
        # A TOML string: it knows no pairs of surrogates, and no bare DEL.
        "name": None if name is None else json.dumps(name, ensure_ascii=False).replace("\x7f", r"\u007f"),
        "sampler.name": "grid" if grid else sampler,
        "sampler.seed": seed,
        "sampler.repeats": repeats,
        "sampler.trials": trials,
    }
    overrides = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    study = api.create_study(
        spec, storage=storage, overrides=[*(sets or []), *overrides], skip_if_exists=skip_if_exists
    )
    if note := study.spec.twin_note():
        err.print(f"note: {note}", highlight=False, markup=False)
    if decided := study.spec.pruning.decided:
        out.print(f"pruning, decided on {study.spec.pruning.evidence}: {decided}", highlight=False, markup=False)
    cells = (
        f"{len(study.spec.cells())} cells"
        if study.spec.sampler.name == "grid"
        else f"points by {study.spec.sampler.name}"
    )
    out.print(
        f"study {study.name!r}: {cells}, repeats {study.spec.sampler.repeats}. Next: budgettune worker", markup=False
    )


@app.command("list")
def study_list(form: FormatOption = Format.table, storage: Storage = None, debug: Debug = False) -> None:
    """List the studies of a database."""
    from budgettune.study import list_studies

    summaries = list_studies(storage_url(storage))
    render.print_rows([_summary_row(summary, form) for summary in summaries], form)
    for fault in (summary.fault for summary in summaries if summary.fault):
        err.print(f"note: {fault}", highlight=False, markup=False)


@app.command("show")
def study_show(
    study: Study = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Stay and show how it goes, until nothing is left or Ctrl-C.")
    ] = False,
    every: Annotated[
        float, typer.Option("--every", parser=duration, metavar="2s", help="Between looks of --watch.")
    ] = 2.0,
    form: FormatOption = Format.table,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Show one study: states, machines, time spent and left, and cells that were given up."""
    handle = api.load_study(study, storage=storage)
    if watch:
        _watch(handle, every, form)
        return
    summary, given_up = handle.summary(), handle.verify().given_up
    if form is Format.json:
        render.print_json(
            {
                **_summary_row(summary, form),
                "given_up": [vars(one) for one in given_up],
                "spec": handle.spec.to_document(),
            }
        )
        return
    render.print_rows([_summary_row(summary, form)], form)
    for one in given_up:
        err.print(f"given up: {one}", highlight=False, markup=False)


@app.command("verify")
def study_verify(
    study: Study = None, form: FormatOption = Format.table, storage: Storage = None, debug: Debug = False
) -> None:
    """Check that each cell and repeat has exactly one finished trial; exit status 1 unless so."""
    verification = api.load_study(study, storage=storage).verify()
    if form is Format.json:
        render.print_json(verification.to_json())
    else:
        out.print(verification.describe(), highlight=False, markup=False)
    if not verification.whole:
        raise typer.Exit(1)


@app.command("retry")
def study_retry(
    study: Study = None,
    cell: Annotated[int | None, typer.Option("--cell", min=0, help="Only this cell.")] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Queue cells again that were given up."""
    queued = api.load_study(study, storage=storage).retry(cell)
    out.print(f"{queued} trials queued again" if queued else "nothing was given up: nothing to queue")


@app.command("export")
def study_export(
    study: Study = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="JSON holds the curves.")] = ExportFormat.csv,
    to: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Standard output where left out.")] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Export a study, one row per trial."""
    from budgettune.export import export

    export(*api.locate(study, storage), form.value, to)


@app.command("delete")
def study_delete(
    study: Annotated[str, typer.Argument(metavar="STUDY")],
    yes: Annotated[bool, typer.Option("--yes", help="Really delete it, with all its trials.")] = False,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Delete a study and its trials for good."""
    from budgettune.study import delete_study

    if not yes:
        raise UsageError(f"this deletes study {study!r} and its trials for good: repeat with --yes")
    delete_study(storage_url(storage), study)
    out.print(f"study {study!r} deleted", markup=False)


def _watch(handle: StudyHandle, every_seconds: float, form: Format) -> None:
    """Stay until nothing is left; leave with 130 or 143 where a signal ended it."""
    from budgettune.stopping import StopFlag
    from budgettune.watch import watch

    if form is not Format.table:
        raise typer.BadParameter(f"--watch is for people: leave it out to get {form.value}")
    with StopFlag() as stop:
        watch(handle, out, every_seconds, stop)
    if stop.signal_number is not None:
        raise typer.Exit(128 + stop.signal_number)


def _summary_row(summary: StudySummary, form: Format) -> dict[str, Any]:
    if form is Format.json:
        return vars(summary)
    if form is Format.csv:
        row = {**vars(summary), **summary.states, "devices": "; ".join(summary.devices)}
        return {key: value for key, value in row.items() if key != "states"}
    without_count = "no end" if summary.fault is None else "?"
    return {
        "study": summary.name,
        "wanted": without_count if summary.cells is None else summary.cells,
        **{state.lower(): count for state, count in summary.states.items() if count or state == "COMPLETE"},
        "trained": format_duration(summary.train_seconds),
        "left": None if summary.seconds_left is None else format_duration(summary.seconds_left),
        "machines": ", ".join(summary.devices) or None,
    }
