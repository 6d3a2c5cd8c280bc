"""A trial as own training code sees it: what to train with, how long, an honest clock, and where to tell the results.

It imports neither torch nor a database: whoever runs the trial says by `Outside` what becomes of what it tells.
"""

from __future__ import annotations

import json
import math
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import median
from types import MappingProxyType
from typing import Any

from budgettune.errors import Interrupted, NonFiniteLoss, TrialFailed, TrialMisused
from budgettune.records import EpochRecord, MachineInfo, PhaseSeconds, TrialResult, finite_number
from budgettune.text import shortened
from budgettune.trial.accelerator import Accelerator, weights_sha256
from budgettune.trial.checkpoint import NOWHERE, Checkpoint, HalfTrained, parts_of
from budgettune.trial.schedule import BudgetProgress, EpochProgress, Progress
from budgettune.trial.stopwatch import Stopwatch
from budgettune.trial.terms import ALONE, Outside, Terms

FACTS = ("parameters", "multiply_adds", "precision", "weights_sha256", "peak_memory_mb")
"""What `Trial.describe` may say that a trial's row has a column for."""
TEXTS = ("precision", "weights_sha256")  # and the others are numbers


@dataclass
class _Epoch:
    """What was counted since the last epoch ended."""

    number: int
    steps: int = 0
    samples: int = 0
    counted_samples: bool = False
    loss_sum: Any = 0.0  # over samples, or over steps that say no number of samples; on the device that has the losses
    losses: float = 0.0  # how many of either
    has_run: bool = False  # whether the clock has
    record: EpochRecord | None = None  # once it was reported


