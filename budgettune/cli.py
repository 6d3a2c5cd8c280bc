"""The command line: each command parses, makes one call, prints.

Programs are imported inside their commands, so that `budgettune --help`, `best` and `front` never load torch.
"""

from __future__ import annotations

import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune import api, cli_predict, cli_study, render
from budgettune.cli_options import (
    HELP,
    AllowImport,
    CleanOnly,
    Debug,
    DebugSwitch,
    Device,
    DeviceName,
    FormatOption,
    Sets,
    Storage,
    Study,
    Threads,
    duration,
)
from budgettune.errors import BudgetTuneError
from budgettune.render import Format, err, out
from budgettune.units import format_duration

if TYPE_CHECKING:
    from budgettune.fleet import Member, WorkerCommand
    from budgettune.records import TrialRecord
    from budgettune.spec import StudySpec
    from budgettune.worker_options import WorkerOptions, WorkerSummary

app = typer.Typer(
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    help='"I have T seconds of training time. What should I train, and how sure are you?"',
    epilog="First steps: budgettune demo. Or: study create digits, worker, best --budget 5s, front, dashboard.",
)
app.add_typer(cli_study.app, name="study")
app.add_typer(cli_predict.app)


@app.command()
def worker(
    study: Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Every open study where left out.")] = None,
    device: Device = "auto",
    threads: Threads = None,
    trials: Annotated[int | None, typer.Option("--trials", min=1, help="End after that many.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", parser=duration, metavar="2h", help="Begin no trial after that.")
    ] = None,
    trial_timeout: Annotated[
        float | None,
        typer.Option("--trial-timeout", parser=duration, metavar="2h", help="End a trial that takes longer."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Stay for studies and trials that come later.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="When told to stop, finish the trial first.")] = False,
    processes: Annotated[
        int | None, typer.Option("--processes", min=1, help="Workers on this CPU; on GPUs it is one each.")
    ] = None,
    allow_import: AllowImport = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Train open trials until none is left. Ctrl-C hands the running trial back; twice quits at once."""
    from budgettune import fleet
    from budgettune.worker_options import WorkerOptions

    options = WorkerOptions(
        device=device,
        threads=threads,
        trials=trials,
        timeout_seconds=timeout,
        trial_timeout_seconds=trial_timeout,
        wait=wait,
        allow_import=api.allowed_packages(allow_import),
    )
    members = fleet.members_here(options, processes)
    if members:
        raise typer.Exit(_run_fleet(members, fleet.worker_command(study, drain=drain, debug=debug), storage))
    summary = _work(study, options, storage, drain=drain)
    err.print(f"{summary.completed} trials completed, {summary.failed} failed. Next: budgettune front")


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
    records = api.best_under_budget(
        study, budget, top=top, device_name=device_name, clean_only=clean_only, storage=storage
    )
    _show_trials(records, form, device_name)


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
    records = api.pareto_front(study, device_name=device_name, clean_only=clean_only, storage=storage)
    volume, reference = api.hypervolume_of(study, device_name=device_name, clean_only=clean_only, storage=storage)
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
    budget: Annotated[
        float | None,
        typer.Option("--budget", parser=duration, metavar="60s", help="What `recommend` says, until the time is up."),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0)] = None,
    device: Device = "auto",
    threads: Threads = None,
    allow_import: AllowImport = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Train one configuration of a study and keep the model."""
    if [trial is not None, bool(sets), budget is not None].count(True) != 1:
        raise typer.BadParameter("give one of --trial N, --set key=value and --budget 60s")
    handle = api.load_study(study, storage=storage)
    if budget is None:
        spec, params, trial_seed = api.configuration(handle, trial, sets or [])
    else:
        answer, params = api.recommended(handle, budget)
        spec, trial_seed = handle.spec, handle.spec.sampler.seed
        err.print(cli_predict.forecast(answer), highlight=False, markup=False, soft_wrap=True)
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

    raise typer.Exit(128 + serve(storage_url(storage), host, port, password_file, allow_write))


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
def profile(
    spec: Annotated[str, typer.Argument(metavar="[SPEC]", help="TOML file, or the name of a bundled one.")] = "paper",
    sets: Sets = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each configuration.")] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps timed in each turn.")] = 3,
    remedies: Annotated[bool, typer.Option("--remedies/--no-remedies", help="Try cures for what is alarmed.")] = True,
    cudnn_benchmark: Annotated[
        bool, typer.Option("--cudnn-benchmark/--no-cudnn-benchmark", help="Off, as in the paper's script.")
    ] = True,
    allow_import: AllowImport = None,
    form: FormatOption = Format.table,
    debug: Debug = False,
) -> None:
    """Time a step of every scale and batch size, and look into those that fall off a kernel cliff."""
    from budgettune.profile import profile as run_profile
    from budgettune.profile_report import render_profile
    from budgettune.spec import load_spec

    with err.status("probing") as status:
        report = run_profile(
            load_spec(spec).with_overrides(sets or []),
            device=device,
            threads=threads,
            rounds=rounds,
            steps=steps,
            remedies=remedies,
            cudnn_benchmark=cudnn_benchmark,
            allow_import=api.allowed_packages(allow_import),
            report_progress=status.update,
        )
    if form is Format.table:
        render_profile(report, out)
    elif form is Format.json:
        render.print_json(report.to_json())
    else:
        render.print_rows([row.flat() for row in report.rows], form)


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
    for member in (members[0], members[len(members) // 2], members[-1]):
        budget_seconds = 1.02 * (member.train_seconds or 0.0)
        answer = api.best_under_budget(study.name, budget_seconds, storage=storage)
        render.print_trials(answer, Format.table, title=f"\nThe best within {format_duration(budget_seconds)}")
    out.print(
        "\nNext: budgettune best digits --budget 5s; budgettune dashboard; "
        "budgettune study create fashion-mnist --set data.root=FOLDER",
        highlight=False,
    )


def _run_fleet(members: list[Member], command: WorkerCommand, storage: str | None) -> int:
    from budgettune.fleet import run_fleet
    from budgettune.stopping import StopFlag
    from budgettune.storage import storage_url

    def say(line: str) -> None:
        err.print(line, highlight=False, markup=False, soft_wrap=True)

    with StopFlag() as stop:
        return run_fleet(members, command, storage_url(storage), stop, say=say)


def _work(study: str | None, options: WorkerOptions, storage: str | None, *, drain: bool = False) -> WorkerSummary:
    """Run a worker with progress on standard error; leave with 130 or 143 where a signal ended it."""
    from budgettune.progress import TerminalProgress
    from budgettune.stopping import StopFlag
    from budgettune.storage import storage_url
    from budgettune.worker import run_worker

    progress = TerminalProgress(err)
    with StopFlag(drains=drain) as stop:
        stop.obey_parent()
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
    seconds, accuracy = reference
    return f"hypervolume {volume:.4g} (seconds × accuracy) against {format_duration(seconds)}, accuracy {accuracy:g}"


def main() -> None:
    """Run the command line; print deliberate errors in one line and leave with 1, or 2 for wrong usage."""
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    try:
        app()
    except BudgetTuneError as error:
        if DebugSwitch.is_on:
            raise
        err.print(f"[red]error:[/] {render.escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(1)
    except Exception as error:
        if DebugSwitch.is_on:
            raise
        text = render.escape(f"{type(error).__name__}: {error}".splitlines()[0])
        err.print(f"[red]unexpected error:[/] {text} (--debug shows where)", highlight=False, soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
