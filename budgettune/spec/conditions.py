"""Axes that are searched only where others have certain values: `when = { "params.optimizer" = "sgd" }`.

A point holds the axes that are active there and no others, as a trial of Optuna does whose params are asked for one by
one. What is searched is a mapping of axes, and beside it stand their conditions: of an axis, which others it depends on
and for which of their values it is active. All must hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from budgettune.errors import SpecError
from budgettune.spec.axes import AxisSpec, RangeSpec
from budgettune.spec.documents import full_key
from budgettune.spec.faults import nearest
from budgettune.spec.tables import Scalar, plain_value
from budgettune.text import as_written

Condition = Mapping[str, tuple[Scalar, ...]]
Conditions = Mapping[str, Condition]
EXAMPLE = '{ "params.optimizer" = "sgd" }'
SHOWN = 10  # values in a sentence


def holds(condition: Mapping[str, Container[Scalar]], point: Mapping[str, Any]) -> bool:
    """Whether a point that lacks what is inactive has one of the values for each axis that a condition names."""
    return all(point.get(key) in values for key, values in condition.items())


def active(conditions: Conditions, point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point without the axes that are inactive there."""
    kept: dict[str, Any] = {}
    for key in in_order(point, conditions):
        if holds(conditions.get(key, {}), kept):
            kept[key] = point[key]
    return {key: value for key, value in point.items() if key in kept}


def in_order(keys: Iterable[str], conditions: Conditions) -> list[str]:
    """Return keys as they stand, but for those that others depend on: these come before them.

    Raises:
        SpecError: where some depend on one another in a circle.
    """
    known = dict.fromkeys(keys)
    placed: dict[str, None] = {}
    above: list[str] = []

    def place(key: str) -> None:
        if key in above:
            circle = ", ".join([*above[above.index(key) :], key])
            raise SpecError(f"search.{key}: the conditions go in a circle ({circle}): take one of them out")
        if key in placed or key not in known:
            return
        above.append(key)
        for other in conditions.get(key, {}):
            place(other)
        above.pop()
        placed[key] = None

    for key in known:
        place(key)
    return list(placed)


def with_what_decides(keys: Iterable[str], conditions: Conditions) -> set[str]:
    """Return axes and all that they depend on, directly or not."""
    found, left = set[str](), list(keys)
    while left:
        if (key := left.pop()) not in found:
            found.add(key)
            left += conditions.get(key, {})
    return found


def every_point(axes: Mapping[str, Sequence[Any]], conditions: Conditions) -> list[dict[str, Any]]:
    """Return each distinct point of some values for each axis once, the last axis running fastest."""
    points: list[dict[str, Any]] = [{}]
    for key in in_order(axes, conditions):
        condition = _quickly(conditions.get(key, {}))
        points = [
            longer
            for point in points
            for longer in ([{**point, key: value} for value in axes[key]] if holds(condition, point) else [point])
        ]
    return points


def _quickly(condition: Condition) -> dict[str, frozenset[Scalar]]:
    """Return a condition for many points: a long list of values would be gone through for each."""
    return {key: frozenset(values) for key, values in condition.items()}


def count_points(axes: Mapping[str, Sequence[Any]], conditions: Conditions, most: int) -> int:
    """Return how many points `every_point` would list; where there are more than `most`, at least how many."""
    deciding = {other for condition in conditions.values() for other in condition}
    counts = Counter({(): 1})  # points so far by what conditions ask of them
    for key in in_order(axes, conditions):
        grown: Counter[Any] = Counter()
        condition = _quickly(conditions.get(key, {}))
        for decided, count in counts.items():
            if not holds(condition, dict(decided)):
                grown[decided] += count
            elif key in deciding:
                grown.update({(*decided, (key, value)): count for value in axes[key]})
            else:
                grown[decided] += count * len(axes[key])
        counts = grown
        if len(counts) > most:
            break
    return counts.total()


