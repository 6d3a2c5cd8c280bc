"""`budgettune fleet`: workers on a cluster, started by one command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune.cli import options
from budgettune.cli.output import out, say
from budgettune.errors import UsageError
from budgettune.spec.trust import Trust, allowed_commands, allowed_packages, allowed_roots
from budgettune.storage.url import storage_url
from budgettune.worker.options import WorkerOptions
from budgettune.worker.signals import StopFlag

if TYPE_CHECKING:
    from budgettune.fleet.plan import FleetPlan

app = typer.Typer()
Engine = StrEnum("Engine", ["slurm", "ray"])
# What a worker lets a study name, by its parameters; where they say nothing, this box's variables count for all nodes.
ALLOWED = {"allow_import": allowed_packages, "allow_root": allowed_roots, "allow_command": allowed_commands}


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
    given = _worker_params(context, plan)
    allowed: dict[str, Any] = {name: read(given[name] or None) for name, read in ALLOWED.items()}
    from_variables = {name: value for name, value in allowed.items() if not given[name]}
    plan = replace(plan, worker_words=(*context.args, *WorkerOptions(**from_variables).words()))
    if engine is Engine.slurm and address is not None:
        raise UsageError("--address is Ray's: Slurm's is in its slurm.conf")
    if print_only:
        if engine is Engine.ray:
            raise UsageError("--print is for Slurm: Ray takes tasks from this program, and no script")
        typer.echo(slurm.script(plan), nl=False)
        return
    trust = Trust.of_database(url, *allowed.values())
    if engine is Engine.ray:
        trust = replace(trust, folders=None)  # which folder its tasks run in, a node knows
    if reason := nothing_to_do(plan, trust, given):
        say(reason)
        return
    if engine is Engine.slurm:
        say(slurm.submit(plan), out)
        return
    with StopFlag() as stop:
        raise typer.Exit(ray_tasks.run(plan, address, stop, say=say))


def _worker_params(context: typer.Context, plan: FleetPlan) -> Mapping[str, Any]:
    """Return the parameters of `budgettune worker` that a plan's words stand for, checked as that command does.

    Raises:
        click.UsageError: where a word is none of a worker's.
        UsageError: where it is the fleet's own to say.
    """
    worker = context.find_root().command.commands["worker"]  # type: ignore[attr-defined]
    given: Mapping[str, Any] = worker.make_context("budgettune worker", plan.words()).params
    if given["study"] is not None:
        raise UsageError(f"{given['study']!r} is a word too many: a fleet works on one study, and options follow --")
    for name, instead in {"storage": "--storage before the --", "timeout": "--time", "wait": "no --wait"}.items():
        if given[name] is not None and given[name] is not False:  # a time limit of 0 is one, too
            raise UsageError(f"--{name} is not for the workers of a fleet: use {instead}")
    return given
