"""A study file as nested dicts: its TOML, its dotted keys, and what `--set` changes."""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from budgettune.errors import SpecError
from budgettune.spec.axes import RangeSpec
from budgettune.spec.faults import kind_at
from budgettune.text import shortened

SHORT_KEYS = {
    "scale": "model.scale",
    "width_scale": "model.width_scale",
    "depth_scale": "model.depth_scale",
    "prune_rate": "pruning.prune_rate",
    "batch_size": "train.batch_size",
}
"""Search keys that stand for a longer one."""

OPEN_TABLES = ("params", "model.options")  # whose keys are anybody's, also those of an axis
AXIS_KEYS = {*RangeSpec.model_fields, "values", "when"}

WHAT_TOML_MEANS = {
    "Invalid value": "text goes in quotes, true and false in small letters",
    "Cannot overwrite a value": "the key is there twice",
    "Cannot declare": "the table is there twice",
    "Unescaped": "write paths with / or in single quotes",
    "Invalid hex value": "write paths with / or in single quotes",
}
"""What to do about the complaints of Python's TOML reader that do not say so themselves."""
OTHER_LANGUAGES = {"JSON": r"\s*\{", "YAML": r"(---|(#[^\n]*\n\s*)*[\w-]+:(\s|$))"}


def parse_toml(text: str) -> dict[str, Any]:
    """Return the nested dicts of a TOML text.

    Raises:
        SpecError: where it is none, with the line that is wrong and what to do about it.
    """
    text = text.removeprefix("\ufeff")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise SpecError("nested too deeply") from None
    except ValueError as error:  # also where a number has thousands of digits
        reason = str(error)
    for language, beginning in OTHER_LANGUAGES.items():
        if re.match(beginning, text):
            raise SpecError(f"looks like {language}: a study file is TOML, such as epochs = 30 below a line [train]")
    place = re.search(r"at line (\d+)", reason)
    line = text.split("\n")[int(place[1]) - 1] if place else text.rstrip().rpartition("\n")[2]
    advice = next((f": {words}" for begin, words in WHAT_TOML_MEANS.items() if reason.startswith(begin)), "")
    if odd := next(filter(_is_from_elsewhere, line), None):
        advice = (
            f": it holds a {unicodedata.name(odd, 'control character').lower()}: write straight quotes, plain spaces"
        )
    raise SpecError(f"not valid TOML: {reason}: {shortened(line.strip())}{advice}")


def _is_from_elsewhere(character: str) -> bool:
    """Whether a character comes from a text processor or a web page, and looks like another or like nothing."""
    return (
        character in "“”„«»‘’‚" or unicodedata.category(character) == "Cf" or (character.isspace() and character > " ")
    )


def full_key(key: str) -> str:
    return SHORT_KEYS.get(key, key)


def flatten(table: Mapping[str, Any], root: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield search axes by dotted key, so that an unquoted `train.lr = …` works as well as a quoted one."""
    for key, axis in table.items():
        dotted = f"{prefix}{key}"
        is_table = isinstance(axis, Mapping) and (
            dotted in OPEN_TABLES or not (AXIS_KEYS & axis.keys() or is_value(root, dotted))
        )
        if is_table:
            yield from flatten(axis, root, f"{dotted}.")
        else:
            yield dotted, axis


def is_value(root: type[BaseModel], key: str) -> bool:
    """Whether a dotted key names one setting, and no table of them."""
    return kind_at(root, full_key(key)) not in (None, dict)


def apply_override(document: dict[str, Any], override: str, root: type[BaseModel]) -> None:
    """Do to a document in place what `--set key=value` asks for; a setting that was searched no longer is.

    Raises:
        SpecError: where the text is not of that form, or names a table.
    """
    key, equals, text = override.partition("=")
    key = key.replace('"', "").strip()  # a study file quotes its dotted keys
    if not equals or not key:
        shown = shortened(repr(override))
        raise SpecError(f"--set {shown}: write it as key=value, for example --set train.epochs=10")
    is_searched = key.startswith("search.")
    key = full_key(key.removeprefix("search."))
    value = _override_value(override, text.strip(), list if is_searched else kind_at(root, key))
    if not is_searched and isinstance(document.get(key), dict) and not isinstance(value, dict):
        example = "'search.scale=[1.0, 2.0]'" if key == "search" else f"{key}.{next(iter(document[key]), 'key')}=…"
        raise SpecError(f"--set {key}: is a table: set one of its keys, for example --set {example}")
    search = document.get("search", {})
    own = next((axis for axis in search if full_key(axis) == key), key)
    if own in document.get("conditions", {}):  # it goes with the axis that it is of
        document["conditions"] = {axis: when for axis, when in document["conditions"].items() if axis != own}
    if is_searched:
        document["search"] = {**search, own: value}
        return
    document["search"] = {axis: values for axis, values in search.items() if axis != own}
    set_value(document, key, value, prefix="--set: ")


def _override_value(override: str, text: str, kind: type | None) -> Any:
    """Return the value of a `--set`: TOML, or else the text itself; and the text where only text will do."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        found = {}
    if len(found) == 1:
        value = found["value"]
        return text if kind is str and not isinstance(value, (str, list, dict)) else value
    if kind not in (None, str) and text.startswith(("[", "{")):
        raise SpecError(
            f"--set {shortened(override)}: not TOML: put each text in double quotes, and all of it in single ones, "
            f'as in --set \'search.pruning.strategy=["full", "random"]\''
        )
    is_quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"  # a path with backslashes is no TOML
    return text[1:-1] if is_quoted else text


def set_value(document: dict[str, Any], key: str, value: Any, prefix: str = "") -> None:
    """Set a dotted key of a document in place, and drop what excludes it; None takes the key out.

    Raises:
        SpecError: where part of the key is no table; its text begins with the prefix.
    """
    # The last word wins: who sets a budget does not want to unset the epochs first.
    if rival := {"train.epochs": "budget", "train.budget": "epochs"}.get(key):
        document.get("train", {}).pop(rival, None)
    if key == "pruning.strategy" and value not in (None, "stale-quantile"):
        document.get("pruning", {}).pop("threshold_sample", None)
    *tables, name = key.split(".")
    target = document
    for depth, table in enumerate(tables, 1):
        target = target.setdefault(table, {})
        if not isinstance(target, dict):
            raise SpecError(f"{prefix}{key}: unknown key: {'.'.join(tables[:depth])} is one value, and no table")
    if value is None:
        target.pop(name, None)
    else:
        target[name] = value
