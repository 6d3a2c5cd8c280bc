"""A scatter plot in characters: values in, lines of text out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]
LOG_RANGE = 10.0
"""Times that differ by more than this factor are drawn on a logarithmic axis."""


@dataclass(frozen=True)
class Glyphs:
    """What a plot is drawn with."""

    marked: str = "●"
    other: str = "·"
    upright: str = "│"
    tick: str = "┤"
    corner: str = "└"
    floor: str = "─"


ASCII = Glyphs(marked="O", other=".", upright="|", tick="+", corner="+", floor="-")


def scatter(
    points: Sequence[Point],
    marked: Sequence[Point],
    *,
    width: int,
    height: int,
    x_text: Callable[[float], str],
    y_text: Callable[[float], str],
    glyphs: Glyphs = Glyphs(),
) -> list[str]:
    """Return the lines of a plot; none where there is no finite point.

    Args:
        points: (x, y), x above zero.
        marked: those of them that stand out.
        width: in characters, labels included; where it is too little for the labels, lines are longer.
        height: in lines, without the two below the axis.
        x_text: label of a number on the x axis.
        y_text: label of a number on the y axis.
        glyphs: characters to draw with.
    """
    points, marked = ([point for point in some if all(map(math.isfinite, point))] for some in (points, marked))
    if not points:
        return []
    lowest, highest = min(y for _, y in points), max(y for _, y in points)
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    is_log = first > 0 and last / first > LOG_RANGE
    scale = math.log if is_log else float
    labels = {0: y_text(highest), height - 1: y_text(lowest)}
    margin = max(map(len, labels.values()))
    columns = max(width - margin - 2, 2)
    rows = [[" "] * columns for _ in range(height)]
    for glyph, some in ((glyphs.other, points), (glyphs.marked, marked)):
        for x, y in some:
            row = _place(highest - y, highest - lowest, height)
            rows[row][_place(scale(x) - scale(first), scale(last) - scale(first), columns)] = glyph
    axis = [
        f"{labels.get(number, ''):>{margin}} {glyphs.tick if number in labels else glyphs.upright}{''.join(row)}"
        for number, row in enumerate(rows)
    ]
    left, right = x_text(first), f"{x_text(last)}{', log scale' if is_log else ''}" if last > first else ""
    below = f"{left} {right:>{max(columns - len(left) - 1, 0)}}"
    blank = " " * (margin + 1)
    return [line.rstrip() for line in (*axis, f"{blank}{glyphs.corner}{glyphs.floor * columns}", f"{blank} {below}")]


def _place(part: float, whole: float, places: int) -> int:
    """Return which of so many places a part of a whole falls on; the middle one where there is only one value."""
    return round((part / whole if whole > 0 else 0.5) * (places - 1))
