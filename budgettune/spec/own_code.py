"""What a study of own training code may hold: the keys that it shares with the built-in trainer, and its params."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from string import Formatter
from typing import TYPE_CHECKING

from budgettune.errors import SpecError
from budgettune.spec.conditions import condition_text
from budgettune.spec.faults import nearest
from budgettune.spec.objective import TAKEN_KEYS
from budgettune.spec.tables import Scalar
from budgettune.text import as_written, shortened

if TYPE_CHECKING:
    from budgettune.spec.study_spec import StudySpec

OWN_CODE_TABLES = ("data", "model", "pruning")  # of the built-in trainer; and of [train] all but these keys:
OWN_CODE_TRAIN_KEYS = ("loop", "command", "epochs", "budget")
MEASURED = ("peak_memory_mb",)  # numbers that the built-in trainer measures and a study may limit
TOLD = ("seed", "device", "epochs", "budget_seconds", "processes")  # names in train.command beside the params
PLAIN_FORMAT = re.compile(r"[<>=^+\- #0,_]*\d{0,2}(\.\d{1,2})?[a-zA-Z%]?")
WORD = f"must be a word of letters, digits and _, and none of {', '.join(TOLD)}"


def check_own_code(spec: StudySpec) -> None:
    """Refuse what only one of code of your own and the built-in trainer knows, with the other."""
    train = spec.train
    if train.loop is not None and train.command is not None:
        raise SpecError("train: loop and command exclude each other: keep one")
    if not train.is_own_code:
        if spec.params:
            raise SpecError("params: are for code of your own: name it in train.loop or train.command")
        if not spec.objective.is_accuracy:
            raise SpecError(
                f"objective.name: the built-in trainer reports test accuracy, and no {spec.objective.name}: "
                f"train code of your own with train.loop or train.command"
            )
        if unknown := next((name for name in spec.constraints if name not in MEASURED), None):
            raise SpecError(f"constraints.{unknown}: the built-in trainer measures {', '.join(MEASURED)}")
        return
    kind = "loop" if train.loop is not None else "command"
    usual = type(spec)(name=spec.name)
    table = next((name for name in OWN_CODE_TABLES if getattr(spec, name) != getattr(usual, name)), None)
    if table is not None:
        raise SpecError(f"{table}: is for the built-in trainer; train.{kind} gets what is in [params] and in [search]")
    for key in type(train).model_fields.keys() - {*OWN_CODE_TRAIN_KEYS, *(["processes"] if train.command else [])}:
        if getattr(train, key) != getattr(usual.train, key):
            raise SpecError(f"train.{key}: is for the built-in trainer: give it to train.{kind} as params.{key}")
    for name in (*spec.params, *spec.constraints):
        if not name.isidentifier() or name in TOLD:
            place = "params" if name in spec.params else "constraints"
            raise SpecError(f"{place}.{shortened(name)}: {WORD}")
    if taken := next((name for name in spec.constraints if name in TAKEN_KEYS and name not in MEASURED), None):
        raise SpecError(f"constraints.{taken}: is what every trial has beside it: report it by another name")
    if spec.objective.key in spec.constraints:
        raise SpecError(f"constraints.{spec.objective.key}: is the objective: take another number")
    absent = {
        key.removeprefix("params."): condition_text(condition)
        for key, condition in spec.conditions.items()
        if key.removeprefix("params.") not in spec.params
    }
    known = {*spec.params, *(key.removeprefix("params.") for key in spec.search), *TOLD}
    _check_command(train.command or (), known, absent)


def built_in_only(spec: StudySpec) -> StudySpec:
    """Return a spec that the built-in trainer trains.

    Raises:
        SpecError: where code of its own does.
    """
    if spec.train.is_own_code:
        raise SpecError(
            f"study {spec.name!r} trains code of its own, and this is about the built-in trainer: name another"
        )
    return spec


def _check_command(command: Sequence[str], known: Collection[str], absent: Mapping[str, str]) -> None:
    """Refuse names in braces that stand for nothing, or (with where they do not) for nothing in some trials."""
    for part in command:
        try:
            fields = [(name, form or "") for _, name, form, _ in Formatter().parse(part) if name is not None]
        except ValueError as error:
            raise SpecError(f"train.command: {as_written(part)}: {error}: write {{{{ and }}}} for braces") from None
        names = [name for name, _ in fields]
        if wide := next((form for _, form in fields if not PLAIN_FORMAT.fullmatch(form)), None):
            raise SpecError(
                f"train.command: {as_written(part)}: the format {shortened(wide)} is none, or wider than 99: "
                f"write for example {{lr:.3g}}"
            )
        if unknown := next((name for name in names if name not in known), None):
            listed = ", ".join(sorted(known))
            raise SpecError(
                f"train.command: {as_written(part)}: no param is called {shortened(unknown)}"
                f"{nearest(unknown, known)}; known: {listed}; write {{{{ and }}}} for braces"
            )
        if name := next((name for name in names if name in absent), None):
            raise SpecError(
                f"train.command: {as_written(part)}: params.{name} is searched only {absent[name]}: give it a default "
                f"in [params]"
            )


def check_param(spec: StudySpec, key: str, values: Iterable[Scalar]) -> None:
    """Refuse a searched param whose name is none, or whose values are of another type than its default."""
    name = key.removeprefix("params.")
    if not spec.train.is_own_code:
        raise SpecError(f"search.{key}: params are for code of your own: name it in train.loop or train.command")
    if not name.isidentifier() or name in TOLD:
        raise SpecError(f"search.{key}: {WORD}")
    if (default := spec.params.get(name)) is None:
        return
    allowed = (int, float) if isinstance(default, float) else (type(default),)
    if odd := [value for value in values if type(value) not in allowed]:
        raise SpecError(
            f"search.{key}: {as_written(odd[0])} is not of the type of its default in [params], {as_written(default)}"
        )