class Trial:
    """One trial of a study, for training code of your own.

        def train(trial):
            model, batches = build(trial.params)           # set-up: off the clock
            for epoch in trial.epochs():
                with trial.clock():                        # on the clock
                    for x, y in batches:
                        ...
                        if not trial.step(len(x), loss):   # False when the time is up
                            break
                trial.report(accuracy=evaluate(model))     # off the clock

    Made by who runs the code: a worker calls the function that `[train] loop` names with it; `bt.trials(study)` yields
    it; in a program that a worker has started, `Trial.current()` returns it.

    Attributes:
        params: values of the study's `[params]` and `[search]`, by name.
        seed: of this trial; the generators of `random`, numpy and torch begin with it where a worker calls a function.
        device: to train on: cpu, cuda:0, …
        budget_seconds: on the clock, after which training ends; None where it ends after `planned_epochs`.
        planned_epochs: after which training ends; None where it ends after `budget_seconds`.
        number: of the trial in its study; None where it belongs to none.
        restored: what the code gave to `save` where the trial goes on after an epoch that was trained before; else
            None, and training begins anew.
        saved: what the code gave to `save` last.
        failure: what the trial has raised, though its code may have caught it.
    """

    def __init__(
        self,
        terms: Terms,
        outside: Outside = ALONE,
        clock: Callable[[], float] = time.perf_counter,
        checkpoint: Checkpoint = NOWHERE,
    ) -> None:
        self.params, self.seed, self.device, self.number = terms.params, terms.seed, terms.device, terms.number
        self.budget_seconds, self.planned_epochs = terms.budget_seconds, terms.epochs
        self._objective, self._outside, self._clock = terms.objective, outside, clock
        self._accelerator = Accelerator()
        self._watch = Stopwatch(clock, self._accelerator.synchronize)
        self._progress: Progress = (
            EpochProgress(terms.epochs or 1)
            if terms.budget_seconds is None
            else BudgetProgress(terms.budget_seconds, self._watch.elapsed)
        )
        self._curve: list[EpochRecord] = []
        self._epoch: _Epoch | None = None
        self._is_running = self._is_ended = False
        self._off_since: float | None = clock()  # since when nothing names the time off the clock
        self._off_phase = "build"
        self._asides: dict[str, float] = {}
        self._step_seconds = array("d")
        self._last_step_at = 0.0
        self._facts: dict[str, Any] = {}
        self._usual_steps: int | None = None  # of an epoch
        self.failure: TrialFailed | None = None
        self._has_begun = False
        self._checkpoint, self._half, self._to_save = checkpoint, checkpoint.load(), False
        self.look: Callable[[], tuple[str, Mapping[str, Any]]] = lambda: ("unverified", {})  # at the clock so far
        self.saved: Any = None
        self.restored = None if self._half is None else self._go_on_from(self._half)

    def _go_on_from(self, half: HalfTrained) -> Any:
        """Take over the curve and the clock of a half-trained trial, and return what its code saved."""
        self._curve = list(half.curve)
        self._usual_steps = half.curve[-1].steps
        self._watch.go_on(half.elapsed_seconds, half.seconds)
        self._asides, self._facts = dict(half.state["asides"]), dict(half.state["facts"])
        # The stopping rule hears of all earlier epochs; what it said of them before the last was not followed then.
        self._is_ended = [each.value is not None and self._outside.ends_early(each) for each in half.curve][-1]
        return half.state["state"]

    # --- the loop ---------------------------------------------------------------------------------------------------

    def epochs(self, steps: int | None = None) -> Iterator[int]:
        """Yield the number of each epoch, from 0, until the planned ones or the budget are used up.

        Args:
            steps: of an epoch, where the code knows: for `progress` within the first one.

        Raises:
            Interrupted: where somebody asked to stop.
            TrialMisused: where an epoch ends in which the clock never ran.
        """
        if self._has_begun:
            raise self._misused("trial.epochs() is called twice: go through the epochs in one loop")
        self._has_begun, self._usual_steps = True, self._usual_steps or steps
        while not self._is_over:
            yield self._begin_epoch()
            self._end_epoch()

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Count what happens inside as training time; a GPU is waited for at both borders.

        Raises:
            TrialMisused: outside of an epoch, or where the clock runs already.
        """
        epoch = self._open_epoch("trial.clock()")
        if self._is_running:
            raise self._misused("trial.clock() inside trial.clock(): the clock runs already")
        if epoch.record is not None:
            raise self._misused("the clock runs after trial.report(): report once, at the end of an epoch")
        self._charge_off_clock()
        epoch.has_run = True
        try:
            with self._watch.running():
                self._is_running, self._last_step_at = True, self._clock()
                yield
        finally:
            self._is_running = False
            self._off_since, self._off_phase = self._clock(), "evaluate"

    def step(self, samples: int | None = None, loss: Any = None) -> bool:
        """Count one step of training; return whether there is time for another.

        Args:
            samples: that it visited; None where the code does not count them.
            loss: mean of the step, a number or a tensor of one, which is not waited for.

        Raises:
            Interrupted: where somebody asked to stop.
            TrialMisused: where the clock does not run.
        """
        epoch = self._epoch
        if epoch is None or not self._is_running:
            raise self._misused("trial.step() outside of trial.clock(): steps are what the clock counts")
        self._accelerator.pace()
        now = self._clock()
        seconds, self._last_step_at = now - self._last_step_at, now
        self._count(1, samples, loss, (seconds,))
        self._stop_if_asked()
        return self.budget_seconds is None or not self._progress.is_over(epoch.number)

    @property
    def progress(self) -> float:
        """How far training is, in [0, 1], for a schedule that ends with it.

        By the clock where there is a budget; else by epochs, and within one by the steps of the last.
        """
        epoch = self._epoch
        number = len(self._curve) if epoch is None else epoch.number
        share = 0.0 if epoch is None or not self._usual_steps else min(1.0, epoch.steps / self._usual_steps)
        return min(1.0, max(0.0, self._progress.at(number, share)))

    @property
    def is_last_epoch(self) -> bool:
        """Whether training ends with this epoch, as far as is known now: what must be reported in any case."""
        epoch = self._epoch
        return epoch is not None and self._progress.is_over(epoch.number + 1)

    def report(self, **measures: float) -> None:
        """Tell what the model reaches after this epoch: the study's objective by its name, and further numbers.

        `[objective] name = "bits per byte"` is reported as `bits_per_byte`; test accuracy also as `accuracy`.

        Raises:
            TrialMisused: where the clock runs, where it never ran in this epoch, or where the objective is missing.
            NonFiniteLoss: where a number is no finite one.
        """
        epoch = self._open_epoch("trial.report()")
        if self._is_running:
            raise self._misused("trial.report() inside trial.clock(): evaluate after the clock, or it is charged")
        if epoch.record is not None:
            raise self._misused(f"trial.report() twice in epoch {epoch.number}: report once, at the end of an epoch")
        self._charge_off_clock()
        numbers = {name: self._number(name, value) for name, value in measures.items()}
        value = self._taken_objective(numbers)
        epoch.record = replace(self._record(epoch), value=value, measures=numbers)
        self._outside.on_epoch(epoch.record)
        self._is_ended = self._outside.ends_early(epoch.record)

    @contextmanager
    def aside(self, name: str) -> Iterator[None]:
        """Note what happens inside as time off the clock, under a name such as `load` or `compile`.

        Raises:
            TrialMisused: where the clock runs.
        """
        if self._is_running:
            raise self._misused(f"trial.aside({name!r}) inside trial.clock(): what the clock counts is on it")
        self._charge_off_clock()
        self._off_since = None
        self._accelerator.synchronize()
        began = self._clock()
        try:
            yield
            self._accelerator.synchronize()
        finally:
            now = self._clock()
            self._asides[name] = self._asides.get(name, 0.0) + now - began
            self._off_since = now

    def save(self, state: Any) -> None:
        """Keep what the code needs to go on after this epoch: models, optimisers, generators; whatever pickle takes.

        Where the trial is handed back or lost, another process gets it as `restored`, and its epochs and its clock go
        on from here. It is written when the epoch ends, where the last time is long ago or writing costs little: call
        it in every epoch. A reference is kept, no copy.

        Raises:
            TrialMisused: where the clock runs.
        """
        self._open_epoch("trial.save()")
        if self._is_running:
            raise self._misused("trial.save() inside trial.clock(): save after the clock, or it is charged")
        self.saved, self._to_save = state, True

    def describe(self, model: Any = None, **facts: Any) -> None:
        """Tell facts of the model: those in `FACTS`, which people sort by, and any other that JSON can hold.

        Of a torch module the parameters are counted, and its weights are hashed.

        Raises:
            TrialMisused: where a fact is none that JSON can hold, or is no number where a column wants one.
        """
        facts = {name: self._fact(name, fact) for name, fact in facts.items()}
        if model is not None:
            self._facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
            self._facts["weights_sha256"] = weights_sha256(model)
        self._facts |= facts

    @classmethod
    def current(cls, params: Mapping[str, Any] = MappingProxyType({}), **by_hand: Any) -> Trial:
        """Return the trial that a worker has started this program for, the same one at each call.

        Started by hand, the program gets a trial of these params and of `epochs` (1) or `budget_seconds`, and `seed`
        (0), as they are given here, which prints what it reports.
        """
        from budgettune.trial.current import current_trial

        return current_trial(params, **by_hand)

    # --- for who runs it --------------------------------------------------------------------------------------------

    def result(self, machine: MachineInfo, status: str = "unverified", evidence: Mapping[str, Any] = {}) -> TrialResult:
        """Return what the trial gave, once its code has returned.

        Raises:
            TrialMisused: where no epoch was trained, or the last one was not reported.
        """
        if self._epoch is not None:
            self._end_epoch()
        if not self._curve:
            raise self._misused("the code has ended without an epoch: train in `for epoch in trial.epochs():`")
        value = self._curve[-1].value
        if value is None:
            raise self._misused(
                f"the last epoch was not reported: call trial.report({self._keyword}=…) where trial.is_last_epoch"
            )
        step_ms = [1e3 * seconds for seconds in self._step_seconds]
        middle = median(step_ms) if step_ms else None
        seconds = {**self._watch.seconds, "step": self._watch.elapsed()}
        return TrialResult(
            train_seconds=self._watch.elapsed(),
            value=value,
            epochs=len(self._curve),
            steps=_sum(record.steps for record in self._curve),
            samples=_sum(record.samples for record in self._curve),
            step_ms_median=middle,
            step_ms_mad=None if middle is None else median(abs(each - middle) for each in step_ms),
            seed=self.seed,
            curve=tuple(self._curve),
            phases=PhaseSeconds(**seconds, asides=self._asides),
            machine=machine,
            measures=self._curve[-1].measures,
            **parts_of(self._half, status, evidence),
            architecture={name: fact for name, fact in self._facts.items() if name not in FACTS},
            **{name: fact for name, fact in self._facts.items() if name in FACTS},
        )

    @property
    def is_whole(self) -> bool:
        """Whether it was trained and reported to an end."""
        last = self._curve[-1] if self._epoch is None and self._curve else self._epoch and self._epoch.record
        return bool(last and last.value is not None)

    # --- inside -----------------------------------------------------------------------------------------------------

    def _misused(self, text: str) -> TrialMisused:
        self.failure = TrialMisused(text)
        return self.failure

    def _number(self, name: str, value: Any) -> float:
        """Return a reported value as a float, whatever library it comes from."""
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise self._misused(f"trial.report({name}=…): {type(value).__name__} is no number") from None
        if not math.isfinite(number):
            self.failure = NonFiniteLoss(f"the code reports {name} = {number}")
            raise self.failure
        return number

    def _fact(self, name: str, fact: Any) -> Any:
        """Return a fact as JSON holds it; numbers of numpy and torch become Python's."""
        try:
            fact = json.loads(json.dumps(fact, default=lambda value: value.item(), allow_nan=False))
        except (TypeError, ValueError, AttributeError, RuntimeError):
            raise self._misused(
                f"trial.describe({name}=…): {type(fact).__name__} is nothing that JSON can hold"
            ) from None
        is_right = isinstance(fact, str) if name in TEXTS else finite_number(fact) is not None
        if name in FACTS and fact is not None and not is_right:
            wanted = "text" if name in TEXTS else "a number"
            raise self._misused(f"trial.describe({name}={shortened(repr(fact))}): must be {wanted}")
        return fact

    def _open_epoch(self, call: str) -> _Epoch:
        if self._epoch is None:
            raise self._misused(f"{call} outside of an epoch: call it in `for epoch in trial.epochs():`")
        return self._epoch

    def _begin_epoch(self) -> int:
        self._stop_if_asked()
        self._epoch = _Epoch(len(self._curve))
        return self._epoch.number

    def _count(self, steps: int, samples: int | None, loss: Any, seconds: Sequence[float]) -> None:
        """Count steps of the open epoch; `seconds` are those of each, or of some."""
        epoch = self._open_epoch("trial.step()")
        self._step_seconds.extend(seconds)
        for each in seconds:
            self._progress.learn(each)
        epoch.steps += steps
        if samples is not None:
            epoch.samples += samples
            epoch.counted_samples = True
        if loss is not None:
            weight = (steps or 1) if samples is None else samples
            epoch.loss_sum = epoch.loss_sum + (loss.detach() if hasattr(loss, "detach") else loss) * weight
            epoch.losses += weight

    def _stop_if_asked(self) -> None:
        if self._outside.should_stop():
            raise Interrupted(f"told to stop in epoch {len(self._curve)}: the configuration can be run again")

    def _end_epoch(self) -> None:
        epoch = self._open_epoch("the end of an epoch")
        if epoch.record is None:
            epoch.record = self._record(epoch)
            self._outside.on_epoch(epoch.record)
        self._curve.append(epoch.record)
        self._usual_steps = epoch.steps or self._usual_steps
        self._epoch = None
        if self._to_save and not self._is_over and self._checkpoint.is_due():
            self._keep()
        self._to_save = False

    @property
    def _is_over(self) -> bool:
        return self._is_ended or (bool(self._curve) and self._progress.is_over(len(self._curve)))

    def _keep(self) -> None:
        self._charge_off_clock()
        with self._watch.phase("checkpoint"):
            self._checkpoint.save(
                HalfTrained(
                    curve=tuple(self._curve),
                    elapsed_seconds=self._watch.elapsed(),
                    seconds=dict(self._watch.seconds),
                    state={"state": self.saved, "asides": self._asides, "facts": self._facts},
                    **parts_of(self._half, *self.look()),
                )
            )
        self._off_since = self._clock()

    def _record(self, epoch: _Epoch) -> EpochRecord:
        if not epoch.has_run:
            raise self._misused(f"the clock never ran in epoch {epoch.number}: train inside `with trial.clock():`")
        loss = float(epoch.loss_sum) / epoch.losses if epoch.losses else None
        if loss is not None and not math.isfinite(loss):
            self.failure = NonFiniteLoss(f"the loss of epoch {epoch.number} is {loss}")
            raise self.failure
        return EpochRecord(
            epoch=epoch.number,
            train_seconds=self._watch.elapsed(),
            steps=epoch.steps or None,
            samples=epoch.samples if epoch.counted_samples else None,
            loss=loss,
        )

    def _charge_off_clock(self) -> None:
        """Charge the time off the clock since the last border to its phase."""
        now = self._clock()
        if self._off_since is not None:
            self._watch.seconds[self._off_phase] += now - self._off_since
        self._off_since = now

    @property
    def _keyword(self) -> str:
        return "accuracy" if self._objective.is_accuracy else self._objective.key

    def _taken_objective(self, numbers: dict[str, float]) -> float:
        """Take the objective out of what was reported."""
        key = self._objective.key
        name = next((each for each in dict.fromkeys((self._keyword, key)) if each in numbers), None)
        if name is None:
            told = ", ".join(numbers) or "nothing"
            raise self._misused(
                f"trial.report() tells {told}, and the study's objective is {self._objective.name}: "
                f"report({self._keyword}=…)"
            )
        value = numbers.pop(name)
        if self._objective.is_accuracy and not 0.0 <= value <= 1.0:
            raise self._misused(
                f"trial.report({name}={value:g}): an accuracy is a share from 0 to 1; "
                f"name any other number in [objective]"
            )
        return value


def _sum(counts: Iterator[int | None]) -> int | None:
    """Return the sum of what was counted, None where nothing was."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
