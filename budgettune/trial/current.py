"""The trial of this very program, as `Trial.current()` returns it: in a process that a worker started, or by hand."""

from __future__ import annotations

import json
import os
import pickle
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budgettune.errors import TrialMisused
from budgettune.records import EpochRecord
from budgettune.spec.objective import ObjectiveSpec
from budgettune.text import format_duration
from budgettune.trial.checkpoint import NOWHERE, Checkpoint, HalfTrained
from budgettune.trial.terms import Outside, Terms
from budgettune.trial.trial import Trial, _Epoch

FOLDER_VARIABLE = "BUDGETTUNE_TRIAL"
TERMS_FILE, SAY_PIPE, HEAR_PIPE = "trial.json", "say", "hear"
SAVED_FILE, RESTORED_FILE = "saved", "restored"
MOST_STEPS_TOLD = 256  # of a stretch on the clock, whose seconds are told: a line stays below a pipe's atomic 4 KiB

_current: list[Trial] = []


def current_trial(
    params: Mapping[str, Any], *, epochs: int | None = None, budget_seconds: float | None = None, seed: int = 0
) -> Trial:
    """Return the trial of this program; the arguments count where it was started by hand."""
    if not _current:
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder:
            line = Line(Path(folder)) if _rank() == 0 else None
            _current.append(ProgramTrial(read_terms(Path(folder)), line, _Sent(Path(folder), line)))
        else:
            if epochs is None and budget_seconds is None:
                epochs = 1
            terms = Terms(params=dict(params), seed=seed, epochs=epochs, budget_seconds=budget_seconds)
            _current.append(ProgramTrial(terms, Printed() if _rank() == 0 else None))
    return _current[0]


