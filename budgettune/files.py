"""Files: named as people write paths, read as editors leave them, written in whole or not at all."""

from __future__ import annotations

import codecs
import errno
import io
import os
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from budgettune.errors import UsageError

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def user_path(text: str, key: str) -> Path:
    """Return a path in which `~` stands for a home folder; `key` is the setting that names it, for the message.

    Raises:
        UsageError: where that user has no home here, as in many containers, or file names here lack its characters.
    """
    try:
        path = Path(text).expanduser()
        os.fsencode(path)
    except UnicodeEncodeError:
        known = sys.getfilesystemencoding()
        raise UsageError(f"{key}: {text}: file names are {known} on this box: set LC_ALL=C.UTF-8") from None
    except RuntimeError:
        raise UsageError(f"{key}: {text}: no such home folder on this box: write the whole path, or set HOME") from None
    return path


def read_text(path: Path) -> str:
    r"""Return a text file as editors of any system write it, each line ended by \n.

    UTF-8, also with the byte order mark of Windows, or UTF-16 with its mark, as a redirection of PowerShell writes it.
    Files that were put together have marks at the beginnings of lines.

    Raises:
        OSError: where it cannot be read, or is something else; `strerror` has the reason.
    """
    try:
        content = path.read_bytes()
    except ValueError:
        raise OSError(errno.EINVAL, "a file's name cannot hold a NUL") from None
    try:
        text = content.decode("utf-16" if content.startswith(UTF16_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise OSError(errno.EILSEQ, f"line {line} is not UTF-8 text: save the file as UTF-8") from None
    return io.StringIO(text, newline=None).read().replace("\n\ufeff", "\n")


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
