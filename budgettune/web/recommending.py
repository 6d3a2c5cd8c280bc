"""What to train within a budget, for many who ask: each question is answered once, a few at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from budgettune import api
from budgettune.errors import UsageError
from budgettune.predict.recommend import Ask, answer
from budgettune.web.reply import Asked, Busy, Reply, json_reply, refusal

if TYPE_CHECKING:
    from budgettune.predict.predictor import Predictor

MOST_KEPT = 500
MOST_WAITING = 16
"""Threads that wait for answers; the server has more, for all other requests."""


class Question(NamedTuple):
    """What to train, of a study as it is at one moment."""

    url: str
    study: str
    mark: str  # of the moment: another one once a trial has ended
    device_name: str | None
    budget_seconds: float
    confidence: float


def recommendation(question: Question) -> Reply:
    """Return the answer to a question, or the refusal."""
    try:
        predictor = _predictor(*question[:4])
        return json_reply(answer(predictor, Ask(question.budget_seconds, question.confidence)).to_json())
    except UsageError as error:  # the question is sound: the study cannot answer it
        return refusal(Asked(409, "cannot-predict", str(error)))
    except Exception as error:
        return refusal(error)


@lru_cache(maxsize=2)
def _predictor(url: str, study: str, mark: str, device_name: str | None) -> Predictor:
    """Return what answers for a study: learning takes most of the time, and the next budget finds it done."""
    with api.load_study(study, storage=url) as handle:
        return api.predictor(handle, device_name)


@dataclass(eq=False)
class Recommendations:
    """Answers of `recommendation`, each made once for all who ask the same.

    Args:
        run: calls a function, elsewhere or here.
    """

    run: Callable[[Callable[[Question], Reply], Question], Reply]
    _kept: OrderedDict[Question, Future[Reply]] = field(default_factory=OrderedDict, init=False)
    _waiting: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def of(self, question: Question) -> Reply:
        """Return the answer, after a while where it is not known yet.

        Raises:
            Busy: where too many wait already.
        """
        with self._lock:
            future = self._kept.get(question)
            if future is not None and future.done():
                self._kept.move_to_end(question)
                return future.result()
            if self._waiting >= MOST_WAITING:
                raise Busy("too many ask what to train just now: ask again in a moment")
            self._waiting += 1
            is_mine = future is None
            future = future or Future()
            self._kept[question] = future
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        try:
            if is_mine:
                self._make(question, future)
            return future.result()
        finally:
            with self._lock:
                self._waiting -= 1

    def _make(self, question: Question, future: Future[Reply]) -> None:
        try:
            reply = self.run(recommendation, question)
        except Exception as error:
            reply = refusal(error)
        if reply.status >= 500:  # the next one tries again
            with self._lock:
                self._kept.pop(question, None)
        future.set_result(reply)
