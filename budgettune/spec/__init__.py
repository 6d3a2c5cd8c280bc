"""The study file: read, checked, written, and everything that is refused before a trial runs."""

from budgettune.spec.pruning import PruningSpec
from budgettune.spec.study_spec import StudySpec, load_spec

__all__ = ["PruningSpec", "StudySpec", "load_spec"]
