"""Which folders a study's files may lie in: a spec from a shared database must not read or write wherever it likes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from budgettune.errors import UsageError


def allowed_folders(named: Collection[str] | None, url: str) -> frozenset[Path] | None:
    """Return the folders that a study may name files in; None for any.

    Args:
        named: by whoever runs this box; None where nothing was named.
        url: of the database. One that is a file of this box is as trusted as the box; on a server anybody with its
            password may have made the study, and it gets no folder but those below the working folder.
    """
    if named is None and url.startswith("sqlite"):
        return None
    here = Path.cwd().resolve()
    below = [] if here == Path(here.anchor) else [here]  # a service that runs in / has not opened the whole disk
    return frozenset([*below, *(Path(name).expanduser().resolve() for name in named or ())])


def check_paths(paths: Iterable[tuple[str, str | None]], allowed: frozenset[Path] | None) -> None:
    """Refuse what lies outside the allowed folders, links followed.

    Args:
        paths: name of each setting, and what it holds.
        allowed: from `allowed_folders`.

    Raises:
        UsageError: for the first one outside.
    """
    for key, text in paths:
        if text is None or allowed is None:
            continue
        path = Path(text).expanduser().resolve()
        if not any(path.is_relative_to(folder) for folder in allowed):
            raise UsageError(
                f"{key}: the study names {text!r}, which this box has not opened to studies of a shared database: "
                f"add --allow-root {path}, or set BUDGETTUNE_ALLOW_ROOT"
            )
