"""A study as a file: CSV and Parquet with one row per trial, JSON with the curves too."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from budgettune.errors import BudgetTuneError, UsageError
from budgettune.files import replacing
from budgettune.storage.answers import measure_names, param_names
from budgettune.storage.connection import Engine
from budgettune.storage.studies import read_aim
from budgettune.storage.trials import record_batches
from budgettune.storage.writes import json_text
from budgettune.text import csv_safe


def export(engine: Engine, study_id: int, format: str, out: str | Path | None = None) -> None:  # noqa: A002
    """Write every trial of a study as csv, json or parquet to a file, all or nothing; None or `-` for standard output.

    Raises:
        UsageError: where the format is unknown or the file cannot be written.
        BudgetTuneError: where a package for Parquet is missing.
    """
    writers = {"csv": _write_csv, "json": _write_json, "parquet": _write_parquet}
    if format not in writers:
        raise UsageError(f"format {format!r}: choose one of {', '.join(writers)}")
    with opened(out) as file:
        writers[format](engine, study_id, file)


def _flat_rows(engine: Engine, study_id: int) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Return the columns and the rows of a table of all trials, their texts fit for a terminal and for any encoding."""
    params, measures, aim = param_names(engine, study_id), measure_names(engine, study_id), read_aim(engine, study_id)
    columns = {column: csv_safe(column) for column in aim.columns(params, measures)}
    rows = (
        {columns[column]: csv_safe(value) for column, value in aim.flat_row(record, params, measures).items()}
        for records in record_batches(engine, study_id, documents=False)
        for record in records
    )
    return list(columns.values()), rows


def _write_csv(engine: Engine, study_id: int, file: BinaryIO) -> None:
    columns, rows = _flat_rows(engine, study_id)
    text = io.TextIOWrapper(file, encoding="utf-8", newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    text.flush()
    text.detach()


def _write_json(engine: Engine, study_id: int, file: BinaryIO) -> None:
    separator, objective = "[\n", read_aim(engine, study_id).objective
    for records in record_batches(engine, study_id):
        for record in records:
            file.write((separator + json_text(objective.renamed(record.to_json()))).encode())
            separator = ",\n"
    file.write(b"[]\n" if separator == "[\n" else b"\n]\n")


def _write_parquet(engine: Engine, study_id: int, file: BinaryIO) -> None:
    try:
        import pandas as pd
        import pyarrow  # noqa: F401
    except ImportError:
        raise BudgetTuneError("Parquet needs two packages more: pip install 'budgettune[parquet]'") from None
    columns, rows = _flat_rows(engine, study_id)
    frame = pd.DataFrame(list(rows), columns=columns)
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
