"""The report of a study: values first, then figures, then one HTML page.

In a notebook: `budgettune.report.figures.front(budgettune.trial_records("my-study"))` is a plotly figure.
"""

from budgettune.report import figures
from budgettune.report.build import picture, write_report
from budgettune.report.values import of_machine

__all__ = ["figures", "of_machine", "picture", "write_report"]
