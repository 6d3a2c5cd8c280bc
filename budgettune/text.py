"""Texts: durations as people write them ("90s", "10m", "1h30m"), and texts from elsewhere made safe for a terminal."""

from __future__ import annotations

import logging
import math
import os
import re
import reprlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 1e-3}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ms|[dhms])")
_EXAMPLES = 'write it like "45", "90s", "10m", "1h30m" or "1.5h"'


def parse_duration(text: str | float) -> float:
    """Return the seconds of a number, or of parts of a number and a unit (d, h, m, s, ms), largest unit first.

    Raises:
        ValueError: where it is neither, is not finite, or is not above zero.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise ValueError(f"is not a duration: {_EXAMPLES}")
    try:
        seconds = _parse(text.strip().lower()) if isinstance(text, str) else float(text)
    except OverflowError:
        seconds = math.inf
    if not (math.isfinite(seconds) and seconds > 0):
        raise ValueError(f"is not above zero and finite: {_EXAMPLES}")
    return seconds


def _parse(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass
    parts = _PART.findall(text)
    units = [_SECONDS[unit] for _, unit in parts]
    if not parts or _PART.sub("", text).strip() or units != sorted(set(units), reverse=True):
        raise ValueError(f"is not a duration: {_EXAMPLES}")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def format_duration(seconds: float) -> str:
    """Return seconds as a short text: "0.25s", "8.1s", "1m30s", "2h05m", "3d04h"."""
    if not math.isfinite(seconds):
        return str(seconds)
    if seconds < 0:
        return f"-{format_duration(-seconds)}"
    if seconds < 1:
        return f"{seconds:.2g}s"
    if seconds < 59.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 3_600:
        return f"{whole // 60}m{whole % 60:02d}s"
    minutes = round(seconds / 60)
    if minutes < 1_440:
        return f"{minutes // 60}h{minutes % 60:02d}m"
    hours = round(seconds / 3_600)
    return f"{hours // 24}d{hours % 24:02d}h"


# C0 and C1 controls; line separators and what turns the direction of writing; halves of a character, which no
# encoding can write. Joiners stay: emoji are made with them.
_OBEYED = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_OBEYED_IN_A_LINE = re.compile(f"(?!\n){_OBEYED.pattern}")


def one_line(text: str) -> str:
    """Return a text with everything that a terminal obeys instead of showing, line breaks too, as escapes."""
    return _OBEYED.sub(_escaped, text)


def printable(text: str) -> str:
    """Return the same with its line breaks kept."""
    return _OBEYED_IN_A_LINE.sub(_escaped, text)


def csv_safe(value: Any) -> Any:
    """Return a value for CSV, which a terminal may show and which must be encodable: texts as `printable`."""
    return printable(value) if isinstance(value, str) else value


def variable(name: str) -> str | None:
    """Return an environment variable, without the carriage return that an env file of Windows leaves; None if empty."""
    return os.environ.get(name, "").rstrip("\r\n") or None


# The length of a scheme is bounded, because a search over a long text without one would take quadratic time.
_URL_PASSWORD = re.compile(r"((?<![\w+.-])[A-Za-z][\w+.-]{0,40}://[^\s:/?]*:)(?!PASSWORD@HOST)\S*@")
_NAMED_PASSWORD = re.compile(r"""(?i)\b(\w*(?:password|passwd|passphrase|pwd)\s*=\s*)(?:'[^']*'|"[^"]*"|[^\s&;'"]+)""")


def redact(text: str) -> str:
    """Return a text without the passwords of the database URLs and connection strings in it."""
    return _NAMED_PASSWORD.sub(r"\1***", _URL_PASSWORD.sub(r"\1***@", text))


def message_of(error: BaseException) -> str:
    """Return an error's text on one line, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return shortened(next(filter(None, lines), type(error).__name__))


def shortened(text: str, longest: int = 80) -> str:
    """Return a text, or its beginning and its end with an ellipsis between where it is longer."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return for each dotted name its last part, or all of it where two end alike."""
    last = {name: name.rpartition(".")[2] for name in names}
    counts = Counter(last.values())
    return {name: short if counts[short] == 1 else name for name, short in last.items()}


def listing(names: Sequence[str], most: int = 5) -> str:
    """Return the first names of a list, and an ellipsis where there are more."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")


@lru_cache(maxsize=1_024)
def warn_once(logger: logging.Logger, text: str) -> None:
    """Log a warning that the process has not logged yet, on one line."""
    logger.warning("%s", one_line(text))


class _AsWritten(reprlib.Repr):
    """Values as a study file spells them, and only so deep and long."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 60

    def repr_bool(self, value: bool, level: int) -> str:
        return str(value).lower()

    def repr_tuple(self, value: tuple[Any, ...], level: int) -> str:
        return self.repr_list(list(value), level)

    def repr_date(self, value: Any, level: int) -> str:
        return str(value.isoformat())

    repr_datetime = repr_time = repr_date


_repr = _AsWritten()


def as_written(value: Any) -> str:
    """Return a value as a study file spells it, cut short."""
    return shortened(_repr.repr(value), 60)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
