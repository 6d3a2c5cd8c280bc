"""Does `train --budget` keep its word: ends on time, with an accuracy inside the interval that was stated before?

    python -m benchmarks.promise --root FOLDER --studies 5 --trials 16 --budgets 20 60

Each study trains some random configurations of small networks on Fashion-MNIST at 14×14. Then it is asked for each
budget, and what it recommends is trained until the time is up, on the same machine, with seeds that no trial had.
Beside it stands the most accurate trial that ended within the budget: what one would train without a prediction.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import budgettune as bt
from benchmarks.support import common
from budgettune.spec.study_spec import StudySpec


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What was said, and what came of it.

    Attributes:
        late_seconds: on the clock at the end, beyond the budget.
        late_steps: the same in steps of that run.
        observed: accuracy of the best trial within the budget, None where there was none.
    """

    study: int
    budget_seconds: float
    configuration: str
    accuracy_low: float
    accuracy: float
    accuracy_high: float
    reached: float
    late_seconds: float
    late_steps: float
    status: str
    observed: float | None

    @property
    def is_kept(self) -> bool:
        """Whether the accuracy lies inside the interval that holds 90 of 100."""
        return self.accuracy_low <= self.reached <= self.accuracy_high


def spec_of(seed: int, options: argparse.Namespace) -> StudySpec:
    """Return the study file of one study."""
    return StudySpec.from_document(
        {
            "name": f"promise {seed}",
            "data": {**common.data_table(options), "evaluate_on": "validation", "validation_fraction": 0.05},
            "model": {"widths": [16, 32, 64], "blocks": 1},
            "train": {"lr_schedule": "linear", "precision": "fp32"},
            "pruning": {"strategy": "stale-quantile", "refresh_every": 4},
            "search": {
                "scale": [0.5, 0.75, 1.0, 1.25, 1.5],
                "prune_rate": [0.0, 0.15, 0.3, 0.45],
                "batch_size": [32, 48, 80, 128],
                "train.epochs": [6, 12, 24],
            },
            "sampler": {"name": "random", "seed": seed, "trials": options.trials},
        }
    )


def kept_promises(url: str, number: int, options: argparse.Namespace) -> Iterator[Promise]:
    """Run one study, then yield what comes of its answers."""
    study = bt.create_study(spec_of(number, options), storage=url)
    bt.run_worker(study, bt.WorkerOptions(device=options.device, threads=options.threads))
    for budget in options.budgets:
        answer, params = bt.api.recommended(study, budget)
        trained = bt.train(study, params, seed=10_000 + number, device=options.device, threads=options.threads).result
        late = trained.train_seconds - budget
        yield Promise(
            study=number,
            budget_seconds=budget,
            configuration=", ".join(f"{name} {value}" for name, value in answer.choice.params.items()),
            accuracy_low=answer.choice.accuracy_low,
            accuracy=answer.choice.accuracy,
            accuracy_high=answer.choice.accuracy_high,
            reached=trained.value,
            late_seconds=late,
            late_steps=1e3 * late / trained.step_ms_median,
            status=trained.status,
            observed=None if answer.observed is None else answer.observed.value,
        )
    study.close()


def row_of(promise: Promise) -> dict[str, Any]:
    """Return one run as a line."""
    low, high = promise.accuracy_low, promise.accuracy_high
    return {
        "study": promise.study,
        "budget": f"{promise.budget_seconds:g} s",
        "trained": promise.configuration,
        "predicted": f"{promise.accuracy:.1%} ({low:.1%} to {high:.1%})",
        "reached": f"{promise.reached:.1%}",
        "inside": "yes" if promise.is_kept else "no",
        "late": f"{1e3 * promise.late_seconds:+.0f} ms",
        "in steps": f"{promise.late_steps:+.2f}",
        "clock": promise.status,
        "best trial in time": "none" if promise.observed is None else f"{promise.observed:.1%}",
    }


def summary(promises: Sequence[Promise]) -> dict[str, Any]:
    """Return the runs of one budget as a line."""
    gains = [100 * (one.reached - one.observed) for one in promises if one.observed is not None]
    misses = [100 * (one.reached - one.accuracy) for one in promises]
    return {
        "budget": f"{promises[0].budget_seconds:g} s",
        "at most half a step late": f"{sum(one.late_steps <= 0.5 for one in promises)} of {len(promises)}",
        "latest": f"{1e3 * max(one.late_seconds for one in promises):+.0f} ms",
        "inside the interval of 90%": f"{sum(one.is_kept for one in promises)} of {len(promises)}",
        "off, median points": f"{statistics.median(map(abs, misses)):.2f}",
        "above the best trial in time, points": f"{statistics.fmean(gains) if gains else math.nan:+.2f}",
        "clean": common.clean_share([one.status for one in promises]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the script."""
    options = common.parser(__doc__, images=1_500, batch_size=64)
    options.set_defaults(image_size=14)
    options.add_argument("--studies", type=int, default=5)
    options.add_argument("--trials", type=int, default=16, help="of each study, before it is asked")
    options.add_argument("--budgets", type=float, nargs="+", default=[20.0, 60.0], help="seconds of training")
    chosen = options.parse_args(arguments)
    promises: list[Promise] = []
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'promise.db'}"
        for number in range(chosen.studies):
            promises += kept_promises(url, number, chosen)
    common.print_table("Runs", [row_of(one) for one in promises])
    by_budget = [[one for one in promises if one.budget_seconds == budget] for budget in chosen.budgets]
    common.print_table("Promises", [summary(some) for some in by_budget])
    common.write_json(chosen, common.machine(chosen), promises=[asdict(one) for one in promises])


if __name__ == "__main__":
    common.start(main)
