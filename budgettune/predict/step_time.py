"""What a step costs: measured where it ran or was probed, else what its arithmetic, traffic and fixed costs suggest.

A step's seconds are modelled by their logarithm:

    log seconds = log(arithmetic + traffic + fixed) + variant + misalignment + smooth + own + noise

The physical part is a sum of three: multiply-adds of full vectors, numbers written, and a fixed cost per layer. Their
shares are not known, so many are tried, weighted by their evidence. `smooth` is what nearby networks and batches have
in common beyond that, `own` what only one network and batch has: the cliff of a kernel. A step that was measured has
its `own` measured with it; one that was not carries the whole doubt, hence the wider interval. How much runs of one
step differ (`noise`) is not known either: what repeats and neighbours say of it speaks with the same evidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from budgettune.predict.regression import Average, Floats, Inputs, Posterior, Prior
from budgettune.predict.workload import Workload
from budgettune.records import StepProbe
from budgettune.spec.tables import ALIGNMENT

FIXED_SHARES = (0.01, 0.05, 0.1, 0.2, 0.4, 0.7)
ARITHMETIC_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of what is left by the fixed share; the rest is traffic. Shares are those at the middle of what was measured."""

REMAINDERS = ((0.03, 0.02), (0.1, 0.05), (0.25, 0.12))
"""Deviations of the logarithm that are tried: of the smooth remainder, and of what is a step's own."""

RUN_DEVIATIONS = (0.01, 0.03, 0.06, 0.12)
"""Deviations of the logarithm from run to run that are tried: an idle machine of one's own, up to a busy shared one."""

MISALIGNED = (0.3, 0.3)
"""Mean and deviation of what unaligned widths add in fp32; twice that in bf16, or where `auto` must leave bf16."""

VARIANT_DEVIATION = 0.5  # of another precision, optimiser or augmentation that was never measured
PROBE_DEVIATION = 0.05  # of what a probe misses: everything between two steps of a real run
SHARED_BY_PROBES = 0.9  # of the variance from run to run
MOST_STEP_TIMES = 200  # to learn from; of more, a fixed chance draws so many, and the others count as never timed
LEAST_PROBE_DEVIATION = 0.01  # of one probe, however steady its steps were
_ANY_LEVEL = 2.0  # deviation of the level that all steps share
SIZE_SCALE = 1.5  # in factors of e, over which smooth remainders are alike


@dataclass(frozen=True, kw_only=True)
class StepTime:
    """A measured step."""

    workload: Workload
    log_seconds: float  # of a full step, pruning's costs left out
    runs: int = 1  # that it is the mean of
    variance: float = 0.0  # beside that from run to run
    is_probe: bool = False  # whether it comes from a probe and not from trials

    @classmethod
    def of_probe(cls, probe: StepProbe, workload: Workload) -> StepTime:
        variance = (probe.ms_error / probe.ms_mean) ** 2 + LEAST_PROBE_DEVIATION**2
        return cls(workload=workload, log_seconds=math.log(probe.ms_mean / 1e3), variance=variance, is_probe=True)


@dataclass(frozen=True)
class _Shape:
    arithmetic: float
    traffic: float
    fixed: float
    smooth: float
    own: float
    run: float

    def seconds(self, sizes: Floats) -> Floats:
        """Return seconds in units of those at the middle, from sizes in units of theirs: float64[n]."""
        seconds: Floats = sizes @ np.array([self.arithmetic, self.traffic, self.fixed])
        return seconds


_SHAPES = tuple(
    _Shape(share * (1 - fixed), (1 - share) * (1 - fixed), fixed, smooth, own, run)
    for fixed in FIXED_SHARES
    for share in ARITHMETIC_SHARES
    for smooth, own in REMAINDERS
    for run in RUN_DEVIATIONS
)


