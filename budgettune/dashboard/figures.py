"""Our figures on a study's page, made in the dashboard's own process and kept in its memory.

optuna-dashboard would have them in the database: in pieces of 2,045 characters, a transaction each, in attributes that
every reader of the study then loads, and that `list_trial_artifacts` walks through once per trial. A figure of 10,000
trials is hundreds of pieces. A dashboard that only reads should not write either, so ours go into its answers instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from budgettune.dashboard.shared_view import Refreshed, RefreshPace
from budgettune.records import TrialRecord

PATIENCE_SECONDS = 0.3
"""For which a page waits for new figures: enough for a small study, and little beside a poll for a large one."""

log = logging.getLogger(__name__)


class Figure(Protocol):
    """What a figure of plotly has."""

    def to_json(self) -> str:
        """Return the figure as plotly.js takes it."""


FigureMaker = Callable[[Sequence[TrialRecord]], Iterable[Figure]]


@dataclass(frozen=True)
class _Figures:
    """The figures of one study, and the number of finished trials that they show."""

    finished: int = 0
    entries: list[dict[str, str]] = field(default_factory=list)


class LiveFigures:
    """Figures of studies, made again where trials have finished since, by a thread at an easy pace.

    Args:
        read: from a study's id to its trials.
        make: from the trials of a study to its figures.
        pace: makes the pace of one study.
    """

    def __init__(
        self,
        read: Callable[[int], Sequence[TrialRecord]],
        make: FigureMaker,
        *,
        pace: Callable[[], RefreshPace] = lambda: RefreshPace(share=1 / 50, shortest_seconds=10.0),
    ) -> None:
        self._read = read
        self._make = make
        self._pace = pace
        self._finished: dict[int, int] = {}
        self._kept: dict[int, Refreshed[_Figures]] = {}

    def of(self, study_id: int, finished: int) -> list[dict[str, str]]:
        """Return the latest figures of a study as optuna-dashboard's page takes them, and see that they are refreshed.

        Args:
            study_id: which.
            finished: how many of its trials have ended.
        """
        self._finished[study_id] = finished
        make = partial(self._refresh, study_id)
        return (
            self._kept.setdefault(study_id, Refreshed(make, self._pace(), PATIENCE_SECONDS, _Figures())).get().entries
        )

    def _refresh(self, study_id: int, old: _Figures | None) -> _Figures:
        shown, finished = old or _Figures(), self._finished[study_id]
        if shown.finished == finished:
            return shown
        try:
            records = self._read(study_id)
            texts = [figure.to_json() for figure in self._make(records)] if records else []
        except Exception:  # a figure that fails must not take the dashboard with it
            log.exception("the figures of study %d could not be made", study_id)
            return replace(shown, finished=finished)
        return _Figures(
            finished, [{"id": f"budgettune-{place}", "graph_object": text} for place, text in enumerate(texts)]
        )
