"""The strategy that a comparison supports: `[pruning] when = "auto"`, decided when a study is created."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from budgettune.comparison.plan import rates_of
from budgettune.comparison.result import FULL, Comparison, Standing, read_comparison
from budgettune.errors import SpecError
from budgettune.spec.documents import full_key, set_value
from budgettune.spec.study_spec import StudySpec
from budgettune.text import format_duration


class Decision(NamedTuple):
    """The strategy and prune rate that a comparison supports."""

    strategy: str
    prune_rate: float
    sentence: str  # what was decided, and on which figures
    lr: float | None = None  # that it was tuned to; None where nothing was tuned


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
    sentence = found.sentence + _own_rate(spec, found)
    pruning_table = {
        **comparison.spec.get("pruning", {}),
        "prune_rate": found.prune_rate,
        "when": "auto",
        "evidence": path.name,  # its folder means nothing to the other machines of a study
        "decided": sentence,
    }
    document = spec.to_document() | {"pruning": pruning_table}
    set_value(document, "pruning.strategy", found.strategy)
    return StudySpec.from_document(document, str(path))


def decide(comparison: Comparison, budget_seconds: float | None = None) -> Decision:
    """Return the arm that is ahead of `full` by the most points, of those that are beyond chance, else `full`.

    Beyond chance is what Dunnett's test over the arms of that budget says (Welch's for an arm of a noise of its own).
    An arm of which a scored run failed, or that ran less than others, is not chosen: its mean is of those seeds that it
    survived. Nothing is chosen where the learning rate was tuned for none: the winner may be the one that it suits.

    Args:
        comparison: of any number of budgets.
        budget_seconds: the nearest of the comparison's budgets counts, by ratio; None for its smallest.
    """
    if not comparison.budgets:
        return Decision(*FULL, "full: the evidence holds no run")
    budget = min(comparison.budgets, key=lambda found: abs(math.log(found / (budget_seconds or comparison.budgets[0]))))
    rows = comparison.standings(budget)
    noise = f" and {comparison.shuffle_labels:.0%} of the labels shuffled" if comparison.shuffle_labels else ""
    judges = f"by {comparison.judged_on['scored']}" if "scored" in comparison.judged_on else "by nothing yet"
    where = f"at {format_duration(budget)} on {_data_name(comparison)}{noise}, {judges}, {comparison.machine.key}"
    full = next((row for row in rows if row.arm == FULL and row.runs), None)
    if full is None:
        return Decision(*FULL, f"full: the evidence has no finished run of full {where} to hold others against")
    tested = [row for row in rows if row.against_full is not None]
    most = max((row.runs + row.failed for row in rows if row.arm != FULL), default=0)
    whole = [row for row in tested if not row.failed and row.runs == most]
    if not whole:
        return Decision(*FULL, f"full: no other strategy has two runs and no failed one {where}")
    better = [row for row in whole if row.verdict == "better"]
    best = max(better or whole, key=_advantage)
    if full.tuned is None or (better and best.tuned is None):
        closest = f"{best.arm} {'leads' if better else 'comes closest'}: {_figures(best, full, tested)}"
        return Decision(*FULL, f"full: {_untuned(comparison, best)} {where}; {closest}")
    if better:
        chosen = f"{best.arm} at learning rate {best.lr:g}: {_figures(best, full, tested)} {where}"
        more = f"; the best of {len(tested)}, so expect somewhat less" if len(tested) > 1 else ""
        return Decision(*best.arm, chosen + more, best.lr)
    closest = f"{best.arm} at learning rate {best.lr:g} comes closest: {_figures(best, full, tested)}"
    return Decision(*FULL, f"full: nothing beats it beyond chance {where}; {closest}", full.lr)


def _advantage(row: Standing) -> float:
    return 0.0 if row.against_full is None else row.against_full.mean


def _figures(row: Standing, full: Standing, tested: Sequence[Standing]) -> str:
    found = row.against_full
    assert found is not None  # it was tested
    if found.low is None or found.high is None:
        return f"{100 * found.mean:+.2f} points against full, and runs that show no noise to hold that against"
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    return (
        f"{mean:+.2f} points against full at {full.lr:g} (95% interval {low:+.2f} to {high:+.2f}, {row.runs} seeds and "
        f"{full.runs} of full, p {found.p:.2g} counting {len(tested)})"
    )


def _untuned(comparison: Comparison, best: Standing) -> str:
    """Say what no test over seeds can: an arm may be ahead only because this rate suits it better than full."""
    rates = ",".join(f"{rate:g}" for rate in rates_of(StudySpec.from_document(comparison.spec)))
    return f"the learning rate was tuned for none ({best.lr:g} for all): compare again with --lr {rates}"


def _own_rate(spec: StudySpec, found: Decision) -> str:
    """Say where the study trains at another rate than the decision was made at."""
    searched = any(full_key(key) == "train.lr" for key in spec.search)
    if found.lr is None or searched or math.isclose(found.lr, spec.train.lr):
        return ""
    return f"; the study trains at {spec.train.lr:g}: set train.lr = {found.lr:g}, or search it"


def _data_name(comparison: Comparison) -> str | None:
    return _named(comparison.spec.get("data", {}))


def _named(data: Mapping[str, Any]) -> str | None:
    """Return how an image set is called; of a folder, which one, wherever it lies."""
    name, root = data.get("name"), data.get("root")
    if name == "folder" and root is not None:
        return f"folder {Path(root).name}"
    return None if name is None else str(name)


def _check_fit(spec: StudySpec, comparison: Comparison, path: Path) -> None:
    about, own = _data_name(comparison), _named(spec.data.model_dump())
    if about != own:
        raise SpecError(
            f"pruning.evidence: {path} is about {about}, and the study about {own}: "
            f"run `budgettune compare` on the study's images"
        )
    if spec.train.budget is None and len(comparison.budgets) > 1:
        listed = ", ".join(map(format_duration, comparison.budgets))
        raise SpecError(
            f"pruning.evidence: {path} has several budgets ({listed}) and the study has none: set train.budget, "
            f"or give evidence of one budget"
        )
