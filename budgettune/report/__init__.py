"""The report of a study: plain values first, then figures, then one HTML page.

In a notebook: `budgettune.report.figures.front(budgettune.trial_records("my-study"))` is a plotly figure; of a study
with an objective of its own it is `front(records, aim=study.spec.aim)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from budgettune.records import TrialRecord
from budgettune.report import figures
from budgettune.report.build import picture, write_report
from budgettune.report.view import finished, machine_counts, of_machine
from budgettune.spec.objective import Aim

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

__all__ = ["figures", "front_figures", "of_machine", "picture", "write_report"]


def front_figures(records: Sequence[TrialRecord], aim: Aim | None = None) -> list[Figure]:
    """Return the front of each kind of machine that a study's times come from, as a dashboard shows them."""
    trials = finished(records)
    return [figures.front(of_machine(trials, kind), aim=aim) for kind in machine_counts(trials)]
