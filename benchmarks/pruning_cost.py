"""Does pruning cost anything, and does it save the time of the samples that it drops?

    python -m benchmarks.pruning_cost --threads 2

1. What each strategy does in a run of ten epochs (plan, select, observe) per epoch, at 50,000 samples and, for those
   that look at losses alone, at 1,000,000, against the time of the steps of such an epoch at scale 1.0 on 32×32×3
   images (a few steps measured, then multiplied). The memory that a training step touches is touched between the
   batches as well, so that the loss table is as cold as in training. Forward passes and helpers are answered from a
   table, so that their time is not in the figures; how many were asked for is.
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

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.support import common
from budgettune.records import TrialResult
from budgettune.spec.pruning import STRATEGIES, PruningSpec
from budgettune.spec.study_spec import StudySpec
from budgettune.training.data.load import ImageData, ImageSet
from budgettune.training.device import Device, pick_device
from budgettune.training.pruning import Scores, Strategy, make_strategy, strategy_class
from budgettune.training.trainer import train
from budgettune.trial.stopwatch import Stopwatch

TARGET_SHARE, TARGET_SECONDS, TARGET_SAVED = 0.02, 0.2, 0.95
SMALL_SET = 50_000  # up to here the target is a share of the epoch, above it seconds
CLASSES, FEATURES = 100, 64
EPOCHS = 10  # of the run that a strategy is asked to plan
TRAINED = ["full", "random", "stale-quantile", "paper-as-coded"]
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
    """Train the paper's network at scale 1.0."""
    document = {
        "name": "pruning-cost",
        "model": {"blocks": options.blocks},
        "train": {
            "epochs": epochs,
            "batch_size": options.batch_size,
            "precision": "auto",
            "evaluate_every": epochs,
        },
        "pruning": {"strategy": strategy, "prune_rate": prune_rate},
    }
    spec = StudySpec.from_document(document)
    device = pick_device(options.device)
    witness = Device(device).witness()
    return train(spec, seed=0, data=data, device=device, witness=witness).result


class Table:
    """Answers a strategy's passes at no cost, from random outputs of which most are right, and counts them.

    Args:
        size: number of samples.
        device: of all tensors.

    Attributes:
        scored: samples that were asked for.
        helper_samples: sample visits that helpers would have made.
    """

    num_classes = CLASSES

    def __init__(self, size: int, device: torch.device) -> None:
        chance = torch.Generator(device).manual_seed(0)
        self.labels = torch.randint(CLASSES, (size,), generator=chance, device=device)
        self.logits = torch.randn(size, CLASSES, generator=chance, device=device)
        self.logits += (
            6 * torch.rand(size, 1, generator=chance, device=device) * functional.one_hot(self.labels, CLASSES)
        )
        self.losses = functional.cross_entropy(self.logits, self.labels, reduction="none")
        self.features = torch.rand(size, FEATURES, generator=chance, device=device)
        self.scored = self.helper_samples = 0

    def check(self) -> None:
        """Let the strategy go on."""

    def score(self, indices: Tensor | None = None) -> Scores:
        """Return the outputs of some samples."""
        if indices is None:
            indices = torch.arange(len(self.labels), device=self.labels.device)
        self.scored += len(indices)
        return self.look(indices)

    def look(self, indices: Tensor) -> Scores:
        """Return the same without counting them."""
        of = (part[indices] for part in (self.labels, self.losses, self.logits, self.features))
        return Scores(indices, *of)

    def train_helper(self, indices: Tensor | None = None, *, epochs: int, **_: Any) -> Any:
        """Return what scores like the model."""
        self.helper_samples += epochs * len(self.labels if indices is None else indices)
        return self.score


def run_cost(strategy: Strategy, table: Table, batch_size: int, between: Tensor) -> list[dict[str, float]]:
    """Return, for each epoch of a run that trains nothing, the seconds of each phase, and samples kept and scored.

    Args:
        strategy: to ask and tell.
        table: answers its passes.
        batch_size: of each observe.
        between: is written to before each call, off the clock, as a training step would evict caches.
    """
    strategy.prepare(table)
    return [epoch_cost(strategy, epoch, table, batch_size, between) for epoch in range(EPOCHS)]


