"""`budgettune profile`: configurations that fall off a kernel cliff, and how they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from budgettune.cli import options
from budgettune.cli.output import Format, Screen, err, out, print_json, print_rows, print_table
from budgettune.text import short_names

if TYPE_CHECKING:
    from budgettune.training.profile.kernels import Kernel
    from budgettune.training.profile.result import Alarm, KernelPair, ProfileReport, ProfileRow, Remedy

app = typer.Typer()

KERNELS_SHOWN = 8
_VERBS = {
    "aligned twin": "its aligned twin predicts",
    "neighbours": "its neighbours predict",
    "other batches": "the same network at other batches predicts",
}


@app.command(
    rich_help_panel=options.BEFORE,
    epilog=options.examples("profile mine.toml", "profile digits --rounds 1 --no-remedies"),
)
def profile(
    spec: options.Spec = "paper",
    sets: options.Sets = None,
    device: options.Device = "auto",
    threads: options.Threads = None,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, metavar="N", help="Turns that each configuration is timed in.")
    ] = 3,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, metavar="N", help="Steps timed in each turn: 3, on a GPU 24.")
    ] = None,
    no_remedies: Annotated[bool, options.switch("--no-remedies", help="Try no cures for what is alarmed.")] = False,
    no_cudnn_benchmark: Annotated[
        bool, options.switch("--no-cudnn-benchmark", help="Leave cudnn.benchmark off, as the paper's script does.")
    ] = False,
    allow_import: options.AllowImport = None,
    form: options.FormatOption = Format.table,
    debug: options.Debug = False,
) -> None:
    """Time a step of every scale and batch size, and look into those that fall off a kernel cliff."""
    from budgettune.spec.own_code import built_in_only
    from budgettune.spec.study_spec import load_spec
    from budgettune.spec.trust import Trust, allowed_packages
    from budgettune.training.profile.profiler import profile as run_profile

    with err.status("probing") as status:
        report = run_profile(
            built_in_only(load_spec(spec).with_overrides(sets or [])),
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
        print_json(report.to_json())
    else:
        print_rows([row.flat() for row in report.rows], form)


def render_profile(report: ProfileReport, screen: Screen) -> None:
    """Print a report for people: the table, then each alarm with its kernels and remedies."""
    title = f"{report.device}, {report.threads} threads"
    print_table([_row(row) for row in report.rows], title=title, screen=screen)
    for line in report.skipped:
        screen.print(f"[yellow]skipped:[/] {escape(line)}")
    if report.status == "disturbed":
        screen.print("[yellow]note:[/] something else used this machine meanwhile: repeat on a quiet one to be sure.")
    if not report.alarms:
        screen.print("No kernel cliff: every configuration takes about the time that its arithmetic explains.")
    for alarm in report.alarms:
        _render_alarm(alarm, screen)


def _row(row: ProfileRow) -> dict[str, Any]:
    excess, witness = row.verdict.excess, row.verdict.witness
    names = short_names(row.params)
    return {
        "configuration": row.label,
        "params": ", ".join(f"{names[key]} {value}" for key, value in row.params.items()),
        "M mult-adds": f"{row.result.multiply_adds / 1e6:.1f}",
        "ms/step": f"{row.result.ms_median:.1f}",
        "±": f"{row.result.ms_mad:.1f}",
        "GFLOP/s": f"{row.result.flops_per_second / 1e9:.1f}",
        "over prediction": None if excess is None else f"{excess:.2f}× ({witness})",
        "verdict": Text("cliff", style="bold red") if row.verdict.is_cliff else None,
    }


def _render_alarm(alarm: Alarm, screen: Screen) -> None:
    excess, witness = alarm.verdict.excess or 1.0, alarm.verdict.witness
    screen.print(f"\n[bold red]cliff:[/] {escape(alarm.label)} takes {excess:.2f}× what {_VERBS[witness]}")
    if alarm.also:
        screen.print(f"the same at: {escape('; '.join(alarm.also))}")
    screen.print(escape(alarm.explanation))
    title = f"kernels per step, against {alarm.neighbour or 'nothing'}"
    print_table([_kernel_row(pair) for pair in alarm.kernels[:KERNELS_SHOWN]], title=title, screen=screen)
    if alarm.remedies:
        print_table([_remedy_row(tried) for tried in alarm.remedies], title="remedies", screen=screen)


def _kernel_row(pair: KernelPair) -> dict[str, Any]:
    sides = zip(_kernel_cells(pair.own), _kernel_cells(pair.neighbour), strict=True)
    launches, ms, share = (f"{own} : {neighbour}" for own, neighbour in sides)
    return {
        "kernel": pair.name,
        "kind": pair.kind or None,
        "launches": launches,
        "ms": ms,
        "share": share,
        "extra ms": f"{pair.extra_ms:.1f}",
    }


def _kernel_cells(kernel: Kernel | None) -> tuple[str, str, str]:
    if kernel is None:
        return "-", "-", "-"
    return str(kernel.launches), f"{kernel.ms:.1f}", f"{kernel.share:.0%}"


def _remedy_row(tried: Remedy) -> dict[str, Any]:
    return {
        "change": tried.change,
        "widths": "/".join(map(str, tried.widths)),
        "ms/step": f"{tried.step_ms:.1f}",
        "speedup": f"{tried.speedup:.2f}×",
        "per FLOP": f"{tried.speedup_per_flop:.2f}×",
    }
