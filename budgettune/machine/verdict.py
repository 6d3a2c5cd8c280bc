"""Whether a time can be believed: the verdict that all observers give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

HARM_LIMIT = 0.05
"""Share of the cores, or of the time, that may be lost: the spread that repeated clean trials are held to."""

Status = Literal["clean", "disturbed", "unverified"]
STATUSES: tuple[Status, ...] = ("disturbed", "unverified", "clean")
"""The worst first."""


@dataclass(frozen=True, kw_only=True)
class ClockVerdict:
    """Whether a time can be believed, and why.

    Attributes:
        status: `clean` only on evidence; `disturbed` with at least one reason; else `unverified`, with what is missing.
        evidence: plain finite numbers by name.
    """

    status: Status
    evidence: Mapping[str, float]
    reasons: tuple[str, ...] = ()


def verdict_on(evidence: Mapping[str, float], harm: Sequence[str], gaps: Sequence[str]) -> ClockVerdict:
    status: Status = "disturbed" if harm else "unverified" if gaps else "clean"
    return ClockVerdict(status=status, evidence=evidence, reasons=tuple(harm or gaps))


def combine(verdicts: Sequence[ClockVerdict]) -> ClockVerdict:
    """Return one verdict on several: disturbed if one is, else unverified if one is (or there is none), else clean."""
    return ClockVerdict(
        status=worst(*(verdict.status for verdict in verdicts)) if verdicts else "unverified",
        evidence={name: value for verdict in verdicts for name, value in verdict.evidence.items()},
        reasons=tuple(reason for verdict in verdicts for reason in verdict.reasons),
    )


def worst(*statuses: str) -> Status:
    """Return what is true of a whole whose parts have these statuses, at least one."""
    return next((status for status in STATUSES if status in statuses), "unverified")
