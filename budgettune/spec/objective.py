"""What a trial is judged by beside its seconds, and what it may not exceed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Protocol, Self

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from budgettune.records import RECORD_COLUMNS, TrialRecord
from budgettune.spec.tables import Clash, Number, SpecModel

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

    @classmethod
    def of(cls, document: Any) -> Self:
        """Return what a spec's document says; the usual objective and no limit where it says nothing that we read."""
        try:
            wanted = _Aim.model_validate(document)
        except ValidationError:
            return cls()
        return cls(objective=wanted.objective, limits={name: each.limit for name, each in wanted.constraints.items()})

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
        own = list(self.objective.renamed(dict.fromkeys(RECORD_COLUMNS)))
        own += [name for name in measures if name not in own]
        return own + [f"params.{name}" if name in own else name for name in params]

    def flat_row(self, record: TrialRecord, params: Iterable[str], measures: Iterable[str] = ()) -> dict[str, Any]:
        """Return a record as one flat row of these columns."""
        measures = [name for name in measures if name not in RECORD_COLUMNS]
        values = [*(getattr(record, name) for name in RECORD_COLUMNS), *map(record.measures.get, measures)]
        names = list(params)
        return dict(zip(self.columns(names, measures), [*values, *map(record.params.get, names)], strict=True))


class _Aim(SpecModel):
    """The tables of a study file that say what it wants."""

    model_config = ConfigDict(extra="ignore")

    objective: ObjectiveSpec = ObjectiveSpec()
    constraints: dict[str, ConstraintSpec] = Field({})
