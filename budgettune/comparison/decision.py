"""The strategy that a comparison supports: `[pruning] when = "auto"`, decided when a study is created."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from budgettune.comparison.result import FULL, Comparison, Standing, read_comparison
from budgettune.errors import SpecError
from budgettune.spec.documents import set_value
from budgettune.spec.study_spec import StudySpec
from budgettune.text import format_duration


class Decision(NamedTuple):
    """The strategy and prune rate that a comparison supports."""

    strategy: str
    prune_rate: float
    sentence: str  # what was decided, and on which figures


def decided(spec: StudySpec) -> StudySpec:
    """Return a spec whose pruning is decided; one that asks for no decision, or has one, comes back as it is.

    The whole `[pruning]` table becomes that of the evidence, so that the strategy runs as it was compared.

    Raises:
        UsageError: where the evidence cannot be read.
        SpecError: where the evidence is about other images, or about several budgets and the study has none.
    """
    pruning = spec.pruning
    if pruning.when == "always" or pruning.evidence is None or pruning.decided is not None:
        return spec
    path = Path(pruning.evidence)
    comparison = read_comparison(path)
    _check_fit(spec, comparison, path)
    found = decide(comparison, spec.train.budget)
    pruning_table = {
        **comparison.spec.get("pruning", {}),
        "prune_rate": found.prune_rate,
        "when": "auto",
        "evidence": path.name,  # its folder means nothing to the other machines of a study
        "decided": found.sentence,
    }
    document = spec.to_document() | {"pruning": pruning_table}
    set_value(document, "pruning.strategy", found.strategy)
    return StudySpec.from_document(document, str(path))


def decide(comparison: Comparison, budget_seconds: float | None = None) -> Decision:
    """Return the arm with the best mean accuracy of those whose advantage over `full` is significant, else `full`.

    Significant is what the paired t-test over seeds says after Holm's correction over the arms of that budget. An arm
    of which a run failed is not chosen: its mean is of those seeds that it survived.

    Args:
        comparison: of any number of budgets.
        budget_seconds: the nearest of the comparison's budgets counts, by ratio; None for its smallest.
    """
    if not comparison.budgets:
        return Decision(*FULL, "full: the evidence holds no run")
    budget = min(comparison.budgets, key=lambda found: abs(math.log(found / (budget_seconds or comparison.budgets[0]))))
    rows = comparison.standings(budget)
    noise = f" and {comparison.shuffle_labels:.0%} of the labels shuffled" if comparison.shuffle_labels else ""
    where = f"at {format_duration(budget)} on {_data_name(comparison)}{noise}, {comparison.machine.key}"
    if not any(row.arm == FULL and row.runs for row in rows):
        return Decision(*FULL, f"full: the evidence has no finished run of full {where} to hold others against")
    tested = sum(row.corrected_p is not None for row in rows)
    whole = [row for row in rows if row.corrected_p is not None and not row.failed]
    if not whole:
        return Decision(*FULL, f"full: no other strategy has two runs and no failed one {where}")
    better = [row for row in whole if row.verdict == "better"]
    best = max(better or whole, key=_advantage)
    if better:
        return Decision(*best.arm, f"{best.arm}: {_figures(best, tested)} {where}; {_at_one_rate(comparison)}")
    closest = f"{best.arm} comes closest: {_figures(best, tested)}"
    return Decision(*FULL, f"full: nothing beats it beyond chance {where}; {closest}")


def _advantage(row: Standing) -> float:
    """Return the mean difference from full at equal seeds: with all seeds there, it ranks as mean accuracy does."""
    return 0.0 if row.against_full is None else row.against_full.difference.mean


def _figures(row: Standing, comparisons: int) -> str:
    test = row.against_full
    assert test is not None and test.difference.low is not None and test.difference.high is not None  # it was tested
    mean, low, high = (100 * value for value in (test.difference.mean, test.difference.low, test.difference.high))
    return (
        f"{mean:+.2f} points against full (95% interval {low:+.2f} to {high:+.2f}, {test.difference.count} seeds, "
        f"p {row.corrected_p:.2g} after correction for {comparisons})"
    )


def _at_one_rate(comparison: Comparison) -> str:
    """Say what no test over seeds can: an arm may be ahead only because this rate suits it better than full."""
    rate = StudySpec.from_document(comparison.spec).train.lr
    return (
        f"all at learning rate {rate:g}, tuned for none: compare again with --set train.lr={3 * rate:g} "
        f"and higher until full gets no better"
    )


def _data_name(comparison: Comparison) -> str | None:
    name = comparison.spec.get("data", {}).get("name")
    return None if name is None else str(name)


def _check_fit(spec: StudySpec, comparison: Comparison, path: Path) -> None:
    about = _data_name(comparison)
    if about != spec.data.name:
        raise SpecError(
            f"pruning.evidence: {path} is about {about}, and the study about {spec.data.name}: "
            f"run `budgettune compare` on the study's images"
        )
    if spec.train.budget is None and len(comparison.budgets) > 1:
        listed = ", ".join(map(format_duration, comparison.budgets))
        raise SpecError(
            f"pruning.evidence: {path} has several budgets ({listed}) and the study has none: set train.budget, "
            f"or give evidence of one budget"
        )
