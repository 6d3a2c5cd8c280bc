"""What is wrong with a study file, in words: a sentence for each fault, with its key, its value and what is allowed."""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from budgettune.spec.axes import RangeSpec
from budgettune.spec.tables import LARGEST_NUMBER, MOST, Clash
from budgettune.text import as_written, shortened

FAULTS_SHOWN = 5
KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
BOUNDS = {
    "ge": ("of at least", operator.ge),
    "gt": ("above", operator.gt),
    "le": ("at most", operator.le),
    "lt": ("below", operator.lt),
}


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the first few faults, each with its key, its value and what is allowed."""
    return "; ".join(dict.fromkeys(f"{key}: {text}" for key, text in faults(error, root)))


def faults(error: ValidationError, root: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """Yield the key of each of the first few faults, and what is wrong there; then how many more there are."""
    found = error.errors(include_url=False)
    misspelt = {fault["loc"][:-1] for fault in found if fault["type"] == "extra_forbidden"}
    found = [fault for fault in found if fault["type"] != "missing" or fault["loc"][:-1] not in misspelt]
    for fault in found[:FAULTS_SHOWN]:
        place = [str(part) for part in fault["loc"]]
        yield ".".join(map(shortened, place)) or "study", _sentence(dict(fault), place, root)
    if len(found) > FAULTS_SHOWN:
        yield "and", f"{len(found) - FAULTS_SHOWN} more"


def _sentence(fault: Mapping[str, Any], place: Sequence[str], root: type[BaseModel]) -> str:
    kind, value = fault["type"], fault["input"]
    if kind == "extra_forbidden":
        model = _walk(root, place[:-1])[1]
        allowed = [*model.model_fields, *(("values", "when") if model is RangeSpec else ())]
        return f"unknown key{_meant(place, allowed, root)}; allowed: {', '.join(allowed)}"
    if kind == "missing":
        at_the_top = "" if len(place) > 1 else " at the top of the file"
        return f"missing: add {place[-1]} = …{at_the_top}"
    if kind == "value_error":
        found = fault["ctx"]["error"]
        return str(found) if isinstance(found, Clash) else f"{as_written(value)} {found}"
    return f"{as_written(value)} must be {_allowed(_walk(root, place)[0], value)}"


def _allowed(field: FieldInfo | None, value: Any) -> str:
    """Return what a field may be; and how to write a value that is only spelled otherwise."""
    kind = _kind_of(field)
    if get_origin(kind) is Literal:
        *most, last = map(as_written, get_args(kind))
        return f"{', '.join(most)} or {last}" if most else last
    if kind not in KINDS:
        return "a table"
    limits = [] if field is None else field.metadata
    if kind is str:
        if isinstance(value, str):
            longest = [each.max_length for each in limits if hasattr(each, "max_length")]
            return f"at most {longest[0]} characters long" if value and longest else "text that is not empty"
        return f'text: write "{as_written(value)}"' if isinstance(value, (bool, int, float, date)) else "text"
    bounds = [(*BOUNDS[name], getattr(each, name)) for name in BOUNDS for each in limits if hasattr(each, name)]
    meant = _as_number(value, kind)
    told = [
        f"{words} {bound:,}"
        for words, holds, bound in bounds
        if bound < MOST or not (meant is None or holds(meant, bound))  # the largest ones only whom they concern
    ]
    allowed = f"{KINDS[kind]} {' and '.join(told)}".strip()
    if isinstance(value, float) and not math.isfinite(value):
        return allowed.replace("a number", "a finite number")
    if meant is None or as_written(meant) == as_written(value):
        return allowed
    is_right = abs(meant) <= LARGEST_NUMBER and all(holds(meant, bound) for _, holds, bound in bounds)
    return f"{allowed}: write {meant}" if is_right else allowed


def _as_number(value: Any, kind: type) -> float | None:
    """Return the number that a value is or spells, whole where that is asked for; None where it is none."""
    if kind is bool or isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return None
    if kind is float:
        return number if math.isfinite(number) else None
    return int(value if isinstance(value, int) else number) if number.is_integer() else None


def kind_at(root: type[BaseModel], key: str) -> Any:
    """Return the type of what a dotted key names: that of its values, `dict` for a table, None where nothing is known.

    Options of a model, axes and misspellings are not known.
    """
    return _kind_of(_walk(root, key.split("."))[0])


def _walk(root: type[BaseModel], place: Iterable[str]) -> tuple[FieldInfo | None, Any]:
    """Return the field that a key names, and what it may hold; no field for axes, options and misspellings."""
    field: FieldInfo | None = None
    model: Any = root
    for part in place:
        if get_origin(model) is dict:  # an axis, by its own name
            field, model = None, RangeSpec
        elif part in getattr(model, "model_fields", {}):
            field = model.model_fields[part]
            model = field.annotation
        else:
            return None, None
    return field, model


def _kind_of(field: FieldInfo | None) -> Any:
    """Return the type of a field, where it need not be None."""
    kind: Any = None if field is None else field.annotation
    parts = [part for part in get_args(kind) if part is not NoneType] if get_origin(kind) in (Union, UnionType) else []
    kind = parts[0] if len(parts) == 1 else kind
    return dict if hasattr(kind, "model_fields") else (get_origin(kind) if get_origin(kind) is dict else kind)


def _meant(place: Sequence[str], allowed: Iterable[str], root: type[BaseModel]) -> str:
    """Return " (did you mean …?)": a key of that name in another table, else a close one in this."""
    elsewhere = [key for key in all_keys(root) if key.rpartition(".")[2] == place[-1]]
    return f" (did you mean {elsewhere[0]}?)" if len(elsewhere) == 1 else nearest(place[-1], allowed)


def all_keys(root: type[BaseModel]) -> Iterator[str]:
    """Yield every key of every table, dotted."""
    for table, field in root.model_fields.items():
        yield from (f"{table}.{key}" for key in getattr(field.annotation, "model_fields", {}))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
