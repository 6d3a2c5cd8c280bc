"""Files that are there in whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from budgettune.errors import UsageError


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, survives_power_loss: bool = False) -> Iterator[BinaryIO]:
    """Yield a file to write; the name appears, or changes its contents, only once everything is in it.

    A pipe or a device is written as it is; a folder fails.

    Args:
        mode: permissions of the file, less those that the process masks.
        survives_power_loss: waits for the disk before the name appears.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as file:
            yield file
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            if survives_power_loss:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, all or nothing.

    Raises:
        UsageError: where it cannot be written.
    """
    try:
        with replacing(path) as file:
            file.write(text.encode())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror}): name another file") from None
