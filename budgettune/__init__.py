"""BudgetTune: I have T seconds of training time. What should I train, and how sure are you?

The names below are imported on first use, so that `import budgettune` costs nothing and reading answers never loads
torch.
"""

from __future__ import annotations

import importlib
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgettune import report
    from budgettune.api import (
        best_under_budget,
        create_study,
        load_study,
        pareto_front,
        recommend,
        run_worker,
        train,
        trial_records,
        write_report,
    )
    from budgettune.comparison.run import compare
    from budgettune.errors import BudgetTuneError
    from budgettune.predict.recommend import Recommendation
    from budgettune.records import TrialRecord, TrialResult
    from budgettune.spec.study_spec import StudySpec, load_spec
    from budgettune.study.pareto import hypervolume
    from budgettune.worker.options import WorkerOptions

_HOME = {
    "BudgetTuneError": "errors",
    "Recommendation": "predict.recommend",
    "StudySpec": "spec.study_spec",
    "TrialRecord": "records",
    "TrialResult": "records",
    "WorkerOptions": "worker.options",
    "best_under_budget": "api",
    "compare": "comparison.run",
    "create_study": "api",
    "hypervolume": "study.pareto",
    "load_spec": "spec.study_spec",
    "load_study": "api",
    "pareto_front": "api",
    "recommend": "api",
    "run_worker": "api",
    "train": "api",
    "trial_records": "api",
    "write_report": "api",
}

__all__ = [
    "BudgetTuneError",
    "Recommendation",
    "StudySpec",
    "TrialRecord",
    "TrialResult",
    "WorkerOptions",
    "best_under_budget",
    "compare",
    "create_study",
    "hypervolume",
    "load_spec",
    "load_study",
    "pareto_front",
    "recommend",
    "report",
    "run_worker",
    "train",
    "trial_records",
    "write_report",
]

try:
    __version__ = version("budgettune")
except PackageNotFoundError:  # run from a checkout that was never installed
    __version__ = "unknown"


def __getattr__(name: str) -> Any:
    if name == "report":
        return importlib.import_module("budgettune.report")
    if name not in _HOME:
        raise AttributeError(f"module 'budgettune' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"budgettune.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
