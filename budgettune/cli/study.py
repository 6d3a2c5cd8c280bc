"""`budgettune study …`: create, list, show, check, export, delete."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune import api
from budgettune.cli import options
from budgettune.cli.output import (
    Format,
    leave_if_stopped,
    out,
    print_json,
    print_rows,
    print_table,
    say,
    say_figures,
    warn,
)
from budgettune.errors import UsageError
from budgettune.storage.url import storage_url
from budgettune.text import format_duration
from budgettune.web.documents import show_document, summary_document
from budgettune.worker.signals import StopFlag

if TYPE_CHECKING:
    from budgettune.spec.study_spec import StudySpec
    from budgettune.study.summary import StudySummary

app = typer.Typer(
    no_args_is_help=True, context_settings=options.HELP, help="Create, list, show, check, export, delete studies."
)


@app.command(
    "create",
    epilog=options.examples(
        "study create mine.toml --repeats 3",
        "study create digits --name two --set 'search.scale=[1.0, 2.0]'",
        "study create mine.toml --sampler tpe --trials 100",
    ),
)
def study_create(
    spec: options.Spec = "paper",
    name: Annotated[str | None, typer.Option("--name", help="Name of the study, in place of the file's.")] = None,
    grid: Annotated[bool, options.switch("--grid", help="Run every combination of the searched lists.")] = False,
    sampler: Annotated[
        options.SamplerName | None, typer.Option("--sampler", help="Let a sampler choose points.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="Number that all trials' seeds follow from.")
    ] = None,
    repeats: Annotated[
        str | None,
        typer.Option("--repeats", metavar="N|auto", help="Trials per point; auto: more where the front is uncertain."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, metavar="N", help="Points after which a sampler ends.")
    ] = None,
    total: Annotated[
        float | None, options.lasting("--total", metavar="4h", help="Training, over all workers, to end at.")
    ] = None,
    worth: Annotated[
        float | None, options.lasting("--worth", metavar="60s", help="Training that a point of accuracy is worth.")
    ] = None,
    skip_if_exists: Annotated[
        bool, options.switch("--skip-if-exists", help="Leave a study of that name alone.")
    ] = False,
    sets: options.Sets = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Create a study and its open trials.

    Options stand above the study file's own settings; --set overrides any.
    """
    if grid and sampler:
        raise typer.BadParameter("--grid and --sampler exclude each other")
    chosen = {
        # A TOML string: it knows no pairs of surrogates, and no bare DEL.
        "name": None if name is None else json.dumps(name, ensure_ascii=False).replace("\x7f", r"\u007f"),
        "sampler.name": "grid" if grid else sampler,
        "sampler.seed": seed,
        "sampler.repeats": repeats,
        "sampler.trials": trials,
        "sampler.total": total,
        "sampler.worth": worth,
    }
    overrides = [f"{key}={value}" for key, value in chosen.items() if value is not None]
    study = api.create_study(
        spec, storage=storage, overrides=[*(sets or []), *overrides], skip_if_exists=skip_if_exists
    )
    for note in study.spec.notes():
        warn(note)
    if decided := study.spec.pruning.decided:
        say(f"pruning, decided on {study.spec.pruning.evidence}: {decided}", out)
    _say_conditions(study.spec)
    by = study.spec.sampler.name
    cells = f"{study.spec.cell_count()} cells" if by == "grid" else f"points by {by}"
    say(f"study {study.name!r}: {cells}, repeats {study.spec.sampler.repeats}. Next: budgettune worker", out)


@app.command("list", epilog=options.examples("study list", "study list --format json"))
def study_list(
    form: options.FormatOption = Format.table, storage: options.Storage = None, debug: options.Debug = False
) -> None:
    """List the studies of a database."""
    from budgettune.study.summary import foreign_note, list_studies

    summaries = list_studies(storage_url(storage))
    _print_summaries(summaries, form)
    if not summaries:
        say("there is no study yet: make one with `budgettune study create`")
    for summary in summaries:
        warn(summary.fault)
        warn(foreign_note(summary.name, summary.foreign))