def epoch_cost(strategy: Strategy, epoch: int, table: Table, batch_size: int, between: Tensor) -> dict[str, float]:
    """Return what one epoch of `run_cost` costs."""
    device = Device(strategy.device)
    watch, scored, kept = Stopwatch(time.perf_counter, device.synchronize), table.scored, 0
    with watch.aside("plan"):
        plan = strategy.plan(epoch, epoch / EPOCHS)
    count = strategy.size if plan.indices is None else len(plan.indices)
    order = torch.randperm(count, device=strategy.device)
    selects = plan.select and strategy.candidates > 1
    chunk = round(batch_size * strategy.candidates) if selects else batch_size
    for indices in (order if plan.indices is None else plan.indices[order]).split(chunk):
        batch, seen = indices, table.look(indices)
        between.add_(1)
        if selects:
            with watch.aside("select"):
                positions = strategy.select(seen).positions
            table.scored += len(indices)
            batch, seen = indices[positions], table.look(indices[positions])
        with watch.phase("observe"):
            strategy.observe(batch, seen.losses, seen.logits)
        kept += len(batch)
    with watch.aside("observe"):
        device.synchronize()
    phases = {name: watch.seconds[name] for name in ("plan", "select", "observe")}
    return phases | {"kept": kept, "scored": table.scored - scored}


def cost_rows(options: argparse.Namespace, step_seconds: float) -> list[dict[str, Any]]:
    """Return one row per number of samples and strategy."""
    device = pick_device(options.device)
    between = torch.zeros(CACHE_BYTES, dtype=torch.uint8, device=device)
    rows = []
    for size in options.sizes:
        names = [name for name in options.strategies if size <= SMALL_SET or not strategy_class(name).needs_model]
        found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        helped = dict.fromkeys(names, 0.0)
        table = Table(size, device)
        for number, name in common.alternate(names, options.rounds):
            table.helper_samples = 0
            spec = PruningSpec(strategy=name, prune_rate=options.prune_rate)
            strategy = make_strategy(spec, size, seed=number, device=device, epochs=EPOCHS)
            found[name] += run_cost(strategy, table, options.batch_size, between)
            helped[name] = table.helper_samples / size
        rows += [cost_row(options, size, name, found[name], helped[name], step_seconds) for name in names]
    return rows


def cost_row(
    options: argparse.Namespace,
    size: int,
    name: str,
    epochs: list[dict[str, float]],
    helper_epochs: float,
    step_seconds: float,
) -> dict[str, Any]:
    """Return means over the epochs of all rounds, against the steps of such an epoch."""
    mean = {part: statistics.fmean(epoch[part] for epoch in epochs) for part in epochs[0]}
    totals = [epoch["plan"] + epoch["select"] + epoch["observe"] for epoch in epochs]
    total, epoch_seconds = statistics.fmean(totals), mean["kept"] / options.batch_size * step_seconds
    share = total / epoch_seconds
    return {
        "samples": size,
        "strategy": name,
        "kept": f"{mean['kept'] / size:.0%}",
        "plan ms": 1e3 * mean["plan"],
        "select ms": 1e3 * mean["select"],
        "observe ms": 1e3 * mean["observe"],
        "all ms": 1e3 * total,
        "worst ms": 1e3 * max(totals),
        "of the epoch": f"{share:.3%}",
        "looked at per epoch": f"{mean['scored'] / size:.2f}",
        "helper epochs": f"{helper_epochs:g}",
        "met": share <= TARGET_SHARE if size <= SMALL_SET else total < TARGET_SECONDS,
    }


def saving_rows(options: argparse.Namespace, data: ImageData) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return one row per strategy, and every run."""
    rates = {"full": 0.0} | {name: options.prune_rate for name in options.trained if name != "full"}
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
    parser.add_argument("--trained", nargs="+", choices=STRATEGIES, default=TRAINED, help="in the second table")
    parser.add_argument("--prune-rate", type=float, default=0.3)
    parser.add_argument("--epochs", type=int, default=4, help="of each training run")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    info = common.machine(options)
    print(common.describe(info))
    data = synthetic(options.images, options.image_size, options.channels)
    probe = trial(options, data, epochs=1, strategy="full", prune_rate=0.0)  # warms this process up as well
    step_seconds = probe.train_seconds / probe.steps
    costs = cost_rows(options, step_seconds)
    shape = f"{options.image_size}×{options.image_size}×{options.channels}"
    common.print_table(f"what pruning does per epoch, prune {options.prune_rate}, mean of {EPOCHS} epochs", costs)
    print(f"\ntarget: {TARGET_SHARE:.0%} of the epoch, above {SMALL_SET:,} samples {TARGET_SECONDS} s")
    print(f"a step of {options.batch_size} images of {shape} at scale 1.0 takes {1e3 * step_seconds:,.0f} ms")
    savings, raw = saving_rows(options, data)
    common.print_table(f"time saved over samples dropped, {options.images:,} images of {shape}", savings)
    print(f"\ntarget: at least {TARGET_SAVED} saved of what is dropped")
    common.warn_of_disturbance([one["status"] for one in raw])
    common.write_json(options, info, step_seconds=step_seconds, costs=costs, savings=savings, runs=raw)


if __name__ == "__main__":
    common.start(main)
