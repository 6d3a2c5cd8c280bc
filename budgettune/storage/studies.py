"""Studies by name, and what a study keeps beside its trials: its spec, its kinds of machine, its step probes."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa
from pydantic import OnErrorOmit, TypeAdapter

from budgettune.errors import SpecError, SpecUnreadable, StudyNotFound, UsageError
from budgettune.records import JsonValue, MachineInfo, StepProbe, finite_number
from budgettune.spec.objective import Aim
from budgettune.spec.study_spec import StudySpec
from budgettune.storage.connection import reading, writing
from budgettune.storage.schema import (
    KINDS_ATTRIBUTE,
    PROSPECT_ATTRIBUTE,
    SPEC_ATTRIBUTE,
    attribute_values,
    plain_text,
    studies,
    study_user_attributes,
    trial_user_attributes,
    trials,
)
from budgettune.storage.trials import AS_WRITTEN, DOCUMENTS, parse_json, read_json, read_measures
from budgettune.storage.writes import lock_study, set_study_attribute
from budgettune.text import shortened

ANY_MACHINE = "any"
"""In place of a device name: times of all kinds of machine, side by side."""

PROBES_PREFIX = "budgettune:probes:"
"""Of the user attributes that keep probes; the kind of machine follows, as `MachineInfo.key` has it."""
PROBES: TypeAdapter[list[StepProbe]] = TypeAdapter(list[OnErrorOmit[StepProbe]], config=AS_WRITTEN)


@dataclass(frozen=True)
class StudyRow:
    """A study as the database has it."""

    study_id: int
    name: str
    spec_json: str | None  # None for a study of another program

    def read_spec(self) -> StudySpec:
        """Return the study file, under the name that the database has: another program may have copied the study.

        Raises:
            SpecUnreadable: where this budgettune cannot read it.
        """
        try:
            spec = StudySpec.from_json(self.spec_json or "")
        except SpecError as error:
            name = shortened(repr(self.name))
            raise SpecUnreadable(f"study {name}: {error}: open it with the budgettune that made it") from None
        return spec.model_copy(update={"name": self.name})


def all_studies(engine: sa.Engine) -> list[StudyRow]:
    """Return every study of the database in order of creation, those of other programs too."""
    return _studies(engine, sa.true())


def _studies(engine: sa.Engine, condition: sa.ColumnElement[bool]) -> list[StudyRow]:
    attributes = study_user_attributes
    is_spec = sa.and_(attributes.c.study_id == studies.c.study_id, attributes.c.key == SPEC_ATTRIBUTE)
    query = (
        sa.select(studies.c.study_id, plain_text(studies.c.study_name), attributes.c.value_json)
        .outerjoin(attributes, is_spec)
        .where(condition)
        .order_by(studies.c.study_id)
    )
    with reading(engine) as connection:
        return [StudyRow(key, name, _spec_json(parse_json(text))) for key, name, text in connection.execute(query)]


def _spec_json(value: Any) -> str | None:
    return value if isinstance(value, str) else json.dumps(value) if isinstance(value, dict) else None


def find_study(engine: sa.Engine, name: str | None = None) -> StudyRow:
    """Return the study of that name, or the only one.

    Raises:
        StudyNotFound: where there is none, where there are several and no name is given, or another program made it.
    """
    if name is not None and name.isprintable():  # a driver may refuse to ask for others
        named = next(iter(_studies(engine, studies.c.study_name == name)), None)
        if named is not None and named.spec_json is not None:
            return named
    found = all_studies(engine)
    ours = [row for row in found if row.spec_json is not None]
    names = ", ".join(shortened(row.name) for row in ours[:20])
    hint = f"name one of: {names}" if ours else "make one with `budgettune study create`"
    if name is None:
        if len(ours) == 1:
            return ours[0]
        raise StudyNotFound(f"the storage holds {len(ours)} studies: {hint}")
    row = next((row for row in found if row.name == name), None)
    if row is not None and row.spec_json is not None:
        return row
    fault = "was made by another program" if row is not None else "is not in the storage"
    raise StudyNotFound(f"study {shortened(repr(name))} {fault}: {hint}")


@dataclass(frozen=True, kw_only=True)
class Prospect(JsonValue):
    """What the next point of a search is expected to bring: of all candidates, that of the most gain per second.

    Attributes:
        gain: points of accuracy (of another objective: as it is), in the mean over budgets.
        seconds: of training, all repeats of the point together.
        has_ended: whether the search is over, because no point was worth its seconds and nothing ran any more.
    """

    gain: float
    seconds: float
    has_ended: bool

    def is_worth_it(self, worth_seconds: float) -> bool:
        """Whether the gain is worth the seconds, at a price of one point in seconds."""
        return self.gain * worth_seconds > self.seconds


def search_prospect(connection: sa.Connection, study_id: int, spec: StudySpec) -> Prospect | None:
    """Return what was last expected of a study's search; None where it has no price, or nothing was expected yet."""
    return None if spec.sampler.worth is None else _read_prospect(connection, study_id)


