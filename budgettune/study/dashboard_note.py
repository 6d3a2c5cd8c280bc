"""The note, in Markdown, on a study's page in optuna-dashboard: what it searches, how to read it, its study file."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from budgettune.spec.axes import AxisSpec, RangeSpec
from budgettune.spec.conditions import condition_text, put_together
from budgettune.spec.study_spec import StudySpec

SHOWN = 50  # values of an axis
BAR = r"\|"  # in a table of Markdown
_HOW_TO_READ = """\
- The answers under a budget are the points of *Pareto Front* that no other beats in both time and {value}:
  `budgettune best {name} --budget 60s`, `budgettune front {name}`.
- `status` says whether a time can be believed: `clean`, `disturbed` (something else used the machine), `unverified`.
  Times of different `device_name` do not compare.{pruned}
- A cell whose trial failed is queued again as a new trial; `failure` says why. Curves, phases and machines of all
  trials: `budgettune study export {name} --format json`."""
_PRUNED = """
- `keep_fraction` is the share of samples that training visited, `prune_seconds` what choosing them cost."""


def study_note(spec: StudySpec) -> str:
    rows = "\n".join(f"| `{key}` | {axis_text(spec, key).replace('|', BAR)} |" for key in spec.search)
    searched = f"| searched | values |\n|---|---|\n{rows}" if rows else "Nothing is searched: one cell."
    points = f"{spec.cell_count()} cells" if spec.sampler.name == "grid" else f"Points by {spec.sampler.name}"
    repeats = spec.sampler.first_repeats
    fixed = f"{repeats} repeat{'s' * (repeats != 1)} each"
    each = "more repeats where the front is uncertain" if spec.sampler.is_auto else fixed
    aim, objective, is_own = spec.aim, spec.objective, spec.train.is_own_code
    images = f" {aim.images.line}" if aim.images is not None and aim.judged_on else ""
    how_to_read = _HOW_TO_READ.format(
        name=shlex.quote(spec.name), value=objective.label, pruned="" if is_own else _PRUNED
    )
    better = "more" if objective.direction == "maximize" else "less"
    choosing = "" if is_own else "choosing samples is on the clock, "
    return (
        f"**Training time against {aim.name}**: `train_seconds` (less is better; {choosing}"
        f"evaluation off it) and `{aim.key}` ({better} is better).{images}{_code_and_limits(spec)}\n\n"
        f"{searched}\n\n{points}, {each}.\n\n"
        f"### How to read it\n\n{how_to_read}\n\n"
        f"### The study file\n\n```toml\n{_study_file(put_together(spec.to_document()))}\n```\n"
    )


def _code_and_limits(spec: StudySpec) -> str:
    """Return in sentences what code of people's own trains, and which numbers have limits; nothing where none."""
    train, limits = spec.train, spec.aim.limits
    code = f"`{train.loop}`" if train.loop else f"the command `{shlex.join(train.command or ())}`"
    trained = f" Trained by {code}." if train.is_own_code else ""
    listed = ", ".join(f"`{name}` at most {limit:g}" for name, limit in limits.items())
    return f"{trained} Trials beyond a limit are no answers: {listed}." if limits else trained


def axis_text(spec: StudySpec, key: str) -> str:
    """Return what is searched of an axis, for people, and where it is active unless that is everywhere."""
    return " ".join(filter(None, [_axis(spec.search[key]), condition_text(spec.conditions.get(key, {}))]))


def _axis(axis: AxisSpec) -> str:
    if isinstance(axis, RangeSpec):
        return f"{axis.low:g} to {axis.high:g}{', log scale' if axis.log else ''}"
    listed = [f"{value:g}" if isinstance(value, float) else str(value) for value in axis[:SHOWN]]
    more = f" and {len(axis) - SHOWN} more" if len(axis) > SHOWN else ""
    return ", ".join(listed) + more


def _study_file(document: Mapping[str, Any]) -> str:
    import tomlkit  # needed where a study is made, and by no other command

    def inline(value: Any) -> Any:
        """Return a range as an inline table, so that the axes keep their order; a list as one text, to be parsed."""
        if isinstance(value, list):  # tomlkit takes a time that grows as the square where it is given items
            return tomlkit.array(f"[{', '.join(tomlkit.item(each).as_string() for each in value)}]")
        if not isinstance(value, Mapping):
            return value
        table = tomlkit.inline_table()
        table.update(value)
        return table

    sections = {
        name: {key: inline(value) for key, value in section.items()} if isinstance(section, Mapping) else section
        for name, section in document.items()
        if section != {}
    }
    return tomlkit.dumps(sections).rstrip("\n")
