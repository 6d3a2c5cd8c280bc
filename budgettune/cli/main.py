"""The command line: each command parses, makes one call, prints.

Programs are imported inside their commands, so that `budgettune --help`, `best` and `front` never load torch.
"""

from __future__ import annotations

import math
import shlex
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.markup import escape

import budgettune
from budgettune import api
from budgettune.cli import answers, compare, fleet, options, profile, recommend, study, train
from budgettune.cli.output import (
    Format,
    err,
    hypervolume_line,
    leave_if_stopped,
    make_streams_take_anything,
    out,
    print_rows,
    print_trials,
    say,
    say_figures,
    say_images,
)
from budgettune.errors import BudgetTuneError, DeviceLost, NothingTrained, StorageReadOnly, StudyNotFound, UsageError
from budgettune.storage.connection import open_engine
from budgettune.storage.url import parse_url, shown, storage_url
from budgettune.text import format_duration, redact
from budgettune.worker.options import WorkerOptions, WorkerSummary
from budgettune.worker.signals import StopFlag, listen

app = typer.Typer(
    no_args_is_help=True,
    context_settings=options.HELP,
    pretty_exceptions_enable=False,
    help='"I have T seconds of training time. What should I train, and how sure are you?"',
    epilog="First steps: budgettune demo. Or, one by one: study create digits, worker, best --budget 5s, report.\n"
    "Durations are written 90s, 10m or 1h30m; a number alone means seconds. BUDGETTUNE_STORAGE names the database.\n"
    "Exit status: 0 done, 1 error, 2 wrong usage, 129, 130 and 143 stopped by a signal; of a worker "
    "4: no time for what is open (--leave --timeout), 75: start it again.",
)
app.add_typer(study.app, name="study", rich_help_panel=options.STUDIES)
for module in (answers, recommend, train, compare, profile, fleet):
    app.add_typer(module.app)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"budgettune {budgettune.__version__}")
        raise typer.Exit


@app.callback()
def before(
    version: Annotated[
        bool, options.switch("--version", is_eager=True, callback=_show_version, help="Show the version, and end.")
    ] = False,
) -> None:
    """Take what comes before a command."""


