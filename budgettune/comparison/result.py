"""A comparison of pruning strategies as a value: its runs, where each strategy stands, JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationError

from budgettune.comparison.significance import ALPHA, Estimate, PairedTest, estimate, holm, paired_test
from budgettune.errors import UsageError
from budgettune.files import read_text, write_text
from budgettune.records import MachineInfo
from budgettune.spec.tables import SpecModel


class Arm(NamedTuple):
    """A pruning strategy at a prune rate; `full` has rate 0."""

    strategy: str
    prune_rate: float

    def __str__(self) -> str:
        return f"{self.strategy} {self.prune_rate:g}" if self.prune_rate else self.strategy


FULL = Arm("full", 0.0)


class Measured(SpecModel):
    """What a finished run gave."""

    status: Literal["clean", "disturbed", "unverified"]  # whether its time can be believed, as a trial's
    test_accuracy: float
    train_seconds: float = Field(gt=0)
    prune_seconds: float  # of train_seconds, what choosing samples took
    keep_fraction: float  # sample visits made over visits that no pruning would have made
    epochs: int  # passes over what was kept; the last may be cut short
    steps: int


class ComparedRun(SpecModel):
    """One training run of a comparison."""

    strategy: str
    prune_rate: float  # asked for; 0 for `full`
    budget_seconds: float
    seed: int  # equal seeds of different arms make a pair
    tries: int = 1  # times that it was run, more than once where something disturbed the clock
    measured: Measured | None = None  # None where it failed
    failure: str | None = None  # why it failed, with the kind in front

    @property
    def arm(self) -> Arm:
        return Arm(self.strategy, self.prune_rate)

    @property
    def key(self) -> tuple[Arm, float, int]:
        """What tells a run from the others of its comparison."""
        return self.arm, self.budget_seconds, self.seed


class Comparison(SpecModel):
    """Runs of pruning strategies at equal wall-clock, which share everything but arm, budget and seed."""

    model_config = ConfigDict(extra="ignore")  # the standings that a file holds for its readers are computed anew

    format: Literal["budgettune-comparison-1"] = "budgettune-comparison-1"
    spec: dict[str, Any]  # what all runs share, as `StudySpec.to_document` gives it
    shuffle_labels: float = 0.0  # share of the training labels that was replaced at random
    machine: MachineInfo
    runs: tuple[ComparedRun, ...] = ()  # in the order they ended

    def with_run(self, run: ComparedRun) -> Self:
        """Return the comparison with one more run, in place of one of the same key."""
        return self.model_copy(update={"runs": (*(old for old in self.runs if old.key != run.key), run)})

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in seconds, smallest first."""
        return tuple(sorted({run.budget_seconds for run in self.runs}))

    def standings(self, budget_seconds: float) -> tuple[Standing, ...]:
        """Return where each arm stands at a budget: full first, then as they first ended."""
        by_arm: dict[Arm, list[ComparedRun]] = {FULL: []}
        for run in self.runs:
            if run.budget_seconds == budget_seconds:
                by_arm.setdefault(run.arm, []).append(run)
        baseline = _accuracies(by_arm[FULL])
        standings = [_standing(runs, baseline) for runs in by_arm.values() if runs]
        corrected = iter(holm([row.against_full.t_p for row in standings if row.against_full is not None]))
        return tuple(
            row if row.against_full is None else replace(row, corrected_p=next(corrected)) for row in standings
        )

    def rows(self) -> list[dict[str, Any]]:
        """Return the standings at every budget as plain values, one row each."""
        return [standing.flat() for budget in self.budgets for standing in self.standings(budget)]

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON values: what `read_comparison` reads, and the standings for other readers."""
        return self.model_dump(mode="json", exclude_none=True) | {"standings": self.rows()}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One arm at one budget; shares and means over its finished runs are None where there is none."""

    budget_seconds: float
    arm: Arm
    runs: int  # that finished
    failed: int
    clean: int  # of those that finished, whose time nothing disturbed
    by_seed: Mapping[int, float]  # accuracy of each finished run
    accuracy: Estimate | None
    against_full: PairedTest | None  # of accuracies at equal seeds; None for full itself, and below two pairs
    corrected_p: float | None = None  # of its t-test, after Holm's correction over the arms of this budget
    overhead: float | None  # share of the training time that choosing samples took
    realised_prune_rate: float | None  # share of the sample visits that was dropped
    epochs: float | None  # mean number of passes
    failures: tuple[str, ...]  # reasons, each once

    @property
    def verdict(self) -> Literal["better", "worse", "no different"]:
        """Against full, beyond chance: the paired t-test after Holm's correction decides."""
        if self.against_full is None or self.corrected_p is None or self.corrected_p > ALPHA:
            return "no different"
        return "better" if self.against_full.difference.mean > 0 else "worse"

    def flat(self) -> dict[str, Any]:
        test = self.against_full
        difference = None if test is None else test.difference
        return {
            "budget_seconds": self.budget_seconds,
            "strategy": self.arm.strategy,
            "prune_rate": self.arm.prune_rate,
            "runs": self.runs,
            "failed": self.failed,
            "clean": self.clean,
            **_columns("accuracy", self.accuracy),
            **_columns("difference", difference),
            "t_p": test and test.t_p,
            "corrected_p": self.corrected_p,
            "exact_p": test and test.exact_p,
            "overhead": self.overhead,
            "realised_prune_rate": self.realised_prune_rate,
            "epochs": self.epochs,
            "failures": "; ".join(self.failures) or None,
        }


def read_comparison(path: Path) -> Comparison:
    """Return the comparison that a file holds.

    Raises:
        UsageError: where there is no such file, or it holds something else.
    """
    advice = "give a file that `budgettune compare --out` wrote"
    try:
        return Comparison.model_validate_json(read_text(path))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}): {advice}") from None
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise UsageError(f"{path}: no comparison ({where and where + ': '}{fault['msg']}): {advice}") from None


def write_comparison(path: Path, comparison: Comparison) -> None:
    """Write a comparison to a file, all or nothing.

    Raises:
        UsageError: where it cannot be written.
    """
    write_text(path, json.dumps(comparison.to_document(), indent=1, allow_nan=False) + "\n")


def _standing(runs: Sequence[ComparedRun], baseline: Mapping[int, float]) -> Standing:
    finished = [run.measured for run in runs if run.measured is not None]
    accuracies = _accuracies(runs)
    differences = [accuracies[seed] - baseline[seed] for seed in accuracies if seed in baseline]
    return Standing(
        budget_seconds=runs[0].budget_seconds,
        arm=runs[0].arm,
        runs=len(finished),
        failed=len(runs) - len(finished),
        clean=sum(measured.status == "clean" for measured in finished),
        by_seed=accuracies,
        accuracy=estimate(list(accuracies.values())) if accuracies else None,
        against_full=paired_test(differences) if differences and runs[0].arm != FULL else None,
        overhead=_mean([measured.prune_seconds / measured.train_seconds for measured in finished]),
        realised_prune_rate=_mean([1.0 - measured.keep_fraction for measured in finished]),
        epochs=_mean([measured.epochs for measured in finished]),
        failures=tuple(dict.fromkeys(run.failure for run in runs if run.failure)),
    )


def _accuracies(runs: Sequence[ComparedRun]) -> dict[int, float]:
    return {run.seed: run.measured.test_accuracy for run in runs if run.measured is not None}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _columns(name: str, found: Estimate | None) -> dict[str, float | None]:
    suffixes = {"": "mean", "_low": "low", "_high": "high", "_deviation": "deviation"}
    return {f"{name}{suffix}": getattr(found, field, None) for suffix, field in suffixes.items()}
