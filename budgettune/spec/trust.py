"""What a box lets a study name: packages to import code from, and folders to read and write files in.

A study may come from a shared database: nothing is imported, read or written that this box has not allowed.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from budgettune.errors import BudgetTuneError, SpecError, UsageError
from budgettune.spec.tables import is_code


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


def import_code(name: str, allow_import: Collection[str]) -> Any:
    """Return what `package.module:attribute` names.

    Args:
        name: as the study file has it.
        allow_import: top packages that this box allows, from --allow-import or BUDGETTUNE_ALLOW_IMPORT.

    Raises:
        SpecError: where the name is not of that form, or there is no such module or attribute.
        UsageError: where its top package is not allowed; nothing of it has been imported then.
    """
    if not is_code(name):
        raise SpecError(f"{name!r} does not name code: write it as package.module:name")
    module_name, _, attribute = name.partition(":")
    package = module_name.partition(".")[0]
    if package not in allow_import:
        raise UsageError(
            f"the study wants to run {name}, and this machine does not allow the package {package}: if you trust it, "
            f"add --allow-import {package} or set BUDGETTUNE_ALLOW_IMPORT={package}"
        )
    module = _import(module_name, name)
    if not hasattr(module, attribute):
        raise SpecError(f"{name}: module {module_name} has no {attribute}: correct the name in the study file")
    return getattr(module, attribute)


def _import(module_name: str, name: str) -> Any:
    try:
        return importlib.import_module(module_name)
    except BudgetTuneError:
        raise
    except Exception as error:  # a module runs any code while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise SpecError(
            f"{name}: cannot import {module_name} ({reason}): "
            f"install it on this machine, or put its folder in PYTHONPATH"
        ) from error
