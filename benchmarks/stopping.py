"""What does stopping trials early save, and what does it lose? Replayed on the recorded curves of a finished study.

    python -m benchmarks.stopping --storage sqlite:///table.db --study fashion-table

Trials run one after the other in a random order, as a random search would take them. After each epoch the rule sees
what a worker would see: the curve so far, and the trials that have finished. A stopped trial costs its seconds so far,
and its result is lost. Since the rest of its curve is known, so is every wrong stop: one of a trial that no finished
one would have beaten. Beside it stands the median rule (Golovin et al., 2017), which looks at accuracy alone: it stops
a trial whose best accuracy is below the median of what finished trials averaged up to the same epoch.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.support import common
from budgettune.errors import UsageError
from budgettune.records import EpochRecord, TrialRecord
from budgettune.storage.connection import open_engine
from budgettune.storage.studies import find_study
from budgettune.storage.trials import trial_records
from budgettune.study.early_stop import Progress, Rival, is_control, judge
from budgettune.study.pareto import hypervolume

CONFIDENCES = (0.8, 0.9, 0.95, 0.99)
Rule = Callable[[Sequence[EpochRecord], int, Sequence[Rival]], bool]


@dataclass(frozen=True)
class Recorded:
    """A finished trial, to be run again from its record."""

    record: TrialRecord
    rival: Rival

    @property
    def curve(self) -> tuple[EpochRecord, ...]:
        """Of the whole training."""
        return self.record.curve

    @property
    def point(self) -> tuple[float, float]:
        """Seconds and accuracy."""
        return self.rival.seconds, self.rival.score


@dataclass
class Replay:
    """What one order of trials came to.

    Attributes:
        finished: trials whose result is known in the end.
        stopped: whether each stop was wrong.
        controls: the same of the trials that ran to their end as controls.
    """

    finished: list[Recorded] = field(default_factory=list)
    spent_seconds: float = 0.0
    stopped: list[bool] = field(default_factory=list)
    controls: list[bool] = field(default_factory=list)


def dominance(confidence: float, curve: Sequence[EpochRecord], epochs: int, rivals: Sequence[Rival]) -> bool:
    """Whether the rule of `budgettune.study.early_stop` stops a trial."""
    progress = Progress.of(curve, epochs=epochs, budget_seconds=None)
    return judge(progress, rivals, curve[-1].epoch, confidence) is not None


class Median:
    """The median rule; it remembers the running averages of each trial."""

    def __init__(self, trials: Sequence[Recorded]) -> None:
        accuracies = {each.record.number: [epoch.accuracy or 0.0 for epoch in each.curve] for each in trials}
        self._averages = {
            number: np.cumsum(values) / np.arange(1, len(values) + 1) for number, values in accuracies.items()
        }

    def __call__(self, curve: Sequence[EpochRecord], epochs: int, rivals: Sequence[Rival]) -> bool:
        """Whether the rule stops a trial."""
        averages = [self._averages[rival.number] for rival in rivals]
        there = [average[len(curve) - 1] for average in averages if len(average) >= len(curve)]
        return bool(there) and max(epoch.accuracy or 0.0 for epoch in curve) < statistics.median(there)


def replay(order: Sequence[Recorded], rule: Rule, control_seed: int, control: float = 0.1) -> Replay:
    """Run trials one after the other, each until the rule stops it; controls run on, as in a study."""
    done = Replay()
    for trial in order:
        rivals = [each.rival for each in done.finished]
        end = _end(trial, rule, rivals)
        spared = is_control(control_seed, trial.record.cell or 0, trial.record.repeat or 0, control)
        if end is not None:
            wrong = not any(rival.beats(*trial.point) for rival in rivals)
            (done.controls if spared else done.stopped).append(wrong)
        if end is None or spared:
            done.finished.append(trial)
            end = len(trial.curve) - 1
        done.spent_seconds += trial.curve[end].train_seconds
    return done


def _end(trial: Recorded, rule: Rule, rivals: Sequence[Rival]) -> int | None:
    """Return the epoch after which the rule stops a trial."""
    epochs = len(trial.curve)
    return next((k for k in range(epochs - 1) if rule(trial.curve[: k + 1], epochs, rivals)), None)


def lost_share(finished: Sequence[Recorded], all_trials: Sequence[Recorded], *, log_time: bool) -> float:
    """Return the share of the hypervolume that is missing, against the slowest time and the worst accuracy of all."""

    def points(trials: Sequence[Recorded]) -> list[tuple[float, float]]:
        return [(math.log(seconds) if log_time else seconds, accuracy) for seconds, accuracy in map(_point, trials)]

    everything = points(all_trials)
    reference = max(seconds for seconds, _ in everything), min(accuracy for _, accuracy in everything)
    return 1.0 - hypervolume(points(finished), reference) / hypervolume(everything, reference)


def _point(trial: Recorded) -> tuple[float, float]:
    return trial.point


def row(name: str, rule: Rule, orders: Sequence[Sequence[Recorded]]) -> dict[str, Any]:
    """Return what a rule does in some orders of trials."""
    replays = [replay(order, rule, control_seed=seed) for seed, order in enumerate(orders)]
    pairs = list(zip(replays, orders, strict=True))
    saved = [1 - done.spent_seconds / sum(trial.rival.seconds for trial in order) for done, order in pairs]
    stopped = [wrong for done in replays for wrong in done.stopped]
    controls = [wrong for done in replays for wrong in done.controls]
    return {
        "rule": name,
        "orders": len(orders),
        "trials": len(orders[0]),
        "stopped": f"{len(stopped) / sum(map(len, orders)):.0%}",
        "seconds saved": spread(saved),
        **{
            f"hypervolume lost over {'log ' * log_time}time": spread(
                [lost_share(done.finished, order, log_time=log_time) for done, order in pairs]
            )
            for log_time in (True, False)
        },
        "wrong stops": rate(stopped),
        "wrong by the control": rate(controls),
    }


def spread(values: Sequence[float]) -> str:
    """Return the median, with the least and the most behind it."""
    return f"{statistics.median(values):.1%} ({min(values):.1%} to {max(values):.1%})"


def rate(wrong: Sequence[bool]) -> str:
    """Return a share with its counts."""
    return f"{np.mean(wrong):.1%} ({sum(wrong)} of {len(wrong)})" if wrong else "none"


def recorded(url: str, study: str | None) -> list[Recorded]:
    """Return the finished trials of a study that count and have curves.

    Raises:
        UsageError: where there are not enough.
    """
    engine = open_engine(url)
    records = trial_records(engine, find_study(engine, study).study_id, states={"COMPLETE"})
    trials = [Recorded(each, rival) for each in records if not each.extra and (rival := Rival.of(each)) is not None]
    if len(trials) < 20:
        raise UsageError(f"{len(trials)} finished trials with curves are too few for a replay: let the study finish")
    return trials


def orders_of(trials: Sequence[Recorded], count: int) -> dict[str, list[list[Recorded]]]:
    """Return random orders of one repeat's trials, the repeats in turn, and of the trials of all repeats."""
    rng = np.random.default_rng(0)
    repeats = sorted({trial.record.repeat or 0 for trial in trials})
    by_repeat = [[trial for trial in trials if (trial.record.repeat or 0) == repeat] for repeat in repeats]
    single = [shuffled(by_repeat[number % len(repeats)], rng) for number in range(count)]
    return {"one repeat": single, "all repeats": [shuffled(trials, rng) for _ in range(count)]}


def shuffled(trials: Sequence[Recorded], rng: np.random.Generator) -> list[Recorded]:
    """Return the trials in a random order."""
    return [trials[index] for index in rng.permutation(len(trials))]


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--storage", required=True, help="database that holds the study")
    options.add_argument("--study", help="its name, where there are several")
    options.add_argument("--orders", type=int, default=20, help="random orders of the trials")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    trials = recorded(chosen.storage, chosen.study)
    rules: dict[str, Rule] = {f"dominance {each:.2f}": partial(dominance, each) for each in CONFIDENCES}
    rules["median rule"] = Median(trials)
    document = {}
    for title, orders in orders_of(trials, chosen.orders).items():
        document[title] = [row(name, rule, orders) for name, rule in rules.items()]
        common.print_table(f"Stopping early, replayed: {title}", document[title])
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
