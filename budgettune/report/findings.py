"""What each figure shows, in a sentence or two computed from the values behind it."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable

import numpy as np

from budgettune.predict.held_out import coverage
from budgettune.predict.predictor import Prediction
from budgettune.report.axes import ABSENT, Axis, grouped, value_text
from budgettune.report.forecast import FEW_OF_MANY, MOST_TRIALS, Forecast
from budgettune.report.runs import (
    MOST_SPREADS,
    phase_bars,
    pruning_done,
    spreads,
)
from budgettune.report.runs import (
    curves as curve_values,
)
from budgettune.report.search import (
    FEW_FOR_IMPORTANCE,
    MOST_FOR_IMPORTANCE,
    Importance,
    accuracy_map,
    best_cell,
    hypervolume_history,
    importances,
)
from budgettune.report.style import MOST_GROUPS
from budgettune.report.view import MOST_IN_FRONT, MOST_IN_OTHERS, Overview, objectives, summary
from budgettune.text import format_duration

LITTLE_EXPLAINED = 0.2


def answer(view: Overview) -> str:
    """Say what no limit buys, and what half of that time does."""
    best = view.most_accurate
    seconds, _ = objectives(best)
    text = f"The most accurate of all: {summary(best)}."
    within = [trial for trial in view.answers if objectives(trial)[0] <= seconds / 2]
    if within:
        text += f" Half of that time buys {objectives(within[-1])[1]:.2%} (trial {within[-1].number})."
    return text


def front(view: Overview) -> str:
    """Say how many trials are on the front, where it begins and ends, and which times are in doubt."""
    if len(view.trials) == 1:
        return f"One trial is finished, {summary(view.trials[0])}: a front needs more."
    count = len(view.front)
    text = f"{count} of {len(view.trials):,} trials {'is' if count == 1 else 'are'} on the front: no other one is both "
    text += f"faster and more accurate. The fastest is {summary(view.front[0])}"
    text += f"; the most accurate {summary(view.most_accurate)}." if count > 1 else "."
    numbers = f" Beside markers, where there is room: {view.label.label}." if view.label else ""
    return text + numbers + _doubts(view) + _sample(view, MOST_IN_FRONT)


def _doubts(view: Overview) -> str:
    disturbed = sum(trial.status == "disturbed" for trial in view.trials)
    if not disturbed:
        return ""
    return f" {disturbed:,} {'time was' if disturbed == 1 else 'times were'} disturbed by other work (hollow markers)."


def curves(view: Overview) -> str:
    """Say how many curves are shown, and whether stopping early would have been an answer."""
    values = curve_values(view)
    last_epoch = {trial.number: trial.curve[-1].epoch for trial in view.trials if trial.curve}
    early = [point for point in values.front if point.epoch < last_epoch[point.number]]
    shown = len(values.shown)
    sample = "all" if shown == values.total else f"{shown} of {values.total:,}"
    steps = f"{len(early)} of the {len(values.front)} steps of the red staircase"
    text = f"Shown: {sample} trials. {steps} belong to trials that had not ended"
    if not early:
        return f"{text}: none would have been a better answer had it stopped early."
    best = max(early, key=lambda point: point.accuracy)
    reached = f"{best.accuracy:.2%} in {format_duration(best.seconds)}"
    return f"{text}; the best of them is trial {best.number} after epoch {best.epoch + 1}: {reached}."


def panels(view: Overview) -> str:
    """Say which panels the front comes from."""
    groups = grouped(view.marker, view.trials, MOST_GROUPS)
    on_front = {trial.number for trial in view.front}
    counts = Counter(
        int(member) for member, trial in zip(groups.members, view.trials, strict=True) if trial.number in on_front
    )
    name = groups.axis.label if groups.axis else ""
    parts = [f"{counts[group]} from {name} {groups.labels[group]}" for group in sorted(counts)]
    return f"The front of {len(view.front)} takes {_listed(parts)}." + _sample(view, MOST_IN_OTHERS)


def _sample(view: Overview, most: int) -> str:
    """Say so where a figure draws some of the trials only."""
    count = len(view.trials)
    return "" if count <= most else f" Drawn are {most:,} of {count:,} trials: the front and a random sample."


def times(view: Overview) -> str:
    """Say how time changes with the marker's and the colour's parameter."""
    axes = [axis for axis in (view.marker, view.colour) if axis is not None]
    return " ".join(_time_ratio(view, axis) for axis in axes) + _sample(view, MOST_IN_OTHERS)


def _time_ratio(view: Overview, axis: Axis) -> str:
    """Compare the median times at the two ends of an axis, or of the fastest and the slowest category."""
    groups = grouped(axis, view.trials, MOST_GROUPS)
    medians = [
        (float(np.median(view.seconds[groups.rows(group)])), f"{axis.label} {label}")
        for group, label in enumerate(groups.labels)
        if len(groups.rows(group)) and label != ABSENT
    ]
    if axis.kind == "categorical":
        medians.sort()
    (first_seconds, first), (last_seconds, last) = medians[0], medians[-1]
    ratio = f"{last_seconds / first_seconds:.3g} times" if first_seconds else "far above"
    return f"The median time at {last} is {format_duration(last_seconds)}, {ratio} that at {first}."


def accuracies(view: Overview) -> str:
    """Say which cell is the most accurate on average."""
    cells = accuracy_map(view)
    across, down, mean = best_cell(cells)
    names = [
        f"{groups.axis.label} {label}" for groups, label in ((cells.across, across), (cells.down, down)) if groups.axis
    ]
    return f"Most accurate on average: {' with '.join(names)}, {mean:.2%}."


def importance(view: Overview) -> str:
    """Say which parameter matters most for each objective, and how far to trust that."""
    values = importances(view)
    parts = [_most_important(each, values.axes) for each in values.objectives]
    few = f" {values.trials} trials are few: take it as a hint." if values.trials < FEW_FOR_IMPORTANCE else ""
    some = f" From a random {MOST_FOR_IMPORTANCE:,} trials." if values.trials < len(view.trials) else ""
    return " ".join(parts) + few + some


def _most_important(each: Importance, axes: tuple[Axis, ...]) -> str:
    if each.explained < LITTLE_EXPLAINED:
        return (
            f"A forest predicts {each.objective} of new trials hardly better than its mean does: its bars say nothing."
        )
    first = axes[int(np.argmax(each.shares))].label
    return f"For {each.objective}, {first} matters most (a forest explains {each.explained:.0%} of the variance)."


def repeats(view: Overview) -> str:
    """Say how much repeats of one configuration differ."""
    found = spreads(view)
    points = 100 * statistics.median(spread.accuracy_deviation for spread in found)
    share = statistics.median(spread.seconds_deviation / (spread.seconds or 1.0) for spread in found)
    shown = f" (the {MOST_SPREADS} most accurate are shown)" if len(found) > MOST_SPREADS else ""
    return (
        f"{_count(len(found), 'configuration')} ran more than once{shown}. Typical standard deviation between repeats: "
        f"{points:.2g} points of accuracy and {share:.1%} of the time. A difference of that size may well be chance."
    )


def phases(view: Overview) -> str:
    """Say what share of the clock is arithmetic and what share choosing samples costs."""
    bars = phase_bars(view)
    on_clock = sum(bar.trials * bar.seconds.on_clock for bar in bars) or 1.0
    share = {
        name: sum(bar.trials * getattr(bar.seconds, name) for bar in bars) / on_clock
        for name in ("step", "data", "pruning")
    }
    return (
        f"Of the time on the clock {share['step']:.0%} are steps, {share['data']:.0%} batches; choosing samples, with "
        f"what that needs before and after, which pruning must earn back, takes {share['pruning']:.2%}."
    )


def pruning(view: Overview) -> str:
    """Say what share of the visits the hardest pruning left out."""
    done = pruning_done(view)
    most = float(done.asked.max())
    realised = float(done.realised[done.asked == most].mean())
    return f"Trials asked for a prune rate of {most:.4g} left out {realised:.1%} of their sample visits."


def hypervolume(view: Overview) -> str:
    """Say when most of the hypervolume was there."""
    history = hypervolume_history(view)
    last = history.steps[-1]
    enough = next(step for step in history.steps if step.volume >= 0.95 * last.volume)
    seconds, accuracy = history.reference
    return (
        f"{last.volume:.4g} seconds × accuracy against {format_duration(seconds)} and accuracy {accuracy:g}; 95% of it "
        f"was there after {_count(enough.trials, 'trial')} of {last.trials:,} and "
        f"{format_duration(enough.compute_seconds)} of training."
    )


def recommended(forecast: Forecast) -> str:
    """Say what is recommended in the middle of the budgets, and what ran best within it."""
    place = len(forecast.budgets) // 2
    budget, choice = forecast.budgets[place], forecast.path[place]
    ran = [objectives(trial) for trial in forecast.view.trials]
    within = [accuracy for seconds, accuracy in ran if seconds <= budget]
    text = (
        f"Within {format_duration(budget)}: {_configuration(choice)}, {choice.accuracy:.2%} expected "
        f"({choice.accuracy_low:.2%} to {choice.accuracy_high:.2%})."
    )
    text += f" The best that ran within it reached {max(within):.2%}." if within else ""
    return text if len(ran) <= MOST_TRIALS else f"{text} Learnt from a random {FEW_OF_MANY} trials."


def _configuration(choice: Prediction) -> str:
    settings = [f"{name} {value_text(value)}" for name, value in choice.params.items()]
    return f"{', '.join(settings)} for {_count(choice.epochs, 'epoch')}"


def surface(forecast: Forecast) -> str:
    """Say which level of the marker's parameter is the best at the smallest and at the largest budget."""
    name = forecast.view.marker.label if forecast.view.marker else ""
    parts = []
    for place in (0, -1):
        row = forecast.surface[place]
        best = max((one.accuracy, level) for one, level in zip(row, forecast.levels, strict=True) if one is not None)
        parts.append(f"{name} {best[1]} at {format_duration(forecast.budgets[place])} ({best[0]:.2%} expected)")
    return f"The best choice goes from {parts[0]} to {parts[1]}."


