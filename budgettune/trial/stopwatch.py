"""The one clock that training time goes through, and training again where it was disturbed."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from budgettune.records import TrialResult
from budgettune.spec.study_spec import StudySpec
from budgettune.trial.checkpoint import NOWHERE, Checkpoint

MOST_MARKS = 512  # that wait for a device; older ones have been passed, and are read


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


class _DevicePhase:
    """One stretch of the work of a device that works by itself: from one of its events to another."""

    __slots__ = ("_began", "_name", "_watch")

    def __init__(self, watch: Stopwatch, name: str) -> None:
        self._watch = watch
        self._name = name

    def __enter__(self) -> None:
        self._began = self._watch.mark()

    def __exit__(self, *_: object) -> None:
        self._watch.marked(self._name, self._began, self._watch.mark())


class Stopwatch:
    """Counts seconds that are on the clock, and where they and all others went.

    `running` opens a segment of training time and waits for the device at both of its borders, so that no queued work
    is lost or charged to the wrong side. `phase` names a stretch inside or outside a segment and never waits. On a
    device that works by itself a phase inside a segment is the device's time between two of its events: launching is
    not working, and a host that waits for a batch it chooses among waits for the step before. What was still queued
    when the segment closes on any other device is charged to the phase `step`.

    Args:
        clock: seconds, monotonic.
        synchronize: returns when the device has nothing left to do.
        mark: returns an event of the device, which `query` says was passed and whose `elapsed_time` gives
            milliseconds to another; None where the host's clock sees the work.
    """

    def __init__(
        self, clock: Callable[[], float], synchronize: Callable[[], None], mark: Callable[[], Any] | None = None
    ) -> None:
        self.clock = clock
        self.synchronize = synchronize
        self.seconds: dict[str, float] = defaultdict(float)
        self._mark = mark
        self._marks: deque[tuple[str, Any, Any]] = deque()
        self._counted = 0.0
        self._opened: float | None = None

    def elapsed(self) -> float:
        """Return the seconds on the clock so far, an open segment included."""
        return self._counted + (self.clock() - self._opened if self._opened is not None else 0.0)

    def go_on(self, elapsed_seconds: float, seconds: Mapping[str, float]) -> None:
        """Add what another process has counted of the same work: on the clock, and in each phase."""
        self._counted += elapsed_seconds
        for name, spent in seconds.items():
            self.seconds[name] += spent

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what happens inside as training time."""
        self.synchronize()
        self._opened = self.clock()
        try:
            yield
            with _Phase(self, "step") if self._mark is None else nullcontext():
                self.synchronize()
            self._read_marks()
        finally:
            self._marks.clear()
            self._counted, self._opened = self.elapsed(), None

    def phase(self, name: str) -> _Phase | _DevicePhase:
        return _Phase(self, name) if self._mark is None or self._opened is None else _DevicePhase(self, name)

    def mark(self) -> Any:
        return self._mark() if self._mark else None

    def marked(self, name: str, first: Any, last: Any) -> None:
        """Note that a phase lies between two events of the device, which need not have passed them yet."""
        self._marks.append((name, first, last))
        if len(self._marks) > MOST_MARKS:
            self._read_marks()

    def _read_marks(self) -> None:
        while self._marks and self._marks[0][2].query():
            name, first, last = self._marks.popleft()
            self.seconds[name] += first.elapsed_time(last) / 1e3

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Charge work that is off the clock to a phase, waiting for the device at both borders."""
        self.synchronize()
        with self.phase(name):
            yield
            self.synchronize()


def undisturbed(
    spec: StudySpec, train_once: Callable[[], TrialResult], checkpoint: Checkpoint = NOWHERE
) -> tuple[int, TrialResult]:
    """Train until nothing disturbs the clock, as often as `[clock]` allows; return the tries, and the last result.

    A repeated try begins at zero, whatever is kept of the one before.
    """
    most = 1 + (spec.clock.repeat_limit if spec.clock.on_disturbed == "repeat" else 0)
    tries, result = 1, train_once()
    while result.status == "disturbed" and tries < most:
        checkpoint.forget()
        tries, result = tries + 1, train_once()
    return tries, result
