"""Options, listener and summary of a worker, for those who load no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

from budgettune.errors import UsageError
from budgettune.records import Claim, EpochRecord, TrialResult

if TYPE_CHECKING:
    from budgettune.spec.study_spec import StudySpec
    from budgettune.study.handle import StudyHandle


def gpu_of(device: str) -> int | None:
    """Return which GPU a name asks for, None for the CPU, or for whatever is there.

    Raises:
        UsageError: where the name is none of auto, cpu, cuda and cuda:N.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if match is None:
        raise UsageError(f"device {device!r} is unknown: use auto, cpu, cuda or cuda:N")
    return int(match[1] or 0) if device.startswith("cuda") else None


@dataclass(frozen=True, kw_only=True)
class WorkerOptions:
    """How a worker runs.

    Attributes:
        device: auto, cpu, cuda or cuda:N.
        threads: of torch on the CPU, which the processes of a trial share out; None for `default_threads`.
        gpus_per_trial: processes that train a trial together, a GPU each; None for one, or what torchrun started.
        trials: end after that many; None for no limit.
        timeout_seconds: begin no trial after that, nor one that is predicted to outlast it and cannot be resumed; None
            for no limit.
        trial_timeout_seconds: end a trial that takes longer, as failed; None for no limit.
        wait: stay for studies and trials that come later.
        leave: end as soon as nothing is open, though others still train; one that is new stays for a lease first.
        allow_import: packages that code named by a study may come from.
        allow_command: words that a command named by a study may begin with, as for a shell: `python train.py`.
        allow_root: folders whose files a study may name; None for any where the database is a file of this box, and
            only what lies below the working folder where it is a server.
        allow_mixed: work on studies whose times come from another kind of machine.
        poll_seconds: between the first looks at the database while idle; later ones are further apart.
        heartbeat_seconds: between signs of life.
        lease_seconds: without a sign of life after which a trial counts as lost.
        patience_seconds: for which a database that answered before and stopped to, or is busy, is asked again.
        checkpoints: folder of half-trained trials, which other boxes may share; None for one of this user's alone.
        checkpoint_every_seconds: between savings of a trial, at the end of an epoch; None for no saving.
        hang_grace_seconds: beyond the trial's time after which a step that does not return ends the process.
    """

    device: str = "auto"
    threads: int | None = None
    gpus_per_trial: int | None = None
    trials: int | None = None
    timeout_seconds: float | None = None
    trial_timeout_seconds: float | None = None
    wait: bool = False
    leave: bool = False
    allow_import: frozenset[str] = frozenset()
    allow_command: frozenset[str] = frozenset()
    allow_root: frozenset[str] | None = None
    allow_mixed: bool = False
    poll_seconds: float = 2.0
    heartbeat_seconds: float = 10.0
    lease_seconds: float = 60.0
    patience_seconds: float = 600.0
    hang_grace_seconds: float = 30.0
    checkpoints: str | None = None
    checkpoint_every_seconds: float | None = 30.0

    def __post_init__(self) -> None:
        if self.wait and self.leave:
            raise UsageError("--wait stays where nothing is open, and --leave goes: give one of them")

    def words(self) -> list[str]:
        """Return the options of `budgettune worker` that ask for what differs from the defaults."""
        words = []
        for option in fields(self):
            name, value = "--" + option.name.removesuffix("_seconds").replace("_", "-"), getattr(self, option.name)
            if value is True:
                words.append(name)
            elif isinstance(value, frozenset):
                words += [word for each in sorted(value) for word in (name, each)]
            elif value != option.default:
                words += [name, "none" if value is None else str(value)]
        return words


@dataclass(frozen=True, kw_only=True)
class WorkerSummary:
    """What a worker did.

    Attributes:
        completed: trials whose results count.
        failed: trials that failed here.
        signal_number: of the signal that ended the worker, None where there was none.
        extras: results that were kept beside those that count.
        troubled: studies in which a trial failed here, or in which every trial had failed before.
        left_out: open studies whose times come from another kind of machine.
        follows: whether torchrun started this process to train with another one, which is the worker.
        note: why it ended although its studies are not finished, for people; empty where there is nothing to say.
        is_out_of_time: whether one that was to `leave` went with its time over, or too short for what is open.
    """

    completed: int
    failed: int
    signal_number: int | None
    extras: int = 0
    troubled: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    follows: bool = False
    note: str = ""
    is_out_of_time: bool = False

    @property
    def is_fruitless(self) -> bool:
        """Whether nothing was trained although there was work: all that was tried failed, or this box may not do it."""
        return bool(self.troubled or self.left_out) and not self.completed and not self.extras


class Ranks(NamedTuple):
    """Which of several processes this is, where torchrun started them."""

    rank: int
    size: int
    on_this_box: int  # number among those of the same box

    @classmethod
    def of_torchrun(cls, environment: Mapping[str, str] = os.environ) -> Ranks | None:
        """Return what the environment says; None where nobody started several processes."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not {*names, "MASTER_ADDR"} <= environment.keys() or environment["WORLD_SIZE"] == "1":
            return None
        return cls(*(int(environment[name]) for name in names))


class Listener:
    """Told what a worker does, for progress on a terminal; does nothing by itself."""

    def claimed(self, study: StudyHandle, claim: Claim) -> None:
        """Note that a trial begins."""

    def epoch(self, claim: Claim, spec: StudySpec, record: EpochRecord) -> None:
        """Note one more epoch."""

    def completed(self, study: StudyHandle, claim: Claim, result: TrialResult) -> None:
        """Note a finished trial."""

    def failed(self, claim: Claim, reason: str) -> None:
        """Note a failed or returned trial."""
