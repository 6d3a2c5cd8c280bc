"""What the benchmarks share: options, machine facts, tables to paste into Markdown, JSON, runs in fresh processes.

Free of torch, so that a process that only starts others takes nothing from them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from scipy.special import stdtrit

from budgettune.errors import BudgetTuneError
from budgettune.machine.fingerprint import fingerprint, usable_cores
from budgettune.records import MachineInfo

Result = TypeVar("Result")
Row = Mapping[str, Any]


def parser(doc: str | None, *, images: int, batch_size: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every benchmark takes."""
    options = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", default="fashion-mnist", help="image set, by the name it has in a study file")
    options.add_argument("--root", default=os.environ.get("BUDGETTUNE_FASHION_MNIST"), help="folder of its files")
    options.add_argument("--images", type=int, default=images, help="training images")
    options.add_argument("--image-size", type=int, help="pixels on a side; default: as in the files")
    options.add_argument("--batch-size", type=int, default=batch_size)
    options.add_argument("--threads", type=int, default=usable_cores())
    options.add_argument("--device", default="cpu", help="cpu or cuda")
    options.add_argument("--rounds", type=int, default=3, help="runs of each kind, in alternating order")
    options.add_argument("--same-process", action="store_true", help="no process per run: quick, to try a script out")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    return options


def start(main: Callable[[], None]) -> None:
    """Run a script; what a user can do something about ends it in one line."""
    try:
        main()
    except BudgetTuneError as error:
        sys.exit(f"error: {error}")


def data_table(options: argparse.Namespace) -> dict[str, Any]:
    """Return the `[data]` table of a study file that the options ask for."""
    table = {"name": options.data, "root": options.root, "train_size": options.images}
    return table | {"image_size": options.image_size}


def fresh_process(function: Callable[..., Result], *args: Any) -> Result:
    """Return function(*args), computed in a new Python process that ends afterwards.

    Args:
        function: at the top level of a module, so that the other process finds it.
        args: anything that can be pickled.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn, initializer=_start_workers_as_usual) as pool:
        return pool.submit(function, *args).result()


def _start_workers_as_usual() -> None:
    """Undo that a spawned process spawns in turn: DataLoader workers would start many times slower than usual."""
    usual = multiprocessing.get_all_start_methods()[0]
    multiprocessing.set_start_method(usual, force=True)


def runner(options: argparse.Namespace) -> Callable[..., Any]:
    """Return what calls a function: in a fresh process, or in this one where the options ask for it."""
    return (lambda function, *args: function(*args)) if options.same_process else fresh_process


def alternate(jobs: Sequence[Any], rounds: int) -> list[tuple[int, Any]]:
    """Return (round, job) for every job in every round, each round beginning at another job.

    A machine that grows slower or faster meanwhile then favours none of them.
    """
    count = len(jobs)
    return [(number, jobs[(number + place) % count]) for number in range(rounds) for place in range(count)]


def machine(options: argparse.Namespace) -> MachineInfo:
    """Return the facts about this box, and about its GPU where one is used."""
    if options.device == "cpu":
        return fingerprint(device="cpu", threads=options.threads)
    return runner(options)(_device_machine, options.device, options.threads)


def _device_machine(device: str, threads: int) -> MachineInfo:
    import torch

    from budgettune.training.device import Device, pick_device

    torch.set_num_threads(threads)
    return Device(pick_device(device)).machine()


def clean_share(statuses: Sequence[str]) -> str:
    """Return how many runs were clean, as a cell."""
    return f"{sum(status == 'clean' for status in statuses)} of {len(statuses)}"


def warn_of_disturbance(statuses: Sequence[str]) -> None:
    """Say below a table that its times are not to be believed, where that is so."""
    if "disturbed" in statuses:
        print("\nDISTURBED: other work ran on this machine; repeat this where nothing else does")


def describe(info: MachineInfo) -> str:
    """Return the machine in one line; its host name stays out, because the line goes into documents."""
    device = "" if info.device == "cpu" else f"{info.device_name}, CUDA {info.cuda}, cuDNN {info.cudnn}, "
    return (
        f"{device}{info.cpu}, {info.cores} cores, {info.threads} threads, {info.memory_mb:,} MiB, "
        f"torch {info.torch}, Python {info.python}"
    )


def print_table(title: str, rows: Sequence[Row]) -> None:
    """Print rows of equal keys as a Markdown table, with columns aligned for the terminal."""
    cells = [list(rows[0]), *([text(value) for value in row.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    print("", f"### {title}", "", lines[0], rule, *lines[1:], sep="\n", flush=True)


def text(value: Any) -> str:
    """Return a cell: numbers at three or four digits, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def median_and_spread(values: Sequence[float]) -> tuple[float, float]:
    """Return the median, and the median absolute deviation as a share of it."""
    middle = statistics.median(values)
    return middle, statistics.median(abs(value - middle) for value in values) / middle if middle else 0.0


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and its standard error; the error of a single value is infinite."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("inf")
    return statistics.fmean(values), error


def verdict(mean: float, error: float, seeds: int) -> str:
    """Return what a mean difference over a few seeds says at 95%: a gain, a loss, or nothing that they can tell."""
    if seeds < 2 or abs(mean) <= stdtrit(seeds - 1, 0.975) * error:
        return "noise"
    return "better" if mean > 0 else "WORSE"


def write_json(options: argparse.Namespace, info: MachineInfo, **tables: Any) -> None:
    """Write everything that was measured, with the machine and the options, where `--json` asks for it."""
    if options.json is None:
        return
    settings = {name: value for name, value in vars(options).items() if name not in ("json", "root")}
    facts = {name: value for name, value in asdict(info).items() if name != "hostname"}
    document = {"machine": facts, "options": settings, **tables}
    options.json.write_text(json.dumps(document, indent=2, default=str) + "\n", encoding="utf-8")
