"""What pydantic found wrong with a study file, in words that name the key, the value and what is allowed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from budgettune.spec.tables import RangeSpec
from budgettune.text import shortened

FAULTS_SHOWN = 5
_repr = reprlib.Repr()  # goes only so deep
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the first few faults, each with its key, its value and what is allowed."""
    found = error.errors(include_url=False)
    faults = dict.fromkeys(_fault(dict(fault), root) for fault in found[:FAULTS_SHOWN])
    more = f"; and {len(found) - FAULTS_SHOWN} more" if len(found) > FAULTS_SHOWN else ""
    return "; ".join(faults) + more


def _fault(fault: dict[str, Any], root: type[BaseModel]) -> str:
    location = [shortened(str(part)) for part in fault["loc"]]
    key = ".".join(location) or "study"
    if fault["type"] == "extra_forbidden":
        allowed = _keys_of(root, location[:-1])
        return f"{key}: unknown key{nearest(location[-1], allowed)}; allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return f"{key}: {shortened(_repr.repr(fault['input']), 60)} {message}"


def _keys_of(root: type[BaseModel], tables: list[str]) -> list[str]:
    model: Any = root
    for table in tables:
        field = model.model_fields.get(table)
        annotation = field.annotation if field is not None else None
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else RangeSpec
    return list(model.model_fields)


def nearest(word: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" where a known word is close, else nothing."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
