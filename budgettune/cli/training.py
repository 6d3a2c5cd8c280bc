"""`budgettune train`, `compare` and `profile`: commands that train without recording trials in a study."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from budgettune import api
from budgettune.cli import output as render
from budgettune.cli import recommend as cli_predict
from budgettune.cli.options import (
    ANSWERS,
    BEFORE,
    AllowImport,
    AllowRoot,
    Debug,
    Device,
    FormatOption,
    Sets,
    Storage,
    Study,
    Threads,
    duration,
    examples,
    switch,
)
from budgettune.cli.output import Format, err, out
from budgettune.text import format_duration

if TYPE_CHECKING:
    from budgettune.comparison.result import Comparison
    from budgettune.spec.study_spec import StudySpec
    from budgettune.spec.trust import Trust

app = typer.Typer()


@app.command(
    rich_help_panel=ANSWERS,
    epilog=examples("train --budget 60s", "train --trial 3 --out best.pt", "train mine --set scale=1.2"),
)
def train(
    study: Study = None,
    to: Annotated[Path, typer.Option("--out", metavar="FILE", help="File for weights, params and result.")] = Path(
        "model.pt"
    ),
    trial: Annotated[
        int | None,
        typer.Option("--trial", min=0, metavar="N", help="Number of the trial whose params and seed to take."),
    ] = None,
    sets: Sets = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", parser=duration, metavar="60s", help="What `recommend` says, until the time is up."),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="N", help="In place of the trial's or the study's.")
    ] = None,
    device: Device = "auto",
    threads: Threads = None,
    allow_import: AllowImport = None,
    allow_root: AllowRoot = None,
    storage: Storage = None,
    debug: Debug = False,
) -> None:
    """Train one configuration of a study and keep the model.

    Give --budget, --trial or settings with --set. Nothing is recorded in the study.
    """
    from budgettune.spec.trust import Trust, allowed_packages, allowed_roots

    if [trial is not None, bool(sets), budget is not None].count(True) != 1:
        raise typer.BadParameter("give one of --trial N, --set key=value and --budget 60s")
    handle = api.load_study(study, storage=storage)
    if budget is None:
        spec, params, trial_seed = api.configuration(handle, trial, sets or [])
    else:
        answer, params = api.recommended(handle, budget)
        spec, trial_seed = handle.spec, handle.spec.sampler.seed
        _say(cli_predict.forecast(answer))
    trust = Trust.of_database(handle.url, allowed_packages(allow_import), allowed_roots(allow_root))
    seed = trial_seed if seed is None else seed
    result = _train(spec, params, seed, to, device, threads, trust)
    out.print(
        f"{to}: accuracy {result.test_accuracy:.2%} after {format_duration(result.train_seconds)}",
        highlight=False,
        markup=False,
    )


@app.command(
    rich_help_panel=BEFORE,
    epilog=examples(
        "compare mine.toml --budget 30s --seeds 5 --out mine.json",
        "compare digits --budget 2s --strategies stale-quantile,infobatch",
        "compare mine.toml --budget 30s --out mine.json --resume",
    ),
)
def compare(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="TOML file, or the name of a bundled one.")] = "paper",
    budgets: Annotated[
        list[float] | None,
        typer.Option(
            "--budget",
            parser=duration,
            metavar="DURATION",
            help="Training time of each run, such as 30s (repeatable); the spec's train.budget where left out.",
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option("--seeds", min=2, metavar="N", help="Runs of each strategy, the same seeds for all.")
    ] = 5,
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
    resume: Annotated[bool, switch("--resume", help="Go on with the runs in --out; failed ones again.")] = False,
    sets: Sets = None,
    device: Device = "auto",
    threads: Threads = None,
    allow_import: AllowImport = None,
    form: FormatOption = Format.table,
    debug: Debug = False,
) -> None:
    """Compare pruning strategies at equal training time, against full data and random subsets."""
    from budgettune.comparison.run import compare as run_comparison
    from budgettune.spec.study_spec import load_spec
    from budgettune.spec.trust import allowed_packages
    from budgettune.worker.signals import StopFlag

    with StopFlag() as stop:
        comparison = run_comparison(
            load_spec(spec).with_overrides(sets or []),
            budgets or (),
            seeds=seeds,
            strategies=[name.strip() for names in strategies or () for name in names.split(",") if name.strip()],
            prune_rates=prune_rates or (),
            shuffle_labels=shuffle_labels,
            device=device,
            threads=threads,
            allow_import=allowed_packages(allow_import),
            out=to,
            resume=resume,
            should_stop=lambda: stop.cuts_short,
            say=_say,
        )
    _show_comparison(comparison, form)
    if figure is not None and comparison.runs:
        from budgettune.comparison.figure import write_figure

        write_figure(figure, comparison)
    if stop.signal_number is not None:
        _say("stopped before the end" + ("" if to is None else f": add --resume to go on with {to}"))
        raise typer.Exit(128 + stop.signal_number)


@app.command(
    rich_help_panel=BEFORE,
    epilog=examples("profile mine.toml", "profile digits --rounds 1 --no-remedies"),
)
def profile(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help="TOML file, or the name of a bundled one.")] = "paper",
    sets: Sets = None,
    device: Device = "auto",
    threads: Threads = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="Turns that each configuration is timed in.")
    ] = 3,
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps timed in each turn.")] = 3,
    no_remedies: Annotated[bool, switch("--no-remedies", help="Try no cures for what is alarmed.")] = False,
    no_cudnn_benchmark: Annotated[
        bool, switch("--no-cudnn-benchmark", help="Leave cudnn.benchmark off, as the paper's script does.")
    ] = False,
    allow_import: AllowImport = None,
    form: FormatOption = Format.table,
    debug: Debug = False,
) -> None:
    """Time a step of every scale and batch size, and look into those that fall off a kernel cliff."""
    from budgettune.cli.profile import render_profile
    from budgettune.spec.study_spec import load_spec
    from budgettune.spec.trust import Trust, allowed_packages
    from budgettune.training.profile.profiler import profile as run_profile

    with err.status("probing") as status:
        report = run_profile(
            load_spec(spec).with_overrides(sets or []),
            device=device,
            threads=threads,
            rounds=rounds,
            steps=steps,
            remedies=not no_remedies,
            cudnn_benchmark=not no_cudnn_benchmark,
            trust=Trust(allowed_packages(allow_import)),
            report_progress=status.update,
        )
    if form is Format.table:
        render_profile(report, out)
    elif form is Format.json:
        render.print_json(report.to_json())
    else:
        render.print_rows([row.flat() for row in report.rows], form)


def _train(
    spec: StudySpec,
    params: dict[str, Any],
    seed: int,
    to: Path,
    device: str,
    threads: int | None,
    trust: Trust,
) -> Any:
    from budgettune.training.session import save_model, train_one
    from budgettune.worker.signals import StopFlag

    show = err.status("training") if err.is_terminal else nullcontext()
    with StopFlag() as stop, show:
        trained = train_one(
            spec,
            params,
            seed=seed,
            device=device,
            threads=threads,
            trust=trust,
            should_stop=lambda: stop.cuts_short,
        )
    save_model(to, trained, spec, params)
    return trained.result


def _show_comparison(comparison: Comparison, form: Format) -> None:
    from budgettune.comparison.show import sentences, table_rows

    if form is Format.json:
        render.print_json(comparison.to_document())
    elif form is Format.csv:
        render.print_rows(comparison.rows(), form)
    else:
        for budget in comparison.budgets:
            title = f"\n{format_duration(budget)} of training, mean over seeds ± half the 95% interval"
            render.print_rows(table_rows(comparison.standings(budget)), form, title=title)
            for sentence in sentences(comparison, budget):
                out.print(sentence, highlight=False, markup=False, soft_wrap=True)


def _say(line: str) -> None:
    err.print(line, highlight=False, markup=False, soft_wrap=True)
