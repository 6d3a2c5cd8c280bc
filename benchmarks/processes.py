"""What does it cost, and bring, to train one trial with several processes?

    python -m benchmarks.processes --root FOLDER --threads 2 --processes 2

The same trials with one process of all threads (or one GPU), and with several processes that share the threads (or have
a GPU each), at several batch sizes, in alternating order. "together" is the time of a step, in the first process, in
what one process does not do: saying what all shall do, averaging gradients, collecting losses, and waiting for the
slowest. Trials of several processes whose weights were not equal at the end would stop this script.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import torch

from benchmarks.support import common
from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import ImageData, load_data
from budgettune.training.device import Device, pick_device
from budgettune.training.group import Group
from budgettune.training.team import Team

COLLECTIVES = ("agreed", "average", "whole", "plan", "selection")


@contextmanager
def time_together() -> Iterator[list[float]]:
    """Collect the seconds of every call inside that one process does not make, calls within calls once."""
    seconds: list[float] = []
    before = {name: getattr(Group, name) for name in COLLECTIVES}
    depth = 0

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            nonlocal depth
            began, depth = time.perf_counter(), depth + 1
            try:
                return method(*args)
            finally:
                depth -= 1
                if not depth:
                    seconds.append(time.perf_counter() - began)

        return call

    for name, method in before.items():
        setattr(Group, name, timed(method))
    try:
        yield seconds
    finally:
        for name, method in before.items():
            setattr(Group, name, method)


def spec_of(options: argparse.Namespace, batch_size: int, processes: int, **duration: float) -> StudySpec:
    return StudySpec.from_document(
        {
            "name": "processes",
            "data": common.data_table(options),
            "model": {"blocks": options.blocks},
            "train": {
                "batch_size": batch_size,
                "lr": 3e-3,
                "processes": processes,
                "evaluate_every": 1_000_000,
                **duration,
            },
            "pruning": {"prune_rate": options.prune_rate},
        }
    )


def trial(team: Team, spec: StudySpec, data: ImageData) -> tuple[TrialResult, float]:
    """Train, and return the result with the milliseconds together of a step."""
    with time_together() as seconds:
        witness = Device(team.device).witness()
        result = team.train(spec, seed=0, data=data, witness=witness).result
    return result, 1e3 * sum(seconds) / result.steps


def row(batch_size: int, processes: int, found: list[tuple[TrialResult, float]], alone_ms: float) -> dict[str, Any]:
    results = [result for result, _ in found]
    step_ms = statistics.median(result.step_ms_median for result in results)
    return {
        "batch": batch_size,
        "processes": processes,
        "step ms": step_ms,
        "together ms": statistics.median(together_ms for _, together_ms in found) if processes > 1 else None,
        "images/s": statistics.median(result.samples / result.train_seconds for result in results),
        "times one process": alone_ms / step_ms,
        "equal weights": True if processes > 1 else None,
        "accuracy %": 100 * statistics.median(result.test_accuracy for result in results),
        "clean runs": common.clean_share([result.status for result in results]),
    }


def deadline_row(budget: float, batch_size: int, processes: int, results: list[TrialResult]) -> dict[str, Any]:
    worst = max(results, key=lambda result: abs(result.train_seconds - budget))
    return {
        "budget s": budget,
        "batch": batch_size,
        "processes": processes,
        "ended at s": f"{worst.train_seconds:.3f}",
        "error in steps": f"{(worst.train_seconds - budget) / (worst.step_ms_median / 1e3):+.2f}",
        "rate at the end": max(result.final_lr for result in results),
        "steps": worst.steps,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = common.parser(__doc__, images=4_000, batch_size=125)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", help="default: the batch size, and four times it")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--budget", type=float, default=5.0, help="seconds")
    parser.add_argument("--blocks", type=int, default=3, help="per stage")
    parser.add_argument("--prune-rate", type=float, default=0.3)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    info = common.machine(options)
    print(common.describe(info))
    device, batches = pick_device(options.device), options.batches or [options.batch_size, 4 * options.batch_size]
    data = load_data(spec_of(options, 1, 1).data).to(device)
    cases = [(batch, count) for batch in batches for count in (1, options.processes)]
    found: dict[tuple[int, int], list[tuple[TrialResult, float]]] = {case: [] for case in cases}
    ended: dict[tuple[int, int], list[TrialResult]] = {case: [] for case in cases}
    alone, several = Team(device, Trust()), Team(device, Trust())  # else each change of number would start processes
    with closing(several):
        for _, case in common.alternate(cases, options.rounds):
            team = alone if case[1] == 1 else several
            found[case].append(trial(team, spec_of(options, *case, epochs=options.epochs), data))
            ended[case].append(trial(team, spec_of(options, *case, budget=options.budget), data)[0])
    alone_ms = {batch: statistics.median(result.step_ms_median for result, _ in found[batch, 1]) for batch in batches}
    rows = [row(*case, results, alone_ms[case[0]]) for case, results in found.items()]
    budgets = [deadline_row(options.budget, *case, results) for case, results in ended.items()]
    common.print_table(f"processes of a trial, {options.images:,} images, median of {options.rounds}", rows)
    common.print_table(f"time budgets, worst of {options.rounds}", budgets)
    common.warn_of_disturbance([result.status for results in found.values() for result, _ in results])
    common.write_json(options, info, processes=rows, deadline=budgets)


if __name__ == "__main__":
    common.start(main)
