"""What a trial is judged by beside its seconds, and what it may not exceed."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from budgettune.records import RECORD_COLUMNS
from budgettune.spec.tables import Clash, Number, SpecModel

ACCURACY = "test accuracy"
TAKEN_KEYS = frozenset({*RECORD_COLUMNS, "curve", "phases", "machine", "params"}) - {"test_accuracy"}


def key_of(name: str) -> str:
    """Return the name of a measured number as a key of JSON and of `Trial.report`: `bits per byte`, bits_per_byte."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _name(value: Any) -> Any:
    if not isinstance(value, str) or not key_of(value).isidentifier() or len(value) > 60:
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
