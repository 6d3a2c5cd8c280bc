"""What the trials of a study tell a sampler, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from budgettune.cells import HANDED_BACK
from budgettune.predict.encoding import Encoding, Floats

FAILED = (TrialState.FAIL, TrialState.PRUNED)


@dataclass(frozen=True)
class Evidence:
    """Trials of one search space, by number.

    Attributes:
        finished: float64[finished, params], positions.
        seconds: float64[finished]
        accuracy: float64[finished], as a share.
        pending: float64[pending, params], of trials that run or wait.
        failed: float64[failed, params], of trials that failed or were stopped early.
    """

    finished: Floats
    seconds: Floats
    accuracy: Floats
    pending: Floats
    failed: Floats

    @property
    def tried(self) -> Floats:
        """All positions, float64[trials, params]."""
        return np.vstack([self.finished, self.pending, self.failed])


def evidence_of(trials: Iterable[FrozenTrial], encoding: Encoding, number: int) -> Evidence:
    """Return what is known when a trial gets its params.

    Left out are trials over another space, extras (late results, and times from another kind of machine), results that
    are not finite, and trials that were handed back, because that says nothing of their configuration.

    Args:
        trials: of the study.
        encoding: of its search space.
        number: of the trial that gets its params.
    """
    own = [trial for trial in trials if trial.number != number and _is_over(trial, encoding)]
    finished = [trial for trial in own if trial.state is TrialState.COMPLETE and _counts(trial)]
    pending = [trial for trial in own if not trial.state.is_finished()]
    failed = [trial for trial in own if trial.state in FAILED and not _was_handed_back(trial)]
    values = np.array([trial.values for trial in finished]).reshape(-1, 2)
    return Evidence(
        finished=encoding.positions(trial.params for trial in finished),
        seconds=values[:, 0],
        accuracy=values[:, 1],
        pending=encoding.positions(trial.params for trial in pending),
        failed=encoding.positions(trial.params for trial in failed),
    )


def _is_over(trial: FrozenTrial, encoding: Encoding) -> bool:
    return all(trial.distributions.get(name) == each for name, each in encoding.space.items())


def _counts(trial: FrozenTrial) -> bool:
    return trial.user_attrs.get("extra") is not True and bool(np.isfinite(trial.values).all())


def _was_handed_back(trial: FrozenTrial) -> bool:
    failure = trial.user_attrs.get("failure")
    return isinstance(failure, Mapping) and failure.get("kind") == HANDED_BACK