def predicted(forecast: Forecast) -> str:
    """Say how far predictions of held-out trials were off."""
    checks = forecast.checks
    shares = np.array([abs(one.prediction.seconds / one.seconds - 1) for one in checks])
    points = 100 * np.array([abs(one.prediction.accuracy - one.accuracy) for one in checks])
    return (
        f"{_count(len(checks), 'trial')} were held out, a fifth of the configurations at a time. Times were off by "
        f"{np.median(shares):.1%} in the middle and by {np.quantile(shares, 0.95):.1%} in one of twenty, accuracies by "
        f"{np.median(points):.2g} and {np.quantile(points, 0.95):.2g} points, seed noise included."
    )


def calibration(forecast: Forecast) -> str:
    """Say how many held-out trials lay in their 90% intervals."""
    times = coverage([one.seconds_place for one in forecast.checks], 0.9)
    shares = coverage([one.accuracy_place for one in forecast.checks], 0.9)
    return f"Of intervals that promise 90%, {times:.0%} held the time and {shares:.0%} the accuracy."


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


FINDINGS: dict[str, Callable[[Overview], str]] = {
    "answer": answer,
    "front": front,
    "curves": curves,
    "panels": panels,
    "times": times,
    "accuracies": accuracies,
    "importance": importance,
    "repeats": repeats,
    "phases": phases,
    "pruning": pruning,
    "hypervolume": hypervolume,
}

FORECAST_FINDINGS: dict[str, Callable[[Forecast], str]] = {
    "recommended": recommended,
    "surface": surface,
    "predicted": predicted,
    "calibration": calibration,
}