@app.command(
    rich_help_panel=options.STUDIES,
    epilog=options.examples(
        "worker", "worker mine --threads 2 --timeout 2h", "worker --wait --processes 4 --allow-import mynets"
    ),
)
def worker(
    study: Annotated[
        str | None,
        typer.Argument(
            metavar="STUDY",
            help="Name; every open study where left out, oldest first.",
            autocompletion=options.studies_beginning,
        ),
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    gpus_per_trial: Annotated[
        int | None,
        typer.Option("--gpus-per-trial", min=1, metavar="N", help="Train each trial on N GPUs, or by N CPU processes."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, metavar="N", help="End after that many trials.")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            parser=options.duration_or_none,
            metavar="DURATION",
            help="Begin no trial after that, nor one that would outlast it and cannot be resumed.",
        ),
    ] = None,
    trial_timeout: Annotated[
        float | None, options.lasting("--trial-timeout", help="End a trial that takes longer, as failed.")
    ] = None,
    wait: Annotated[bool, options.switch("--wait", help="Stay for studies and trials that come later.")] = False,
    leave: Annotated[
        bool, options.switch("--leave", help="End as soon as nothing is open, though others still train.")
    ] = False,
    drain: Annotated[
        bool, options.switch("--drain", help="When told to stop, finish the running trial first.")
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            min=1,
            metavar="N",
            help="Workers on this CPU, which share its cores; on GPUs it is one each.",
        ),
    ] = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(
            "--checkpoints",
            metavar="FOLDER",
            help="Where half-trained trials are kept, for boxes that share it; else $BUDGETTUNE_CHECKPOINTS.",
        ),
    ] = None,
    checkpoint_every: Annotated[
        float,
        typer.Option(
            "--checkpoint-every",
            parser=options.duration_or_none,
            metavar="DURATION|none",
            help="Keep a trial that often, at the end of an epoch; more often where that costs nothing.",
        ),
    ] = 30.0,
    allow_mixed: Annotated[
        bool, options.switch("--allow-mixed", help="Work on studies whose times come from another kind of machine.")
    ] = False,
    allow_import: options.AllowImport = None,
    allow_command: options.AllowCommand = None,
    allow_root: options.AllowRoot = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Train open trials until none is left.

    Ctrl-C hands the running trial back; twice quits at once.
    SIGUSR1 lets it finish, then ends the worker.
    """
    from budgettune.spec.trust import allowed_commands, allowed_packages, allowed_roots
    from budgettune.worker.processes import OUT_OF_TIME_STATUS, members_here, run_members, worker_command

    chosen = WorkerOptions(
        device=device,
        threads=threads,
        gpus_per_trial=gpus_per_trial,
        trials=trials,
        timeout_seconds=None if timeout == math.inf else timeout,
        trial_timeout_seconds=trial_timeout,
        wait=wait,
        leave=leave,
        allow_import=allowed_packages(allow_import),
        allow_command=allowed_commands(allow_command),
        allow_root=allowed_roots(allow_root),
        allow_mixed=allow_mixed,
        checkpoints=checkpoints,
        checkpoint_every_seconds=None if checkpoint_every == math.inf else checkpoint_every,
    )
    members = members_here(chosen, processes)
    if members:
        url = storage_url(storage)
        if parse_url(url).get_backend_name() == "sqlite" and not wait:  # a server may come up while children try again
            open_engine(url)
        command = worker_command(study, drain=drain, debug=debug)
        with StopFlag() as stop:
            raise typer.Exit(run_members(members, command, url, stop, say=say))
    summary = _work(study, chosen, storage, drain=drain)
    if summary.follows:
        return
    if summary.note:
        say(summary.note)
    why = f"; why some failed: {_show_command(summary)}" if summary.failed else ""
    say(f"{summary.completed} trials completed, {summary.failed} failed. Next: budgettune front{why}")
    if summary.is_out_of_time:
        raise typer.Exit(OUT_OF_TIME_STATUS)


@app.command(
    rich_help_panel=options.ANSWERS,
    epilog=options.examples("dashboard", "dashboard --host 0.0.0.0 --port 9000 --password-file users.txt"),
)
def dashboard(
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; one that others reach needs a password.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on; 0 takes a free one.")
    ] = 8080,
    password_file: Annotated[
        Path | None,
        typer.Option(
            "--password-file",
            metavar="FILE",
            help="Lines of user:password, plain or hashed; else $BUDGETTUNE_DASHBOARD_PASSWORD.",
        ),
    ] = None,
    trusted_proxy: Annotated[
        str | None,
        typer.Option(
            "--trusted-proxy",
            metavar="ADDRESS",
            help="Proxy whose X-Forwarded-For names visitors, or *; else $BUDGETTUNE_DASHBOARD_PROXY.",
        ),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option("--prefix", metavar="PATH", help="Path under which a proxy in front shows all of it, as /tune."),
    ] = "",
    allow_write: Annotated[bool, options.switch("--allow-write", help="Let visitors change and delete.")] = False,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Serve optuna-dashboard, and under /answers the report of each study as it is now; read-only."""
    from budgettune.dashboard.app import serve
    from budgettune.report import front_figures
    from budgettune.web.app import Answers

    url = storage_url(storage)
    with StopFlag() as stop:
        serve(
            url,
            host,
            port,
            password_file=password_file,
            allow_write=allow_write,
            trusted_proxy=trusted_proxy,
            figures=front_figures,
            answers=Answers,
            prefix=prefix,
            ready=lambda address: say(
                f"Dashboard of {shown(parse_url(url))} on {address} (Ctrl-C ends it); answers on {address}answers"
            ),
            until=stop.wait,
        )
    leave_if_stopped(stop.signal_number)


@app.command(rich_help_panel=options.BEFORE, epilog=options.examples("doctor", "doctor --format json"))
def doctor(form: options.FormatOption = Format.table, debug: options.Debug = False) -> None:
    """Say what this box has, and what would spoil its timings."""
    from budgettune.machine.doctor import doctor_facts

    marks = {True: "ok", False: "look", None: "-"}
    rows = [
        {"state": marks[fact.ok], "what": fact.name, "found": ": ".join(filter(None, (fact.value, fact.advice)))}
        if form is Format.table
        else vars(fact)
        for fact in doctor_facts()
    ]
    print_rows(rows, form, sentences="found")


