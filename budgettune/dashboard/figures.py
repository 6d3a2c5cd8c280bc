"""Our figures on a study's page, made in the dashboard's own process and kept in its memory.

optuna-dashboard would have them in the database: in pieces of 2,045 characters, a transaction each, in attributes that
every reader of the study then loads, and that `list_trial_artifacts` walks through once per trial. A figure of 10,000
trials is hundreds of pieces. A dashboard that only reads should not write either, so ours go into its answers instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, Protocol

from budgettune.dashboard.shared_view import Refreshed, RefreshPace
from budgettune.records import TrialRecord
from budgettune.spec.objective import Aim

PATIENCE_SECONDS = 0.3
"""For which a page waits for new figures: enough for a small study, and little beside a poll for a large one."""

log = logging.getLogger(__name__)


class DrawnFigure(Protocol):
    """A figure of plotly, as JSON for plotly.js."""

    def to_json(self) -> str: ...


FigureMaker = Callable[[Sequence[TrialRecord], Aim], Iterable[DrawnFigure]]
"""From the trials of a study, and what it wants of them, to figures."""


class _Figures(NamedTuple):
    """The figures of one study, and the number of finished trials that they show."""

    finished: int
    entries: list[dict[str, str]]


@dataclass(eq=False)
class LiveFigures:
    """Figures of studies, made again where trials have finished since, by a thread at an easy pace.

    Args:
        read: from a study's id to its trials, and what it wants of them.
        make: from these to its figures.
        pace: makes the pace of one study.
    """

    read: Callable[[int], tuple[Sequence[TrialRecord], Aim]]
    make: FigureMaker
    pace: Callable[[], RefreshPace] = lambda: RefreshPace(share=1 / 50, shortest_seconds=10.0)
    _finished: dict[int, int] = field(default_factory=dict, init=False)
    _kept: dict[int, Refreshed[_Figures]] = field(default_factory=dict, init=False)

    def of(self, study_id: int, finished: int) -> list[dict[str, str]]:
        """Return the latest figures of a study as optuna-dashboard's page takes them, and see that they are refreshed.

        `finished` is how many of its trials have ended.
        """
        self._finished[study_id] = finished
        new = Refreshed(partial(self._refresh, study_id), self.pace(), PATIENCE_SECONDS, _Figures(0, []))
        return self._kept.setdefault(study_id, new).get().entries

    def _refresh(self, study_id: int, old: _Figures | None) -> _Figures:
        shown, finished = old or _Figures(0, []), self._finished[study_id]
        if shown.finished == finished:
            return shown
        try:
            records, aim = self.read(study_id)
            texts = [figure.to_json() for figure in self.make(records, aim)] if records else []
        except Exception:  # a figure that fails must not take the dashboard with it
            log.exception("the figures of study %d could not be made", study_id)
            return shown._replace(finished=finished)
        entries = [{"id": f"budgettune-{place}", "graph_object": text} for place, text in enumerate(texts)]
        return _Figures(finished, entries)
