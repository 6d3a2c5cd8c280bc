"""Step times that were taken outside trials, kept with their study: one JSON document per kind of machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from budgettune.errors import StudyNotFound
from budgettune.records import StepProbe
from budgettune.storage.connection import reading, writing
from budgettune.storage.schema import study_user_attributes
from budgettune.storage.trials import parse_json
from budgettune.storage.writes import lock_study, set_study_attribute

PREFIX = "budgettune:probes:"
"""Of the study's user attributes; the kind of machine follows, as `MachineInfo.key` has it."""


def read_probes(engine: sa.Engine, study_id: int) -> dict[str, list[StepProbe]]:
    """Return the probes of a study by kind of machine; what is not as we write it is left out."""
    with reading(engine) as connection:
        return _read(connection, study_id)


def add_probes(engine: sa.Engine, study_id: int, device_name: str, probes: Sequence[StepProbe]) -> None:
    """Keep probes of one kind of machine beside those that are there; of one step the newest stands.

    Raises:
        StudyNotFound: where the study is gone.
    """
    with writing(engine) as connection:
        if not lock_study(connection, study_id):
            raise StudyNotFound("the study was deleted meanwhile: make it again, then probe again")
        known = _read(connection, study_id).get(device_name, [])
        merged = {probe.step: probe for probe in (*known, *probes)}
        documents = [probe.to_json() for probe in merged.values()]
        set_study_attribute(connection, study_id, PREFIX + device_name, documents)


def _read(connection: sa.Connection, study_id: int) -> dict[str, list[StepProbe]]:
    table = study_user_attributes
    query = sa.select(table.c.key, table.c.value_json).where(
        table.c.study_id == study_id, table.c.key.startswith(PREFIX, autoescape=True)
    )
    return {key.removeprefix(PREFIX): _probes(parse_json(text)) for key, text in connection.execute(query)}


def _probes(documents: Any) -> list[StepProbe]:
    found = [_probe(document) for document in documents] if isinstance(documents, list) else []
    return [probe for probe in found if probe is not None]


def _probe(document: Any) -> StepProbe | None:
    try:
        probe = StepProbe(**document)
    except TypeError:
        return None
    numbers = (probe.ms_mean, probe.ms_error, probe.steps, probe.seconds)
    is_ours = isinstance(probe.params, dict) and isinstance(probe.step, str) and all(map(_is_amount, numbers))
    return probe if is_ours and probe.ms_mean > 0 and probe.steps > 0 else None


def _is_amount(value: Any) -> bool:
    """Whether a value is a number from 0 up; JSON as Python reads it has NaN and infinities too."""
    return isinstance(value, (int, float)) and 0 <= value <= sys.float_info.max