@app.command("show", epilog=options.examples("study show", "study show mine --watch --every 10s"))
def study_show(
    study: options.Study = None,
    watch: Annotated[
        bool, options.switch("--watch", help="Stay and show how it goes, until nothing is left or Ctrl-C.")
    ] = False,
    every: Annotated[float, options.lasting("--every", help="Time between looks of --watch.", show_default="2s")] = 2.0,
    form: options.FormatOption = Format.table,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Show one study: states, machines, time spent and left, and cells that were given up."""
    from budgettune.study.summary import foreign_note, prospect_note

    handle = api.load_study(study, storage=storage)
    if watch:
        from budgettune.cli import live

        if form is not Format.table:
            raise typer.BadParameter(f"--watch is for people: leave it out to get {form.value}")
        with StopFlag() as stop:
            live.watch(handle, out, every, stop)
        leave_if_stopped(stop.signal_number)
        return
    if form is Format.json:
        print_json(show_document(handle))
        return
    summary, stopping = handle.summary(), handle.early_stops()
    if summary.failure is not None and form is Format.table:
        say(f"no trial has finished; the latest failed: {summary.failure}", out)
    _print_summaries([summary], form)
    if form is Format.table:
        _say_conditions(handle.spec)
        if summary.prospect is not None:
            say(prospect_note(handle.spec, summary.prospect), out)
    for one in summary.given_up:
        say(f"given up: {one}")
    if stopping is not None and form is Format.table:
        say_figures(stopping.describe())
    warn(foreign_note(summary.name, summary.foreign))
    warn(handle.machine_note())


@app.command("verify", epilog=options.examples("study verify", "study verify mine --format json"))
def study_verify(
    study: options.Study = None,
    form: options.FormatOption = Format.table,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Check that each cell and repeat has exactly one finished trial; exit status 1 unless so."""
    verification = api.load_study(study, storage=storage).verify()
    if form is Format.json:
        print_json(verification.to_json())
    else:
        say_figures(verification.describe())
    if not verification.whole:
        raise typer.Exit(1)


@app.command("retry", epilog=options.examples("study retry", "study retry mine --cell 3"))
def study_retry(
    study: options.Study = None,
    cell: Annotated[
        int | None, typer.Option("--cell", min=0, metavar="N", help="Number of the only cell to queue.")
    ] = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Queue cells again that were given up."""
    queued = api.load_study(study, storage=storage).retry(cell)
    say(f"{queued} trials queued again" if queued else "nothing was given up: nothing to queue", out)


@app.command(
    "export", epilog=options.examples("study export --out mine.csv", "study export mine --format json --out mine.json")
)
def study_export(
    study: options.Study = None,
    form: Annotated[
        options.ExportFormat,
        typer.Option("--format", help="One row per trial; JSON also holds curves, phases and machines."),
    ] = options.ExportFormat.csv,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File to write; standard output where left out.")
    ] = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Export a study, one row per trial."""
    from budgettune.study.export import export

    export(*api.locate(study, storage), form.value, to)


@app.command("delete", epilog=options.examples("study delete mine --yes"))
def study_delete(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Name.", autocompletion=options.studies_beginning)],
    yes: Annotated[bool, options.switch("--yes", help="Really delete it, with all its trials.")] = False,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Delete a study and its trials for good."""
    from budgettune.study.handle import delete_study

    if not yes:
        raise UsageError(f"this deletes study {study!r} and its trials for good: repeat with --yes")
    delete_study(storage_url(storage), study)
    say(f"study {study!r} deleted", out)


def _say_conditions(spec: StudySpec) -> None:
    """Say of each axis that is searched in some points only what it has and where."""
    if spec.conditions:
        from budgettune.study.dashboard_note import axis_text

        for key in spec.conditions:
            say(f"search.{key}: {axis_text(spec, key)}", out)


def _print_summaries(summaries: Sequence[StudySummary], form: Format) -> None:
    if form is Format.table:
        shown = {"COMPLETE", *(state for each in summaries for state, count in each.states.items() if count)}
        print_table([_line(summary, shown) for summary in summaries], sentences="machines")
    else:
        print_rows([_values(summary, form) for summary in summaries], form)


def _values(summary: StudySummary, form: Format) -> dict[str, Any]:
    """Return what programs get of a study, in CSV without anything nested."""
    values = summary_document(summary)
    if form is Format.json:
        return values
    counts = {**summary.states, "foreign": sum(summary.foreign.values())}
    row = {**values, **counts, "devices": "; ".join(summary.devices)}
    return {key: value for key, value in row.items() if key != "states"}


def _line(summary: StudySummary, states: Collection[str]) -> dict[str, Any]:
    without_count = "no end" if summary.fault is None else "?"
    return {
        "study": summary.name,
        "wanted": without_count if summary.cells is None else summary.cells,
        **{state.lower(): count for state, count in summary.states.items() if state in states},
        "trained": format_duration(summary.train_seconds),
        "left": None if summary.seconds_left is None else format_duration(summary.seconds_left),
        "machines": ", ".join(summary.devices) or None,
    }
