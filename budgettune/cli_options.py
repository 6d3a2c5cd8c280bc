"""Options that commands share, and how their texts become values."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from budgettune import query
from budgettune.errors import BudgetTuneError
from budgettune.render import Format
from budgettune.storage import open_engine, storage_url
from budgettune.units import parse_duration

HELP = {"help_option_names": ["-h", "--help"]}


class DebugSwitch:
    """Whether errors show a traceback; any command's --debug turns it on."""

    is_on = False

    @classmethod
    def turn(cls, value: bool) -> None:
        """Take in one command's --debug."""
        cls.is_on = cls.is_on or value


def duration(text: str) -> float:
    """Return the seconds of a duration on the command line."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


def studies_beginning(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of studies that a shell may complete to; none where the database cannot be asked."""
    try:
        rows = query.studies(open_engine(storage_url(context.params.get("storage"))))
    except BudgetTuneError:
        return []
    return [row.name for row in rows if row.spec_json is not None and row.name.startswith(incomplete)]


class SamplerName(StrEnum):
    """Ways to choose points."""

    tpe = "tpe"
    nsga2 = "nsga2"
    gp = "gp"
    random = "random"


class ExportFormat(StrEnum):
    """File formats of an export."""

    csv = "csv"
    json = "json"
    parquet = "parquet"


Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database; else $BUDGETTUNE_STORAGE, $OPTUNA_STORAGE, or sqlite:///budgettune.db.",
    ),
]
Debug = Annotated[
    bool, typer.Option("--debug", callback=DebugSwitch.turn, help="Show a traceback where something fails.")
]
Study = Annotated[
    str | None,
    typer.Argument(
        metavar="[STUDY]", help="May be left out where there is only one.", autocompletion=studies_beginning
    ),
]
FormatOption = Annotated[Format, typer.Option("--format", help="Table for people, JSON or CSV for programs.")]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device-name", metavar="NAME|any", help="Kind of machine; the study's own where left out, any for all."
    ),
]
CleanOnly = Annotated[bool, typer.Option("--clean-only", help="Leave out disturbed and unverified times.")]
AllowImport = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-import",
        metavar="PACKAGE",
        help="Package that code named by a study may come from (repeatable); else $BUDGETTUNE_ALLOW_IMPORT.",
    ),
]
AllowRoot = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-root",
        metavar="FOLDER",
        help="Folder whose files a study of a shared database may name (repeatable); else $BUDGETTUNE_ALLOW_ROOT.",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N", help="What to train on.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads; every usable core where left out.")]
Sets = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override any field, such as train.epochs=1.")
]
