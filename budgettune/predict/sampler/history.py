"""The trials of a study, as the arrays that a sampler learns from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from budgettune.predict.regression import Floats
from budgettune.predict.sampler.encoding import Encoding
from budgettune.records import HANDED_BACK, StoppingNote

FAILED = (TrialState.FAIL, TrialState.PRUNED)


@dataclass(frozen=True)
class History:
    """Trials of one search space, by number."""

    finished: Floats  # float64[finished, params], positions; also of trials that were stopped early
    seconds: Floats  # float64[finished], as forecast for those that were stopped
    scores: Floats  # float64[finished], accuracies or what else is the more the better; as forecast, too
    excesses: Floats  # float64[finished, constraints], by how much beyond each of the study's; zero or less is within
    pending: Floats  # float64[pending, params], of trials that run or wait
    failed: Floats  # float64[failed, params], of trials that failed

    @property
    def is_allowed(self) -> NDArray[np.bool_]:
        """Whether each finished trial is within the study's constraints: bool[finished]."""
        is_within: NDArray[np.bool_] = np.all(self.excesses <= 0, axis=1)
        return is_within

    @property
    def tried(self) -> Floats:
        """All positions, float64[trials, params]."""
        return np.vstack([self.finished, self.pending, self.failed])


def history_of(trials: Iterable[FrozenTrial], encoding: Encoding, number: int, *, is_rising: bool = True) -> History:
    """Return what a study's trials tell when the trial of that number gets its params.

    Left out are trials over another space, extras (late results, and times from another kind of machine), results that
    are not finite, and trials that were handed back, because that says nothing of their configuration. `is_rising` says
    that the second objective is maximised.
    """
    own = [trial for trial in trials if trial.number != number and encoding.holds(trial)]
    results = [(trial, values) for trial in own if (values := _values(trial)) is not None]
    pending = [trial for trial in own if not trial.state.is_finished()]
    failed = [trial for trial in own if trial.state in FAILED and _failed_by_itself(trial)]
    outcomes = np.array([values for _, values in results]).reshape(-1, 2)
    return History(
        finished=encoding.positions(trial.params for trial, _ in results),
        seconds=outcomes[:, 0],
        scores=outcomes[:, 1] if is_rising else -outcomes[:, 1],
        excesses=_excesses([list(trial.constraints.values()) for trial, _ in results]),
        pending=encoding.positions(trial.params for trial in pending),
        failed=encoding.positions(trial.params for trial in failed),
    )


def _excesses(told: Sequence[Sequence[float]]) -> Floats:
    """Return what trials exceed; where another program's tell less than others do, all count as one constraint."""
    if len({len(each) for each in told}) > 1:
        told = [[max([0.0, *each]) if each else 1.0] for each in told]
    return np.array(told, dtype=float).reshape(len(told), len(told[0]) if told else 0)


def _values(trial: FrozenTrial) -> Sequence[float] | None:
    """Return both objectives: measured, or forecast where the trial was stopped; None where there are none."""
    values = trial.values if trial.state is TrialState.COMPLETE else _forecast(trial)
    counts = values is not None and trial.user_attrs.get("extra") is not True and np.isfinite(values).all()
    return values if counts else None


def _forecast(trial: FrozenTrial) -> Sequence[float] | None:
    note = StoppingNote.read(trial.user_attrs.get("stopping"))
    if trial.state is not TrialState.PRUNED or note is None or note.expected_accuracy is None:
        return None
    return float(note.expected_seconds), float(note.expected_accuracy)


def _failed_by_itself(trial: FrozenTrial) -> bool:
    """Whether a trial without a result is a sign against its configuration: neither handed back nor stopped early."""
    failure = trial.user_attrs.get("failure")
    was_handed_back = isinstance(failure, Mapping) and failure.get("kind") == HANDED_BACK
    return not was_handed_back and _forecast(trial) is None
