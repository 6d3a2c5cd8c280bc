"""Answers as programs get them: what `--format json` prints is what the HTTP API sends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from budgettune import api
from budgettune.records import TrialRecord, record_columns
from budgettune.spec.objective import Aim
from budgettune.storage.writes import finite

if TYPE_CHECKING:
    from budgettune.spec.study_spec import StudySpec
    from budgettune.study.front import Certainty
    from budgettune.study.handle import StudyHandle
    from budgettune.study.summary import StudySummary


def json_text(document: Any) -> str:
    """Return a document as text; numbers that JSON has no word for are null."""
    return json.dumps(finite(document), indent=2, default=list) + "\n"


@dataclass(frozen=True)
class TrialsAnswer:
    """Trials that answer a question, and what is known of them."""

    records: Sequence[TrialRecord]
    aim: Aim
    sure: Certainty | None  # by repeats; None where none of the study's cells has two
    notes: tuple[str, ...]  # sentences that a reader should not miss

    @property
    def all_notes(self) -> tuple[str, ...]:
        """The notes, and which images judged."""
        return self.notes if self.aim.images is None else (*self.notes, self.aim.images.line)

    def over_seeds(self, record: TrialRecord) -> tuple[float, float] | None:
        """Return the 95% interval of the mean over seeds of a trial's configuration, where repeats tell it."""
        return None if self.sure is None or record.cell is None else self.sure.intervals.get(record.cell)

    def chance_on_front(self, record: TrialRecord) -> float | None:
        """Return how likely it is that nothing beats a trial's configuration in the mean over seeds."""
        return None if self.sure is None or record.cell is None else self.sure.front_chances.get(record.cell)

    def interval_document(self, record: TrialRecord) -> dict[str, float | None]:
        key = "accuracy" if self.aim.objective.is_accuracy else self.aim.objective.key
        return dict(zip((f"{key}_low", f"{key}_high"), self.over_seeds(record) or (None, None), strict=True))

    def chance_document(self, record: TrialRecord) -> dict[str, float | None]:
        return {"front_chance": self.chance_on_front(record)}


def best(
    study: api.AnyStudy,
    budget: str | float,
    *,
    top: int = 1,
    device_name: str | None = None,
    clean_only: bool = False,
    storage: str | None = None,
) -> TrialsAnswer:
    """Return the best trials whose training fits a budget; as `budgettune.best_under_budget`, which raises the same."""
    kind, note = api.machines(study, device_name=device_name, storage=storage)
    records = api.best_under_budget(study, budget, top=top, device_name=kind, clean_only=clean_only, storage=storage)
    return _answer(study, records, note, kind, clean_only, storage)


def front(
    study: api.AnyStudy, *, device_name: str | None = None, clean_only: bool = False, storage: str | None = None
) -> tuple[TrialsAnswer, tuple[float, tuple[float, float]]]:
    """Return the Pareto front, with its hypervolume and the reference of that."""
    kind, note = api.machines(study, device_name=device_name, storage=storage)
    records = api.pareto_front(study, device_name=kind, clean_only=clean_only, storage=storage)
    volume = api.hypervolume_of(study, device_name=kind, clean_only=clean_only, storage=storage)
    return _answer(study, records, note, kind, clean_only, storage), volume


def _answer(
    study: api.AnyStudy,
    records: Sequence[TrialRecord],
    note: str | None,
    kind: str,
    clean_only: bool,
    storage: str | None,
) -> TrialsAnswer:
    sure = api.certainty(study, device_name=kind, clean_only=clean_only, storage=storage)
    limits = api.limits_note(study, device_name=kind, clean_only=clean_only, storage=storage)
    aim = api.aim_of(study, storage=storage)
    return TrialsAnswer(records, aim, sure, tuple(each for each in (note, limits) if each is not None))


def best_document(answer: TrialsAnswer) -> list[dict[str, Any]]:
    return [{**trial_document(each, answer.aim), **answer.interval_document(each)} for each in answer.records]


def front_document(answer: TrialsAnswer, volume: tuple[float, tuple[float, float]]) -> dict[str, Any]:
    trials = [{**trial_document(each, answer.aim), **answer.chance_document(each)} for each in answer.records]
    return {"front": trials, "hypervolume": volume[0], "reference": volume[1]}


def trial_document(record: TrialRecord, aim: Aim | None = None) -> dict[str, Any]:
    """Return one trial as a JSON object with its params, and what else it measured, in objects of their own."""
    names = record_columns(record.judged_on)
    columns = (aim or Aim()).objective.renamed({name: getattr(record, name) for name in names})
    measures = {"measures": dict(record.measures)} if record.measures else {}
    return columns | {"params": dict(record.params)} | measures


def show_document(handle: StudyHandle) -> dict[str, Any]:
    """Return how a study stands, with its spec."""
    summary, stopping = handle.summary(), handle.early_stops()
    return {
        **summary_document(summary),
        "given_up": [vars(one) for one in summary.given_up],
        "stopping": None if stopping is None else vars(stopping),
        **_prospect_document(handle.spec, summary),
        "spec": handle.spec.to_document(),
    }


def _prospect_document(spec: StudySpec, summary: StudySummary) -> dict[str, Any]:
    """Return what a study with a price expects of its next trial, and whether its search has ended by that."""
    worth, prospect = spec.sampler.worth, summary.prospect
    if worth is None:
        return {}
    return {"search": None if prospect is None else {"worth_seconds": worth, **prospect.to_json()}}


def summary_document(summary: StudySummary) -> dict[str, Any]:
    """Return a study in a line."""
    return {key: value for key, value in vars(summary).items() if key not in ("given_up", "prospect")}
