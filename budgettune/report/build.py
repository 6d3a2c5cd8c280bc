"""From a study in a database to a report in a file: the page, or one figure as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from budgettune.errors import BudgetTuneError, NothingToDraw, StorageError, StudyNotFound, UsageError
from budgettune.report.figures import FIGURES, draw
from budgettune.report.forecast import StudyForecast, forecast
from budgettune.report.page import Contents, Served, build_page, contents
from budgettune.report.view import Overview
from budgettune.spec.objective import Aim
from budgettune.storage.studies import ANY_MACHINE, all_studies, read_probes
from budgettune.storage.trials import parse_json, stopping_notes, trial_records
from budgettune.study.export import opened

if TYPE_CHECKING:
    from budgettune.storage.connection import Engine

PICTURE_WIDTH = 1000
"""Pixels; PNG files have twice as many."""


def write_report(
    engine: Engine,
    study_id: int,
    out: str | Path,
    *,
    device_name: str | None = None,
    clean_only: bool = False,
    budget_seconds: float | None = None,
    format: str = "html",  # noqa: A002
    figure: str | None = None,
) -> None:
    """Write the report of a study, all or nothing; `budgettune.write_report` says what the arguments mean.

    Raises:
        UsageError: where the options cannot work together, or name what is not there, or the file cannot be written.
        NothingToDraw: where the study does not hold what the figure shows.
        BudgetTuneError: where pictures need something that is not installed.
    """
    if (figure is None) != (format == "html"):
        raise UsageError("--figure NAME goes with --format png or svg, and they with it; the page has all figures")
    values, ahead = _report(engine, study_id, device_name=device_name, clean_only=clean_only)
    if figure is None:
        document = build_page(values, forecast=ahead, budget_seconds=budget_seconds).encode()
    elif len(values.views) > 1 or values.left_out:
        kinds = "; ".join(row["machine"] for row in values.machines)
        raise UsageError(f"times of several kinds of machine share no figure: choose one with --device-name: {kinds}")
    elif not values.views:
        raise NothingToDraw("no trial is finished yet: run `budgettune worker` first")
    else:
        view = values.views[0]
        of = ahead(view) if figure in FIGURES and FIGURES[figure].about == "forecast" else None
        document = picture(draw(figure, view, of=of, notes=values.stopping), format)
    with opened(out) as file:
        file.write(document)


def served_page(engine: Engine, study_id: int, served: Served) -> str:
    """Return the page of a study as it is now, for a server that brings it what it asks for."""
    values, ahead = _report(engine, study_id)
    return build_page(values, forecast=ahead, served=served)


def _report(
    engine: Engine, study_id: int, *, device_name: str | None = None, clean_only: bool = False
) -> tuple[Contents, Callable[[Overview], StudyForecast]]:
    """Return what a report says, and what forecasts for it."""
    study = next((row for row in all_studies(engine) if row.study_id == study_id), None)
    if study is None:
        raise StudyNotFound("the study is gone")
    try:
        spec = study.read_spec()
    except (StorageError, ValueError):  # of another version: trials can be drawn all the same
        spec = None
    search = None if spec is None else spec.search
    aim = Aim.of(parse_json(study.spec_json))
    records, notes = trial_records(engine, study_id), list(stopping_notes(engine, study_id).values())
    device_name = None if device_name == ANY_MACHINE else device_name  # a page shows every machine, each by itself
    values = contents(
        study.name, records, search, device_name=device_name, clean_only=clean_only, stopping=notes, aim=aim
    )
    probes = read_probes(engine, study_id)
    learnt_from = [record for record in records if record.status == "clean" or not clean_only]

    def ahead(view: Overview) -> StudyForecast:
        return forecast(view, spec, learnt_from, probes)

    return values, ahead


def picture(figure: Any, format: str) -> bytes:  # noqa: A002
    """Return a figure as the bytes of a PNG or SVG file.

    Raises:
        BudgetTuneError: where kaleido or a browser is missing, or the browser does not start.
    """
    try:
        return bytes(figure.to_image(format=format, width=PICTURE_WIDTH, scale=2 if format == "png" else 1))
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(",.: ")
        raise BudgetTuneError(
            "pictures need the package kaleido (pip install 'budgettune[pictures]') and a Chrome or Chromium; "
            f"the page (--format html) needs neither ({reason})"
        ) from error
