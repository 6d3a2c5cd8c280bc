"""What `[search]` holds: an axis is a list of values, or a range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, model_validator

from budgettune.spec.tables import MOST, Clash, Number, Scalar, SpecModel, plain_value
from budgettune.text import as_written


class RangeSpec(SpecModel):
    """A searched interval, whole numbers where both ends are; for samplers, not for grids."""

    low: Number
    high: Number
    log: bool = False
    step: Number | None = None

    @property
    def is_int(self) -> bool:
        """Whether only whole numbers are drawn."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 0))

    @property
    def last(self) -> int | float:
        """The largest value: below high where steps from low miss it."""
        if self.step is None:
            return self.high
        if self.is_int:
            return self.high - (self.high - self.low) % self.step
        low, high, step = (Decimal(str(value)) for value in (self.low, self.high, self.step))
        return float(low + (high - low) // step * step)

    def values(self) -> Sequence[int | float] | None:
        """Return every value, lowest first; None where they are not in steps."""
        if self.is_int:
            return range(int(self.low), int(self.last) + 1, int(self.step or 1))
        return None if self.step is None else [self.low + index * self.step for index in range(self._count)]

    def at(self, place: float) -> int | float:
        """Return what lies at a place in [0, 1): of steps each holds an equal part, of log each ratio."""
        if self.log:
            value = math.exp(math.log(self.low) + place * math.log(self.high / self.low))
            return round(value) if self.is_int else value
        if self.step is None and not self.is_int:
            return self.low + place * (self.high - self.low)
        return self.low + int(place * self._count) * (self.step or 1)

    def spread(self, count: int) -> tuple[int | float, ...]:
        """Return low, high and what lies evenly between them, rounded to six digits, each value once."""
        low, high = (math.log(end) if self.log else float(end) for end in (self.low, self.high))
        between = [low + (high - low) * index / (count - 1) for index in range(1, count - 1)]
        points = map(math.exp, between) if self.log else between
        rounded = (round(point) if self.is_int else float(f"{point:.6g}") for point in points)
        return tuple(dict.fromkeys([self.low, *rounded, self.high]))

    @property
    def _count(self) -> int:
        return 1 + round((self.last - self.low) / (self.step or 1))

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.low < self.high:
            raise Clash(f"low is {self.low} and high {self.high}: low must be below high, and one value is a list: [1]")
        if self.log and self.low <= 0:
            raise Clash(f"low is {self.low}, and with log = true it must be above 0")
        if self.log and self.step is not None:
            raise Clash("log and step exclude each other: keep one")
        if self.step is not None and self.step * MOST < self.high - self.low:
            raise Clash(f"step is {self.step}, and must be above 0 and at least a {MOST:,}th of the range")
        return self


def _axis(value: Any) -> Any:
    """Return a list as a tuple of plain values, and a table as a range."""
    if isinstance(value, Mapping):
        return RangeSpec.model_validate(dict(value))
    if isinstance(value, RangeSpec):
        return value
    if not isinstance(value, (list, tuple)):
        raise ValueError("must be a list of values, or a range such as { low = 1e-4, high = 1e-2, log = true }")
    for each in value:
        try:
            plain_value(each)
        except ValueError as error:
            raise Clash(f"{as_written(each)} {error}, as in [0.1, 0.3]") from None
    return tuple(value)


def value_at(axis: tuple[Scalar, ...] | RangeSpec, place: float) -> Scalar:
    """Return what lies at a place in [0, 1) of a range, or of a list whose values have equal parts of it."""
    return axis.at(place) if isinstance(axis, RangeSpec) else axis[int(place * len(axis))]


AxisSpec = Annotated[tuple[Scalar, ...] | RangeSpec, BeforeValidator(_axis)]
