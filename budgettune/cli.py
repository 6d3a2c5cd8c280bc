"""The command line: each command parses, makes one call, prints.

Programs are imported inside their commands, so that `budgettune --help`, `best` and `front` never load torch.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import nullcontext
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune import api, render
from budgettune.errors import BudgetTuneError, UsageError
from budgettune.render import Format, err, out
from budgettune.units import format_duration, parse_duration

if TYPE_CHECKING:
    from budgettune.records import TrialRecord
    from budgettune.spec import StudySpec
    from budgettune.worker import WorkerOptions, WorkerSummary

HELP = {"help_option_names": ["-h", "--help"]}
app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    help='"I have T seconds of training time. What should I train, and how sure are you?"',
    epilog="First steps: budgettune demo. Or: study create digits, worker, best --budget 5s, front, dashboard.",
)
studies = typer.Typer(
    no_args_is_help=True, context_settings=HELP, help="Create, list, show, check, export, delete studies."
)
app.add_typer(studies, name="study")

_debug = False


def _set_debug(value: bool) -> None:
    global _debug
    _debug = _debug or value


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


class SamplerName(StrEnum):
    """Ways to choose points."""

    tpe = "tpe"
    nsga2 = "nsga2"
    gp = "gp"
    random = "random"


class ExportFormat(StrEnum):
    """File formats of an export."""

    csv = "csv"
    json = "json"
    parquet = "parquet"


Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database; else $BUDGETTUNE_STORAGE, $OPTUNA_STORAGE, or sqlite:///budgettune.db.",
    ),
]
Debug = Annotated[bool, typer.Option("--debug", callback=_set_debug, help="Show a traceback where something fails.")]
Study = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="May be left out where there is only one.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Table for people, JSON or CSV for programs.")]
DeviceName = Annotated[
    str | None, typer.Option("--device-name", metavar="NAME", help="Only times from that kind of machine.")
]
AllowImport = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-import",
        metavar="PACKAGE",
        help="Package that code named by a study may come from (repeatable); else $BUDGETTUNE_ALLOW_IMPORT.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", help="What to train on.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; every usable core where left out.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any field, such as train.epochs=1.")
]


@studies.command("create")
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
        "name": None if name is None else json.dumps(name),
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
    cells = (
        f"{len(study.spec.cells())} cells"
        if study.spec.sampler.name == "grid"
        else f"points by {study.spec.sampler.name}"
    )
    out.print(
        f"study {study.name!r}: {cells}, repeats {study.spec.sampler.repeats}. Next: budgettune worker", markup=False
    )


@studies.command("list")
def study_list(form: FormatOption = Format.table, storage: Storage = None, debug: Debug = False) -> None:
    """List the studies of a database."""
    from budgettune.study import list_studies
    from budgettune.storage import storage_url

    render.print_rows([_summary_row(summary, form) for summary in list_studies(storage_url(storage))], form)


@studies.command("show")
def study_show(
    study: Study = None, form: FormatOption = Format.table, storage: Storage = None, debug: Debug = False
) -> None:
    """Show one study: states, machines, time spent and left, and cells that were given up."""
    from budgettune.study import list_studies
    from budgettune.storage import storage_url

    handle = api.load_study(study, storage=storage)
    summary = next(row for row in list_studies(storage_url(storage)) if row.name == handle.name)
    given_up = handle.verify().given_up
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


@studies.command("verify")
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


@studies.command("retry")
def study_retry(
    study: Study = None,
    cell: Annotated[int | None, typer.Option("--cell", min=0, help="Only this cell.")] = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Queue cells again that were given up."""
    queued = api.load_study(study, storage=storage).retry(cell)
    out.print(f"{queued} trials queued again" if queued else "nothing was given up: nothing to queue")


@studies.command("export")
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


