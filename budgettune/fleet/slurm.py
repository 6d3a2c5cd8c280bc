"""A fleet on Slurm: an array of jobs that begin again when their time limit is near."""

from __future__ import annotations

from budgettune.errors import UsageError
from budgettune.fleet.plan import FleetPlan


def script(plan: FleetPlan) -> str:
    """Return the job script of a fleet, for `sbatch`; no password is in it."""
    raise UsageError("--on slurm is not there yet")


def submit(plan: FleetPlan) -> str:
    """Give the fleet to Slurm, and return in a line which job it is."""
    raise UsageError("--on slurm is not there yet")
