"""What is on the page beside figures, as plain values: machines, failures, and the configuration behind each answer."""

from __future__ import annotations

import math
import shlex
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from budgettune.records import MachineInfo, TrialRecord
from budgettune.report.axes import Axis, Search, param_labels, value_text
from budgettune.report.runs import configuration_key, configurations
from budgettune.report.view import Overview, finished, machine_kind, machine_kinds, objectives, of_machine, overview
from budgettune.text import format_duration

MOST_MACHINES = 6
MOST_FAILURES = 10
LONGEST_FAILURE = 300
MOST_FRONT_ROWS = 60


@dataclass(frozen=True)
class Answer:
    """The best trial from a budget on.

    Attributes:
        facts: pairs of a name and a text that tell what to train and how far to trust it.
        command: trains it again and keeps the model.
    """

    seconds: float
    accuracy: float
    number: int
    facts: tuple[tuple[str, str], ...]
    command: str


@dataclass(frozen=True)
class Contents:
    """A whole report but for its drawings.

    Attributes:
        views: one for each kind of machine, most trials first; times of two kinds never share a figure.
        left_out: kinds of machine beyond the MOST_MACHINES that are shown.
        states: trials of the study in each state.
        failures: reasons with their count, most frequent first.
        machines: rows of a table.
        stopping: notes on trials that were stopped early and on controls; empty where nothing was judged.
    """

    study: str
    views: tuple[Overview, ...]
    left_out: tuple[str, ...]
    states: dict[str, int]
    failures: tuple[tuple[str, int], ...]
    machines: tuple[dict[str, str], ...]
    clean_only: bool
    stopping: tuple[Mapping[str, Any], ...] = ()


def contents(
    study: str,
    records: Sequence[TrialRecord],
    search: Search | None = None,
    *,
    device_name: str | None = None,
    clean_only: bool = False,
    stopping: Sequence[Mapping[str, Any]] = (),
) -> Contents:
    """Return what a page says of a study.

    Args:
        study: its name.
        records: all its trials.
        search: the search space of its spec.
        device_name: only that kind of machine.
        clean_only: only times that nothing is known to have disturbed.
        stopping: notes of `budgettune.storage.trials.stopping_notes`.

    Raises:
        UsageError: where no finished trial is of that kind of machine.
    """
    trials = finished(records, clean_only=clean_only)
    if device_name is not None:
        trials = of_machine(trials, device_name)
    kinds = list(machine_kinds(trials))
    return Contents(
        study=study,
        views=tuple(overview(of_machine(trials, kind), search) for kind in kinds[:MOST_MACHINES]),
        left_out=tuple(kinds[MOST_MACHINES:]),
        states=dict(Counter(record.state for record in records)),
        failures=_failures(records),
        machines=_machines(trials),
        clean_only=clean_only,
        stopping=tuple(stopping),
    )


def _failures(records: Sequence[TrialRecord]) -> tuple[tuple[str, int], ...]:
    reasons = Counter(
        (record.failure or "no reason was recorded")[:LONGEST_FAILURE] for record in records if record.state == "FAIL"
    )
    return tuple(reasons.most_common(MOST_FAILURES))


def _machines(trials: Sequence[TrialRecord]) -> tuple[dict[str, str], ...]:
    """Return a row for each kind of machine; names of boxes stay out, because reports are handed on."""
    rows = []
    for kind, count in machine_kinds(trials).items():
        infos = [trial.machine for trial in trials if machine_kind(trial) == kind and trial.machine is not None]
        rows.append({"machine": kind, "trials": f"{count:,}", **(_machine_facts(infos) if infos else {})})
    return tuple(rows)


def _machine_facts(infos: Sequence[MachineInfo]) -> dict[str, str]:
    facts = {
        "boxes": [str(len({info.hostname for info in infos}))],
        "processor": [info.cpu for info in infos],
        "cores": [str(info.cores) for info in infos],
        "threads": [str(info.threads) for info in infos],
        "memory": [f"{info.memory_mb / 1024:.0f} GiB" for info in infos],
        "Python": [info.python for info in infos],
        "torch": [info.torch for info in infos],
        "CUDA": [info.cuda or "-" for info in infos],
        "driver": [info.driver or "-" for info in infos],
    }
    return {name: ", ".join(dict.fromkeys(values)) for name, values in facts.items()}


def answers(view: Overview, study: str) -> tuple[Answer, ...]:
    """Return the best trial from each budget on, smallest budget first."""
    repeats = configurations(view)
    return tuple(
        Answer(
            *objectives(trial),
            number=trial.number,
            facts=(*_facts(trial, view), *_repeat_facts(repeats[configuration_key(trial)])),
            command=f"budgettune train {shlex.quote(study)} --trial {trial.number} --out model.pt",
        )
        for trial in view.answers
    )


def _facts(trial: TrialRecord, view: Overview) -> list[tuple[str, str]]:
    labels = param_labels([*(axis.name for axis in view.axes), *trial.params])
    facts = {
        **{label: value_text(trial.params.get(name)) for name, label in labels.items()},
        "samples kept": None if trial.keep_fraction is None else f"{trial.keep_fraction:.0%}",
        "epochs": trial.epochs,
        "parameters": None if trial.parameters is None else f"{trial.parameters:,}",
        "clock": CLOCK_TEXTS.get(trial.status or "unverified", trial.status),
    }
    return [(name, str(value)) for name, value in facts.items() if value is not None]


CLOCK_TEXTS = {
    "clean": "clean",
    "disturbed": "disturbed: other work slowed it, take its time with care",
    "unverified": "unverified: nothing watched its clock",
}


def _repeat_facts(trials: Sequence[TrialRecord]) -> list[tuple[str, str]]:
    if len(trials) < 2:
        return [("repeats", "ran once: nothing tells how much is chance")]
    seconds, accuracy = zip(*map(objectives, trials), strict=True)
    mean, deviation = f"{statistics.fmean(accuracy):.2%}", f"{100 * statistics.stdev(accuracy):.2g} points"
    times = f"{format_duration(statistics.fmean(seconds))} ± {format_duration(statistics.stdev(seconds))}"
    return [("repeats", f"{len(trials)}, mean {mean} ± {deviation} in {times}")]


def front_rows(view: Overview) -> list[dict[str, str]]:
    """Return the front as rows of a table, at most MOST_FRONT_ROWS at even distances."""
    step = math.ceil(len(view.front) / MOST_FRONT_ROWS)
    return [_front_row(trial, view.axes) for trial in view.front[::step]]


def _front_row(trial: TrialRecord, axes: Sequence[Axis]) -> dict[str, str]:
    seconds, accuracy = objectives(trial)
    facts = {
        "trial": str(trial.number),
        "time": format_duration(seconds),
        "accuracy": f"{accuracy:.2%}",
        "kept": "-" if trial.keep_fraction is None else f"{trial.keep_fraction:.0%}",
        "clock": trial.status or "unverified",
    }
    params = {axis.name if axis.label in facts else axis.label: axis.name for axis in axes}
    return {**facts, **{column: value_text(trial.params.get(name)) for column, name in params.items()}}
