"""A fleet on Ray: a task per worker, placed and started again by Ray."""

from __future__ import annotations

from collections.abc import Callable

from budgettune.errors import UsageError
from budgettune.fleet.plan import FleetPlan
from budgettune.worker.signals import StopFlag


def run(plan: FleetPlan, address: str | None, stop: StopFlag, *, say: Callable[[str], object]) -> int:
    """Run a fleet until nothing is left, and return the exit status of the whole."""
    raise UsageError("--on ray is not there yet")