def _read_prospect(connection: sa.Connection, study_id: int) -> Prospect | None:
    try:
        return Prospect.from_json(study_attribute(connection, study_id, PROSPECT_ATTRIBUTE))
    except ValueError:
        return None


def keep_prospect(engine: sa.Engine, study_id: int, prospect: Prospect) -> None:
    """Keep what is expected of a search in place of what was; an end stands, whoever looked at the same time."""
    with writing(engine) as connection:
        if not lock_study(connection, study_id):
            return
        before = _read_prospect(connection, study_id)
        if before is None or not before.has_ended:
            set_study_attribute(connection, study_id, PROSPECT_ATTRIBUTE, prospect.to_json())


def study_attribute(connection: sa.Connection, study_id: int, key: str) -> Any:
    """Return a user attribute of a study, None where it is missing or no JSON."""
    table = study_user_attributes
    query = sa.select(table.c.value_json).where(table.c.study_id == study_id, table.c.key == key)
    return parse_json(connection.execute(query).scalar())


def aim_of(connection: sa.Connection, study_id: int) -> Aim:
    """Return what a study wants of its trials beside few seconds."""
    return Aim.of(study_attribute(connection, study_id, SPEC_ATTRIBUTE))


def read_aim(engine: sa.Engine, study_id: int) -> Aim:
    """As `aim_of`, by a connection of its own."""
    with reading(engine) as connection:
        return aim_of(connection, study_id)


class _Told(NamedTuple):
    """What a trial tells that may be limited."""

    measures: Mapping[str, float]
    peak_memory_mb: float | None


def allowed_trials(connection: sa.Connection, study_id: int, aim: Aim) -> set[int]:
    """Return the ids of the complete trials within a study's limits."""
    table = trial_user_attributes
    query = (
        sa.select(table.c.trial_id, table.c.key, table.c.value_json)
        .join(trials, trials.c.trial_id == table.c.trial_id)
        .where(trials.c.study_id == study_id, trials.c.state == "COMPLETE", table.c.key.in_(_Told._fields))
    )
    told: defaultdict[int, dict[str, Any]] = defaultdict(dict)
    for trial_id, key, text in connection.execute(query):
        told[trial_id][key] = parse_json(text)
    return {
        trial_id
        for trial_id, found in told.items()
        if aim.allows(_Told(read_measures(found.get("measures")), finite_number(found.get("peak_memory_mb"))))
    }


