"""Files that torchvision fetches: one process at a time, without a word on standard output, and never for ever."""

from __future__ import annotations

import contextlib
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock

DEFAULT_ROOT = "data"
_PATIENCE_SECONDS = 30.0


@contextlib.contextmanager
def downloading(root: Path) -> Iterator[None]:
    """Make the folder and hold its lock, so that workers which start together do not write the same file.

    Raises:
        OSError: where the folder cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    patience = socket.getdefaulttimeout()
    with FileLock(root / ".budgettune-download.lock"), quiet():
        socket.setdefaulttimeout(_PATIENCE_SECONDS)  # torchvision sets none and would wait for a dead mirror
        try:
            yield
        finally:
            socket.setdefaulttimeout(patience)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress off standard output, which belongs to data, and the loaders' warnings off the terminal."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def one_line(error: BaseException) -> str:
    """Return an error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
