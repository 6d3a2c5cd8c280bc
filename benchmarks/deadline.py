"""Does training end when the time is up, with the learning rate at zero?

    python -m benchmarks.deadline --root FOLDER --threads 2

`train.budget` at several budgets, and once more at a batch so large that a step takes about half a second, where a
budget can only be met to the step. The baseline is to train whole epochs: the last column is when the same run's last
whole epoch had ended, so the seconds from there to the budget are what whole epochs would have left unused.

All of it runs in one process, as trials of a worker do.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.support import common
from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.training.data.load import ImageData, load_data
from budgettune.training.device import Device, pick_device
from budgettune.training.trainer import train

TARGET_SHARE = 0.01
LR = 3e-3


@contextmanager
def learning_rates() -> Iterator[list[float]]:
    """Collect the learning rate of every optimiser step taken inside, as the optimiser itself has it."""
    rates: list[float] = []

    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        rates.append(float(optimizer.param_groups[0]["lr"]))

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield rates
    finally:
        handle.remove()


def trial(
    options: argparse.Namespace, data: ImageData, *, batch_size: int, **duration: float
) -> tuple[TrialResult, float]:
    """Train for a budget or for epochs; return the result and the last step's learning rate."""
    document = {
        "name": "deadline",
        "data": common.data_table(options),
        "model": {"blocks": options.blocks},
        "train": {
            "batch_size": batch_size,
            "lr": LR,
            "lr_schedule": "linear",
            "precision": "auto",
            "evaluate_every": 1_000_000,
            **duration,
        },
        "pruning": {"prune_rate": options.prune_rate},
    }
    with learning_rates() as rates:
        spec = StudySpec.from_document(document)
        device = pick_device(options.device)
        witness = Device(device).witness()
        result = train(spec, seed=0, data=data, device=device, witness=witness).result
    return result, rates[-1]


def large_batch(options: argparse.Namespace, data: ImageData) -> int:
    """Return the batch size at which a step takes about `--step-seconds`, by a short measurement."""
    probe, _ = trial(options, data, batch_size=options.batch_size, budget=options.probe_seconds)
    per_image = probe.step_ms_median / 1e3 / options.batch_size
    return min(len(data.train), max(options.batch_size, round(options.step_seconds / per_image)))


def row(budget: float, batch_size: int, results: list[tuple[TrialResult, float]]) -> dict[str, Any]:
    """Return what the runs of one budget and batch did; errors are those of the run that missed by most."""
    worst, _ = max(results, key=lambda one: abs(one[0].train_seconds - budget))
    error, step = worst.train_seconds - budget, worst.step_ms_median / 1e3
    return {
        "budget s": budget,
        "batch": batch_size,
        "steps": worst.steps,
        "step ms": worst.step_ms_median,
        "ended at s": f"{worst.train_seconds:.3f}",
        "error": f"{error / budget:+.2%}",
        "error in steps": f"{error / step:+.2f}",
        "met": abs(error) <= max(TARGET_SHARE * budget, step) and error <= step,
        "last step's rate": max(rate for _, rate in results) / LR,
        "rate at the end": max(result.final_lr for result, _ in results) / LR,
        "clean runs": common.clean_share([result.status for result, _ in results]),
        "accuracy %": 100 * statistics.median(result.test_accuracy for result, _ in results),
        "whole epochs ended at s": f"{worst.curve[-2].train_seconds if worst.epochs > 1 else 0.0:.2f}",
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__, images=10_000, batch_size=125)
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 20.0, 60.0], help="seconds")
    parser.add_argument("--step-seconds", type=float, default=0.5, help="of a step of the large batch")
    parser.add_argument("--probe-seconds", type=float, default=3.0, help="spent on finding the large batch")
    parser.add_argument("--blocks", type=int, default=3, help="per stage")
    parser.add_argument("--prune-rate", type=float, default=0.3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    info = common.machine(options)
    print(common.describe(info))
    data = load_data(StudySpec.from_document({"name": "deadline", "data": common.data_table(options)}).data)
    batches = (options.batch_size, large_batch(options, data))
    cases = [(budget, batch) for batch in batches for budget in options.budgets]
    results: dict[tuple[float, int], list[tuple[TrialResult, float]]] = {case: [] for case in cases}
    for _, (budget, batch) in common.alternate(cases, options.rounds):
        results[budget, batch].append(trial(options, data, batch_size=batch, budget=budget))
    rows = [row(*case, found) for case, found in results.items()]
    common.print_table(f"time budgets, {options.images:,} images, worst of {options.rounds}", rows)
    print("\nmet: within 1% or one step of the budget, whichever is larger, and never past it by more than a step")
    print(f"learning rates as a share of the highest, {LR:g}: the last step's, as the optimiser had it, and at the end")
    common.warn_of_disturbance([result.status for found in results.values() for result, _ in found])
    raw = [
        {"budget": budget, "batch": batch, "seconds": result.train_seconds, "last_lr": rate, **outcome(result)}
        for (budget, batch), found in results.items()
        for result, rate in found
    ]
    common.write_json(options, info, deadline=rows, runs=raw)


def outcome(result: TrialResult) -> dict[str, Any]:
    return {
        "accuracy": result.test_accuracy,
        "steps": result.steps,
        "step_ms": result.step_ms_median,
        "status": result.status,
    }


if __name__ == "__main__":
    common.start(main)
