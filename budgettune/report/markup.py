"""HTML from values that may hold anything: every text is escaped, data stands in blocks that no browser runs."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def text(value: Any) -> str:
    """Return a value as text of a page or of a quoted attribute."""
    return html.escape(str(value))


def prose(value: Any) -> str:
    """Return a sentence as text of a page, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a table that scrolls sideways where it is wider than the page; absent cells are dashes."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th scope="col">{text(column)}</th>' for column in columns)
    cells = (_cells(row.get(column, "-") for column in columns) for row in rows)
    body = "".join(f"<tr>{each}</tr>" for each in cells)
    rows_html = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="group" aria-label="table">{rows_html}</div>'


def _cells(values: Iterable[Any]) -> str:
    return "".join(f"<td>{text(value)}</td>" for value in values)


def data_block(key: str, json_text: str) -> str:
    """Return JSON in an element that scripts read and browsers do not run; nothing in it can end the element."""
    inert = json_text.replace("<", r"\u003c")
    return f'<script type="application/json" id="{key}">{inert}</script>'


def compact_json(value: Any) -> str:
    """Return a value as JSON without spaces."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def content_policy(scripts: Sequence[str]) -> str:
    """Return a Content-Security-Policy: no network at all, and no script but these."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    # plotly.js puts style elements into the page, and hands pictures of a figure over as data.
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
