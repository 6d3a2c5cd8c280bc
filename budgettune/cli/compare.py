"""`budgettune compare`: pruning strategies at equal training time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from budgettune.cli import options
from budgettune.cli.output import Format, leave_if_stopped, print_json, print_rows, say, say_figures
from budgettune.errors import StopRequested
from budgettune.text import format_duration
from budgettune.worker.signals import StopFlag

app = typer.Typer()


@app.command(
    rich_help_panel=options.BEFORE,
    epilog=options.examples(
        "compare mine.toml --budget 30s --out mine.json",
        "compare digits --budget 2s --lr 3e-3,1e-2,3e-2 --seeds 5",
        "compare mine.toml --budget 30s --out mine.json --resume",
    ),
)
def compare(
    spec: options.Spec = "paper",
    budgets: Annotated[
        list[float] | None,
        options.lasting(
            "--budget",
            help="Training time of each run, such as 30s (repeatable); the spec's train.budget where left out.",
        ),
    ] = None,
    seeds: Annotated[
        int,
        typer.Option("--seeds", min=2, metavar="N", help="Scored runs of each strategy, the same seeds for all."),
    ] = 10,
    full_seeds: Annotated[
        int | None,
        typer.Option(
            "--full-seeds",
            min=2,
            metavar="N",
            help="Those of full, which all are held against; twice as many or more where left out.",
        ),
    ] = None,
    lrs: Annotated[
        list[str] | None,
        typer.Option(
            "--lr",
            metavar="A,B,C",
            help="Learning rates to try for each strategy (repeatable); those that the spec searches where left out, "
            "else its own × 1/3, 1, 3, 9. One alone: no tuning.",
        ),
    ] = None,
    tune_seeds: Annotated[
        int,
        typer.Option("--tune-seeds", min=1, metavar="N", help="Runs of each strategy at each learning rate."),
    ] = 2,
    strategies: Annotated[
        list[str] | None,
        typer.Option(
            "--strategies",
            metavar="A,B,C",
            help="Beside full and random (repeatable); those that the spec searches where left out, else all.",
        ),
    ] = None,
    prune_rates: Annotated[
        list[float] | None,
        typer.Option(
            "--prune-rate", metavar="RATE", help="For all but full (repeatable); the spec's where left out, else 0.3."
        ),
    ] = None,
    shuffle_labels: Annotated[
        float,
        typer.Option(
            "--shuffle-labels", min=0, max=1, metavar="SHARE", help="Share of the training labels that is made wrong."
        ),
    ] = 0.0,
    to: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="File for all runs as JSON, written anew after each.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="File for the figure, one self-contained HTML page.")
    ] = None,
    resume: Annotated[
        bool, options.switch("--resume", help="Go on with the runs in --out; failed ones again.")
    ] = False,
    sets: options.Sets = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    allow_import: options.AllowImport = None,
    form: options.FormatOption = Format.table,
    debug: options.Debug = False,
) -> None:
    """Compare pruning strategies at equal training time, against full data and random subsets."""
    from budgettune.comparison import run
    from budgettune.comparison.show import judges, sentences, table_rows, write_figure
    from budgettune.spec.own_code import built_in_only
    from budgettune.spec.study_spec import load_spec
    from budgettune.spec.trust import allowed_packages

    with StopFlag() as stop:
        try:
            with stop.interrupting():
                comparison = run.compare(
                    built_in_only(load_spec(spec).with_overrides(sets or [])),
                    budgets or (),
                    seeds=seeds,
                    full_seeds=full_seeds,
                    lrs=[_rate(each) for each in _listed(lrs)],
                    tune_seeds=tune_seeds,
                    strategies=_listed(strategies),
                    prune_rates=prune_rates or (),
                    shuffle_labels=shuffle_labels,
                    device=device,
                    threads=threads,
                    allow_import=allowed_packages(allow_import),
                    out=to,
                    resume=resume,
                    should_stop=lambda: stop.cuts_short,
                    say=say,
                )
        except StopRequested:  # before there was anything to show
            raise typer.Exit(128 + (stop.signal_number or 0)) from None
    if form is Format.json:
        print_json(comparison.to_document())
    elif form is Format.csv:
        print_rows(comparison.rows(), form)
    else:
        for budget in comparison.budgets:
            judged = f"{judges(comparison)}, mean over seeds ± half the 95% interval"
            title = f"\n{format_duration(budget)} of training, accuracy on {judged}"
            print_rows(table_rows(comparison.standings(budget)), form, title=title)
            for sentence in sentences(comparison, budget):
                say_figures(sentence)
    if figure is not None and comparison.runs:
        write_figure(figure, comparison)
    if stop.signal_number is not None:
        say("stopped before the end" + ("" if to is None else f": add --resume to go on with {to}"))
    leave_if_stopped(stop.signal_number)


def _listed(texts: list[str] | None) -> list[str]:
    """Return the parts of texts between commas."""
    return [each.strip() for text in texts or () for each in text.split(",") if each.strip()]


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no number: write 3e-3,9e-3", param_hint="'--lr'") from None