def machine_keys(connection: sa.Connection, study_id: int) -> list[str]:
    """Return every kind of machine that a study's times come from, in order of its first result.

    Workers keep the list with the study. To find it in the trials takes a page of the disk for each of them.
    """
    kept = study_attribute(connection, study_id, KINDS_ATTRIBUTE)
    if isinstance(kept, list):
        return [name for name in kept if isinstance(name, str)]
    query = (
        attribute_values(study_id, "device_name")
        .where(trials.c.state == "COMPLETE")
        .group_by(trial_user_attributes.c.value_json)
        .order_by(sa.func.min(trials.c.datetime_complete), sa.func.min(trials.c.number))
    )
    return [name for name in map(parse_json, connection.execute(query).scalars()) if isinstance(name, str)]


def machines(connection: sa.Connection, study_id: int) -> list[MachineInfo]:
    """Return the boxes that a study's times come from, in no order; those that say the same of themselves once."""
    query = attribute_values(study_id, "machine").where(trials.c.state == "COMPLETE").distinct()
    return [found for text in connection.execute(query).scalars() if (found := read_json(DOCUMENTS["machine"], text))]


def own_machine_key(connection: sa.Connection, study_id: int) -> str | None:
    """Return the kind of machine whose times count in a study: the spec's, else the first finished trial's."""
    spec = study_attribute(connection, study_id, SPEC_ATTRIBUTE)
    machine = spec.get("machine") if isinstance(spec, dict) else None
    asked = machine.get("device_name") if isinstance(machine, dict) else None
    return asked if isinstance(asked, str) else next(iter(machine_keys(connection, study_id)), None)


def add_machine_key(connection: sa.Connection, study_id: int, key: str) -> None:
    """Add a kind to the list that a study keeps. The caller holds the study's lock."""
    keys = machine_keys(connection, study_id)
    if key not in keys or study_attribute(connection, study_id, KINDS_ATTRIBUTE) is None:
        set_study_attribute(connection, study_id, KINDS_ATTRIBUTE, list(dict.fromkeys([*keys, key])))


def comparable_machine_key(engine: sa.Engine, study_id: int, device_name: str | None = None) -> str | None:
    """Return the kind of machine whose times an answer may compare; None where all may.

    A user asks for `device_name`: None for the study's own kind where it holds several, ANY_MACHINE for all.

    Raises:
        UsageError: where the study has no time of that kind.
    """
    if device_name == ANY_MACHINE:
        return None
    with reading(engine) as connection:
        names = sorted(machine_keys(connection, study_id))
        if device_name is not None and names and device_name not in names:
            raise UsageError(f"no finished trial ran on {device_name!r}: choose one of {', '.join(map(repr, names))}")
        return own_machine_key(connection, study_id) if device_name is None and len(names) > 1 else device_name


def read_probes(engine: sa.Engine, study_id: int) -> dict[str, list[StepProbe]]:
    """Return the probes of a study by kind of machine; what is not as we write it is left out."""
    with reading(engine) as connection:
        return _read_probes(connection, study_id)


def add_probes(engine: sa.Engine, study_id: int, device_name: str, probes: Sequence[StepProbe]) -> None:
    """Keep probes of one kind of machine beside those that are there; of one step the newest stands.

    Raises:
        StudyNotFound: where the study is gone.
    """
    with writing(engine) as connection:
        if not lock_study(connection, study_id):
            raise StudyNotFound("the study was deleted meanwhile: make it again, then probe again")
        known = _read_probes(connection, study_id).get(device_name, [])
        merged = {probe.step: probe for probe in (*known, *probes)}
        documents = [probe.to_json() for probe in merged.values()]
        set_study_attribute(connection, study_id, PROBES_PREFIX + device_name, documents)


def _read_probes(connection: sa.Connection, study_id: int) -> dict[str, list[StepProbe]]:
    table = study_user_attributes
    query = sa.select(table.c.key, table.c.value_json).where(
        table.c.study_id == study_id, table.c.key.startswith(PROBES_PREFIX, autoescape=True)
    )
    return {key.removeprefix(PROBES_PREFIX): read_json(PROBES, text) or [] for key, text in connection.execute(query)}
