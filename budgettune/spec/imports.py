"""Code that a study names. A study comes from a shared database, so nothing is imported that this box did not allow."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any

from budgettune.errors import BudgetTuneError, SpecError, UsageError
from budgettune.spec.study_spec import is_code


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
