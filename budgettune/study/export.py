"""A study as a file: CSV and Parquet with one row per trial, JSON with the curves too."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from budgettune.errors import BudgetTuneError, UsageError
from budgettune.files import replacing
from budgettune.records import RECORD_COLUMNS, TrialRecord
from budgettune.storage.answers import param_names
from budgettune.storage.trials import record_batches
from budgettune.storage.writes import json_text
from budgettune.text import plain, printable

if TYPE_CHECKING:
    from budgettune.storage.connection import Engine

FORMATS = ("csv", "json", "parquet")


def export(engine: Engine, study_id: int, format: str, out: str | Path | None = None) -> None:  # noqa: A002
    """Write every trial of a study to a file, all or nothing.

    Args:
        engine: from `open_engine`, or a handle's.
        study_id: from `find_study`, or a handle's.
        format: csv, json or parquet.
        out: file to write; None or `-` for standard output.

    Raises:
        UsageError: where the format is unknown or the file cannot be written.
        BudgetTuneError: where a package for Parquet is missing.
    """
    writers = {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}
    if format not in writers:
        raise UsageError(f"format {format!r}: choose one of {', '.join(FORMATS)}")
    with opened(out) as file:
        writers[format](engine, study_id, file)


def flat_row(record: TrialRecord, params: list[str]) -> dict[str, Any]:
    """Return a record as one flat row; a param whose name is taken gets the prefix `params.`."""
    columns = {name: plain(getattr(record, name)) for name in RECORD_COLUMNS}
    return {**columns, **{param_column(name): plain(record.params.get(name)) for name in params}}


def param_column(name: str) -> str:
    """Return the column of a param."""
    return f"params.{name}" if name in RECORD_COLUMNS else printable(name)


def _write_csv(engine: Engine, study_id: int, file: BinaryIO) -> None:
    params = param_names(engine, study_id)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, [*RECORD_COLUMNS, *map(param_column, params)], lineterminator="\n")
    writer.writeheader()
    for records in record_batches(engine, study_id, documents=False):
        writer.writerows(flat_row(record, params) for record in records)
    text.flush()
    text.detach()


def _write_json(engine: Engine, study_id: int, file: BinaryIO) -> None:
    separator = "[\n"
    for records in record_batches(engine, study_id):
        for record in records:
            file.write((separator + json_text(record.to_json())).encode())
            separator = ",\n"
    file.write(b"[]\n" if separator == "[\n" else b"\n]\n")


def _write_parquet(engine: Engine, study_id: int, file: BinaryIO) -> None:
    try:
        import pandas as pd
        import pyarrow  # noqa: F401
    except ImportError:
        raise BudgetTuneError("Parquet needs two packages more: pip install 'budgettune[parquet]'") from None
    params = param_names(engine, study_id)
    batches = record_batches(engine, study_id, documents=False)
    rows = [flat_row(record, params) for records in batches for record in records]
    frame = pd.DataFrame(rows, columns=[*RECORD_COLUMNS, *map(param_column, params)])
    frame.to_parquet(file, engine="pyarrow", index=False)


@contextmanager
def opened(out: str | Path | None) -> Iterator[BinaryIO]:
    """Yield a file to write; the name appears only once everything is in it."""
    if out is None or str(out) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with replacing(Path(out)) as file:
            yield file
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror}): name another file") from None
