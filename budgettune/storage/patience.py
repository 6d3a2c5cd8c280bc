"""Asking a database again: one that may answer in a moment, or that may have something to do by then."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from budgettune.errors import StorageBusy, StorageError, StorageReadOnly, StudyExists, StudyNotFound

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
POLL_SPREAD = 0.2  # share of a pause by which it is longer or shorter, so that a fleet does not ask as one
READING_PATIENCE_SECONDS = 20.0  # of a command that somebody waits for

_random = random.SystemRandom().random  # never that of the process, which a trial may have seeded


def shortened_by_chance(pause_seconds: float, chance: Callable[[], float] = _random) -> float:
    """Return a pause made shorter by up to a half, so that hundreds who were refused at once do not come back at once.

    Args:
        pause_seconds: at most.
        chance: gives a number from 0 to 1.
    """
    return pause_seconds * (1.0 - chance() / 2.0)


def pauses(
    patience_seconds: float, clock: Callable[[], float] = time.monotonic, chance: Callable[[], float] = _random
) -> Iterator[float]:
    """Yield longer and longer pauses in seconds, until patience is over; it begins with the first pause."""
    deadline, pause_seconds = clock() + patience_seconds, FIRST_PAUSE_SECONDS
    while clock() < deadline:
        yield shortened_by_chance(pause_seconds, chance)
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)


def idle_pauses(poll_seconds: float, longest_seconds: float, chance: Callable[[], float] = _random) -> Iterator[float]:
    """Yield the pauses between the looks of a worker that has nothing to do: each twice as long, to a longest one.

    So a worker hears late that something came open, or that all is over, by no more than about the time that it has
    waited already: where trials are short it looks often, and a fleet that waits for one long trial asks seldom. Each
    pause is spread by a fifth; `chance` gives numbers from 0 to 1.
    """
    pause_seconds = poll_seconds
    while True:
        yield pause_seconds * (1 + POLL_SPREAD * (2 * chance() - 1))
        pause_seconds = min(2 * pause_seconds, longest_seconds)


def say_again_in(pause_seconds: float, error: Exception) -> None:
    """Tell the user that a database is asked again, and why."""
    logger.warning("asking the database again in %s s: %s", f"{pause_seconds:.1f}", error)


def comes_back(error: StorageError, *, has_answered: bool) -> bool:
    """Whether a database that fails like this is worth asking again.

    One that has answered before, be it that it is busy, comes back whatever it says, but for what stays as it is. A
    pooler before a full server says so to the first who ask, and lets the next ones wait until their time is over.
    """
    is_for_good = isinstance(error, (StudyNotFound, StudyExists, StorageReadOnly))
    return isinstance(error, StorageBusy) or (has_answered and not is_for_good)


def asking_again(call: Callable[[], T], patience_seconds: float) -> T:
    """Return what a call returns, repeating it for a while where the database is busy: nothing was done then."""
    waits, was_busy = pauses(patience_seconds), False
    while True:
        try:
            return call()
        except StorageError as error:
            pause_seconds = next(waits, None)
            if pause_seconds is None or not comes_back(error, has_answered=was_busy):
                raise
            was_busy = True
            say_again_in(pause_seconds, error)
        time.sleep(pause_seconds)