@studies.command("delete")
def study_delete(
    study: Annotated[str, typer.Argument(metavar="STUDY")],
    yes: Annotated[bool, typer.Option("--yes", help="Really delete it, with all its trials.")] = False,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Delete a study and its trials for good."""
    from budgettune.study import delete_study
    from budgettune.storage import storage_url

    if not yes:
        raise UsageError(f"this deletes study {study!r} and its trials for good: repeat with --yes")
    delete_study(storage_url(storage), study)
    out.print(f"study {study!r} deleted", markup=False)


@app.command()
def worker(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Every open study where left out.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="End after that many.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", parser=_duration, metavar="2h", help="Begin no trial after that.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay for studies and trials that come later.")] = False,
    allow_import: AllowImport = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Train open trials until none is left. Ctrl-C hands the running trial back; twice quits at once."""
    from budgettune.worker import WorkerOptions

    options = WorkerOptions(
        device=device,
        threads=threads,
        trials=trials,
        timeout_seconds=timeout,
        wait=wait,
        allow_import=api.allowed_packages(allow_import),
    )
    summary = _work(study, options, storage)
    err.print(f"{summary.completed} trials completed, {summary.failed} failed. Next: budgettune front")


@app.command()
def best(
    study: Study = None,
    budget: Annotated[
        float, typer.Option("--budget", parser=_duration, metavar="60s", help="Training time allowed.")
    ] = ...,  # type: ignore[assignment]
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="How many.")] = 1,
    device_name: DeviceName = None,
    form: FormatOption = Format.table,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Show the most accurate trials whose training fits a budget."""
    records = api.best_under_budget(study, budget, top=top, device_name=device_name, storage=storage)
    _show_trials(records, form, device_name)


@app.command()
def front(
    study: Study = None,
    device_name: DeviceName = None,
    form: FormatOption = Format.table,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Show the Pareto front of time and accuracy, and its hypervolume."""
    records = api.pareto_front(study, device_name=device_name, storage=storage)
    volume, reference = api.hypervolume_of(study, device_name=device_name, storage=storage)
    if form is Format.json:
        documents = [render.trial_document(record) for record in records]
        render.print_json({"front": documents, "hypervolume": volume, "reference": reference})
        return
    _show_trials(records, form, device_name)
    if form is Format.table:
        out.print(_hypervolume_line(volume, reference), highlight=False)


