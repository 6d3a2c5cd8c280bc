"""What `recommend` answers, as frozen values that print and serialise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from budgettune.records import TrialRecord


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What one run is expected to give.

    Attributes:
        params: searched values, those of the length of training left out.
        epochs: of the run.
        seconds: median of its training time.
        seconds_low: the run is faster than that in 5 of 100 cases.
        seconds_high: slower in 5 of 100.
        chance_in_time: probability of ending within the budget.
        accuracy: mean of its accuracy, over seeds and over what is not known.
        accuracy_low: the run is less accurate than that in 5 of 100 cases.
        accuracy_high: more accurate in 5 of 100.
        step_is_measured: whether its very step was timed, in a trial or by a probe.
    """

    params: Mapping[str, Any]
    epochs: int
    seconds: float
    seconds_low: float
    seconds_high: float
    chance_in_time: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    step_is_measured: bool


@dataclass(frozen=True, kw_only=True)
class NextTrial:
    """The run that is worth most before asking again.

    Attributes:
        prediction: of it; its seconds are what it costs.
        gain: in accuracy of the answer, expected from knowing its result.
    """

    prediction: Prediction
    gain: float


@dataclass(frozen=True, kw_only=True)
class Basis:
    """What an answer rests on.

    Attributes:
        trials: finished ones.
        configurations: different ones among them.
        repeats: trials beyond the first of their configuration.
        seed_points: deviation of accuracy between seeds at the choice, in points of 100.
        noise_ceiling: share of the variance between trials' accuracies that is not their seed's: no model explains
            more.
        step_times: different steps that were timed.
        probe_seconds: that probes took, beside all trials.
    """

    trials: int
    configurations: int
    repeats: int
    seed_points: float
    noise_ceiling: float
    step_times: int
    probe_seconds: float


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """What to train within a budget, how sure that is, and why.

    Attributes:
        choice: what to train.
        observed: the most accurate finished trial within the budget, None where there is none.
        extrapolated: in what the choice lies outside all that ran.
        next_trial: what to run to know more; None where nothing is likely to change the answer.
        notes: what else a reader must know.
    """

    study: str
    budget_seconds: float
    confidence: float
    device_name: str | None
    choice: Prediction
    observed: TrialRecord | None
    extrapolated: tuple[str, ...]
    next_trial: NextTrial | None
    basis: Basis
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; of the observed trial what says which it is."""
        document = asdict(self)
        if self.observed is not None:
            one = self.observed
            document["observed"] = {
                "number": one.number,
                "params": dict(one.params),
                "epochs": one.epochs,
                "train_seconds": one.train_seconds,
                "test_accuracy": one.test_accuracy,
            }
        return document
