"""How much faster than the paper's recipe, how near to what the processor can do, and is it as accurate?

    python -m benchmarks.throughput --root FOLDER                # seconds, ratio, GFLOP/s and GB/s against the ceilings
    python -m benchmarks.throughput --root FOLDER --accuracy     # the same accuracy, over seeds
    python -m benchmarks.throughput --root FOLDER --device cuda  # on a GPU; what else to ask of one: cuda_check

Three columns do the same sample visits. `paper recipe` is paper_recipe.py. `same network` is BudgetTune's engine on
that recipe's network and precision, so that the engine's share of the gain is seen alone. `defaults` adds widths
rounded to 8 and automatic precision. Of our columns the bytes of a step are counted too, from the tensors of its
operations: on a GPU memory binds this network, and not arithmetic.

Where the files of Fashion-MNIST are missing, random images of their shape are timed: that takes as long.

Every run has a process of its own: BudgetTune tunes the process's memory allocator, and the recipe forks DataLoader
workers, so in one process each would change what the other is measured under. Both warm up before the clock starts;
the order rotates from round to round.

The CUDA path has never been run on a GPU: what it prints there is a first measurement.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.support import common

PAPER, SAME, DEFAULTS = "paper recipe", "same network", "defaults"
COPY = "copy"
AS_CODED = {"width_multiple": 1, "depth_rounding": "down"}
TARGET_RATIOS = {1.0: 2.5, 1.1: 5.0}
FLOPS_PER_MULTIPLY_ADD = 6  # a multiplication and an addition, in the forward pass and twice in the backward pass


@dataclass(frozen=True, kw_only=True)
class Job:
    """One training run, in a form that another process can be given."""

    column: str
    scale: float
    seed: int
    document: dict[str, Any]
    device: str
    threads: int
    workers: int
    random_images: bool = False


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one training run took and gave.

    `status` says whether BudgetTune's own runs were disturbed. The recipe's workers compete with its training by
    design, so a witness could not tell them from strangers: its runs have none, and share the rounds of the others.
    """

    seconds: float
    visits: int
    multiply_adds: int
    accuracy: float
    precision: str
    widths: list[int]
    status: str | None = None
    bytes_per_image: float | None = None  # moved in a step; None where they are not counted

    @property
    def gb_per_second(self) -> float | None:
        """Achieved traffic of training; a lower bound, see `traffic`."""
        moved = self.bytes_per_image
        return None if moved is None else moved * self.visits / self.seconds / 1e9

    @property
    def gflops(self) -> float:
        """Achieved GFLOP/s of training, counting convolutions and linear layers only."""
        return FLOPS_PER_MULTIPLY_ADD * self.multiply_adds * self.visits / self.seconds / 1e9


def run(job: Job) -> Measurement:
    """Train in this process."""
    import torch

    from budgettune.spec.study_spec import StudySpec
    from budgettune.training.data.load import load_data
    from budgettune.training.device import pick_device
    from budgettune.training.profile.probe import probe_images

    torch.set_num_threads(job.threads)
    spec, device = StudySpec.from_document(job.document), pick_device(job.device)
    if job.random_images:
        data = probe_images(spec.data, spec.data.train_size or 0, torch.device("cpu"))
    else:
        data = load_data(spec.data)
    if job.column == PAPER:
        from benchmarks.paper_recipe import train_paper_recipe

        recipe = train_paper_recipe(spec, data, seed=job.seed, device=device, workers=job.workers)
        return Measurement(precision="fp32", **asdict(recipe))

    from benchmarks.support.traffic import bytes_per_image
    from budgettune.training.device import Device
    from budgettune.training.trainer import train

    witness = Device(device).witness()
    result = train(spec, seed=job.seed, data=data, device=device, witness=witness).result
    return Measurement(
        seconds=result.train_seconds,
        visits=result.samples,
        multiply_adds=result.multiply_adds,
        accuracy=result.test_accuracy,
        precision=result.precision,
        widths=result.architecture["widths"],
        status=result.status,
        bytes_per_image=bytes_per_image(spec.resolve({}), Device(device)),
    )


def ceilings(device: str, threads: int, size: int) -> dict[str, float]:
    """Return what the processor can do at all: GFLOP/s of square matrix products, and GB/s of a `copy`."""
    import torch

    from budgettune.training.device import Device, pick_device

    torch.set_num_threads(threads)
    device = Device(pick_device(device))

    in_a_row = 10 if device.is_cuda else 1  # launching and waiting are no part of what a GPU can do

    def fastest(function: Callable[[], object]) -> float:
        seconds = []
        for _ in range(6):
            device.synchronize()
            began = time.perf_counter()
            for _ in range(in_a_row):
                function()
            device.synchronize()
            seconds.append((time.perf_counter() - began) / in_a_row)
        return min(seconds)

    def product(dtype: torch.dtype) -> float:
        one, other = (torch.randn(size, size, device=device.torch).to(dtype) for _ in range(2))
        return 2 * size**3 / fastest(lambda: one @ other) / 1e9

    rates = {"bf16": product(torch.bfloat16), "fp32": product(torch.float32)}
    if device.is_cuda:  # convolutions in fp32 use TF32 there unless told otherwise, so fp32 alone is no ceiling
        torch.set_float32_matmul_precision("high")
        rates["tf32"] = product(torch.float32)
    source = torch.ones(size, size, device=device.torch)
    target = torch.empty_like(source)
    rates[COPY] = 2 * source.nbytes / fastest(lambda: target.copy_(source)) / 1e9
    return rates


