"""What pydantic found wrong with a study file, in words that name the key, the value and what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError

from budgettune.spec_tables import RangeSpec


def explain(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the first few faults, each with its key, its value and what is allowed."""
    faults = [_fault(dict(fault), root) for fault in error.errors(include_url=False)]
    return "; ".join(dict.fromkeys(faults))


def _fault(fault: dict[str, Any], root: type[BaseModel]) -> str:
    location = [str(part) for part in fault["loc"]]
    key = ".".join(part if part.isprintable() else repr(part) for part in location) or "study"
    if fault["type"] == "extra_forbidden":
        allowed = _keys_of(root, location[:-1])
        return f"{key}: unknown key{nearest(location[-1], allowed)}; allowed: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing"
    message = fault["msg"].removeprefix("Value error, ").removeprefix("Input ")
    shown = repr(fault["input"])
    return f"{key}: {shown if len(shown) <= 60 else shown[:57] + '…'} {message}"


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
