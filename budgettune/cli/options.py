"""Options that commands share, and how their texts become values."""

from __future__ import annotations

import math
from contextlib import suppress
from enum import StrEnum
from typing import Annotated, Any

import typer

from budgettune.cli.output import Format
from budgettune.errors import BudgetTuneError
from budgettune.storage.connection import open_engine
from budgettune.storage.studies import all_studies
from budgettune.storage.url import storage_url
from budgettune.text import parse_duration

HELP = {"help_option_names": ["-h", "--help"]}
STUDIES, ANSWERS, BEFORE = "Studies", "Answers", "Before you spend the time"  # panels of commands
COMMON = "Options of most commands"


def examples(*lines: str) -> str:
    """Return the end of a command's help: commands to copy."""
    return "\n".join(["Examples:", *(f"$ budgettune {line}" for line in lines)])


def switch(name: str, **more: Any) -> Any:
    """Return an option that is given or not; without a metavar, help would show `<bool>` as if it took a value."""
    return typer.Option(name, metavar="", **more)


class DebugSwitch:
    """Whether errors show a traceback; any command's --debug turns it on."""

    is_on = False

    @classmethod
    def turn(cls, value: bool) -> bool:
        cls.is_on = cls.is_on or value
        return value


def duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from None


def duration_or_none(given: str | float) -> float:
    """Return seconds, 0 for 0s, and infinity for `none`."""
    text = str(given).strip().lower()  # a default is a number
    if text == "none":
        return math.inf
    with suppress(ValueError):
        if float(text.removesuffix("s")) == 0:
            return 0.0
    return duration(text)


def lasting(name: str, *, metavar: str = "DURATION", **more: Any) -> Any:
    return typer.Option(name, parser=duration, metavar=metavar, **more)


def studies_beginning(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of studies that a shell may complete to; none where the database cannot be asked."""
    try:
        rows = all_studies(open_engine(storage_url(context.params.get("storage"))))
    except BudgetTuneError:
        return []
    return [row.name for row in rows if row.spec_json is not None and row.name.startswith(incomplete)]


SamplerName = StrEnum("SamplerName", ["cost", "tpe", "nsga2", "gp", "random"])
ExportFormat = StrEnum("ExportFormat", ["csv", "json", "parquet"])

Storage = Annotated[
    str | None,
    typer.Option(
        "--storage",
        metavar="URL",
        help="Database; else $BUDGETTUNE_STORAGE, $OPTUNA_STORAGE, or sqlite:///budgettune.db.",
        rich_help_panel=COMMON,
    ),
]
Debug = Annotated[
    bool,
    switch(
        "--debug", callback=DebugSwitch.turn, help="Show a traceback where something fails.", rich_help_panel=COMMON
    ),
]
Study = Annotated[
    str | None,
    typer.Argument(
        metavar="STUDY",
        help="Name; may be left out where the database holds only one.",
        autocompletion=studies_beginning,
    ),
]
Spec = Annotated[str, typer.Argument(metavar="SPEC", help="TOML file, or the name of a bundled one.")]
FormatOption = Annotated[
    Format, typer.Option("--format", help="Table for people, JSON or CSV for programs.", rich_help_panel=COMMON)
]
DeviceName = Annotated[
    str | None,
    typer.Option(
        "--device-name",
        metavar="NAME|any",
        help="Times of that kind of machine only; the study's own where left out, any for all.",
    ),
]
CleanOnly = Annotated[bool, switch("--clean-only", help="Leave out disturbed and unverified times.")]
AllowImport = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-import",
        metavar="PACKAGE",
        help="Package that code named by a study may come from (repeatable); else $BUDGETTUNE_ALLOW_IMPORT.",
    ),
]
AllowCommand = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-command",
        metavar="WORDS",
        help="What a command named by a study may begin with, such as 'python train.py' (repeatable); else "
        "$BUDGETTUNE_ALLOW_COMMAND.",
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
Device = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N; auto takes GPUs where there are.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="N", help="CPU threads; else $OMP_NUM_THREADS, or every usable core."),
]


def whole(overrides: list[str] | None) -> list[str] | None:
    """Refuse what a shell has cut at a space, before the rest of it is taken for another argument."""
    for override in overrides or ():
        if override.count("[") > override.count("]") or override.count("{") > override.count("}"):
            raise typer.BadParameter(
                f"{override} is cut off: put single quotes around all of it, as in --set 'search.scale=[1.0, 2.0]'"
            )
    return overrides


Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        callback=whole,
        metavar="KEY=VALUE",
        help="Override any field of the study file (repeatable), such as train.epochs=10.",
    ),
]
