"""Requests to stop a process: politely first, then at once; by signals, or by the process that started it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from budgettune.errors import StopRequested

HANG_UP: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has neither this nor the next
SIGNALS = (signal.SIGINT, signal.SIGTERM, *([] if HANG_UP is None else [HANG_UP]))
DRAIN_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)
DRAIN_ORDER = b"drain"
# Set by a fleet for its children: orders come on standard input, and its end means that the fleet is gone.
ORDERS_VARIABLE = "BUDGETTUNE_ORDERS_ON_STDIN"
ORPHAN_SECONDS = 30.0  # that an orphan may take to hand its trial back
FINALIZER_SECONDS = 0.01  # after which one is likely to be over
AGAIN_SECONDS = 0.5  # sooner, two signals are one request: `timeout` signals a process, and then its group


def listen(handler: Callable[[int, FrameType | None], object], *more: signal.Signals) -> dict[int, Any]:
    """Have a function called for every signal that asks to stop, and more; return the handlers before.

    Under `nohup` a terminal that closes stops nobody: a SIGHUP that is ignored stays so.
    """
    heard = [number for number in SIGNALS if number != HANG_UP or signal.getsignal(number) is not signal.SIG_IGN]
    numbers = (*heard, *more)
    _installed.update(dict.fromkeys(numbers, handler))
    return {number: signal.signal(number, handler) for number in numbers}


_installed: dict[int, Any] = {}


def _forget_in_child() -> None:
    """In a forked process, such as those of a pool that reads images: stop where the parent says so, and only there."""
    if _installed:
        signal.set_wakeup_fd(-1)  # the parent's
    for number, handler in _installed.items():
        if signal.getsignal(number) == handler:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class StopFlag:
    """Set by the first SIGINT, SIGTERM or SIGHUP, or by `request`; a second one ends the process at once.

    A closing terminal sends several SIGHUP, which count as one. SIGUSR1 asks for the same, but lets the running trial
    finish. Used as a context manager the flag listens to signals
    (in the main thread only, where Python allows it) and puts the old handlers back afterwards.

    Args:
        drains: the first signal, too, lets the running trial finish.

    Attributes:
        signal_number: of the first signal to stop, None where there was none.
        has_parent: whether a fleet started this process, once `obey_parent` has looked.
        before_exit: called, from a thread, when a second signal ends the process.
    """

    def __init__(self, *, drains: bool = False) -> None:
        self.signal_number: int | None = None
        self.has_parent = False
        self.before_exit: Callable[[], object] = lambda: None
        self._drains = drains
        self._no_more = threading.Event()
        self._at_once = threading.Event()
        self._previous: dict[int, Any] = {}
        self._interrupts = False

    @property
    def is_set(self) -> bool:
        """Whether somebody asked to stop: no further trial begins."""
        return self._no_more.is_set()

    @property
    def cuts_short(self) -> bool:
        """Whether the running trial ends at its next step."""
        return self._at_once.is_set()

    def request(self) -> None:
        """Ask to stop at the next step."""
        self._at_once.set()
        self._no_more.set()
        if threading.current_thread() is not threading.main_thread():
            self._wake()

    def _wake(self) -> None:
        """From another thread, have the main one look whether it is to be interrupted."""
        if self._interrupts and DRAIN_SIGNAL is not None:
            # Asks for less than what is set: it only wakes.
            signal.pthread_kill(threading.main_thread().ident or 0, DRAIN_SIGNAL)

    def drain(self) -> None:
        """Ask to stop when the running trial is finished."""
        self._no_more.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep until somebody asks to stop, but no longer than so many seconds; return whether somebody did."""
        return self._no_more.wait(seconds)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a request to stop at the next step raises StopRequested, once, whatever the process is doing.

        For work that may take long without asking: reading images, a download, compilation, code of a study. It needs
        the signals that the flag listens to; in another thread than the main one nothing is raised.
        """
        self._interrupts = bool(self._previous)
        try:
            self._interrupt()
            yield
        finally:
            self._interrupts = False

    def _interrupt(self) -> None:
        if self._interrupts and self.cuts_short:
            self._interrupts = False  # what is cleaned up on the way out is left in peace
            raise StopRequested

    def _interrupt_again(self, unraisable: Any) -> None:
        """Raise a moment later what was raised in a finalizer or a weak reference's callback, where Python drops it.

        A signal's handler runs wherever the main thread is, and collecting a large program's garbage takes a while.
        """
        if not issubclass(unraisable.exc_type, StopRequested):
            self._previous_hook(unraisable)
            return
        self._interrupts = True
        threading.Timer(FINALIZER_SECONDS, self._wake).start()

    def obey_parent(self) -> None:
        """Take orders from the fleet that started this process, where one did."""
        self.has_parent = bool(os.environ.pop(ORDERS_VARIABLE, None))  # what this process starts has other parents
        if self.has_parent:
            threading.Thread(target=self._read_orders, args=(0,), name="orders", daemon=True).start()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = listen(self._on_signal, *([] if DRAIN_SIGNAL is None else [DRAIN_SIGNAL]))
            read, self._written_to = os.pipe()
            os.set_blocking(self._written_to, False)
            self._previous_descriptor = signal.set_wakeup_fd(self._written_to, warn_on_full_buffer=False)
            self._previous_hook, sys.unraisablehook = sys.unraisablehook, self._interrupt_again
            threading.Thread(target=self._insist, args=(read,), name="second-signal", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous:
            sys.unraisablehook = self._previous_hook
            signal.set_wakeup_fd(self._previous_descriptor)
            os.close(self._written_to)  # which ends the thread
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _insist(self, descriptor: int) -> None:
        """End the process at a second signal: a handler would wait for a call that waits for a locked database."""
        first_at: float | None = None
        while numbers := os.read(descriptor, 64):
            for number in numbers:
                if number not in SIGNALS:
                    continue
                if first_at is None:
                    first_at = time.monotonic()
                elif number != HANG_UP and time.monotonic() - first_at >= AGAIN_SECONDS:
                    self.before_exit()
                    os._exit(128 + number)  # the lease expires by itself, and another worker takes the cell
        os.close(descriptor)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if number == DRAIN_SIGNAL:
            self.drain()
        else:
            self._stop_for(number)
        self._interrupt()

    def _stop_for(self, number: int) -> None:
        if self.signal_number is None:
            self.signal_number = number
        if self._drains:
            self.drain()
        else:
            self.request()

    def _read_orders(self, descriptor: int) -> None:
        # Not through sys.stdin: a thread that waits in its buffer makes the interpreter abort when it ends.
        while orders := os.read(descriptor, 4096):
            for order in orders.split():
                if order == DRAIN_ORDER:
                    self.drain()
                else:
                    # Never at once, as a second signal ends the process: a service manager may signal parent and
                    # children alike, and the parent's order must not count as a second signal.
                    self._stop_for(int(order))
        self.request()
        time.sleep(ORPHAN_SECONDS)
        os._exit(1)