class StepTimes:
    """Step times of one kind of machine.

    Attributes:
        calibration: factor on variances by what held-out steps say; 1, because what repeats and neighbours say of runs
            is evidence already: a factor on top widened what held, and cost accuracy.

    Args:
        measured: at least one.
        scatter: sum of squares of runs' log seconds about the mean of their step.
        freedom: runs beyond the first of their step.
    """

    calibration = 1.0

    def __init__(self, measured: Sequence[StepTime], scatter: float = 0.0, freedom: int = 0) -> None:
        if len(measured) > MOST_STEP_TIMES:
            chosen = np.random.default_rng(0).permutation(len(measured))[:MOST_STEP_TIMES]
            measured = [measured[index] for index in chosen]
        self.measured = frozenset(time.workload.step for time in measured)  # the steps that need no guess
        self._numbers: dict[str, int] = {}
        workloads = [time.workload for time in measured]
        self._variants = list(dict.fromkeys(workload.step_variant for workload in workloads))
        self._centre = _log_sizes(workloads).mean(0)
        sizes = self._sizes(workloads)
        values = np.array([time.log_seconds for time in measured])
        inputs = self._inputs(workloads, [time.is_probe for time in measured])
        self._level = float(values.mean())
        runs = np.array([shape.run for shape in _SHAPES])
        self._average = Average(
            [
                Posterior(self._prior(shape), inputs, values - self._offset(shape, sizes), _noise(measured, shape.run))
                for shape in _SHAPES
            ],
            more_evidence=-freedom * np.log(runs) - scatter / (2 * runs**2),
        )
        # Of the log of a run's time, between runs of one step.
        self.run_deviation = math.sqrt(self._average.weights @ runs[self._average.kept] ** 2)

    def key_of(self, workload: Workload) -> str:
        """Return what workloads share exactly where their steps cost the same."""
        return workload.step

    def is_measured(self, workload: Workload) -> bool:
        return workload.step in self.measured

    def predict(self, workloads: Sequence[Workload]) -> tuple[Floats, Floats]:
        """Return mean and variance of the log of a full step's seconds: float64[n] each."""
        inputs, sizes = self._inputs(workloads, [False] * len(workloads)), self._sizes(workloads)
        return self._average.predict(lambda index: (inputs, self._offset(_SHAPES[index], sizes)))

    def fixed_shares(self, workloads: Sequence[Workload]) -> Floats:
        """Return what part of a full step's time does not depend on the batch, in [0, 1]: float64[n]."""
        sizes = self._sizes(workloads)
        shapes = [_SHAPES[index] for index in self._average.kept]
        shares: Floats = self._average.weights @ [shape.fixed * sizes[:, 2] / shape.seconds(sizes) for shape in shapes]
        return shares

    def _sizes(self, workloads: Sequence[Workload]) -> Floats:
        """Return what the parts of a step grow with in units of the middle of what was measured: float64[n, 3]."""
        sizes: Floats = np.exp(_log_sizes(workloads) - self._centre)
        return sizes

    def _offset(self, shape: _Shape, sizes: Floats) -> Floats:
        return self._level + np.log(shape.seconds(sizes))

    def _inputs(self, workloads: Sequence[Workload], probed: Sequence[bool]) -> Inputs:
        variants = [[float(one.step_variant == variant) for variant in self._variants[1:]] for one in workloads]
        # A variant that was never measured differs from all by a draw of its own.
        strange = [float(one.step_variant not in self._variants) for one in workloads]
        misaligned = np.array([_misalignment(workload) for workload in workloads])
        columns = [np.ones(len(workloads)), misaligned, np.array(probed, dtype=float), np.array(strange)]
        axes = np.column_stack([_log_sizes(workloads) / SIZE_SCALE, misaligned])
        ids = np.array([self._numbers.setdefault(workload.step, len(self._numbers)) for workload in workloads])
        return Inputs(np.column_stack([*columns, np.array(variants)]), axes, ids)

    def _prior(self, shape: _Shape) -> Prior:
        variants = len(self._variants)  # the first is the level; one more column for those never measured
        mean, deviation = MISALIGNED
        return Prior(
            means=np.array([0.0, mean, 0.0, *[0.0] * variants]),
            deviations=np.array([_ANY_LEVEL, deviation, PROBE_DEVIATION, *[VARIANT_DEVIATION] * variants]),
            smooth=shape.smooth,
            own=shape.own,
        )


def _noise(measured: Sequence[StepTime], run_deviation: float) -> Floats:
    """Return the covariance of what steps were measured at: float64[n, n].

    Probes are taken within seconds of one another: the machine is as fast, or as slow, for all of them.
    """
    probed = np.array([time.is_probe for time in measured], dtype=float)
    noise: Floats = SHARED_BY_PROBES * run_deviation**2 * np.outer(probed, probed)
    noise[np.diag_indices_from(noise)] = [time.variance + run_deviation**2 / time.runs for time in measured]
    return noise


def _log_sizes(workloads: Sequence[Workload]) -> Floats:
    """Return logs of what the three parts of a step grow with: arithmetic, traffic, layers; float64[n, 3]."""
    sizes = [
        (arithmetic.padded * one.batch, arithmetic.traffic * one.batch, arithmetic.layers)
        for one in workloads
        if (arithmetic := one.arithmetic)
    ]
    return np.log(np.array(sizes, dtype=np.float64).reshape(-1, 3))


def _misalignment(workload: Workload) -> float:
    """Return 0 for aligned widths, 1 where fp32 or tf32 is asked for, 2 where bf16 would be wanted."""
    if all(width % ALIGNMENT == 0 for width in workload.config.model.realised_widths):
        return 0.0
    return 1.0 if workload.config.train.precision in ("fp32", "tf32") else 2.0