def lacks_files(root: str | None) -> bool:
    """Whether the files of Fashion-MNIST are not there, so that `load_data` would fetch them."""
    from budgettune.training.data.fashion_mnist import find_files
    from budgettune.training.data.sources import DEFAULT_ROOT

    return find_files(Path(root or DEFAULT_ROOT)) is None


def make_job(options: argparse.Namespace, column: str, scale: float, seed: int = 0, **train: Any) -> Job:
    """Return one run; `train` overrides the `[train]` table, and `width_multiple` the model's."""
    model: dict[str, Any] = {"scale": scale, "blocks": options.blocks}
    precision = "auto"
    if column in (PAPER, SAME):
        model, precision = model | AS_CODED, "fp32"
    table = {
        "epochs": options.epochs,
        "batch_size": options.batch_size,
        "lr": 1e-3,
        "lr_schedule": "constant",
        "precision": precision,
        "evaluate_every": options.epochs,
    }
    # The recipe's rate is that of an epoch between refreshes; ours is of the run. Both drop the same visits.
    pruned = sum(epoch % options.refresh_every > 0 for epoch in range(options.epochs)) / options.epochs
    strategy, rate = ("paper-as-coded", 1.0) if column == PAPER else ("stale-quantile", pruned)
    pruning = {
        "strategy": strategy,
        "prune_rate": rate * options.prune_rate,
        "refresh_every": options.refresh_every,
    }
    data = common.data_table(options)
    document = {"name": "throughput", "data": data, "model": model, "train": table | train, "pruning": pruning}
    workers = options.workers
    return Job(
        column=column,
        scale=scale,
        seed=seed,
        document=document,
        device=options.device,
        threads=options.threads,
        workers=workers,
        random_images=options.random_images,
    )


def measure_speed(options: argparse.Namespace) -> tuple[dict[tuple[float, str], list[Measurement]], dict[str, float]]:
    """Return every run by scale and column, and the ceilings."""
    jobs = [make_job(options, column, scale) for scale in options.scales for column in (PAPER, SAME, DEFAULTS)]
    runs: dict[tuple[float, str], list[Measurement]] = {(job.scale, job.column): [] for job in jobs}
    rates = []
    for number, job in common.alternate([*jobs, None], options.rounds):
        if job is None:
            rates.append(common.runner(options)(ceilings, options.device, options.threads, options.matmul_size))
            continue
        measured = common.runner(options)(run, job)
        runs[job.scale, job.column].append(measured)
        note(f"round {number + 1}: scale {job.scale}, {job.column}: {measured.seconds:.2f} s")
    return runs, {name: statistics.median(rate[name] for rate in rates) for name in rates[0]}


def speed_rows(runs: dict[tuple[float, str], list[Measurement]], limits: dict[str, float]) -> list[dict[str, Any]]:
    """Return one row per scale and column."""
    rows = []
    products = {name: rate for name, rate in limits.items() if name != COPY}
    for (scale, column), measured in runs.items():
        seconds, spread = common.median_and_spread([one.seconds for one in measured])
        baseline = statistics.median(one.seconds for one in runs[scale, PAPER])
        first = measured[0]
        gflops = statistics.median(one.gflops for one in measured)
        traffic = [one.gb_per_second for one in measured if one.gb_per_second is not None]
        gb_per_second = statistics.median(traffic) if traffic else None
        rows.append(
            {
                "scale": scale,
                "column": column,
                "precision": first.precision,
                "widths": "/".join(map(str, first.widths)),
                "multiply-adds (M)": first.multiply_adds / 1e6,
                "visits": first.visits,
                "seconds": seconds,
                "spread": f"{spread:.1%}",
                "images/s": first.visits / seconds,
                "GFLOP/s": gflops,
                **{f"of {name} product": f"{gflops / rate:.0%}" for name, rate in products.items()},
                "MB/image": first.bytes_per_image and first.bytes_per_image / 1e6,
                "GB/s": gb_per_second,
                "of a copy": None if gb_per_second is None else f"{gb_per_second / limits[COPY]:.0%}",
                "times faster": baseline / seconds,
                "clean runs": None if column == PAPER else common.clean_share([str(one.status) for one in measured]),
            }
        )
    return rows


