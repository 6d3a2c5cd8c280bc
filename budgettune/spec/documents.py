"""A study file as nested dicts: dotted keys, what `--set` changes; and what is wrong with one, in words."""

from __future__ import annotations

import difflib
import reprlib
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from budgettune.errors import SpecError
from budgettune.spec.tables import RangeSpec
from budgettune.text import shortened

SHORT_KEYS = {
    "scale": "model.scale",
    "width_scale": "model.width_scale",
    "depth_scale": "model.depth_scale",
    "prune_rate": "pruning.prune_rate",
    "batch_size": "train.batch_size",
}
"""Search keys that stand for a longer one."""

FAULTS_SHOWN = 5
_repr = reprlib.Repr()  # goes only so deep
_repr.maxstring = _repr.maxother = _repr.maxlong = 60


def full_key(key: str) -> str:
    return SHORT_KEYS.get(key, key)


def flatten(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield search axes by dotted key, so that an unquoted `train.lr = …` works as well as a quoted one."""
    for key, axis in table.items():
        if isinstance(axis, Mapping) and not RangeSpec.model_fields.keys() & axis.keys():
            yield from flatten(axis, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", axis


def apply_override(document: dict[str, Any], override: str) -> None:
    """Do to a document in place what `--set key=value` asks for; a setting that was searched no longer is.

    Raises:
        SpecError: where the text is not of that form, or names a table.
    """
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        shown = shortened(repr(override))
        raise SpecError(f"--set {shown}: write it as key=value, for example --set train.epochs=1")
    value = _override_value(text)
    if isinstance(document.get(key), dict) and not isinstance(value, dict):
        raise SpecError(f"--set {key}: is a table: set one of its keys, for example --set train.epochs=1")
    if key.startswith("search."):
        document["search"] = {**document.get("search", {}), key.removeprefix("search."): value}
        return
    key = full_key(key)
    document["search"] = {axis: v for axis, v in document.get("search", {}).items() if full_key(axis) != key}
    set_value(document, key, value, prefix="--set: ")


def _override_value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return document["value"] if len(document) == 1 else text.strip()


def set_value(document: dict[str, Any], key: str, value: Any, prefix: str = "") -> None:
    """Set a dotted key of a document in place, and drop what excludes it; None takes the key out.

    Raises:
        SpecError: where part of the key is no table; its text begins with the prefix.
    """
    if rival := {"train.epochs": "budget", "train.budget": "epochs"}.get(key):
        # The last word wins: who sets a budget does not want to unset the epochs first.
        document.get("train", {}).pop(rival, None)
    *tables, name = key.split(".")
    target = document
    for table in tables:
        target = target.setdefault(table, {})
        if not isinstance(target, dict):
            raise SpecError(f"{prefix}{key}: unknown key")
    if value is None:
        target.pop(name, None)
    else:
        target[name] = value


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
