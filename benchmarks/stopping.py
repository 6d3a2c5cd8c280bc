"""What does stopping trials early gain, at equal seconds? Replayed on the recorded curves of a finished study.

    python -m benchmarks.stopping                 # on benchmarks/tables/fashion-table.json.xz

Trials run one after the other in a random order, as a random search would take them. After each epoch a rule sees what
a worker would see: the curve so far, and the trials that have finished. A stopped trial costs its seconds so far, and
its result is lost. What counts is the hypervolume that is lost once some share of the seconds of all trials is spent,
with the rule and without it: a rule that saves seconds gets further in the order.

Since the rest of each curve is known, so is every wrong stop, of a trial that would have improved on the front of the
finished ones by half a point of accuracy or 5% of the time. Intervals of their share are a bootstrap over the recorded
trials, which all orders have in common. Beside the rule stand the one before it (a trial ends where a finished one
beats the bounds of its time and of its accuracy, each of a t distribution, at one look) and the median rule (Golovin et
al., 2017), which looks at accuracy alone: it stops a trial whose best accuracy is below the median of what finished
trials averaged up to the same epoch.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from benchmarks.support import common
from budgettune.errors import UsageError
from budgettune.records import EpochRecord, TrialRecord
from budgettune.study.early_stop import Finished, Progress, Rival, is_control, judge
from budgettune.study.pareto import hypervolume

TABLE = Path(__file__).parent / "tables" / "fashion-table.json.xz"
CONFIDENCES = (0.9, 0.95, 0.99)
SPENT = (0.4, 0.55, 0.72, 1.0)  # shares of the seconds that all trials of an order take
CONTROL = 0.1
LEAST_TRIALS = 20
RESAMPLED = 2_000
Rule = Callable[[Sequence[EpochRecord], int, Finished], bool]


@dataclass(frozen=True)
class Recorded:
    """A finished trial, to be run again from its record."""

    record: TrialRecord
    rival: Rival

    @property
    def point(self) -> tuple[float, float]:
        """Seconds and accuracy."""
        return self.rival.seconds, self.rival.score


@dataclass
class Replay:
    """What one order of trials came to.

    Attributes:
        finished: trials whose result is known, with the seconds of all trials until then.
        stopped: trials that were stopped, and whether that was wrong.
        controls: the same of those that ran to their end as controls.
        spent_seconds: of all trials.
    """

    finished: list[tuple[Recorded, float]] = field(default_factory=list)
    stopped: list[tuple[Recorded, bool]] = field(default_factory=list)
    controls: list[tuple[Recorded, bool]] = field(default_factory=list)
    spent_seconds: float = 0.0

    def within(self, seconds: float) -> list[Recorded]:
        """Return the trials whose result is known by then."""
        return [trial for trial, until in self.finished if until <= seconds * (1 + 1e-9)]


# --- Rules ----------------------------------------------------------------------------------------------------------


def never(_curve: Sequence[EpochRecord], _epochs: int, _finished: Finished) -> bool:
    return False


def dominance(confidence: float, curve: Sequence[EpochRecord], epochs: int, finished: Finished) -> bool:
    """Whether the rule of `budgettune.study.early_stop` stops a trial."""
    return judge(Progress.of(curve, epochs=epochs, budget_seconds=None), finished, epochs, confidence) is not None


def two_bounds(confidence: float, curve: Sequence[EpochRecord], epochs: int, finished: Finished) -> bool:
    """Whether the rule before stops it: a rival beats the bounds of its seconds and of its error, each by itself."""
    rivals = finished.rivals
    if len(rivals) < 8:
        return False
    means, so_far = [], []
    for rival in rivals:
        means.append(_level(rival.scores[max(0, len(curve) - 3) : len(curve)].tolist()))
        so_far.append(rival.seconds_so_far[len(curve) - 1])
    final = np.log(1.005 - np.array([rival.score for rival in rivals]))
    line = np.column_stack([np.ones(len(rivals)), means])
    here = np.array([1.0, _level([epoch.value or 0.0 for epoch in curve[-3:]])])
    level, level_width = _bound(line, final, here, confidence)
    growth = np.log([rival.seconds for rival in rivals]) - np.log(so_far)
    factor, factor_width = _bound(np.ones((len(rivals), 1)), growth, np.ones(1), confidence)
    least_seconds = curve[-1].train_seconds * math.exp(max(0.0, factor - factor_width))
    most = 1.005 - math.exp(level - level_width)
    return any(rival.seconds <= least_seconds and rival.score >= most for rival in rivals)


def _level(accuracies: Sequence[float]) -> float:
    return float(np.log(1.005 - np.array(accuracies)).mean())


def _bound(design: Any, outcomes: Any, at: Any, confidence: float) -> tuple[float, float]:
    """Return what least squares expects of one further observation, and its one-sided width."""
    inverse = np.linalg.pinv(design.T @ design)
    weights, freedom = inverse @ design.T @ outcomes, len(outcomes) - design.shape[1]
    variance = float(((outcomes - design @ weights) ** 2).sum()) / freedom
    width = float(stdtrit(freedom, confidence)) * math.sqrt(variance * (1.0 + float(at @ inverse @ at)))
    return float(at @ weights), width


def median_rule(curve: Sequence[EpochRecord], _epochs: int, finished: Finished) -> bool:
    """Whether the median rule stops it."""
    there = [rival.scores[: len(curve)].mean() for rival in finished.rivals if len(rival.scores) >= len(curve)]
    return bool(there) and max(epoch.value or 0.0 for epoch in curve) < statistics.median(there)


RULES: dict[str, Rule] = {
    "none": never,
    **{f"dominance, confidence {each:.2f}": partial(dominance, each) for each in CONFIDENCES},
    "two bounds at 0.95, as before": partial(two_bounds, 0.95),
    "median rule": median_rule,
}


# --- Replays --------------------------------------------------------------------------------------------------------


def replay(order: Sequence[Recorded], rule: Rule, control_seed: int, control: float = CONTROL) -> Replay:
    """Run trials one after the other, each until the rule stops it; controls run on, as in a study."""
    done, finished = Replay(), Finished([])
    for trial in order:
        end = _end(trial, rule, finished)
        spared = is_control(control_seed, trial.record.cell or 0, trial.record.repeat or 0, control)
        if end is not None:
            (done.controls if spared else done.stopped).append((trial, finished.lack(*trial.point)))
        goes_on = end is None or spared
        done.spent_seconds += trial.record.curve[-1 if goes_on else end].train_seconds
        if goes_on:
            done.finished.append((trial, done.spent_seconds))
            weight = 1.0 if end is None else 1.0 / control
            finished = Finished([*finished.rivals, replace(trial.rival, weight=weight)])
    return done


def _end(trial: Recorded, rule: Rule, finished: Finished) -> int | None:
    """Return the epoch after which the rule stops a trial."""
    curve, epochs = trial.record.curve, len(trial.record.curve)
    return next((k for k in range(epochs - 1) if rule(curve[: k + 1], epochs, finished)), None)


def lost_share(finished: Sequence[Recorded], all_trials: Sequence[Recorded], *, log_time: bool) -> float:
    """Return the share of the hypervolume that is missing, against the slowest time and the worst accuracy of all."""

    def points(trials: Sequence[Recorded]) -> list[tuple[float, float]]:
        pairs = [trial.point for trial in trials]
        return [(math.log(seconds) if log_time else seconds, accuracy) for seconds, accuracy in pairs]

    everything = points(all_trials)
    reference = max(seconds for seconds, _ in everything), min(accuracy for _, accuracy in everything)
    return 1.0 - hypervolume(points(finished), reference) / hypervolume(everything, reference)


def row(name: str, orders: Sequence[Sequence[Recorded]]) -> dict[str, Any]:
    """Return what a rule does in some orders of trials."""
    replays = [replay(order, RULES[name], control_seed=seed) for seed, order in enumerate(orders)]
    costs = [sum(trial.rival.seconds for trial in order) for order in orders]
    trials = sum(map(len, orders))
    stopped = [pair for done in replays for pair in done.stopped]
    controls = [wrong for done in replays for _, wrong in done.controls]
    found: dict[str, Any] = {
        "rule": name,
        "orders": len(orders),
        "trials": len(orders[0]),
        "stopped": f"{len(stopped) / trials:.0%}",
        "seconds saved": f"{1 - sum(done.spent_seconds for done in replays) / sum(costs):.0%}",
        "stopped wrongly, of all trials": wrong_share(stopped, orders),
        "by the controls": f"{sum(controls) / (CONTROL * trials):.1%} ({sum(controls)} of {len(controls)})",
    }
    for log_time in (True, False):
        for spent in SPENT:
            lost = [
                lost_share(done.within(spent * cost), order, log_time=log_time)
                for done, cost, order in zip(replays, costs, orders, strict=True)
            ]
            key = f"lost at {spent:.0%} of the seconds" + ("" if log_time else ", time not log")
            found[key] = f"{statistics.median(lost):.1%} (mean {statistics.mean(lost):.1%})"
    return found


def wrong_share(stopped: Sequence[tuple[Recorded, bool]], orders: Sequence[Sequence[Recorded]]) -> str:
    """Return the share of trials that were stopped wrongly, with its 95% interval by a bootstrap over trials."""
    times: dict[int, float] = {trial.record.number: 0.0 for order in orders for trial in order}
    wrong = dict(times)
    for order in orders:
        for trial in order:
            times[trial.record.number] += 1
    for trial, is_wrong in stopped:
        wrong[trial.record.number] += is_wrong
    counts, wrongs = np.array(list(times.values())), np.array(list(wrong.values()))
    drawn = np.random.default_rng(0).integers(0, len(counts), (RESAMPLED, len(counts)))
    low, high = np.quantile(wrongs[drawn].sum(axis=1) / counts[drawn].sum(axis=1), [0.025, 0.975])
    return f"{wrongs.sum() / counts.sum():.2%} ({low:.2%} to {high:.2%})"


def recorded(table: Path) -> list[Recorded]:
    """Return the finished trials of a recorded table that have curves.

    Raises:
        UsageError: where there are not enough.
    """
    documents = json.loads(lzma.decompress(table.read_bytes()))["trials"]
    records = [TrialRecord.from_json(each) for each in documents if each["state"] == "COMPLETE" and not each["extra"]]
    trials = [Recorded(each, rival) for each in records if (rival := Rival.of(each)) is not None]
    if len(trials) < LEAST_TRIALS:
        raise UsageError(f"{table}: {len(trials)} finished trials with curves are too few for a replay")
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
    options.add_argument("--table", type=Path, default=TABLE, help="as `benchmarks.predict --record` writes it")
    options.add_argument("--orders", type=int, default=42, help="random orders of the trials")
    options.add_argument("--processes", type=int, default=1)
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    chosen = options.parse_args(arguments)
    trials = recorded(chosen.table)
    document = {}
    for title, orders in orders_of(trials, chosen.orders).items():
        with ProcessPoolExecutor(chosen.processes) as pool:
            document[title] = list(pool.map(partial(row, orders=orders), RULES))
        common.print_table(f"Stopping early, replayed: {title}", document[title])
    if chosen.json:
        chosen.json.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    common.start(main)
