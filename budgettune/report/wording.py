"""How the objective of a study is spoken of and drawn: the one place that knows of percent, and that less is better."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from budgettune.spec.objective import ObjectiveSpec


@dataclass(frozen=True)
class Wording:
    """Words and forms of one objective. Axes show its values in their own unit, and what is less is better below."""

    objective: ObjectiveSpec = field(default_factory=ObjectiveSpec)
    full_name: str | None = None  # where it is called after the images that judge

    @property
    def name(self) -> str:
        """Its name on an axis and in a title."""
        return self.full_name or self.objective.name

    @property
    def label(self) -> str:
        """Its name within a sentence."""
        return self.objective.label

    @property
    def is_less_better(self) -> bool:
        """Whether small values are good ones."""
        return self.objective.direction == "minimize"

    @property
    def most(self) -> str:
        """What is said of the best trial."""
        return "most accurate" if self.objective.is_accuracy else "best"

    @property
    def more(self) -> str:
        """What is said of a trial that beats another."""
        return "more accurate" if self.objective.is_accuracy else "better"

    def of(self, text: str) -> str:
        """Return a title or a guide, in which these words stand for names in braces."""
        return text.format(
            label=self.label,
            heading=self.heading,
            most=self.most,
            more=self.more,
            side="down" if self.is_less_better else "up",
            beyond="above" if self.is_less_better else "below",
            gives="gives" if self.objective.is_accuracy else "moves",
        )

    def text(self, value: float, decimals: int = 2) -> str:
        """Return a value as people read it."""
        return self.objective.text(value, decimals)

    def said(self, value: float) -> str:
        """Return a value within a sentence: a percentage speaks for itself, another number needs its name."""
        return self.text(value) if self.objective.is_accuracy else self.objective.named(value)

    def distance(self, difference: float) -> str:
        """Return a deviation, or another difference of two values: of shares in points."""
        return f"{100 * difference:.2g} points" if self.objective.is_accuracy else f"{difference:.2g}"

    def distances(self, *differences: float) -> str:
        """Return several with their unit once, and what they are of."""
        *first, last = map(self.distance, differences)
        return " and ".join([*(each.removesuffix(" points") for each in first), last])

    @property
    def heading(self) -> str:
        """Its name where a title begins with it."""
        return self.label[:1].upper() + self.label[1:]

    @property
    def plural(self) -> str:
        """Its name where many values are meant."""
        return "accuracies" if self.objective.is_accuracy else f"values of {self.label}"

    @property
    def beside(self) -> str:
        """Where a text stands beside a trial of the front, as plotly has it: on the better side."""
        return "bottom left" if self.is_less_better else "top left"

    @property
    def axis_title(self) -> str:
        """Its name on an axis, which says where less is better."""
        return f"{self.name} (less is better)" if self.is_less_better else self.name

    @property
    def ticks(self) -> dict[str, Any]:
        """How an axis of its values writes them."""
        return {"tickformat": ".4~p"} if self.objective.is_accuracy else {"hoverformat": ".4~g"}

    @property
    def short_ticks(self) -> dict[str, Any]:
        """The same with fewer digits, for an axis that two panels leave little room."""
        return {"tickformat": ".3~p"} if self.objective.is_accuracy else self.ticks

    @property
    def ends(self) -> dict[str, float]:
        """What no axis of its values needs to go beyond."""
        return {"minallowed": -0.02, "maxallowed": 1.02} if self.objective.is_accuracy else {}

    def form(self, decimals: int, digits: int) -> str:
        """Return how plotly.js writes a value into a cell: in percent with so many decimals, or else so many digits."""
        return f".{decimals}%" if self.objective.is_accuracy else f".{digits}~g"