def report_speed(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print the speed table with its targets."""
    options.random_images = options.data == "fashion-mnist" and common.runner(options)(lacks_files, options.root)
    if options.random_images:
        print("the files of Fashion-MNIST are not here: random images of their shape are timed, which takes as long")
    runs, limits = measure_speed(options)
    rows = speed_rows(runs, limits)
    common.print_table(f"{options.images:,} images, {options.epochs} epochs, prune {options.prune_rate}", rows)
    listed = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in limits.items() if name != COPY)
    print(f"\nmatrix products of {options.matmul_size}: {listed}; a copy: {limits[COPY]:,.0f} GB/s")
    for row in rows:
        if row["column"] == DEFAULTS:
            target = TARGET_RATIOS.get(row["scale"])
            wanted = f" (target: at least {target})" if target else ""
            print(f"scale {row['scale']}: {row['times faster']:.2f} times faster than the paper's recipe{wanted}")
    if len({one.visits for measured in runs.values() for one in measured}) > 1:
        print("the columns did not do the same number of visits: compare images/s, not seconds")
    common.warn_of_disturbance([one.status or "" for measured in runs.values() for one in measured])
    raw = [
        {"scale": scale, "column": column, **asdict(one)} for (scale, column), found in runs.items() for one in found
    ]
    return {"speed": rows, "ceilings": limits, "runs": raw}


def accuracy_jobs(options: argparse.Namespace, seed: int) -> dict[str, Job]:
    """Return what is compared at one seed. Each row differs from the one above it in one thing."""
    scale = options.scales[-1]
    linear = {"lr": options.linear_lr, "lr_schedule": "linear"}
    return {
        PAPER: make_job(options, PAPER, scale, seed),
        "our engine, same network": make_job(options, SAME, scale, seed),
        f"+ linear rate from {options.linear_lr:g}": make_job(options, SAME, scale, seed, **linear),
        "+ widths rounded to 8": make_job(options, DEFAULTS, scale, seed, precision="fp32", **linear),
        "+ automatic precision": make_job(options, DEFAULTS, scale, seed, **linear),
    }


def report_accuracy(options: argparse.Namespace) -> dict[str, Any]:
    """Measure and print accuracies over seeds."""
    found: dict[str, list[Measurement]] = {name: [] for name in accuracy_jobs(options, 0)}
    for seed in range(options.seeds):
        for name, job in accuracy_jobs(options, seed).items():
            found[name].append(common.runner(options)(run, job))
            note(f"seed {seed}: {name}: {found[name][-1].accuracy:.4f} in {found[name][-1].seconds:.1f} s")
    rows, above = [], None
    for name, measured in found.items():
        rows.append(accuracy_row(name, measured, found[PAPER], above))
        above = measured
    size = options.image_size or "full"
    title = f"test accuracy, {options.images:,} images of size {size}, {options.epochs} epochs, {options.seeds} seeds"
    common.print_table(title, rows)
    print("\na difference within two standard errors is noise; differences are taken seed by seed")
    return {"accuracy": rows, "runs": {name: [asdict(one) for one in measured] for name, measured in found.items()}}


def accuracy_row(
    name: str, measured: list[Measurement], paper: list[Measurement], above: list[Measurement] | None
) -> dict[str, Any]:
    """Return mean accuracy in %, and differences in points to the paper's recipe and to the row above."""
    mean, error = common.mean_and_error([100 * one.accuracy for one in measured])
    row = {
        "": name,
        "precision": measured[0].precision,
        "widths": "/".join(map(str, measured[0].widths)),
        "seconds": statistics.median(one.seconds for one in measured),
        "accuracy %": f"{mean:.2f} ± {error:.2f}",
    }
    for title, other in (("to paper", paper if above else None), ("to row above", above)):
        if other is None:
            row[title] = None
            continue
        pairs = zip(measured, other, strict=True)
        mean, error = common.mean_and_error([100 * (mine.accuracy - theirs.accuracy) for mine, theirs in pairs])
        row[title] = f"{mean:+.2f} ± {error:.2f} ({common.verdict(mean, error, len(measured))})"
    return row


def note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__, images=4_000, batch_size=500)
    parser.add_argument("--epochs", type=int, help="default 3, with --accuracy 10")
    parser.add_argument("--scales", type=float, nargs="+", default=[1.0, 1.1], help="--accuracy takes the last")
    parser.add_argument("--blocks", type=int, default=3, help="per stage at scale 1")
    parser.add_argument("--prune-rate", type=float, default=0.3)
    parser.add_argument("--refresh-every", type=int, default=5)
    parser.add_argument("--workers", type=int, default=4, help="of the recipe's DataLoader")
    parser.add_argument("--matmul-size", type=int, help="default 4096, on a GPU 8192")
    parser.add_argument("--accuracy", action="store_true", help="compare accuracies; 14×14, 6,000 images, batch 125")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--linear-lr", type=float, default=3e-3)
    if "--accuracy" in (sys.argv[1:] if arguments is None else arguments):
        parser.set_defaults(images=6_000, image_size=14, batch_size=125, epochs=10)
    else:
        parser.set_defaults(epochs=3)
    options = parser.parse_args(arguments)
    options.matmul_size = options.matmul_size or (4_096 if options.device == "cpu" else 8_192)
    options.random_images = False
    info = common.machine(options)
    print(common.describe(info))
    tables = report_accuracy(options) if options.accuracy else report_speed(options)
    common.write_json(options, info, **tables)


if __name__ == "__main__":
    common.start(main)
