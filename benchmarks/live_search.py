"""The sampler `cost` against Optuna's TPE on real training, for the same seconds of it.

    python -m benchmarks.live_search --root FOLDER --total 60 --seeds 3

Both search scale, prune rate, batch size and learning rate for small networks on Fashion-MNIST at 14×14, in alternating
order, one worker each. The hypervolume is that of the logarithm of time against accuracy, as in search.py; one
reference serves all: the slowest trial of any, at accuracy 0.5.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import budgettune as bt
from benchmarks.support import common
from budgettune.records import TrialRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.study.pareto import hypervolume

SAMPLERS = ("cost", "tpe")
SHARES = (0.25, 0.5, 1.0)
WORST_ACCURACY = 0.5
Points = list[tuple[float, float]]


def spec_of(sampler: str, seed: int, options: argparse.Namespace) -> StudySpec:
    """Return the study file of one search."""
    return StudySpec.from_document(
        {
            "name": f"{sampler} {seed}",
            "data": {
                "name": "fashion-mnist",
                "root": options.root,
                "train_size": options.images,
                "image_size": 14,
                "evaluate_on": "validation",
                "validation_fraction": 0.05,
            },
            "model": {"widths": [16, 32, 64], "blocks": 1},
            "train": {"epochs": 8, "evaluate_every": 8},
            "search": {
                "scale": {"low": 0.5, "high": 1.5},
                "prune_rate": {"low": 0.0, "high": 0.5},
                "batch_size": {"low": 16, "high": 256, "log": True},
                "train.lr": {"low": 3e-4, "high": 3e-2, "log": True},
            },
            "pruning": {"strategy": "random"},
            "sampler": {"name": sampler, "seed": seed, "total": options.total},
        }
    )


def searched(url: str, sampler: str, seed: int, options: argparse.Namespace) -> Points:
    """Run one search, and return seconds and accuracy of its trials in the order they ended."""
    study = bt.create_study(spec_of(sampler, seed, options), storage=url)
    bt.run_worker(study, bt.WorkerOptions(device="cpu", threads=options.threads))
    records: list[TrialRecord] = bt.trial_records(study)
    study.close()
    ended = sorted((one for one in records if one.state == "COMPLETE"), key=lambda one: one.completed_at or "")
    return [(one.train_seconds or math.nan, one.value or math.nan) for one in ended]


def within(points: Points, seconds: float) -> Points:
    """Return the trials that had ended after so many seconds of training."""
    spent, ended = 0.0, []
    for point in points:
        spent += point[0]
        if spent > seconds and ended:
            break
        ended.append(point)
    return ended


def volume(points: Points, slowest_seconds: float) -> float:
    """Return the hypervolume of the logarithm of seconds against accuracy."""
    logs = [(math.log(seconds), accuracy) for seconds, accuracy in points]
    return hypervolume(logs, (math.log(slowest_seconds), WORST_ACCURACY))


def main(arguments: Sequence[str] | None = None) -> None:
    options = common.parser(__doc__, images=3_000, batch_size=64)
    options.add_argument("--total", type=float, default=60.0, help="seconds of training of each search")
    options.add_argument("--seeds", type=int, default=3)
    chosen = options.parse_args(arguments)
    by_sampler: dict[str, list[Points]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'live.db'}"
        for seed, sampler in common.alternate(SAMPLERS, chosen.seeds):
            by_sampler[sampler].append(searched(url, sampler, seed, chosen))
    slowest = max(seconds for runs in by_sampler.values() for points in runs for seconds, _ in points)
    rows: list[dict[str, Any]] = []
    for sampler in SAMPLERS:
        volumes = {
            share: [volume(within(points, share * chosen.total), slowest) for points in by_sampler[sampler]]
            for share in SHARES
        }
        rows.append(
            {
                "sampler": sampler,
                "trials": ", ".join(str(len(points)) for points in by_sampler[sampler]),
                **{f"after {share:.0%}": f"{statistics.fmean(each):.3f}" for share, each in volumes.items()},
                "seed by seed": ", ".join(f"{one:.3f}" for one in volumes[SHARES[-1]]),
                "best accuracy": ", ".join(f"{max(a for _, a in points):.2%}" for points in by_sampler[sampler]),
            }
        )
    title = f"hypervolume against {slowest:.3g} s and accuracy {WORST_ACCURACY}, {chosen.total:g} s of training each"
    common.print_table(title, rows)
    common.write_json(chosen, common.machine(chosen), live=rows)


if __name__ == "__main__":
    common.start(main)
