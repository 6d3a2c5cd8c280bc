"""Does pruning cost anything, and does it save the time of the samples that it drops?

    python benchmarks/pruning_cost.py --threads 2

1. Each strategy's plan and observe alone, at 50,000 and 1,000,000 samples, against the time of the steps of the same
   epoch at scale 1.0 on 32×32×3 images (a few steps measured, then multiplied). The memory that a training step
   touches is touched between the batches as well, so that the loss table is as cold as in training.
2. Training with and without pruning, alternating: the share of time saved over the share of samples dropped. What
   pruning cost inside those runs stands beside it. `full` is the baseline of both tables.

All of it runs in one process: both sides are BudgetTune, and meet the same allocator and the same warm kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import common
import torch

from budgettune.records import TrialResult
from budgettune.spec import STRATEGIES, PruningSpec, StudySpec
from budgettune.training.data import ImageData, ImageSet
from budgettune.training.device import Device, pick_device
from budgettune.training.pruning import Strategy, make_strategy
from budgettune.training.stopwatch import Stopwatch
from budgettune.training.trainer import train

TARGET_SHARE, TARGET_SECONDS, TARGET_SAVED = 0.005, 0.2, 0.95
SMALL_SET = 50_000  # up to here the target is a share of the epoch, above it seconds
CLASSES = 100
CACHE_BYTES = 32 * 2**20


def synthetic(images: int, size: int, channels: int) -> ImageData:
    """Return images of noise with random labels: times do not depend on what is seen."""
    chance = torch.Generator().manual_seed(0)

    def part(count: int) -> ImageSet:
        pixels = torch.randint(256, (count, channels, size, size), dtype=torch.uint8, generator=chance)
        return ImageSet(pixels, torch.randint(CLASSES, (count,), generator=chance))

    moments = {"mean": (0.5,) * channels, "std": (0.29,) * channels}
    return ImageData(
        name="synthetic",
        train=part(images),
        held_out=part(100),
        num_classes=CLASSES,
        flip=True,
        pad=size // 8,
        **moments,
    )


def trial(
    options: argparse.Namespace, data: ImageData, *, epochs: int, strategy: str, prune_rate: float
) -> TrialResult:
    """Train the paper's network at scale 1.0; only the first epoch is a refresh."""
    document = {
        "name": "pruning-cost",
        "model": {"blocks": options.blocks},
        "train": {
            "epochs": epochs,
            "batch_size": options.batch_size,
            "precision": "auto",
            "evaluate_every": epochs,
        },
        "pruning": {"strategy": strategy, "prune_rate": prune_rate, "refresh_every": epochs},
    }
    spec = StudySpec.from_document(document)
    device = pick_device(options.device)
    witness = common.witness(Device(device).machine())
    return train(spec, seed=0, data=data, device=device, witness=witness).result


def epoch_cost(strategy: Strategy, epoch: int, batch_size: int, between: torch.Tensor) -> tuple[float, float, int]:
    """Return seconds of plan, seconds of observe and samples kept of one epoch, without training.

    Args:
        strategy: to ask and tell.
        epoch: that is planned.
        batch_size: of each observe.
        between: is written to before each observe, off the clock, as a training step would evict caches.
    """
    box = Device(strategy.device)
    watch = Stopwatch(time.perf_counter, box.synchronize)
    with watch.aside("plan"):
        plan = strategy.plan(epoch, 0.0)
    count = strategy.size if plan.indices is None else len(plan.indices)
    order = torch.randperm(count, device=strategy.device)
    losses, logits = (torch.rand(batch_size, *shape, device=strategy.device) for shape in ((), (CLASSES,)))
    for batch in (order if plan.indices is None else plan.indices[order]).split(batch_size):
        between.add_(1)
        with watch.phase("observe"):
            strategy.observe(batch, losses[: len(batch)], logits[: len(batch)])
    with watch.aside("observe"):
        box.synchronize()
    return watch.seconds["plan"], watch.seconds["observe"], count


def cost_rows(options: argparse.Namespace, step_seconds: float) -> list[dict[str, Any]]:
    """Return one row per number of samples and strategy."""
    device = pick_device(options.device)
    between = torch.zeros(CACHE_BYTES, dtype=torch.uint8, device=device)
    rows = []
    for size in options.sizes:
        found: dict[str, list[tuple[float, float, int]]] = {name: [] for name in options.strategies}
        for number, name in common.alternate(options.strategies, options.rounds):
            spec = PruningSpec(strategy=name, prune_rate=options.prune_rate, refresh_every=3)
            strategy = make_strategy(spec, size, seed=number, device=device)
            # The first epoch is full and fills the table; the two that follow are pruned.
            costs = [epoch_cost(strategy, epoch, options.batch_size, between) for epoch in range(3)]
            found[name] += costs[1:]
        rows += [cost_row(options, size, name, costs, step_seconds) for name, costs in found.items()]
    return rows


