"""What a prediction is held against: a line in arithmetic, a Gaussian process and a random forest on raw params.

Each predicts the log of a trial's seconds and its accuracy with a deviation, from params alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logit
from scipy.stats import norm
from sklearn.ensemble import RandomForestRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from sklearn.linear_model import LinearRegression

from budgettune.predict.quality import QualityModel
from budgettune.predict.run_time import TimeModel
from budgettune.predict.workload import Workload, Workloads
from budgettune.records import StepProbe, TrialRecord

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Guess:
    """What is predicted of some cells; all arrays are float64[cells].

    Attributes:
        log_seconds: mean of the log of seconds.
        time_deviation: of the same.
        accuracy: expected.
        middle: of the accuracy's distribution, of its logit where is_logit.
        deviation: of the same, for a single run.
        is_measured: bool[cells], whether the very step was timed; None where a method knows no steps.
    """

    log_seconds: Floats
    time_deviation: Floats
    accuracy: Floats
    middle: Floats
    deviation: Floats
    is_logit: bool = False
    is_measured: NDArray[np.bool_] | None = None

    def fits(self, budget_seconds: float, confidence: float) -> NDArray[np.bool_]:
        """Return which cells end in time with at least a probability."""
        return norm.cdf(np.log(budget_seconds), self.log_seconds, self.time_deviation) >= confidence

    def time_shares(self, seconds: Floats) -> Floats:
        """Return the probability of being faster than each run was."""
        return norm.cdf(np.log(seconds), self.log_seconds, self.time_deviation)

    def accuracy_shares(self, accuracies: Floats) -> Floats:
        """Return the probability of being less accurate than each run was."""
        return norm.cdf(logit(accuracies) if self.is_logit else accuracies, self.middle, self.deviation)


def ours(
    workloads: Workloads, trials: Sequence[TrialRecord], cells: Sequence[Workload], probes: Sequence[StepProbe] = ()
) -> Guess:
    """Return what `budgettune.predict` says, with or without probes."""
    epochs = [len(trials[0].curve)] * len(cells)
    times = TimeModel(workloads, trials, probes).of(cells)
    timings = [time.at(count) for time, count in zip(times, epochs, strict=True)]
    forecasts = QualityModel(workloads, trials).predict(list(zip(cells, epochs, strict=True)))
    return Guess(
        log_seconds=np.log([timing.median_seconds for timing in timings]),
        time_deviation=np.array([timing.deviation for timing in timings]),
        accuracy=forecasts.expected(),
        middle=forecasts.means,
        deviation=np.sqrt(forecasts.variances + forecasts.seeds),
        is_logit=True,
        is_measured=np.array([time.is_measured for time in times]),
    )


def linear(workloads: Workloads, trials: Sequence[TrialRecord], cells: Sequence[Workload]) -> Guess:
    """Return straight lines: log seconds in log multiply-adds, visits and batch; accuracy in these."""
    known = np.array([_arithmetic(workloads.of(trial.params), len(trial.curve)) for trial in trials])
    wanted = np.array([_arithmetic(cell, len(trials[0].curve)) for cell in cells])
    freedom = max(1, len(trials) - known.shape[1] - 1)

    def line(values: Floats) -> tuple[Floats, Floats]:
        model = LinearRegression().fit(known, values)
        deviation = np.sqrt(np.sum((model.predict(known) - values) ** 2) / freedom)
        return model.predict(wanted), np.full(len(cells), max(deviation, 1e-6))

    return _guess(*line(_log_seconds(trials)), *line(_accuracies(trials)))


def gaussian_process(workloads: Workloads, trials: Sequence[TrialRecord], cells: Sequence[Workload]) -> Guess:
    """Return Gaussian processes on raw params: Matérn 5/2 with a length scale each, and noise."""
    known, wanted = _raw([trial.params for trial in trials]), _raw([cell.params for cell in cells])
    centre, spread = known.mean(0), known.std(0) + 1e-9

    def process(values: Floats) -> tuple[Floats, Floats]:
        kernel = ConstantKernel(1.0) * Matern([1.0] * known.shape[1], nu=2.5) + WhiteKernel(0.1)
        model = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a bound that is reached is no fault of the data
            model.fit((known - centre) / spread, values)
        mean, deviation = model.predict((wanted - centre) / spread, return_std=True)
        return mean, np.maximum(deviation, 1e-6)

    return _guess(*process(_log_seconds(trials)), *process(_accuracies(trials)))


def random_forest(workloads: Workloads, trials: Sequence[TrialRecord], cells: Sequence[Workload]) -> Guess:
    """Return random forests on raw params; deviations from trees that did not see a trial."""
    known, wanted = _raw([trial.params for trial in trials]), _raw([cell.params for cell in cells])

    def forest(values: Floats) -> tuple[Floats, Floats]:
        model = RandomForestRegressor(100, oob_score=True, random_state=0, n_jobs=1).fit(known, values)
        deviation = np.sqrt(np.mean((model.oob_prediction_ - values) ** 2))
        return model.predict(wanted), np.full(len(cells), max(deviation, 1e-6))

    return _guess(*forest(_log_seconds(trials)), *forest(_accuracies(trials)))


BASELINES = {
    "linear in arithmetic": linear,
    "Gaussian process, raw params": gaussian_process,
    "random forest, raw params": random_forest,
}


def _guess(log_seconds: Floats, time_deviation: Floats, accuracy: Floats, deviation: Floats) -> Guess:
    return Guess(log_seconds, time_deviation, accuracy, accuracy, deviation)


def _arithmetic(workload: Workload, epochs: int) -> list[float]:
    return list(np.log([workload.arithmetic.multiply_adds, workload.visits(epochs), workload.batch]))


def _raw(params: Sequence[Any]) -> Floats:
    return np.array([[float(one[key]) for key in sorted(one)] for one in params])


def _log_seconds(trials: Sequence[TrialRecord]) -> Floats:
    return np.log([trial.train_seconds or 0.0 for trial in trials])


def _accuracies(trials: Sequence[TrialRecord]) -> Floats:
    return np.array([trial.test_accuracy or 0.0 for trial in trials])