@app.command(rich_help_panel=options.STUDIES, epilog=options.examples("demo", "demo --storage sqlite:///demo.db"))
def demo(threads: options.Threads = None, storage: options.Storage = None, debug: options.Debug = False) -> None:
    """Create, work, answer: a small grid on scikit-learn's digits, in one go."""
    digits = api.create_study("digits", storage=storage, skip_if_exists=True)
    summary = _work(digits.name, WorkerOptions(device="cpu", threads=threads), storage)
    say(f"study {digits.name!r}: {summary.completed} trials trained now, {len(digits.spec.cells())} in all\n", out)
    members, aim = api.pareto_front(digits.name, storage=storage), digits.spec.aim
    print_trials(members, Format.table, aim, title="The Pareto front: nothing is both faster and more accurate")
    say_figures(hypervolume_line(*api.hypervolume_of(digits.name, storage=storage)))
    say_images(aim)
    for member in (members[0], members[len(members) // 2], members[-1]):
        budget_seconds = 1.02 * (member.train_seconds or 0.0)
        answer = api.best_under_budget(digits.name, budget_seconds, storage=storage)
        print_trials(answer, Format.table, aim, title=f"\nThe best within {format_duration(budget_seconds)}")
    say(
        "\nNext: budgettune best digits --budget 5s; budgettune dashboard; "
        "budgettune study create fashion-mnist --set data.root=FOLDER",
        out,
    )


def _work(study: str | None, chosen: WorkerOptions, storage: str | None, *, drain: bool = False) -> WorkerSummary:
    """Run a worker with progress on standard error; leave with 130 or 143 where a signal ended it.

    Raises:
        StudyNotFound: as `run_worker`.
        NothingTrained: where all that was tried failed, or other machines alone may train what is open.
    """
    from budgettune.cli.live import TerminalProgress
    from budgettune.worker.loop import run_worker
    from budgettune.worker.processes import FRUITLESS_STATUS
    from budgettune.worker.watchdog import HUNG_STATUS

    progress = TerminalProgress(err)
    with StopFlag(drains=drain) as stop:
        stop.obey_parent()
        stop.before_exit = progress.abandon
        try:
            summary = run_worker(storage_url(storage), study, chosen, stop=stop, listener=progress)
            if summary.is_out_of_time and not (summary.completed or summary.failed or summary.extras):
                given, cut = format_duration(chosen.timeout_seconds or 0.0), summary.signal_number is not None
                raise NothingTrained(
                    f"nothing was trained: what is open takes longer than {given}"
                    f"{', and nothing of it can be kept' if cut else ''}: give workers more time"
                )
            leave_if_stopped(summary.signal_number)
            if summary.is_fruitless:
                raise NothingTrained(
                    f"nothing was trained, every trial failed: `{_show_command(summary)}` says why"
                    if summary.troubled
                    else "nothing was trained: every open study takes its times on another kind of machine"
                )
        except DeviceLost as error:
            say(f"error: {error}")
            raise typer.Exit(HUNG_STATUS) from None
        except (NothingTrained, StorageReadOnly, StudyNotFound, UsageError) as error:
            if not stop.has_parent:
                raise
            say(f"error: {error}")
            raise typer.Exit(FRUITLESS_STATUS) from None
        finally:
            progress.close()
    return summary


def _show_command(summary: WorkerSummary) -> str:
    return f"budgettune study show {shlex.quote(summary.troubled[0])}"


class _Left(SystemExit):
    """The end of a command at a signal, which is not one that a study's code asks for."""


def _leave(number: int, _: FrameType | None) -> None:
    """End a command that has nothing to bring in order, with the status of a signal; the next one ends it at once.

    SIGTERM too, because the first process of a container gets none that it has not asked for.
    """
    signal.signal(number, signal.SIG_DFL)
    raise _Left(128 + number)


def main() -> None:
    """Run the command line; print deliberate errors in one line and leave with 1, or 2 for wrong usage."""
    listen(_leave)
    make_streams_take_anything()
    try:
        app()
    except Exception as error:
        if options.DebugSwitch.is_on:
            raise
        text = f"[red]error:[/] {escape(str(error))}"
        if not isinstance(error, BudgetTuneError):
            first_line = redact(f"{type(error).__name__}: {error}".splitlines()[0])
            text = f"[red]unexpected error:[/] {escape(first_line)} (--debug shows where)"
        err.print(text, highlight=False, soft_wrap=True)
        sys.exit(1)
