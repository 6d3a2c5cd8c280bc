"""What every figure begins with: the finished trials of one kind of machine, their front, their axes; and a figure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Generic, Literal, NamedTuple, TypeVar, cast

import numpy as np

from budgettune.errors import NothingToDraw, UsageError
from budgettune.records import TrialRecord
from budgettune.report.axes import FigureAxis, Search, searched_axes, value_text
from budgettune.report.wording import Wording
from budgettune.spec.documents import full_key
from budgettune.spec.objective import Aim
from budgettune.spec.tables import SCALE_KEYS
from budgettune.study.pareto import undominated
from budgettune.text import format_duration

if TYPE_CHECKING:
    import plotly.graph_objects as go

UNKNOWN_MACHINE = "unknown machine"
LOG_TIME_RATIO = 20.0
MOST_IN_FRONT, MOST_IN_OTHERS = 10_000, 2_500
"""Trials that the main figure and the other scatter plots draw; beyond, a sample that says so."""


class TimeUnit(NamedTuple):
    """The unit in which figures show training time."""

    name: str
    seconds: float


@dataclass(frozen=True, eq=False)
class Overview:
    """The finished trials of one kind of machine, and what every figure asks of them first."""

    trials: tuple[TrialRecord, ...]  # by number
    front: tuple[TrialRecord, ...]  # within the study's limits, and beaten by none in both objectives; fastest first
    axes: tuple[FigureAxis, ...]
    colour: FigureAxis | None  # parameter shown as colour: the prune rate, where it is searched
    marker: FigureAxis | None  # parameter shown as marker and panel: the scale of the model, where it is searched
    label: FigureAxis | None  # parameter written beside a point: the batch size, where it is searched
    aim: Aim = field(default_factory=Aim)

    @cached_property
    def seconds(self) -> np.ndarray:
        """Training time of each trial: float64 of shape (trials,)."""
        return np.array([objectives(trial)[0] for trial in self.trials])

    @cached_property
    def values(self) -> np.ndarray:
        """The objective of each trial, usually its test accuracy in [0, 1]: float64 of shape (trials,)."""
        return np.array([objectives(trial)[1] for trial in self.trials])

    @cached_property
    def scores(self) -> np.ndarray:
        """The same so that more is better."""
        return -self.values if self.words.is_less_better else self.values

    @cached_property
    def words(self) -> Wording:
        """How the objective is spoken of and drawn."""
        return Wording(self.aim.objective, self.aim.name)

    @cached_property
    def is_within_limits(self) -> np.ndarray:
        """Whether each trial is within the limits of the study: bool of shape (trials,)."""
        return np.array([self.aim.allows(trial) for trial in self.trials])

    @cached_property
    def knows_pruning(self) -> bool:
        """Whether some trial tells which share of the samples it kept: code of your own does not."""
        return any(trial.keep_fraction is not None for trial in self.trials)

    def score(self, trial: TrialRecord) -> float:
        """Return the objective of one trial so that more is better."""
        return self.aim.objective.score(objectives(trial)[1])

    @property
    def best(self) -> TrialRecord:
        """The best of all trials.

        Raises:
            NothingToDraw: where none is within the limits of the study.
        """
        self.check_limits()
        return self.answers[-1]

    def check_limits(self) -> None:
        """Raise NothingToDraw where no trial is within the limits of the study."""
        if not self.front:
            raise NothingToDraw(f"No finished trial is within the limits of the study ({self.aim.limits_text}).")

    @cached_property
    def is_on_front(self) -> np.ndarray:
        """Whether each trial is: bool of shape (trials,)."""
        numbers = {trial.number for trial in self.front}
        return np.array([trial.number in numbers for trial in self.trials])

    @cached_property
    def unit(self) -> TimeUnit:
        return unit_for(float(self.seconds.max()))

    @cached_property
    def time_is_log(self) -> bool:
        """Whether times span so much that only a logarithmic scale shows them all."""
        return float(self.seconds.min()) > 0 and float(self.seconds.max() / self.seconds.min()) > LOG_TIME_RATIO

    @cached_property
    def answers(self) -> tuple[TrialRecord, ...]:
        """The best trial from its own time on, fastest first: the front without equals of a lower number."""
        by_point = {objectives(trial): trial for trial in reversed(self.front)}
        return tuple(by_point[point] for point in sorted(by_point))

    @cached_property
    def configurations(self) -> dict[str, list[TrialRecord]]:
        """The trials of each configuration: those whose parameters are equal, by `configuration_key`."""
        found: defaultdict[str, list[TrialRecord]] = defaultdict(list)
        for trial in self.trials:
            found[configuration_key(trial)].append(trial)
        return dict(found)


Records = Iterable[TrialRecord] | Overview
Subject = TypeVar("Subject")
Values = TypeVar("Values")


@dataclass(frozen=True)
class Figure(Generic[Subject, Values]):
    """A figure of the report: what it shows, how that is drawn, and what it says in words.

    Its subject is an overview of trials, a forecast of what never ran, or the notes on trials that were stopped early.
    """

    name: str  # as `--figure` and `budgettune.report.figures` have it
    title: str  # its heading on the page, with names of `Wording.of` in braces
    guide: str  # how to read it, for somebody who has never seen one, likewise
    values: Callable[[Subject], Values]  # what it shows; raises NothingToDraw where the subject does not hold it
    draw: Callable[[Subject, Values], go.Figure]
    say: Callable[[Subject, Values], str]  # a sentence or two
    about: Literal["trials", "forecast", "stopping"] = "trials"
    is_of_pruning: bool = False  # and so on no page of code of your own

    def __call__(self, subject: Records | Subject, search: Search | None = None, aim: Aim | None = None) -> go.Figure:
        """Return the plotly figure of trials (finished or not, of one kind of machine), or of what else this is about.

        `search` and `aim` are of the study's spec: which ranges are logarithmic, what trials are judged by.

        Raises:
            NothingToDraw: where the subject does not hold what the figure shows.
            UsageError: where times of several kinds of machine would be mixed.
        """
        if self.about == "trials":
            subject = overview(cast("Records", subject), search, aim)
        known = cast("Subject", subject)
        return self.draw(known, self.values(known))


def unit_for(most_seconds: float) -> TimeUnit:
    units = (TimeUnit("h", 3600.0), TimeUnit("min", 60.0))
    return next((unit for unit in units if most_seconds >= 3 * unit.seconds), TimeUnit("s", 1.0))


def objectives(trial: TrialRecord) -> tuple[float, float]:
    """Return the seconds and the objective's value, usually the accuracy; the trial must be finished."""
    return cast("float", trial.train_seconds), cast("float", trial.value)


