"""`budgettune profile`: configurations that fall off a kernel cliff, and how they are shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from budgettune.cli import options
from budgettune.cli.output import Format, err, out, print_json, print_rows

if TYPE_CHECKING:
    from budgettune.training.profile.kernels import Kernel
    from budgettune.training.profile.result import Alarm, ProfileReport

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
    steps: Annotated[int, typer.Option("--steps", min=1, metavar="N", help="Steps timed in each turn.")] = 3,
    no_remedies: Annotated[bool, options.switch("--no-remedies", help="Try no cures for what is alarmed.")] = False,
    no_cudnn_benchmark: Annotated[
        bool, options.switch("--no-cudnn-benchmark", help="Leave cudnn.benchmark off, as the paper's script does.")
    ] = False,
    allow_import: options.AllowImport = None,
    form: options.FormatOption = Format.table,
    debug: options.Debug = False,
) -> None:
    """Time a step of every scale and batch size, and look into those that fall off a kernel cliff."""
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
        print_json(report.to_json())
    else:
        print_rows([row.flat() for row in report.rows], form)


def render_profile(report: ProfileReport, console: Console) -> None:
    """Print a report for people: the table, then each alarm with its kernels and remedies."""
    console.print(_rows_table(report))
    for line in report.skipped:
        console.print(f"[yellow]skipped:[/] {escape(line)}")
    if report.status == "disturbed":
        console.print("[yellow]note:[/] something else used this machine meanwhile: repeat on a quiet one to be sure.")
    if not report.alarms:
        console.print("No kernel cliff: every configuration takes about the time that its arithmetic explains.")
    for alarm in report.alarms:
        _render_alarm(alarm, console)


def _rows_table(report: ProfileReport) -> Table:
    columns = ("configuration", "params", "M mult-adds", "ms/step", "±", "GFLOP/s", "over prediction", "")
    table = _table(f"{report.device}, {report.threads} threads", columns)
    for row in report.rows:
        excess, witness = row.verdict.excess, row.verdict.witness
        table.add_row(
            row.label,
            ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in row.params.items()),
            f"{row.result.multiply_adds / 1e6:.1f}",
            f"{row.result.ms_median:.1f}",
            f"{row.result.ms_mad:.1f}",
            f"{row.result.flops_per_second / 1e9:.1f}",
            "-" if excess is None else f"{excess:.2f}× ({witness})",
            "[bold red]cliff[/]" if row.verdict.is_cliff else "",
        )
    return table


def _render_alarm(alarm: Alarm, console: Console) -> None:
    excess, witness = alarm.verdict.excess or 1.0, alarm.verdict.witness
    console.print(f"\n[bold red]cliff:[/] {escape(alarm.label)} takes {excess:.2f}× what {_VERBS[witness]}")
    if alarm.also:
        console.print(f"the same at: {escape('; '.join(alarm.also))}")
    console.print(escape(alarm.explanation))
    console.print(_kernel_table(alarm))
    if alarm.remedies:
        console.print(_remedy_table(alarm))


def _kernel_table(alarm: Alarm) -> Table:
    columns = ("kernel", "kind", "launches", "ms", "share", "extra ms")
    table = _table(f"kernels per step, against {alarm.neighbour or 'nothing'}", columns)
    for pair in alarm.kernels[:KERNELS_SHOWN]:
        sides = zip(_kernel_cells(pair.own), _kernel_cells(pair.neighbour), strict=True)
        against = (f"{own} : {neighbour}" for own, neighbour in sides)
        table.add_row(escape(pair.name), pair.kind, *against, f"{pair.extra_ms:.1f}")
    return table


def _kernel_cells(kernel: Kernel | None) -> tuple[str, str, str]:
    if kernel is None:
        return "-", "-", "-"
    return str(kernel.launches), f"{kernel.ms:.1f}", f"{kernel.share:.0%}"


def _remedy_table(alarm: Alarm) -> Table:
    table = _table("remedies", ("change", "widths", "ms/step", "speedup", "per FLOP"))
    for tried in alarm.remedies:
        speedups = (f"{tried.speedup:.2f}×", f"{tried.speedup_per_flop:.2f}×")
        table.add_row(escape(tried.change), "/".join(map(str, tried.widths)), f"{tried.step_ms:.1f}", *speedups)
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column(columns[0], overflow="fold")
    for name in columns[1:]:
        table.add_column(name, justify="left" if name in ("params", "kind", "") else "right")
    return table
