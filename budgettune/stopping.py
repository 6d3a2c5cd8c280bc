"""How a process is told to stop: first politely, then at once."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopFlag:
    """Set by the first SIGINT or SIGTERM, or by `request`; a second signal ends the process at once.

    Used as a context manager it listens to signals (in the main thread only, where Python allows it) and puts the old
    handlers back afterwards.

    Attributes:
        signal_number: of the signal that asked to stop, None where none did.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._event = threading.Event()
        self._previous: dict[int, Any] = {}

    @property
    def is_set(self) -> bool:
        """Whether somebody asked to stop."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask to stop."""
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but no longer than until somebody asks to stop; return whether somebody did."""
        return self._event.wait(seconds)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._on_signal) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if self.is_set:
            os._exit(128 + number)  # the lease expires by itself, and another worker takes the cell
        self.signal_number = number
        self._event.set()