@app.command()
def train(
    study: Study = None,
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where the model goes.")] = Path("model.pt"),
    trial: Annotated[
        int | None, typer.Option("--trial", min=0, metavar="N", help="Params and seed of a trial.")
    ] = None,
    sets: Sets = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    device: Device = "auto",
    threads: Threads = None,
    allow_import: AllowImport = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Train one configuration of a study and keep the model."""
    if (trial is None) == (not sets):
        raise typer.BadParameter("give either --trial N or --set key=value")
    handle = api.load_study(study, storage=storage)
    spec, params, trial_seed = api.configuration(handle, trial, sets or [])
    result = _train(spec, params, trial_seed if seed is None else seed, to, device, threads, allow_import)
    out.print(
        f"{to}: accuracy {result.test_accuracy:.2%} after {format_duration(result.train_seconds)}",
        highlight=False,
        markup=False,
    )


@app.command()
def dashboard(
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")] = 8080,
    password_file: Annotated[
        Path | None, typer.Option("--password-file", metavar="F", help="Lines of user:password, plain or hashed.")
    ] = None,
    allow_write: Annotated[bool, typer.Option("--allow-write", help="Let visitors change and delete.")] = False,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Serve optuna-dashboard, read-only unless told otherwise."""
    from budgettune.dashboard import serve
    from budgettune.storage import storage_url

    serve(storage_url(storage), host, port, password_file, allow_write)


@app.command()
def doctor(form: FormatOption = Format.table, debug: Debug = False) -> None:
    """Say what this box has, and what would spoil its timings."""
    from budgettune.machine import doctor_facts

    marks = {True: "ok", False: "look", None: "-"}
    rows = [
        {"": marks[fact.ok], "what": fact.name, "found": fact.value, "advice": fact.advice or ""}
        if form is Format.table
        else vars(fact)
        for fact in doctor_facts()
    ]
    render.print_rows(rows, form)


@app.command()
def demo(threads: Threads = None, storage: Storage = None, debug: Debug = False) -> None:
    """Create, work, answer: a small grid on scikit-learn's digits, in one go."""
    from budgettune.worker import WorkerOptions

    study = api.create_study("digits", storage=storage, skip_if_exists=True)
    summary = _work(study.name, WorkerOptions(device="cpu", threads=threads), storage)
    out.print(f"study {study.name!r}: {summary.completed} trials trained now, {len(study.spec.cells())} in all\n")
    members = api.pareto_front(study.name, storage=storage)
    render.print_trials(members, Format.table, title="The Pareto front: nothing is both faster and more accurate")
    out.print(_hypervolume_line(*api.hypervolume_of(study.name, storage=storage)), highlight=False)
    fastest, slowest = members[0].train_seconds or 0.0, members[-1].train_seconds or 0.0
    for budget_seconds in (1.02 * fastest, (fastest * slowest) ** 0.5, 1.02 * slowest):
        answer = api.best_under_budget(study.name, budget_seconds, storage=storage)
        render.print_trials(answer, Format.table, title=f"\nThe best within {format_duration(budget_seconds)}")
    out.print(
        "\nNext: budgettune best digits --budget 5s; budgettune dashboard; "
        "budgettune study create fashion-mnist --set data.root=FOLDER",
        highlight=False,
    )


def _work(study: str | None, options: WorkerOptions, storage: str | None) -> WorkerSummary:
    """Run a worker with progress on standard error; leave with 130 or 143 where a signal ended it."""
    from budgettune.progress import TerminalProgress
    from budgettune.stopping import StopFlag
    from budgettune.storage import storage_url
    from budgettune.worker import run_worker

    progress = TerminalProgress(err)
    with StopFlag() as stop:
        try:
            summary = run_worker(storage_url(storage), study, options, stop=stop, listener=progress)
        finally:
            progress.close()
    if summary.signal_number is not None:
        raise typer.Exit(128 + summary.signal_number)
    return summary


def _train(
    spec: StudySpec,
    params: dict[str, Any],
    seed: int,
    to: Path,
    device: str,
    threads: int | None,
    allow: list[str] | None,
) -> Any:
    from budgettune.stopping import StopFlag
    from budgettune.worker import save_model, train_one

    show = err.status("training") if err.is_terminal else nullcontext()
    with StopFlag() as stop, show:
        trained = train_one(
            spec, params, seed=seed, device=device, threads=threads, allow_import=api.allowed_packages(allow), stop=stop
        )
    save_model(to, trained, spec, params)
    return trained.result


def _show_trials(records: list[TrialRecord], form: Format, device_name: str | None) -> None:
    render.warn_of_mixed_machines(records, device_name)
    render.print_trials(records, form)


def _hypervolume_line(volume: float, reference: tuple[float, float]) -> str:
    return f"hypervolume {volume:.4g} (seconds × accuracy) against {format_duration(reference[0])}, accuracy {reference[1]:g}"


def _summary_row(summary: Any, form: Format) -> dict[str, Any]:
    row = vars(summary)
    if form is Format.json:
        return dict(row)
    return {
        key: ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        for key, value in row.items()
    }


def main() -> None:
    """Run the command line; print deliberate errors in one line and leave with 1, or 2 for wrong usage."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        app()
    except BudgetTuneError as error:
        if _debug:
            raise
        err.print(f"[red]error:[/] {render.escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if _debug:
            raise
        text = render.escape(f"{type(error).__name__}: {error}".splitlines()[0])
        err.print(f"[red]unexpected error:[/] {text} (--debug shows where)", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
