"""A comparison of pruning strategies as a value: its runs, where each strategy stands, JSON in and out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, NamedTuple, Self

from pydantic import ConfigDict, Field, ValidationError

from budgettune.comparison.significance import ALPHA, Difference, Estimate, Fit, compare_arms
from budgettune.errors import UsageError
from budgettune.files import read_text, write_text
from budgettune.records import MachineInfo
from budgettune.spec.tables import SpecModel
from budgettune.text import format_duration

UNTUNED_FORMAT = "budgettune-comparison-1"
Purpose = Literal["tuning", "scored"]


class Arm(NamedTuple):
    """A pruning strategy at a prune rate; `full` has rate 0."""

    strategy: str
    prune_rate: float

    def __str__(self) -> str:
        return f"{self.strategy} {self.prune_rate:g}" if self.prune_rate else self.strategy


FULL = Arm("full", 0.0)


class RunKey(NamedTuple):
    """What tells a run from the others of its comparison."""

    arm: Arm
    budget_seconds: float
    seed: int
    lr: float
    purpose: Purpose

    def __str__(self) -> str:
        what = f"{self.arm}, {format_duration(self.budget_seconds)}, rate {self.lr:g}, seed {self.seed}"
        return f"tuning {what}" if self.purpose == "tuning" else what


class Measured(SpecModel):
    """What a finished run gave."""

    status: Literal["clean", "disturbed", "unverified"]  # whether its time can be believed, as a trial's
    accuracy: float  # on the images that judge runs of its purpose
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
    lr: float  # at its highest
    purpose: Purpose  # to choose the arm's learning rate, or to be reported
    seed: int  # equal seeds of different arms make a pair
    tries: int = 1  # times that it was run, more than once where something disturbed the clock
    measured: Measured | None = None  # None where it failed
    failure: str | None = None  # why it failed, with the kind in front

    @property
    def arm(self) -> Arm:
        return Arm(self.strategy, self.prune_rate)

    @property
    def key(self) -> RunKey:
        return RunKey(self.arm, self.budget_seconds, self.seed, self.lr, self.purpose)


class JudgedOn(SpecModel):
    """The images that runs of a purpose are judged by."""

    images: Literal["test", "validation"]
    count: int | None = None  # None where an old file does not say

    def __str__(self) -> str:
        return f"{self.images} images" if self.count is None else f"{self.count:,} {self.images} images"


class Tuned(NamedTuple):
    """What an arm's tuning runs at a budget say."""

    lr: float  # the best
    means: Mapping[float, float | None]  # mean accuracy by rate, lowest rate first; None where a run failed

    @property
    def end(self) -> Literal["lowest", "highest", None]:
        """Where the best is at an end of the list, beyond which a better one may be."""
        if self.means[self.lr] is None:  # all fail
            return None
        first, *_, last = self.means
        return "lowest" if self.lr == first else "highest" if self.lr == last else None


