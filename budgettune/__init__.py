"""BudgetTune: I have T seconds of training time. What should I train, and how sure are you?

The names below are imported on first use, so that `import budgettune` costs nothing and reading answers never loads
torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from budgettune import report as report
    from budgettune.api import best_under_budget as best_under_budget
    from budgettune.api import create_study as create_study
    from budgettune.api import load_study as load_study
    from budgettune.api import pareto_front as pareto_front
    from budgettune.api import recommend as recommend
    from budgettune.api import run_worker as run_worker
    from budgettune.api import train as train
    from budgettune.api import trial_records as trial_records
    from budgettune.api import trials as trials
    from budgettune.api import write_report as write_report
    from budgettune.comparison.run import compare as compare
    from budgettune.errors import BudgetTuneError as BudgetTuneError
    from budgettune.predict.recommend import Recommendation as Recommendation
    from budgettune.records import TrialRecord as TrialRecord
    from budgettune.records import TrialResult as TrialResult
    from budgettune.spec.study_spec import StudySpec as StudySpec
    from budgettune.spec.study_spec import load_spec as load_spec
    from budgettune.study.pareto import hypervolume as hypervolume
    from budgettune.trial.trial import Trial as Trial
    from budgettune.worker.options import WorkerOptions as WorkerOptions

_NAMES = {
    "api": "best_under_budget create_study load_study pareto_front recommend run_worker train trial_records "
    "trials write_report",
    "comparison.run": "compare",
    "errors": "BudgetTuneError",
    "predict.recommend": "Recommendation",
    "records": "TrialRecord TrialResult",
    "spec.study_spec": "StudySpec load_spec",
    "study.pareto": "hypervolume",
    "trial.trial": "Trial",
    "worker.options": "WorkerOptions",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted([*_HOME, "report"])


def __getattr__(name: str) -> Any:
    if name == "report":
        return importlib.import_module("budgettune.report")
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("budgettune")
        except PackageNotFoundError:  # run from a checkout that was never installed
            return "unknown"
    if name not in _HOME:
        raise AttributeError(f"module 'budgettune' has no attribute {name!r}")
    return globals().setdefault(name, getattr(importlib.import_module(f"budgettune.{_HOME[name]}"), name))


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