def configuration_key(trial: TrialRecord) -> str:
    return repr(sorted(trial.params.items()))


def machine_name(trial: TrialRecord) -> str:
    return trial.device_name or UNKNOWN_MACHINE


def machine_counts(trials: Iterable[TrialRecord]) -> dict[str, int]:
    """Return the kinds of machine with their number of trials, most first."""
    return dict(Counter(map(machine_name, trials)).most_common())


def finished(records: Iterable[TrialRecord], *, clean_only: bool = False) -> tuple[TrialRecord, ...]:
    """Return the complete trials with both objectives, as `best` and `front` see them."""
    complete = (r for r in records if r.state == "COMPLETE" and None not in objectives(r))
    return tuple(record for record in complete if record.status == "clean" or not clean_only)


def of_machine(trials: Iterable[TrialRecord], device_name: str) -> tuple[TrialRecord, ...]:
    """Return the trials of one kind of machine.

    Raises:
        UsageError: where there is none.
    """
    trials = tuple(trials)
    chosen = tuple(trial for trial in trials if machine_name(trial) == device_name)
    if trials and not chosen:
        raise UsageError(
            f"no finished trial of machine {device_name!r}: choose one of {'; '.join(machine_counts(trials))}"
        )
    return chosen


def overview(records: Records, search: Search | None = None, aim: Aim | None = None) -> Overview:
    """Return what figures start from; an overview is returned as it is.

    Where the search space of the spec is known, it says which ranges are logarithmic; what the study wants is the usual
    where it is not told.

    Raises:
        NothingToDraw: where no trial is finished.
        UsageError: where times of several kinds of machine would be mixed.
    """
    if isinstance(records, Overview):
        return records
    trials = tuple(sorted(finished(records), key=lambda trial: trial.number))
    kinds = machine_counts(trials)
    if not kinds:
        raise NothingToDraw("no trial is finished yet: run `budgettune worker` first")
    if len(kinds) > 1:
        raise UsageError(
            f"these times come from {len(kinds)} kinds of machine ({'; '.join(kinds)}): "
            f"choose one with report.of_machine(records, NAME)"
        )
    axes, aim = searched_axes(trials, search), aim or Aim()
    return Overview(trials, pareto_front(trials, aim), axes, *_parts(axes), aim)