class Comparison(SpecModel):
    """Runs of pruning strategies at equal wall-clock, which share all but arm, budget, seed and learning rate."""

    model_config = ConfigDict(extra="ignore")  # the standings that a file holds for its readers are computed anew

    format: Literal["budgettune-comparison-2"] = "budgettune-comparison-2"
    spec: dict[str, Any]  # what all runs share, as `StudySpec.to_document` gives it
    shuffle_labels: float = 0.0  # share of the training labels that was replaced at random
    judged_on: dict[Purpose, JudgedOn]
    machine: MachineInfo
    runs: tuple[ComparedRun, ...] = ()  # in the order they ended

    def with_run(self, run: ComparedRun) -> Self:
        """Return the comparison with one more run, in place of one of the same key."""
        return self.model_copy(update={"runs": (*(old for old in self.runs if old.key != run.key), run)})

    @property
    def budgets(self) -> tuple[float, ...]:
        """Budgets in seconds, smallest first."""
        return tuple(sorted({run.budget_seconds for run in self.runs}))

    def tuned(self, arm: Arm, budget_seconds: float) -> Tuned | None:
        """Return what was tuned for an arm at a budget; None where fewer than two rates were tried.

        The best rate is that of the highest mean; one of which a run failed is worse than any other.
        """
        return _tuned([run for run in self.runs if (run.arm, run.budget_seconds) == (arm, budget_seconds)])

    def standings(self, budget_seconds: float) -> tuple[Standing, ...]:
        """Return where each arm stands at a budget: full first, then as they first ended."""
        by_arm = self._by_arm(budget_seconds)
        fit = _fit(by_arm)
        return tuple(_standing(arm, runs, fit) for arm, runs in by_arm.items() if runs)

    def fit(self, budget_seconds: float) -> Fit[Arm]:
        """Return what the scored runs at a budget say of all arms together."""
        return _fit(self._by_arm(budget_seconds))

    def _by_arm(self, budget_seconds: float) -> dict[Arm, list[ComparedRun]]:
        by_arm: dict[Arm, list[ComparedRun]] = {FULL: []}
        for run in self.runs:
            if run.budget_seconds == budget_seconds:
                by_arm.setdefault(run.arm, []).append(run)
        return by_arm

    def rows(self) -> list[dict[str, Any]]:
        """Return the standings at every budget as plain values, one row each."""
        judges = self.judged_on.get("scored")
        judged = {"judged_on": judges and judges.images, "images": judges and judges.count}
        return [standing.flat() | judged for budget in self.budgets for standing in self.standings(budget)]

    def to_document(self) -> dict[str, Any]:
        """Return plain JSON values: what `read_comparison` reads, and the standings for other readers."""
        return self.model_dump(mode="json", exclude_none=True) | {"standings": self.rows()}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One arm at one budget; shares and means are over its finished scored runs, None where there is none."""

    budget_seconds: float
    arm: Arm
    lr: float  # of its scored runs
    tuned: Tuned | None  # None where there was one rate and nothing to choose
    runs: int  # that finished
    failed: int
    clean: int  # of those that finished, whose time nothing disturbed
    by_seed: Mapping[int, float]  # accuracy of each finished run
    accuracy: Estimate | None
    against_full: Difference | None  # None for full itself, and below two runs
    overhead: float | None  # share of the training time that choosing samples took
    realised_prune_rate: float | None  # share of the sample visits that was dropped
    epochs: float | None  # mean number of passes
    failures: tuple[str, ...]  # reasons, each once

    @property
    def verdict(self) -> Literal["better", "worse", "no different"]:
        """Against full, beyond chance, all arms counted."""
        if self.against_full is None or self.against_full.p > ALPHA:
            return "no different"
        return "better" if self.against_full.mean > 0 else "worse"

    def flat(self) -> dict[str, Any]:
        found = self.against_full
        return {
            "budget_seconds": self.budget_seconds,
            "strategy": self.arm.strategy,
            "prune_rate": self.arm.prune_rate,
            "lr": self.lr,
            "lr_is": "untuned" if self.tuned is None else f"{self.tuned.end} tried" if self.tuned.end else "tuned",
            "runs": self.runs,
            "failed": self.failed,
            "clean": self.clean,
            **_columns("accuracy", self.accuracy),
            "accuracy_deviation": self.accuracy and self.accuracy.deviation,
            **_columns("difference", found),
            "difference_error": found and found.error,
            "freedom": found and found.freedom,
            "p": found and found.p,
            "test": found and found.test,
            "overhead": self.overhead,
            "realised_prune_rate": self.realised_prune_rate,
            "epochs": self.epochs,
            "failures": "; ".join(self.failures) or None,
        }


def read_comparison(path: Path) -> Comparison:
    """Return the comparison that a file holds, also one of the first format, in which nothing was tuned.

    Raises:
        UsageError: where there is no such file, or it holds something else.
    """
    advice = "give a file that `budgettune compare --out` wrote"
    try:
        return Comparison.model_validate_json(_renewed(read_text(path)))
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


def _renewed(text: str) -> str:
    """Return the text of a file of the first format as this one: all its runs had one learning rate and were scored."""
    try:
        document = json.loads(text)
        if document["format"] != UNTUNED_FORMAT:
            return text
        lr, images = document["spec"]["train"]["lr"], document["spec"]["data"]["evaluate_on"]
        runs = [{**run, "lr": lr, "purpose": "scored"} for run in document["runs"]]
        for run in runs:
            if run.get("measured"):
                run["measured"] = {**run["measured"], "accuracy": run["measured"]["test_accuracy"]}
                del run["measured"]["test_accuracy"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return text  # whoever checks it says what is wrong
    renewed = {"format": "budgettune-comparison-2", "runs": runs, "judged_on": {"scored": {"images": images}}}
    return json.dumps(document | renewed)


def _tuned(runs: Sequence[ComparedRun]) -> Tuned | None:
    by_rate: dict[float, list[float | None]] = {}
    for run in sorted(runs, key=lambda run: run.lr):
        if run.purpose == "tuning":
            by_rate.setdefault(run.lr, []).append(None if run.measured is None else run.measured.accuracy)
    if len(by_rate) < 2:
        return None
    finished = {lr: [value for value in values if value is not None] for lr, values in by_rate.items()}
    means = {lr: fmean(finished[lr]) if None not in values else None for lr, values in by_rate.items()}

    def rank(lr: float) -> tuple[int, float]:
        return len(finished[lr]) - len(by_rate[lr]), means[lr] or 0.0

    return Tuned(max(means, key=rank), means)


def _fit(by_arm: Mapping[Arm, Sequence[ComparedRun]]) -> Fit[Arm]:
    runs = {arm: _accuracies(_scored(runs)) for arm, runs in by_arm.items()}
    return compare_arms(runs, FULL)


def _scored(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the scored runs of an arm at the rate that it was tuned to; those of an earlier choice count no more."""
    scored = [run for run in runs if run.purpose == "scored"]
    tuned = _tuned(runs)
    return scored if tuned is None else [run for run in scored if run.lr == tuned.lr]


def _standing(arm: Arm, runs: Sequence[ComparedRun], fit: Fit[Arm]) -> Standing:
    scored, tuned = _scored(runs), _tuned(runs)
    finished = [run.measured for run in scored if run.measured is not None]
    return Standing(
        budget_seconds=runs[0].budget_seconds,
        arm=arm,
        lr=runs[-1].lr if tuned is None else tuned.lr,
        tuned=tuned,
        runs=len(finished),
        failed=len(scored) - len(finished),
        clean=sum(measured.status == "clean" for measured in finished),
        by_seed=_accuracies(scored),
        accuracy=fit.accuracy.get(arm),
        against_full=fit.differences.get(arm),
        overhead=_mean([measured.prune_seconds / measured.train_seconds for measured in finished]),
        realised_prune_rate=_mean([1.0 - measured.keep_fraction for measured in finished]),
        epochs=_mean([measured.epochs for measured in finished]),
        failures=tuple(dict.fromkeys(run.failure for run in scored if run.failure)),
    )


def _accuracies(runs: Sequence[ComparedRun]) -> dict[int, float]:
    return {run.seed: run.measured.accuracy for run in runs if run.measured is not None}


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _columns(name: str, found: Estimate | Difference | None) -> dict[str, float | None]:
    suffixes = {"": "mean", "_low": "low", "_high": "high"}
    return {f"{name}{suffix}": getattr(found, field, None) for suffix, field in suffixes.items()}
