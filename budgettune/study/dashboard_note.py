"""What a study says about itself on its page in optuna-dashboard: what it searches, how to read it, its file."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from typing import Any

from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import RangeSpec

_HOW_TO_READ = """\
- The answers under a budget are the points of *Pareto Front* that no other beats in both time and accuracy:
  `budgettune best {name} --budget 60s`, `budgettune front {name}`.
- `status` says whether a time can be believed: `clean`, `disturbed` (something else used the machine), `unverified`.
  Times of different `device_name` do not compare.
- `keep_fraction` is the share of samples that training visited, `prune_seconds` what choosing them cost.
- A cell whose trial failed is queued again as a new trial; `failure` says why. Curves, phases and machines of all
  trials: `budgettune study export {name} --format json`."""


def study_note(spec: StudySpec) -> str:
    """Return a note in Markdown."""
    rows = "\n".join(f"| `{key}` | {_axis(axis)} |" for key, axis in spec.search.items())
    searched = f"| searched | values |\n|---|---|\n{rows}" if rows else "Nothing is searched: one cell."
    points = f"{len(spec.cells())} cells" if spec.sampler.name == "grid" else f"Points by {spec.sampler.name}"
    repeats = spec.sampler.first_repeats
    each = "more repeats where the front is uncertain" if spec.sampler.is_auto else f"{repeats} {_plural(repeats)} each"
    return (
        "**Training time against test accuracy**: `train_seconds` (less is better; choosing samples is on the clock, "
        "evaluation off it) and `test_accuracy` (more is better).\n\n"
        f"{searched}\n\n{points}, {each}.\n\n"
        f"### How to read it\n\n{_HOW_TO_READ.format(name=shlex.quote(spec.name))}\n\n"
        f"### The study file\n\n```toml\n{toml_text(spec.to_document())}\n```\n"
    )


def _plural(repeats: int) -> str:
    return "repeat" if repeats == 1 else "repeats"


def _axis(axis: tuple[Any, ...] | RangeSpec) -> str:
    if isinstance(axis, RangeSpec):
        return f"{axis.low:g} to {axis.high:g}{', log scale' if axis.log else ''}"
    return ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in axis).replace("|", r"\|")


def toml_text(document: Mapping[str, Any]) -> str:
    """Return a study's document as a study file."""
    plain = [f"{key} = {_toml(value)}" for key, value in document.items() if not isinstance(value, Mapping)]
    tables = [
        "\n".join([f"[{name}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())])
        for name, table in document.items()
        if isinstance(table, Mapping) and table
    ]
    return "\n\n".join(["\n".join(plain), *tables])


def _toml(value: Any) -> str:
    """Return one value; strings, numbers and truth values are written as in JSON."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text, ensure_ascii=False)
