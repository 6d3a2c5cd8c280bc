"""The one clock that training time goes through."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class _Phase:
    """One stretch of time; a class and not a generator, because it is entered three times in every step."""

    __slots__ = ("_began", "_name", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch = watch
        self._name = name

    def __enter__(self) -> None:
        self._began = self._watch.clock()

    def __exit__(self, *_: object) -> None:
        self._watch.seconds[self._name] += self._watch.clock() - self._began


class Stopwatch:
    """Counts seconds that are on the clock, and where they and all others went.

    `running` opens a segment of training time and waits for the device at both of its borders, so that no queued work
    is lost or charged to the wrong side. `phase` names a stretch inside or outside a segment and never waits: on an
    asynchronous device a phase inside is host time, and what was still queued when the segment closes is charged to
    the phase `step`.
    """

    def __init__(self, clock: Callable[[], float], synchronize: Callable[[], None]) -> None:
        self.clock = clock  # seconds, monotonic
        self.synchronize = synchronize  # returns when the device has nothing left to do
        self.seconds: dict[str, float] = defaultdict(float)
        self._counted = 0.0
        self._opened: float | None = None

    def elapsed(self) -> float:
        """Return the seconds on the clock so far, an open segment included."""
        return self._counted + (self.clock() - self._opened if self._opened is not None else 0.0)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside as training time."""
        self.synchronize()
        self._opened = self.clock()
        try:
            yield
            with self.phase("step"):
                self.synchronize()
        finally:
            self._counted, self._opened = self.elapsed(), None

    def phase(self, name: str) -> _Phase:
        return _Phase(self, name)

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Charge work that is off the clock to a phase, waiting for the device at both borders."""
        self.synchronize()
        with self.phase(name):
            yield
            self.synchronize()
