"""`budgettune fleet`: workers on a cluster, started by one command."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from budgettune.cli import options
from budgettune.cli.output import out, say
from budgettune.errors import UsageError
from budgettune.storage.url import storage_url
from budgettune.worker.signals import StopFlag

if TYPE_CHECKING:
    from budgettune.fleet.plan import FleetPlan

app = typer.Typer()
Engine = StrEnum("Engine", ["slurm", "ray"])


@app.command(
    rich_help_panel=options.STUDIES,
    context_settings={**options.HELP, "allow_extra_args": True},
    epilog=options.examples(
        "fleet mine --on slurm --workers 8 --gpus 1 --cpus 4 --time 8h",
        "fleet mine --on slurm --workers 8 --gpus 1 --print > job.sh",
        "fleet mine --on ray --workers 8 --gpus 1 -- --allow-import mynets",
    ),
)
def fleet(
    context: typer.Context,
    study: Annotated[str, typer.Argument(metavar="STUDY", help="Its name.", autocompletion=options.studies_beginning)],
    engine: Annotated[Engine, typer.Option("--on", help="What starts, places and restarts the workers.")],
    workers: Annotated[int, typer.Option("--workers", min=1, metavar="N", help="How many, at most.")] = 1,
    gpus: Annotated[int, typer.Option("--gpus", min=0, metavar="N", help="GPUs of each worker.")] = 0,
    cpus: Annotated[int, typer.Option("--cpus", min=1, metavar="N", help="CPU cores of each worker.")] = 1,
    time: Annotated[float | None, options.lasting("--time", help="Time limit of each worker, such as 8h.")] = None,
    print_only: Annotated[
        bool, options.switch("--print", help="Print what would be given to the engine, and end.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option("--address", metavar="HOST:PORT", help="Of a Ray cluster; else $RAY_ADDRESS, or the one here."),
    ] = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Start workers of a study on a cluster; what stands behind -- goes to each of them.

    On Slurm this submits an array and ends. On Ray it stays and shows the workers' lines; Ctrl-C hands trials back.
    """
    from budgettune.fleet import ray_tasks, slurm
    from budgettune.fleet.plan import FleetPlan, nothing_to_do, require_server

    url = storage_url(storage)
    require_server(url)
    plan = FleetPlan(
        study=study, url=url, workers=workers, gpus=gpus, cpus=cpus, time_seconds=time, worker_words=tuple(context.args)
    )
    _check_worker_words(context, plan)
    if engine is Engine.slurm and address is not None:
        raise UsageError("--address is Ray's: Slurm's is in its slurm.conf")
    if print_only:
        if engine is Engine.ray:
            raise UsageError("--print is for Slurm: Ray takes tasks from this program, and no script")
        typer.echo(slurm.script(plan), nl=False)
        return
    if reason := nothing_to_do(plan):
        say(reason)
        return
    if engine is Engine.slurm:
        say(slurm.submit(plan), out)
        return
    with StopFlag() as stop:
        raise typer.Exit(ray_tasks.run(plan, address, stop, say=say))


def _check_worker_words(context: typer.Context, plan: FleetPlan) -> None:
    """Refuse what `budgettune worker` would refuse, before any engine is asked for anything.

    Raises:
        click.UsageError: where a word is none of a worker's.
        UsageError: where it is the fleet's own to say.
    """
    worker = context.find_root().command.commands["worker"]  # type: ignore[attr-defined]
    given = worker.make_context("budgettune worker", [*plan.worker_words]).params
    if given["study"] is not None:
        raise UsageError(f"{given['study']!r} is a word too many: a fleet works on one study, and options follow --")
    for name, instead in {"storage": "--storage before the --", "timeout": "--time", "wait": "no --wait"}.items():
        if given[name] is not None and given[name] is not False:  # a time limit of 0 is one, too
            raise UsageError(f"--{name} is not for the workers of a fleet: use {instead}")
