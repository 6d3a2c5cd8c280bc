"""Long work of a server beside it: in a process of its own, so that visitors of other pages do not wait for it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from budgettune.web.reply import Busy

NICENESS = 5
"""Training on the same box comes first, and who waits for an answer gets one all the same."""
IDLE_SECONDS = 300.0
"""After which the process ends, and gives its memory back."""
TRIES = 2  # it may end of idleness, or of want of memory, just when it is asked

Result = TypeVar("Result")


class Aside:
    """Calls functions in a process of its own, one at a time; it is started when it is first needed.

    What is called, and what it takes and returns, must be picklable; it should raise nothing.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._turn = threading.Lock()
        self._begun: tuple[BaseProcess, Connection] | None = None

    def __call__(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function returns there.

        Raises:
            Busy: where the process was ended by something else, as by a want of memory.
        """
        with self._turn:
            for _ in range(TRIES):
                process, pipe = self._begun = self._begun or self._start()
                try:
                    pipe.send((function, arguments))
                    result: Result = pipe.recv()
                    return result
                except (EOFError, OSError):
                    self._begun = None
                    pipe.close()
                    process.terminate()
                    process.join()
                if not threading.main_thread().is_alive():
                    break  # the server ends, and has ended this process: another would outlive it
        raise Busy("what was asked for came to no end: something ended the process that worked on it")

    def _start(self) -> tuple[BaseProcess, Connection]:
        spawn = multiprocessing.get_context("spawn")
        pipe, theirs = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(theirs,), name=self._name, daemon=True)
        process.start()
        theirs.close()
        return process, pipe


def _serve(pipe: Connection) -> None:
    """Answer calls until the other side is gone, or silent for long."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A terminal's Ctrl-C reaches this process too; who started it ends it.
        signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    with suppress(AttributeError, OSError):
        os.nice(NICENESS)
    with suppress(EOFError, OSError):
        while pipe.poll(IDLE_SECONDS):
            function, arguments = pipe.recv()
            pipe.send(function(*arguments))