def write_terms(terms: Terms, folder: Path, **more: Any) -> None:
    """Write what a program is to train, and more that it may like to know."""
    document = {**vars(terms), "params": dict(terms.params), "objective": terms.objective.model_dump(), **more}
    (folder / TERMS_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def read_terms(folder: Path) -> Terms:
    """Return the terms that a worker has written.

    Raises:
        TrialMisused: where they are not there.
    """
    try:
        document = json.loads((folder / TERMS_FILE).read_text(encoding="utf-8"))
    except OSError:
        raise TrialMisused(
            f"{FOLDER_VARIABLE} names {folder}, and the worker that made it is gone: "
            f"unset the variable to run the program by hand"
        ) from None
    if document["device"].startswith("cuda"):
        document["device"] = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    known = {name: document[name] for name in Terms.__dataclass_fields__ if name in document}
    return Terms(**{**known, "objective": ObjectiveSpec(**document["objective"])})


def _rank() -> int:
    """Return which of several processes this is: torchrun and its like say so."""
    return int(os.environ.get("RANK", "0"))


class Line:
    """The two pipes between a program and its worker."""

    def __init__(self, folder: Path) -> None:
        self.may_save = False
        self._say = os.open(folder / SAY_PIPE, os.O_WRONLY)
        self._hear = os.open(folder / HEAR_PIPE, os.O_RDONLY)

    def say(self, **words: Any) -> None:
        left = memoryview(json.dumps(words, default=_plain).encode() + b"\n")
        while left:
            left = left[os.write(self._say, left) :]

    def report(self, words: Mapping[str, float]) -> bool:
        """Say what was measured; return whether training goes on."""
        self.say(report=words, at=time.monotonic())
        heard = b""
        while not heard.endswith(b"\n"):
            if not (part := os.read(self._hear, 4096)):
                raise TrialMisused("the worker that started this program is gone: another one will run the trial again")
            heard += part
        answer = json.loads(heard.splitlines()[-1])
        self.may_save = answer["save"]
        return bool(answer["go_on"])


class Printed:
    """In place of the pipes, where a program was started by hand."""

    _seconds = _began = 0.0  # on the clock, and when it started

    def say(self, **words: Any) -> None:
        if words.get("clock") == "start":
            self._began = words["at"]
        elif "clock" in words:
            self._seconds += words["at"] - self._began

    def report(self, words: Mapping[str, float]) -> bool:
        said = ", ".join(f"{name} {value:.6g}" for name, value in words.items())
        print(f"{format_duration(self._seconds)} on the clock: {said}", file=sys.stderr)  # noqa: T201
        return True


class _Sent(Checkpoint):
    """What a program saves, as a file that its worker takes over, and what an earlier one saved."""

    def __init__(self, folder: Path, line: Line | None) -> None:
        super().__init__(folder / SAVED_FILE)
        self._line, self._folder = line, folder

    def is_due(self) -> bool:
        return self._line is not None and self._line.may_save

    def save(self, half: HalfTrained) -> bool:
        if self._line is None:
            return False
        (self._folder / SAVED_FILE).write_bytes(pickle.dumps(half.state["state"]))
        self._line.say(save=SAVED_FILE, at=time.monotonic())
        self._line.may_save = False
        return True

    def load(self, *, bytes_only: bool = False) -> HalfTrained | None:
        done = json.loads((self._folder / TERMS_FILE).read_text(encoding="utf-8"))["done"]
        if not done:
            return None
        record = EpochRecord(epoch=done["epochs"] - 1, train_seconds=done["train_seconds"], steps=done["steps"])
        return HalfTrained(
            curve=(record,) * done["epochs"],
            elapsed_seconds=done["train_seconds"],
            # Written by this very function in a program before, and kept where nobody else may write.
            state={
                "state": pickle.loads((self._folder / RESTORED_FILE).read_bytes()),
                "asides": {},
                "facts": {},
            },
        )


def _plain(value: Any) -> Any:
    """Return a number of a library as Python's own."""
    return value.item() if hasattr(value, "item") else str(value)


class ProgramTrial(Trial):
    """A trial that tells a line what happens at the borders of its clock; no step is told by itself.

    Of several processes that torchrun started rank 0 speaks. All of them end at the same step: what one must know,
    rank 0 tells the others over torch.distributed.
    """

    def __init__(self, terms: Terms, line: Line | Printed | None, checkpoint: Checkpoint = NOWHERE) -> None:
        self._line = line
        self._world = int(os.environ.get("WORLD_SIZE", "1"))
        self._group: Any = None
        self._shared = (True, 0.0)  # whether there is time for another step, and the progress: rank 0's
        outside = Outside(on_epoch=self._tell_epoch, ends_early=self._tell_report)
        super().__init__(terms, outside, clock=time.monotonic, checkpoint=checkpoint)

    @contextmanager
    def clock(self) -> Iterator[None]:
        before, took, began = self._watch.elapsed(), len(self._step_seconds), None
        epoch = self._epoch or _Epoch(0)
        counts = epoch.steps, epoch.samples, epoch.loss_sum, epoch.losses
        try:
            with super().clock():
                began = self._clock()
                self._say(clock="start", at=began)
                yield
        finally:
            if began is not None and self._line is not None:  # also where an error ends the stretch
                losses, seconds = epoch.losses - counts[3], self._step_seconds[took:]
                self._say(
                    clock="stop",
                    at=began + self._watch.elapsed() - before,
                    steps=epoch.steps - counts[0] or None,
                    samples=epoch.samples - counts[1] if epoch.counted_samples else None,
                    loss=float(epoch.loss_sum - counts[2]) / losses if losses else None,
                    step_seconds=[round(each, 7) for each in seconds[:: 1 + len(seconds) // MOST_STEPS_TOLD]],
                )

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        with super().aside(name):
            self._say(aside=name, state="start", at=self._clock())
            yield
        self._say(aside=name, state="stop", at=self._clock())

    def describe(self, model: Any = None, **facts: Any) -> None:
        super().describe(model, **facts)
        self._say(describe=self._facts, at=self._clock())

    def epochs(self, steps: int | None = None) -> Iterator[int]:
        if self._world > 1:
            self._group = self._meeting()
        yield from super().epochs(steps)

    def step(self, samples: int | None = None, loss: Any = None) -> bool:
        has_time = super().step(samples, loss)
        if self._group is None or self.budget_seconds is None:
            return has_time
        agreed, progress = self._agreed(float(has_time), super().progress)
        self._shared = bool(agreed), progress
        return self._shared[0]

    @property
    def progress(self) -> float:
        return super().progress if self._group is None or self.budget_seconds is None else self._shared[1]

    @property
    def is_last_epoch(self) -> bool:
        return super().is_last_epoch if self._group is None or self.budget_seconds is None else not self._shared[0]

    def _end_epoch(self) -> None:
        super()._end_epoch()
        if self._group is not None:
            self._is_ended = bool(self._agreed(float(super()._is_over))[0])

    @property
    def _is_over(self) -> bool:
        return super()._is_over if self._group is None else self._is_ended

    def _meeting(self) -> Any:
        """Return the group of processes by which rank 0 tells the others, past their GPUs."""
        torch = sys.modules.get("torch")
        distributed = None if torch is None else torch.distributed
        if distributed is None or not distributed.is_available() or not distributed.is_initialized():
            raise TrialMisused(
                f"{self._world} processes train this trial and would not end together: call "
                f"torch.distributed.init_process_group() before trial.epochs()"
            )
        return distributed.new_group(backend="gloo")

    def _agreed(self, *values: float) -> list[float]:
        """Return the values of rank 0."""
        torch = sys.modules["torch"]
        told = torch.tensor(values, dtype=torch.float64)
        torch.distributed.broadcast(told, src=0, group=self._group)
        return told.tolist()  # type: ignore[no-any-return]

    def _tell_epoch(self, record: EpochRecord) -> None:
        if record.value is None:
            self._say(epoch="end", at=self._clock())

    def _tell_report(self, record: EpochRecord) -> bool:
        if self._line is None or record.value is None:
            return False
        return not self._line.report({self._keyword: record.value, **record.measures})

    def _say(self, **words: Any) -> None:
        if self._line is not None:
            self._line.say(**{name: word for name, word in words.items() if word is not None})
