"""What a fleet is asked for, whatever the engine: how many workers, what each gets, and the words that start one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from budgettune.errors import UsageError
from budgettune.storage.url import parse_url
from budgettune.study.handle import load_study


@dataclass(frozen=True, kw_only=True)
class FleetPlan:
    """Workers of one study, as an engine is asked for them.

    Attributes:
        study: its name.
        url: of the database, maybe with its password: it is for no command line, log or job description.
        workers: how many; each is a `budgettune worker` in a job of its own.
        gpus: of each worker, all on one box; 0 for CPUs alone.
        cpus: of each worker, which are its threads where it has no GPU.
        time_seconds: that each may take; None for no limit.
        worker_words: further options of `budgettune worker`, as on its command line.
    """

    study: str
    url: str
    workers: int
    gpus: int = 0
    cpus: int = 1
    time_seconds: float | None = None
    worker_words: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """Return the words behind `budgettune worker`, but for the study and the time that is left."""
        threads = [] if self.gpus else ["--device", "cpu", "--threads", str(self.cpus), "--processes", "1"]
        return ["--leave", *threads, *self.worker_words]

    @property
    def minutes(self) -> int | None:
        """The time limit in whole minutes, which is what Slurm counts in."""
        return None if self.time_seconds is None else max(1, math.ceil(self.time_seconds / 60))


def require_server(url: str) -> None:
    """Refuse an SQLite file, whose locks do not work on what several boxes share.

    Raises:
        UsageError: where the database is no server.
    """
    if parse_url(url).get_backend_name() == "sqlite":
        raise UsageError(
            "a fleet's workers run on several boxes, and SQLite is for one: use PostgreSQL (--storage "
            "postgresql://USER@HOST/DATABASE), or `budgettune worker --processes N` on this box"
        )


def nothing_to_do(plan: FleetPlan) -> str | None:
    """Return in a sentence why no worker is needed; None where some are.

    Raises:
        StorageError: where the database does not answer, or does not hold the study.
    """
    with load_study(plan.url, plan.study) as study:
        if not study.is_finished():
            return None
        retry = ", or again what failed: `budgettune study retry`" if study.verify().given_up else ""
        return f"study {plan.study!r} has nothing left to train. Next: budgettune front{retry}"
