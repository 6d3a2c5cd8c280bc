"""Values that cost much to make, and are made again in the background at an easy pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Value = TypeVar("Value")


@dataclass
class Pace:
    """Says when work is due again: after a rest of so many times what it took (the first time apart).

    Attributes:
        share: of one core's time that the work may take.
        shortest_seconds: of a rest.
        clock: seconds that only ever grow.
    """

    share: float = 1 / 20
    shortest_seconds: float = 1.0
    clock: Callable[[], float] = time.monotonic
    _due_at: float = field(default=float("-inf"), init=False)
    _has_worked: bool = field(default=False, init=False)

    @property
    def is_due(self) -> bool:
        """Whether the rest is over."""
        return self.clock() >= self._due_at

    def rest(self, began: float) -> None:
        """Note that work ends now which began at some moment of the clock."""
        ended = self.clock()
        # The first time loads libraries and reads everything: it says nothing about the next.
        rest_seconds = (ended - began) * (1 / self.share - 1) if self._has_worked else 0.0
        self._has_worked = True
        self._due_at = ended + max(self.shortest_seconds, rest_seconds)


class Renewed(Generic[Value]):
    """A value that is made by a thread, one at a time, when somebody asks and it is due.

    Who asks gets the latest value without waiting long for the next; only the first of all is waited for.

    Args:
        make: from the value before (None at first) to the next.
        pace: says when the next is due.
        patience_seconds: for which somebody who has a value to go on with waits for a newer one.
        value: to begin with, where there is one.
    """

    def __init__(
        self, make: Callable[[Value | None], Value], pace: Pace, patience_seconds: float, value: Value | None = None
    ) -> None:
        self._make = make
        self._pace = pace
        self._patience_seconds = patience_seconds
        self._value = value
        self._error: Exception | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def get(self) -> Value:
        """Return the latest value.

        Raises:
            Exception: what making it raised last, until making it works again.
        """
        with self._lock:
            if self._thread is None and self._pace.is_due:
                self._thread = threading.Thread(target=self._renew, name="renewal", daemon=True)
                self._thread.start()
            thread = self._thread
        if thread is not None:
            thread.join(None if self._value is None else self._patience_seconds)
        if self._error is not None:
            raise self._error
        assert self._value is not None  # the first was waited for
        return self._value

    def _renew(self) -> None:
        began = self._pace.clock()
        try:
            self._value, self._error = self._make(self._value), None
        except Exception as error:
            self._error = error
        with self._lock:
            self._pace.rest(began)
            self._thread = None
