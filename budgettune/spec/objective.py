"""What a trial is judged by beside its seconds, and what it may not exceed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from budgettune.records import RECORD_COLUMNS, TrialRecord, record_columns
from budgettune.spec.documents import full_key
from budgettune.spec.tables import Clash, DataSpec, Number, SpecModel, TrainSpec

ACCURACY = "test accuracy"
TAKEN_KEYS = frozenset({*RECORD_COLUMNS, "curve", "phases", "machine", "params"}) - {"test_accuracy"}


def key_of(name: str) -> str:
    """Return the name of a measured number as a key of JSON and of `Trial.report`: `bits per byte`, bits_per_byte."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _name(value: Any) -> Any:
    is_text = isinstance(value, str) and value.isprintable() and len(value) <= 60
    if not is_text or not key_of(value).isidentifier():
        raise ValueError("must be a name of letters, digits and spaces, such as validation loss")
    if key_of(value) in TAKEN_KEYS:
        raise ValueError("is what every trial has beside it: take another name")
    return value


class ObjectiveSpec(SpecModel):
    """`[objective]`: the number that training is judged by; the other objective is always its seconds."""

    name: Annotated[str, BeforeValidator(_name)] = ACCURACY
    direction: Literal["maximize", "minimize"] = "maximize"

    @property
    def key(self) -> str:
        """Name in JSON, in tables of columns, and in `Trial.report`."""
        return key_of(self.name)

    @property
    def label(self) -> str:
        """Name where people read it: short for the usual one."""
        return "accuracy" if self.is_accuracy else self.name

    def text(self, value: float, decimals: int = 2) -> str:
        """Return a value for people: in percent with so many decimals, or with four digits of what is no share."""
        return f"{value:.{decimals}%}" if self.is_accuracy else f"{value:.4g}"

    def named(self, value: float, decimals: int = 2) -> str:
        """Return a value for people, behind its name."""
        return f"{self.label} {self.text(value, decimals)}"

    def renamed(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record's document, or a flat row, with the objective's own key for its value, as people get it."""
        names = {} if self.is_accuracy else {"test_accuracy": self.key, "accuracy": self.key}
        found = {names.get(name, name): value for name, value in document.items()}
        return found | ({"curve": [self.renamed(point) for point in found["curve"]]} if "curve" in found else {})

    @property
    def is_accuracy(self) -> bool:
        """Whether it is the usual one: a share in [0, 1], shown in percent."""
        return self.key == key_of(ACCURACY)

    def score(self, value: float) -> float:
        """Return a value so that more is better; the same call takes a score back to its value."""
        return value if self.direction == "maximize" else -value

    @model_validator(mode="after")
    def _accuracies_are_maximised(self) -> Self:
        if self.is_accuracy and self.direction == "minimize":
            raise Clash("direction is 'minimize', and nobody wants the least test accuracy: give the objective's name")
        return self


class ConstraintSpec(SpecModel):
    """`[constraints.NAME]`: a number that trials report, or that is measured of them, and that may not exceed a limit.

    Trials beyond it stay in the study; no answer names them.
    """

    limit: Number = Field()


class JudgedSpec(Protocol):
    """What of a study says which images judge."""

    @property
    def data(self) -> DataSpec: ...
    @property
    def train(self) -> TrainSpec: ...
    @property
    def objective(self) -> ObjectiveSpec: ...
    @property
    def search(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class JudgingImages:
    """The images that choose among a study's trials; counts are None where only reading the images would tell."""

    part: Literal["test", "validation"]
    count: int | None = None
    test_count: int | None = None

    @classmethod
    def of(cls, spec: JudgedSpec) -> Self | None:
        """Return which images judge; None of own training code, which alone knows, and where that is searched."""
        searched = set(map(full_key, spec.search))
        if spec.train.is_own_code or not spec.objective.is_accuracy or "data.evaluate_on" in searched:
            return None
        data, sizes = spec.data, spec.data.part_sizes
        if sizes is None or data.facts is None or searched & {"data.name", "data.validation_fraction"}:
            return cls(part=data.evaluate_on)
        return cls(part=data.evaluate_on, count=sizes[1], test_count=data.facts.test_images)

    @property
    def judged_on(self) -> Literal["validation"] | None:
        """The same as records have it."""
        return "validation" if self.part == "validation" else None

    @property
    def sentence(self) -> str:
        """What a reader of an answer must know of its accuracies."""
        judging, test = ("" if count is None else f"{count:,} " for count in (self.count, self.test_count))
        if self.part == "test":
            return (
                f"chosen and reported on the same {judging}test images: the best of many looks better than it is; "
                'data.evaluate_on = "validation" keeps them apart'
            )
        return f"chosen by {judging}validation images; test accuracy is of {test}images that chose nothing"

    @property
    def line(self) -> str:
        """The same as a sentence that stands alone."""
        return f"{self.sentence[0].upper()}{self.sentence[1:]}."


class Measured(Protocol):
    """What a trial measured beside its objective: a result or a record."""

    @property
    def measures(self) -> Mapping[str, float]:
        """Numbers that it reported, by name."""

    @property
    def peak_memory_mb(self) -> float | None:
        """What the built-in trainer measures."""


@dataclass(frozen=True, kw_only=True)
class Aim:
    """What a study wants of its trials beside few seconds: more of a score, within limits.

    All decisions are about `objective.score`, so that a study that minimises a number and one that maximises its
    negative are the same to them.
    """

    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    limits: Mapping[str, float] = field(default_factory=dict)  # of measures, by name
    images: JudgingImages | None = None  # None where the study does not say

    @classmethod
    def of(cls, document: Any) -> Self:
        """Return what a spec's document says; the usual objective and no limit where it says nothing that we read."""
        try:
            wanted = _Aim.model_validate(document)
        except ValidationError:
            return cls()
        try:
            images = JudgingImages.of(_JudgedSpec.model_validate(document))
        except ValidationError:
            images = None
        limits = {name: each.limit for name, each in wanted.constraints.items()}
        return cls(objective=wanted.objective, limits=limits, images=images)

    @property
    def judged_on(self) -> Literal["validation"] | None:
        """What records of the study have as `judged_on`."""
        return None if self.images is None else self.images.judged_on

    @property
    def name(self) -> str:
        """The objective's name; an accuracy is called after the images that it is of."""
        return "validation accuracy" if self.judged_on else self.objective.name

    @property
    def key(self) -> str:
        """The name in JSON and in tables of columns."""
        return key_of(self.name)

    def excesses(self, trial: Measured) -> list[float]:
        """Return by how much a trial is beyond each limit, zero or less within; of what it does not tell, a lot."""
        told = self.told(trial)
        return [
            abs(limit) + 1.0 if (value := told[name]) is None else value - limit for name, limit in self.limits.items()
        ]

    def told(self, trial: Measured) -> dict[str, float | None]:
        """Return what a trial tells of all that is limited, None for what it does not."""
        known = {"peak_memory_mb": trial.peak_memory_mb} | dict(trial.measures)
        return {name: known.get(name) for name in self.limits}

    @property
    def limits_text(self) -> str:
        """The limits within a sentence, by name."""
        return ", ".join(f"{name} {limit:g}" for name, limit in self.limits.items())

    def allows(self, trial: Measured) -> bool:
        """Whether a trial tells all that is limited, and is within the limits."""
        return all(excess <= 0 for excess in self.excesses(trial))

    def columns(self, params: Iterable[str], measures: Iterable[str] = ()) -> list[str]:
        """Return the names of a table's columns: of records, of measures and of params."""
        own = list(self.objective.renamed(dict.fromkeys(record_columns(self.judged_on))))
        own += [name for name in measures if name not in own]
        return own + [f"params.{name}" if name in own else name for name in params]

    def flat_row(self, record: TrialRecord, params: Iterable[str], measures: Iterable[str] = ()) -> dict[str, Any]:
        """Return a record as one flat row of these columns."""
        measures = [name for name in measures if name not in RECORD_COLUMNS]
        own = record_columns(self.judged_on)
        values = [*(getattr(record, name) for name in own), *map(record.measures.get, measures)]
        names = list(params)
        return dict(zip(self.columns(names, measures), [*values, *map(record.params.get, names)], strict=True))


class _Aim(SpecModel):
    """The tables of a study file that say what it wants."""

    model_config = ConfigDict(extra="ignore")

    objective: ObjectiveSpec = ObjectiveSpec()
    constraints: dict[str, ConstraintSpec] = Field({})


class _JudgedSpec(SpecModel):
    """The tables of a study file that say which images judge."""

    model_config = ConfigDict(extra="ignore")

    data: DataSpec = DataSpec()
    train: TrainSpec = TrainSpec()
    objective: ObjectiveSpec = ObjectiveSpec()
    search: dict[str, Any] = Field({})
