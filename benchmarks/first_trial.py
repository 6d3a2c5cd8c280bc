"""Does a worker's first trial cost the same on the clock as its tenth? Warm-up against none, in fresh processes.

    python -m benchmarks.first_trial --threads 2

Each process trains one cell ten times and reports the first time over the median of the others: with the warm-up that
every trial has, and with `clock.warmup_steps = 0` as the baseline beside it.
"""

from __future__ import annotations

import argparse
import statistics

from benchmarks.support import common

TRIALS = 10
WARMUPS = (2, 0)


def seconds_of_trials(options: argparse.Namespace, warmup_steps: int) -> tuple[list[float], list[str]]:
    """Train one cell several times in this process; return each trial's seconds on the clock, and its status."""
    import torch

    from budgettune.spec.study_spec import StudySpec
    from budgettune.training.data.load import load_data
    from budgettune.training.device import Device, pick_device
    from budgettune.training.trainer import train

    torch.set_num_threads(options.threads)
    spec = StudySpec.from_document(
        {
            "name": "first-trial",
            "data": {**common.data_table(options), "evaluate_on": "validation", "validation_fraction": 0.01},
            "train": {"epochs": 2, "batch_size": options.batch_size, "precision": "auto", "evaluate_every": 2},
            "clock": {"warmup_steps": warmup_steps},
        }
    )
    data, watcher = load_data(spec.data), Device(pick_device(options.device)).witness()
    results = [train(spec, seed=0, data=data, device=options.device, witness=watcher).result for _ in range(TRIALS)]
    return [result.train_seconds for result in results], [result.status for result in results]


def main() -> None:
    options = common.parser(__doc__, images=1_000, batch_size=250).parse_args()
    info = common.machine(options)
    print(common.describe(info))
    run = common.runner(options)
    rows, statuses, all_seconds = [], [], {}
    for _, warmup_steps in common.alternate(WARMUPS, options.rounds):
        seconds, seen = run(seconds_of_trials, options, warmup_steps)
        statuses += seen
        all_seconds.setdefault(warmup_steps, []).append(seconds)
    for warmup_steps in WARMUPS:
        ratios = [seconds[0] / statistics.median(seconds[1:]) for seconds in all_seconds[warmup_steps]]
        spreads = [common.median_and_spread(seconds[1:])[1] for seconds in all_seconds[warmup_steps]]
        rows.append(
            {
                "warm-up steps": warmup_steps,
                "first over later trials": statistics.median(ratios),
                "worst": max(ratios),
                "spread of later trials": f"{statistics.median(spreads):.1%}",
            }
        )
    common.print_table(f"First trial of a process, {options.rounds} processes of {TRIALS} trials each", rows)
    print(f"\nwithout the warm-up the first trial costs {rows[1]['first over later trials'] - 1:.0%} more")
    common.warn_of_disturbance(statuses)
    common.write_json(options, info, seconds={str(steps): runs for steps, runs in all_seconds.items()})


if __name__ == "__main__":
    common.start(main)