def cost_row(
    options: argparse.Namespace, size: int, name: str, costs: list[tuple[float, float, int]], step_seconds: float
) -> dict[str, Any]:
    """Return medians and the worst of a strategy's pruned epochs, against the steps of such an epoch."""
    plan, observe = (statistics.median(cost[part] for cost in costs) for part in (0, 1))
    total, worst = statistics.median(sum(cost[:2]) for cost in costs), max(sum(cost[:2]) for cost in costs)
    kept = statistics.median(cost[2] for cost in costs)
    epoch_seconds = kept / options.batch_size * step_seconds
    share = total / epoch_seconds
    return {
        "samples": size,
        "strategy": name,
        "kept": kept,
        "plan ms": 1e3 * plan,
        "observe ms": 1e3 * observe,
        "both ms": 1e3 * total,
        "worst ms": 1e3 * worst,
        "epoch s": epoch_seconds,
        "of the epoch": f"{share:.3%}",
        "target": f"{TARGET_SHARE:.1%}" if size <= SMALL_SET else f"{TARGET_SECONDS} s",
        "met": share <= TARGET_SHARE if size <= SMALL_SET else total < TARGET_SECONDS,
    }


def saving_rows(options: argparse.Namespace, data: ImageData) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one row per strategy, and every run."""
    rates = {"full": 0.0} | {name: options.prune_rate for name in options.strategies if name != "full"}
    runs: list[dict[str, TrialResult]] = [{} for _ in range(options.rounds)]
    for number, name in common.alternate(list(rates), options.rounds):
        runs[number][name] = trial(options, data, epochs=options.epochs, strategy=name, prune_rate=rates[name])
    rows = []
    for name in rates:
        trials = [one[name] for one in runs]
        seconds, spread = common.median_and_spread([one.train_seconds for one in trials])
        rows.append(
            {
                "strategy": name,
                "visits": trials[0].samples,
                "seconds": seconds,
                "spread": f"{spread:.1%}",
                "samples dropped": f"{1 - trials[0].samples / runs[0]['full'].samples:.1%}",
                "saved / dropped": None if name == "full" else statistics.median(saved(one, name) for one in runs),
                "clean runs": common.clean_share([one.status for one in trials]),
                "pruning's share": f"{statistics.median(one.phases.pruning / one.train_seconds for one in trials):.3%}",
            }
        )
    raw = [
        {
            "strategy": name,
            "seconds": one.train_seconds,
            "visits": one.samples,
            "pruning": one.phases.pruning,
            "status": one.status,
        }
        for found in runs
        for name, one in found.items()
    ]
    return rows, raw


def saved(runs: dict[str, TrialResult], name: str) -> float:
    """Return the share of time saved over the share of samples dropped, within one round."""
    full, pruned = runs["full"], runs[name]
    return (1 - pruned.train_seconds / full.train_seconds) / (1 - pruned.samples / full.samples)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__, images=5_000, batch_size=500)
    parser.set_defaults(image_size=32, rounds=5)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=3, help="per stage")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50_000, 1_000_000], help="samples to plan for")
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--prune-rate", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=4, help="of each training run; all but the first are pruned")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    info = common.machine(options)
    print(common.describe(info))
    data = synthetic(options.images, options.image_size, options.channels)
    probe = trial(options, data, epochs=1, strategy="full", prune_rate=0.0)  # warms this process up as well
    step_seconds = probe.train_seconds / probe.steps
    costs = cost_rows(options, step_seconds)
    shape = f"{options.image_size}×{options.image_size}×{options.channels}"
    common.print_table(f"plan and observe of a pruned epoch, prune {options.prune_rate}", costs)
    print(f"\na step of {options.batch_size} images of {shape} at scale 1.0 takes {1e3 * step_seconds:,.0f} ms")
    savings, raw = saving_rows(options, data)
    common.print_table(f"time saved over samples dropped, {options.images:,} images of {shape}", savings)
    print(f"\ntarget: at least {TARGET_SAVED} saved of what is dropped")
    common.warn_of_disturbance([one["status"] for one in raw])
    common.write_json(options, info, step_seconds=step_seconds, costs=costs, savings=savings, runs=raw)


if __name__ == "__main__":
    common.start(main)
