"""What never ran, as plain values: the recommended path over budgets, what each scale would reach, and the check."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from budgettune.errors import NothingFits, NothingToDraw, UsageError
from budgettune.predict.held_out import HeldOut, held_out
from budgettune.predict.predictor import Prediction, Predictor
from budgettune.predict.recommend import Ask, Candidates
from budgettune.predict.regression import on_one_thread
from budgettune.records import StepProbe, TrialRecord
from budgettune.report.axes import value_text
from budgettune.report.view import Overview, objectives
from budgettune.spec.study_spec import StudySpec

BUDGETS = 8
ENDS = (0.7, 1.5)
"""Smallest and largest budget, as shares of the fastest and the slowest trial's time."""
CONFIDENCE = 0.9
MOST_LEVELS = 8
MOST_TRIALS = 300
FEW_OF_MANY = 120
"""Beyond MOST_TRIALS so many are learnt from, a random choice: a page of 10,000 trials shall not take long to build."""


@dataclass(frozen=True)
class Forecast:
    """What is predicted of a study on one kind of machine.

    Attributes:
        view: of its finished trials.
        budgets: seconds, rising.
        path: the recommended run within each budget.
        levels: values of the view's marker parameter (a model's scale, mostly), in order.
        surface: for each budget, the best run of each level; None where nothing of it ends in time.
        checks: finished trials beside what the others say of them; empty where there are too few to hold any out.
    """

    view: Overview
    budgets: tuple[float, ...]
    path: tuple[Prediction, ...]
    levels: tuple[str, ...]
    surface: tuple[tuple[Prediction | None, ...], ...]
    checks: tuple[HeldOut, ...]


@on_one_thread
def forecast(
    view: Overview,
    spec: StudySpec,
    records: Sequence[TrialRecord],
    probes: Mapping[str, Sequence[StepProbe]] | None = None,
) -> Forecast:
    """Return what is predicted for the machine of a view.

    Args:
        view: of its finished trials.
        spec: of the study.
        records: of all trials of the study.
        probes: step times taken outside trials, by kind of machine.

    Raises:
        NothingToDraw: where too little has finished to predict anything, or the study cannot be predicted.
    """
    device_name, records = view.trials[0].device_name, _some(records)
    try:
        predictor = Predictor(spec, records, device_name=device_name, probes=probes)
        asked = [candidates for budget in _budgets(view) if (candidates := _candidates(predictor, budget)) is not None]
    except UsageError as reason:
        raise NothingToDraw(str(reason)) from reason
    if not asked:
        raise NothingToDraw("nothing is predicted to end within the times that ran: run `budgettune worker` further")
    levels = view.marker.levels[:MOST_LEVELS] if view.marker else ()
    return Forecast(
        view=view,
        budgets=tuple(candidates.ask.budget_seconds for candidates in asked),
        path=tuple(candidates.prediction(candidates.best) for candidates in asked),
        levels=tuple(map(value_text, levels)),
        surface=tuple(tuple(_best_of(candidates, view, level) for level in levels) for candidates in asked),
        checks=_checks(spec, records, device_name, probes),
    )


def _some(records: Sequence[TrialRecord]) -> Sequence[TrialRecord]:
    """Return records with all complete trials, or with a sample of them where they are many."""
    complete = [record.number for record in records if record.state == "COMPLETE"]
    if len(complete) <= MOST_TRIALS:
        return records
    chosen = set(np.random.default_rng(0).choice(complete, FEW_OF_MANY, replace=False).tolist())
    return [record for record in records if record.state != "COMPLETE" or record.number in chosen]


def _budgets(view: Overview) -> list[float]:
    seconds = [objectives(trial)[0] for trial in view.trials]
    return [float(budget) for budget in np.geomspace(ENDS[0] * min(seconds), ENDS[1] * max(seconds), BUDGETS)]


def _candidates(predictor: Predictor, budget_seconds: float) -> Candidates | None:
    try:
        return Candidates(predictor, Ask(budget_seconds, CONFIDENCE))
    except NothingFits:
        return None


def _best_of(candidates: Candidates, view: Overview, level: object) -> Prediction | None:
    """Return the best run whose marker parameter has a value."""
    assert view.marker is not None
    name = view.marker.name
    same = [
        index
        for index, (time, _) in enumerate(candidates.runs)
        if value_text(time.workload.params.get(name)) == value_text(level)
    ]
    return candidates.prediction(max(same, key=lambda index: candidates.expected[index])) if same else None


def _checks(
    spec: StudySpec,
    records: Sequence[TrialRecord],
    device_name: str | None,
    probes: Mapping[str, Sequence[StepProbe]] | None,
) -> tuple[HeldOut, ...]:
    try:
        return tuple(held_out(spec, records, device_name=device_name, probes=probes))
    except UsageError:  # enough to predict from, not enough to hold any out
        return ()
