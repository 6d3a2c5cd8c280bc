"""Every error that BudgetTune raises on purpose.

BudgetTuneError                 say what is wrong and what to do next, in one line
├── UsageError                  a call or a command line that cannot work
├── SpecError                   a study file or an override that cannot work
├── DataError                   an image set that is missing, damaged or of the wrong shape
├── StorageError                a database that cannot be reached or is not ours
│   ├── StorageBusy             a database that cannot serve just now: no connection left, starting, locked by others
│   ├── StorageAway             a server that does not answer, or is shutting down
│   ├── StorageReadOnly         an SQLite file that this user may only read: asking again does not help
│   ├── SpecUnreadable          a study that another version wrote
│   ├── StudyNotFound
│   └── StudyExists
├── NothingWithinBudget         no finished trial trains within the budget
├── NothingFits                 not even one epoch of anything is likely to train within the budget
├── NothingTrained              every trial that a worker tried failed
├── NothingToDraw               a study does not hold what a figure shows
└── TrialFailed                 one trial cannot go on; carries the kind of failure that its row keeps
    ├── OutOfMemory
    ├── NonFiniteLoss
    ├── TrialTimeout
    ├── NotSearched             a trial that somebody queued asks for what its study does not search
    ├── BudgetUsedUp            a time budget is over before training began
    ├── DeviceLost              a GPU that answers this process no more
    ├── TrialMisused            own training code that uses its `Trial` as it cannot be used
    ├── ProgramFailed           a program of the study's own that ended with an error, or was killed
    ├── ProcessLost             another process that trains the same trial has ended, or gives no answer
    └── Interrupted             told to stop; its cell is handed back and no attempt is used up

StopRequested                   is no error: a KeyboardInterrupt, which nothing swallows that swallows errors
"""

from __future__ import annotations

from budgettune.text import format_duration, one_line, redact, shortened


class BudgetTuneError(Exception):
    """Base of all errors that a user can do something about.

    As text it is one line without control characters, without passwords and of bounded length: names and values in it
    may come from anywhere.
    """

    def __str__(self) -> str:
        return shortened(one_line(redact(super().__str__())), longest=2_000)


class UsageError(BudgetTuneError):
    """A call or a command line that cannot work."""


class SpecError(BudgetTuneError):
    """A study file or an override that cannot work; the message names the key, the value and what is allowed."""


class DataError(BudgetTuneError):
    """An image set that is missing, damaged or of the wrong shape; the message names the file and the fix."""


class StorageError(BudgetTuneError):
    """A database that cannot be reached, or whose tables are not those of this version of Optuna."""


class StorageBusy(StorageError):
    """A database that did nothing and may in a moment: it has no connection left, it starts, others hold its locks."""


class StorageAway(StorageError):
    """A server that does not answer, or is shutting down: it may be up in a moment, or its address may be wrong."""


class StorageReadOnly(StorageError):
    """An SQLite file that this user may read and not write: answers work, and asking again does not help."""


class StudyNotFound(StorageError):
    """There is no study of that name, or no single study to pick."""


class SpecUnreadable(StorageError):
    """A study whose file this budgettune cannot read: another version wrote it."""


class StudyExists(StorageError):
    """A study of that name is there already."""


class NothingWithinBudget(BudgetTuneError):
    """No finished trial trains within the budget; `fastest_seconds` is None where there is no finished trial at all."""

    def __init__(self, budget_seconds: float, fastest_seconds: float | None, left_out: int = 0) -> None:
        self.budget_seconds = budget_seconds
        self.fastest_seconds = fastest_seconds
        message = "the study has no finished trial yet: see `budgettune study show`, or run `budgettune worker` first"
        if left_out:
            message = (
                f"no finished trial is within the limits of the study, {left_out} are left out: "
                f"run more with `budgettune worker`, or make a study with higher limits"
            )
        if fastest_seconds is not None:
            message = (
                f"no finished trial trains within {format_duration(budget_seconds)}; "
                f"the fastest takes {format_duration(fastest_seconds)}: try a budget of at least that"
            )
        super().__init__(message)


class NothingFits(BudgetTuneError):
    """Not even one epoch of anything in the search space is likely to train within the budget."""

    def __init__(self, budget_seconds: float, confidence: float, fastest_seconds: float) -> None:
        super().__init__(
            f"nothing in the search space trains within {format_duration(budget_seconds)} with a probability of "
            f"{confidence:g}; the fastest needs {format_duration(fastest_seconds)}: try a budget of at least that"
        )


class NothingTrained(BudgetTuneError):
    """Every trial that a worker tried failed, or had failed before; the message names the command that says why."""


class NothingToDraw(BudgetTuneError):
    """A study does not hold what a figure shows; the message says what would bring it."""


class TrialFailed(BudgetTuneError):
    """One trial cannot go on."""

    failure_kind = "error"
    """A short word that the trial's row keeps."""


class OutOfMemory(TrialFailed):
    """The device has no room for this configuration."""

    failure_kind = "out-of-memory"


class NonFiniteLoss(TrialFailed):
    """The mean loss of an epoch is NaN or infinite: the configuration diverged."""

    failure_kind = "non-finite-loss"


class TrialTimeout(TrialFailed):
    """The trial took longer than a worker allows."""

    failure_kind = "timeout"


class NotSearched(TrialFailed):
    """A trial that somebody queued (`study.enqueue_trial` of Optuna) asks for what its study does not search."""

    failure_kind = "not-searched"


class BudgetUsedUp(TrialFailed):
    """What a pruning strategy does before training has taken the whole time budget."""

    failure_kind = "budget-used-up"


class DeviceLost(TrialFailed):
    """The GPU answers this process no more: what CUDA calls a sticky error fails every later call until it ends."""

    failure_kind = "device-lost"


class ProcessLost(TrialFailed):
    """One of the processes that train a trial together has ended, or gives no answer."""

    failure_kind = "process-lost"


class TrialMisused(TrialFailed):
    """Own training code uses its `Trial` as it cannot be used; the message says what to do instead."""

    failure_kind = "misuse"


class ProgramFailed(TrialFailed):
    """A program that `[train] command` names has ended with an error, or something else has killed it."""

    failure_kind = "program-failed"


class Interrupted(TrialFailed):
    """The trial was told to stop."""

    failure_kind = "interrupted"


class StopRequested(KeyboardInterrupt):
    """Somebody asked this process to stop, while it was in code that does not look whether somebody did."""