def taken_apart(search: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, dict[str, tuple[Scalar, ...]]]]:
    """Return axes as a study file writes them without their `values` and `when`: the bare axes, and the conditions.

    Raises:
        SpecError: where these two are not what they must be.
    """
    axes, conditions = dict(search), {}
    for key, axis in search.items():
        if not isinstance(axis, Mapping):
            continue
        axes[key] = rest = {name: value for name, value in axis.items() if name != "when"}
        if "values" in axis:
            if len(rest) > 1:
                other = next(name for name in rest if name != "values")
                raise SpecError(f"search.{key}: values and {other} exclude each other: keep one")
            axes[key] = axis["values"]
            if not isinstance(axis["values"], (list, tuple)):
                raise SpecError(f"search.{key}.values: {as_written(axis['values'])} must be a list, as in [0.1, 0.3]")
        if "when" in axis:
            conditions[key] = dict(_condition(f"search.{key}.when", axis["when"]))
    return axes, conditions


def put_together(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a spec's document with conditions where a study file has them, in its axes."""
    conditions = document.get("conditions", {})
    search = {
        key: {**(axis if isinstance(axis, Mapping) else {"values": axis}), "when": conditions[key]}
        if key in conditions
        else axis
        for key, axis in document.get("search", {}).items()
    }
    return {key: value for key, value in document.items() if key != "conditions"} | {"search": search}


def _condition(place: str, when: Any) -> Iterator[tuple[str, tuple[Scalar, ...]]]:
    if not isinstance(when, Mapping):
        raise SpecError(f"{place}: {as_written(when)} must be a table of another axis and its values, as in {EXAMPLE}")
    for key, values in when.items():
        if isinstance(values, Mapping):  # a dotted key without its quotes
            yield from _condition(place, {f"{key}.{name}": value for name, value in values.items()})
            continue
        try:
            yield key, some_values(values)
        except ValueError as error:
            raise SpecError(f"{place}: {key}: {as_written(values)} {error}") from None


def some_values(values: Any) -> Any:
    """Return a value, or a list of some, as a tuple; refuse anything else in one sentence."""
    values = tuple(values) if isinstance(values, (list, tuple)) else (values,)
    try:
        if not values:
            raise ValueError
        return tuple(map(plain_value, values))
    except ValueError:
        raise ValueError('must be a value or a list of values, as in "sgd" or ["sgd", "adam"]') from None


def checked(search: Mapping[str, AxisSpec], conditions: Conditions) -> dict[str, dict[str, tuple[Scalar, ...]]]:
    """Return conditions by the names that the axes have, in their order, with values as the axes list them.

    Raises:
        SpecError: where one names what is not searched, a range or a value that is not listed, or they go in a circle.
    """
    own = {full_key(key): key for key in search}
    if missing := next((key for key in conditions if full_key(key) not in own), None):
        raise SpecError(f"conditions.{missing}: is not searched: take its condition out")
    named = {own[full_key(key)]: condition for key, condition in conditions.items() if condition}
    found = {
        key: {
            own.get(full_key(other), other): _listed(key, other, values, search, own) for other, values in when.items()
        }
        for key, when in ((key, named[key]) for key in search if key in named)
    }
    in_order(search, found)
    return found


def _listed(
    key: str, other: str, values: tuple[Scalar, ...], search: Mapping[str, AxisSpec], own: Mapping[str, str]
) -> tuple[Scalar, ...]:
    if full_key(other) not in own:
        raise SpecError(
            f"search.{key}: its condition names {other}, which is not searched{nearest(other, search)}: search it "
            f"over a list of values, or take the condition out"
        )
    axis = search[own[full_key(other)]]
    if isinstance(axis, RangeSpec):
        raise SpecError(
            f"search.{key}: its condition names {other}, which is searched over a range: give {other} a list of values"
        )
    wanted = dict.fromkeys((isinstance(value, bool), value) for value in values)  # true is not 1
    listed = dict.fromkeys((isinstance(value, bool), value) for value in axis)
    if odd := [value for value in wanted if value not in listed]:
        known = ", ".join(map(as_written, axis[:SHOWN])) + (", …" if len(axis) > SHOWN else "")
        raise SpecError(
            f"search.{key}: its condition names {other} = {as_written(odd[0][1])}, which is not searched: "
            f"{other} has {known}"
        )
    return tuple(value for _, value in (each for each in listed if each in wanted))


def condition_text(condition: Condition) -> str:
    """Return a condition for people: `where params.optimizer is adam or adamw`; empty where there is none."""
    parts = [f"{key} is {' or '.join(map(str, values))}" for key, values in condition.items()]
    return f"where {' and '.join(parts)}" if parts else ""