def pareto_front(trials: Iterable[TrialRecord], aim: Aim) -> tuple[TrialRecord, ...]:
    """Return those of finished trials within the limits that no other beats in time and objective, fastest first."""
    trials = tuple(trial for trial in trials if aim.allows(trial))
    points = ((*objectives(trial), trial.number, index) for index, trial in enumerate(trials))
    rows = sorted((seconds, -aim.objective.score(value), number, index) for seconds, value, number, index in points)
    return tuple(trials[row[3]] for row in undominated(rows))


def _parts(axes: Sequence[FigureAxis]) -> tuple[FigureAxis | None, FigureAxis | None, FigureAxis | None]:
    """Return the axes shown as colour, marker and label: the paper's where they are searched, else what is left."""
    left = {full_key(axis.name): axis for axis in axes}
    colour = left.pop("pruning.prune_rate", None)
    marker = next((left.pop(key) for key in SCALE_KEYS if key in left), None)
    label = left.pop("train.batch_size", None)
    # A colour scale tells numbers best, a shape tells few levels best.
    others = iter(sorted(left.values(), key=lambda axis: axis.kind == "categorical"))
    colour = colour or next(others, None)
    marker = marker or next(others, None)
    label = label or next(others, None)
    # Of few parameters none is left to a label.
    if colour is None:
        colour, label = label, None
    if colour is None:
        colour, marker = marker, None
    return (colour, marker, label) if marker else (colour, label, None)


def param_texts(trial: TrialRecord, axes: Sequence[FigureAxis]) -> list[str]:
    """Return the settings of a trial by label, without those that are inactive there."""
    return [f"{axis.label} {value_text(trial.params[axis.name])}" for axis in axes if axis.name in trial.params]


def measure_texts(trial: TrialRecord, aim: Aim) -> dict[str, str]:
    """Return the further numbers of a trial by name, with the limit where one is beyond it."""
    numbers = {**trial.measures, **aim.told(trial)}
    texts = {name: "not told" if number is None else value_text(number) for name, number in numbers.items()}
    beyond = (name for name, excess in zip(aim.limits, aim.excesses(trial), strict=True) if excess > 0)
    return texts | {name: f"{texts[name]} (limit {aim.limits[name]:g})" for name in beyond}


def summary(trial: TrialRecord, words: Wording) -> str:
    seconds, value = objectives(trial)
    return f"trial {trial.number}: {words.said(value)} in {format_duration(seconds)}"


def counted(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def shown_indices(view: Overview, most: int) -> np.ndarray:
    """Return the trials to draw as indices: all, or the front and a random sample of the others."""
    if len(view.trials) <= most:
        return np.arange(len(view.trials))
    front, others = np.flatnonzero(view.is_on_front), np.flatnonzero(~view.is_on_front)
    sample = np.random.default_rng(0).choice(others, max(0, most - len(front)), replace=False)
    return np.sort(np.concatenate([front, sample]))
