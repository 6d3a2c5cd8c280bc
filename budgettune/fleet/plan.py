"""What a fleet is asked for, whatever the engine: how many workers, what each gets, and the words that start one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from budgettune.errors import UsageError
from budgettune.spec.trust import Trust
from budgettune.storage.url import parse_url
from budgettune.study.handle import StudyHandle, load_study


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
    def each(self) -> str:
        """What each worker is to get, in words."""
        return in_words(self.cpus, self.gpus)

    @property
    def minutes(self) -> int | None:
        """The time limit in whole minutes, which is what Slurm counts in."""
        return None if self.time_seconds is None else max(1, math.ceil(self.time_seconds / 60))


def in_words(cpus: float, gpus: float) -> str:
    """Return numbers of CPUs and GPUs as a person writes them."""
    counts = ((cpus, "CPU"), (gpus, "GPU"))
    return " and ".join(f"{count:g} {name}{'' if count == 1 else 's'}" for count, name in counts if count)


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


def nothing_to_do(plan: FleetPlan, trust: Trust, given: Mapping[str, Any]) -> str | None:
    """Return in a sentence why no worker is needed; None where some are.

    Args:
        plan: what is asked for.
        trust: what its workers let a study name.
        given: the parameters of `budgettune worker` that the plan's words stand for.

    Raises:
        StorageError: where the database does not answer, or does not hold the study.
        UsageError: where every worker would refuse the study.
    """
    with load_study(plan.url, plan.study) as study:
        if not study.is_finished():
            try:
                trust.check_study(study.spec)
                _check_room(plan, study, given)
                _check_kind(plan, study, given)
            except UsageError as error:
                raise UsageError(
                    f"no worker of this fleet could train: {error} (their own options follow --)"
                ) from None
            return None
        retry = ", or again what failed: `budgettune study retry`" if study.verify().given_up else ""
        return f"study {plan.study!r} has nothing left to train. Next: budgettune front{retry}"


def _check_room(plan: FleetPlan, study: StudyHandle, given: Mapping[str, Any]) -> None:
    """Refuse trials that take more GPUs than a worker has for one."""
    each = given["gpus_per_trial"] or 1
    count = study.spec.train.processes or each
    if plan.gpus and given["device"] != "cpu" and count > min(each, plan.gpus):
        raise UsageError(f"a trial takes {count} GPUs: ask for --gpus {count} -- --gpus-per-trial {count}")


def _check_kind(plan: FleetPlan, study: StudyHandle, given: Mapping[str, Any]) -> None:
    """Refuse CPUs where a study has times of GPUs, GPUs where it has those of CPUs, and another number of threads."""
    key, threads = study.machine_key(), given["threads"]
    of_several = study.spec.train.processes or given["gpus_per_trial"]  # which share the threads
    if key is None or given["allow_mixed"] or of_several:
        return
    on_cpus = re.search(r" x(\d+)$", key)
    if given["device"] == "cpu":
        own = f"a CPU with {threads} thread{'s' if threads != 1 else ''}" if threads else "a CPU"
        fits = on_cpus is not None and threads in (None, int(on_cpus[1]))
    else:
        own, fits = "a GPU", on_cpus is None
    if not fits:
        raise UsageError(
            f"study {plan.study!r} takes its times on {key}, and each would have {own}: ask for what it takes them on "
            f"(--gpus, --cpus), or mix them knowingly with --allow-mixed"
        )
