"""What to train within a budget, for many who ask of a study that may be changing: they share what was learnt."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from budgettune import api
from budgettune.errors import UsageError
from budgettune.predict.recommend import Ask, answer
from budgettune.web.reply import RETRY_SECONDS, Asked, Busy, Reply, json_reply, refusal

if TYPE_CHECKING:
    from budgettune.predict.predictor import Predictor

MOST_KEPT = 500
MOST_WAITING = 16
"""Threads that wait for answers; the server has more, for all other requests."""
PATIENCE_SECONDS = 45.0  # proxies wait for 60
OLDER = "trials have ended since this was the answer; a newer one is being made: ask again"


class Question(NamedTuple):
    """What to train, asked of a study."""

    url: str
    study: str
    device_name: str | None
    budget_seconds: float
    confidence: float


@dataclass(eq=False)
class Batch:
    """Questions about one study and machine that are answered together.

    Attributes:
        mark: of the study as whoever asked last found it.
    """

    mark: str = ""
    answers: dict[Question, Future[Reply]] = field(default_factory=dict)


def recommendation(question: Question, mark: str) -> Reply:
    """Return the answer to a question of a study as it is at a moment's mark or later, or the refusal."""
    try:
        predictor = _predictor(*question[:3], mark)
        return json_reply(answer(predictor, Ask(question.budget_seconds, question.confidence)).to_json())
    except UsageError as error:  # the question is sound: the study cannot answer it
        return refusal(Asked(409, "cannot-predict", str(error)))
    except Exception as error:
        return refusal(error)


@lru_cache(maxsize=2)
def _predictor(url: str, study: str, device_name: str | None, mark: str) -> Predictor:
    """Return what answers for a study: learning takes most of the time, and the next budget finds it done."""
    with api.load_study(study, storage=url) as handle:
        return api.predictor(handle, device_name)


@dataclass(eq=False)
class Recommendations:
    """Answers of `recommendation`, each made once for all who wait for it, of a moment after they asked.

    While one study is thought about, questions gather; those about one study and machine are then answered together,
    of one moment. So whoever asks while trials end waits until each study that is asked was learnt from twice at most,
    and gets an older answer where that takes long.

    Args:
        run: calls a function, elsewhere or here.
        patience_seconds: for which somebody waits.
    """

    run: Callable[[Callable[[Question, str], Reply], Question, str], Reply]
    patience_seconds: float = PATIENCE_SECONDS
    _kept: OrderedDict[Question, tuple[str, Reply]] = field(default_factory=OrderedDict, init=False)
    _gathering: dict[tuple[str | None, ...], Batch] = field(default_factory=dict, init=False)
    _waiting: int = field(default=0, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)
    _turn: threading.Lock = field(default_factory=threading.Lock, init=False)  # of the batch that is being answered

    def of(self, question: Question, mark: str) -> Reply:
        """Return the answer to a question, after a while where it is not known yet.

        Args:
            question: what to train.
            mark: of the study as it is now: another one once a trial has ended.

        Raises:
            Busy: where too many wait already, or the first answer is not there in time.
        """
        with self._lock:
            if reply := self._known(question, mark):
                return reply
            gathered = sum(len(batch.answers) for batch in self._gathering.values())  # also for some who went away
            if max(self._waiting, gathered) >= MOST_WAITING:
                raise Busy("too many ask what to train just now: ask again in a moment")
            if question[:3] not in self._gathering:
                # It may not start, where the box lets this process have no thread more just now: nobody waits yet.
                threading.Thread(target=self._answer, args=[question[:3]], name="recommend", daemon=True).start()
            self._waiting += 1
            batch = self._gathering.setdefault(question[:3], Batch())
            batch.mark = mark
            future = batch.answers.setdefault(question, Future())
        try:
            return future.result(self.patience_seconds)
        except TimeoutError:
            older = self._kept.get(question)
            if older is None:
                raise Busy("learning from this study takes long just now: ask again in a moment") from None
            headers = (("Budgettune-Note", OLDER), ("Retry-After", str(RETRY_SECONDS)))
            return replace(older[1], headers=older[1].headers + headers)
        finally:
            with self._lock:
                self._waiting -= 1

    def _known(self, question: Question, mark: str) -> Reply | None:
        known_mark, reply = self._kept.get(question, (None, None))
        return reply if known_mark == mark else None

    def _answer(self, group: tuple[str | None, ...]) -> None:
        with self._turn:
            with self._lock:
                batch = self._gathering.pop(group)
            for question, future in batch.answers.items():
                future.set_result(self._reply(question, batch.mark))

    def _reply(self, question: Question, mark: str) -> Reply:
        if reply := self._known(question, mark):  # who asked before meant the same moment
            return reply
        try:
            reply = self.run(recommendation, question, mark)
        except Exception as error:
            reply = refusal(error)
        if reply.status < 500:  # after a failure the next one tries again
            with self._lock:
                self._kept[question] = mark, reply
                self._kept.move_to_end(question)
                while len(self._kept) > MOST_KEPT:
                    self._kept.popitem(last=False)
        return reply
