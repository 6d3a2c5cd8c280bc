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
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="File for weights, params and result.")] = Path(
        "model.pt"
    ),
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
    allow_root: options.AllowRoot = None,
    storage: options.Storage = None,
    debug: options.Debug = False,
) -> None:
    """Train one configuration of a study and keep the model.

    Give --budget, --trial or settings with --set. Nothing is recorded in the study.
    """
    from budgettune.spec.trust import Trust, allowed_packages, allowed_roots
    from budgettune.training.session import save_model, train_one

    if [trial is not None, bool(sets), budget is not None].count(True) != 1:
        raise typer.BadParameter("give one of --trial N, --set key=value and --budget 60s")
    handle = api.load_study(study, storage=storage)
    if budget is None:
        spec, params, trial_seed = api.configuration(handle, trial, sets or [])
    else:
        answer, params = api.recommended(handle, budget)
        spec, trial_seed = handle.spec, handle.spec.sampler.seed
        say_figures(promise_line(answer), err)
    trust = Trust.of_database(handle.url, allowed_packages(allow_import), allowed_roots(allow_root))
    with err.status("training"):
        trained = train_one(
            spec,
            params,
            seed=trial_seed if seed is None else seed,
            device=device,
            threads=threads,
            trust=trust,
        )
    save_model(to, trained, spec, params)
    accuracy, seconds = trained.result.test_accuracy, trained.result.train_seconds
    say_figures(f"{to}: accuracy {accuracy:.2%} after {format_duration(seconds)}")
