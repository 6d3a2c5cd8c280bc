"""Texts from elsewhere (a name, an override, a database), safe to show on a terminal."""

from __future__ import annotations

import re
from typing import Any

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


def plain(value: Any) -> Any:
    """Return a value for CSV, which a terminal may show and which must be encodable: texts as `printable`."""
    return printable(value) if isinstance(value, str) else value


def shortened(text: str, longest: int = 80) -> str:
    """Return a text, or its beginning and its end with an ellipsis between where it is longer."""
    if len(text) <= longest:
        return text
    end = longest // 3
    return f"{text[: longest - end - 1]}…{text[-end:]}"


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()
