"""Whether this process stood still: suspended (Ctrl-Z, a batch system's SIGSTOP) or frozen with its container.

No counter of the system tells, and the clock goes on. A thread that sleeps wakes up too late, and nothing was computed
meanwhile; a thread that is kept waiting by our own computing wakes up late as well, and that is no standstill.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

BEAT_SECONDS = 0.25
LEAST_SECONDS = 1.0  # without a beat, and without computing, that are a standstill


class Pulse:
    """Counts the seconds for which this process stood still; it beats for as long as the process lives.

    Args:
        clock: seconds, monotonic, as training is timed.
        own_seconds: CPU time of all threads of this process.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, own_seconds: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._own_seconds = clock, own_seconds
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._last: tuple[float, float] | None = None
        self._still_seconds = 0.0

    def start(self) -> None:
        """Begin to beat, where that has not begun (or the thread stayed behind in a parent that forked)."""
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)
            self._thread.start()

    def beat(self) -> float:
        """Return for how many seconds the process has stood still so far."""
        with self._lock:
            now = self._clock(), self._own_seconds()
            if self._last is not None:
                still_seconds = now[0] - self._last[0] - (now[1] - self._last[1])
                if still_seconds >= LEAST_SECONDS:
                    self._still_seconds += still_seconds
            self._last = now
            return self._still_seconds

    def _run(self) -> None:
        while True:
            self.beat()
            time.sleep(BEAT_SECONDS)


PULSE = Pulse()  # one for the process
