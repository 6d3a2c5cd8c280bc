"""`budgettune train`: one configuration of a study, trained and kept as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from budgettune import api
from budgettune.cli import options
from budgettune.cli.output import err, promise_line, say_figures
from budgettune.text import format_duration

app = typer.Typer()


@app.command(
    rich_help_panel=options.ANSWERS,
    epilog=options.examples("train --budget 60s", "train --trial 3 --out best.pt", "train mine --set scale=1.2"),
)
def train(
    study: options.Study = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="File for weights, params and result: model.pt, or model.pkl of own training code.",
            show_default=False,
        ),
    ] = None,
    trial: Annotated[
        int | None,
        typer.Option("--trial", min=0, metavar="N", help="Number of the trial whose params and seed to take."),
    ] = None,
    sets: options.Sets = None,
    budget: Annotated[
        float | None, options.lasting("--budget", metavar="60s", help="What `recommend` says, until the time is up.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="In place of the trial's or the study's.")
    ] = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    allow_import: options.AllowImport = None,
    allow_command: options.AllowCommand = None,
    allow_root: options.AllowRoot = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Train one configuration of a study and keep the model.

    Give --budget, --trial or settings with --set. Nothing is recorded in the study.
    """
    from budgettune.spec.trust import allowed_commands, allowed_packages, allowed_roots

    if [trial is not None, bool(sets), budget is not None].count(True) != 1:
        raise typer.BadParameter("give one of --trial N, --set key=value and --budget 60s")
    handle = api.load_study(study, storage=storage)
    if budget is None:
        spec, params, trial_seed = api.configuration(handle, trial, sets or [])
    else:
        answer, params = api.recommended(handle, budget)
        spec, trial_seed = handle.spec, handle.spec.sampler.seed
        say_figures(promise_line(answer), err)
    with err.status("training"):
        trained = api.train(
            handle,
            params,
            spec=spec,
            seed=trial_seed if seed is None else seed,
            device=device,
            threads=threads,
            allow_import=allowed_packages(allow_import),
            allow_command=allowed_commands(allow_command),
            allow_root=allowed_roots(allow_root),
        )
    if spec.train.is_own_code:
        from budgettune.worker.own_code import save_own as save
    else:
        from budgettune.training.session import save_model as save
    to = to or Path("model.pkl" if spec.train.is_own_code else "model.pt")
    save(to, trained, spec, params)
    objective, result = handle.spec.objective, trained.result
    value = objective.named(result.value)
    if result.on_test is not None:
        value = (
            f"{objective.named(result.on_test)} on test images, {objective.text(result.value)} on validation images,"
        )
    say_figures(f"{to}: {value} after {format_duration(result.train_seconds)}")
