"""The trials of a study, as the arrays that a sampler learns from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
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
    accuracy: Floats  # float64[finished], as a share; as forecast, too
    pending: Floats  # float64[pending, params], of trials that run or wait
    failed: Floats  # float64[failed, params], of trials that failed

    @property
    def tried(self) -> Floats:
        """All positions, float64[trials, params]."""
        return np.vstack([self.finished, self.pending, self.failed])


def history_of(trials: Iterable[FrozenTrial], encoding: Encoding, number: int) -> History:
    """Return what a study's trials tell when the trial of that number gets its params.

    Left out are trials over another space, extras (late results, and times from another kind of machine), results that
    are not finite, and trials that were handed back, because that says nothing of their configuration.
    """
    own = [trial for trial in trials if trial.number != number and encoding.holds(trial)]
    results = [(trial, values) for trial in own if (values := _values(trial)) is not None]
    pending = [trial for trial in own if not trial.state.is_finished()]
    failed = [trial for trial in own if trial.state in FAILED and _failed_by_itself(trial)]
    outcomes = np.array([values for _, values in results]).reshape(-1, 2)
    return History(
        finished=encoding.positions(trial.params for trial, _ in results),
        seconds=outcomes[:, 0],
        accuracy=outcomes[:, 1],
        pending=encoding.positions(trial.params for trial in pending),
        failed=encoding.positions(trial.params for trial in failed),
    )


def _values(trial: FrozenTrial) -> Sequence[float] | None:
    """Return seconds and accuracy: measured, or forecast where the trial was stopped; None where there are none."""
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
