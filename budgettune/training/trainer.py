"""Training of one configuration: set-up off the clock, then epochs on it and evaluation between them."""

from __future__ import annotations

import gc
import logging
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from budgettune.errors import BudgetUsedUp, Interrupted, NonFiniteLoss, SpecError, TrialFailed
from budgettune.machine.witness import NoWitness, Witness
from budgettune.records import EpochRecord, PhaseSeconds, TrialResult
from budgettune.spec.pruning import batch_count, batch_sizes, visits_of_epochs
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import is_code
from budgettune.spec.trust import Trust
from budgettune.training.data.load import ImageData, ImageSet, augment
from budgettune.training.device import Device
from budgettune.training.feed import Feed
from budgettune.training.group import ALONE, Alone
from budgettune.training.learner import Batch, Learner
from budgettune.training.passes import ModelPasses
from budgettune.training.pruning import EpochPlan, make_strategy
from budgettune.training.resnet import count_parameters
from budgettune.training.resume import NotResumed, half_trained, keep, restore, restore_progress
from budgettune.trial.accelerator import weights_sha256
from budgettune.trial.checkpoint import NOWHERE, Checkpoint, HalfTrained, parts_of
from budgettune.trial.schedule import BudgetProgress, EpochProgress, Progress, learning_rate
from budgettune.trial.stopwatch import Stopwatch
from budgettune.trial.terms import Trained

logger = logging.getLogger(__name__)

COMPILATION_SECONDS = 40.0
"""What compiling a step of the built-in network takes for one shape of batch, measured on two cores of a CPU."""
WORTH_COMPILING = 10
"""Times that, for which a trial trains where `train.compile = "auto"` compiles: a tenth more wall-clock at most."""
TIMED_STEPS = 3
REHEARSED_EPOCHS = 3  # a strategy may keep the first whole, and drop in the second for the third
REHEARSED_BATCHES = 3
_REHEARSED: set[str] = set()  # strategies of this process
_models: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # of this process's trials, as far as they are in memory


def train(
    spec: StudySpec,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int,
    data: ImageData,
    device: torch.device | str = "cpu",
    load_seconds: float = 0.0,
    trust: Trust = Trust(),
    witness: Witness | None = None,
    clock: Callable[[], float] = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
    ends_early: Callable[[EpochRecord], bool] = lambda record: False,
    group: Alone = ALONE,
    checkpoint: Checkpoint = NOWHERE,
) -> Trained:
    """Train one configuration of a study.

    Everything random follows from the seed, and the global random state is left as it was found. On the clock are
    preparing, planning, gathering, augmentation, selecting, forward, backward, optimiser and observing; off it are
    building, warm-up and evaluation.

    Args:
        spec: of the study.
        params: values of what the study searches.
        seed: of the initial weights, the order of samples, augmentation and the strategy.
        data: what `load_data(spec.data)` gave, on any device.
        device: to train on.
        load_seconds: what loading the data took, for the record.
        trust: which packages code named in the spec may come from.
        witness: of disturbance; without one the status is `unverified`.
        clock: seconds, monotonic.
        should_stop: asked before every step.
        on_epoch: told each point of the curve.
        ends_early: asked after each epoch that was evaluated, off the clock, whether training ends with it.
        group: of the processes that train it together, each on a device of its own: all call this with the same spec,
            params and seed. The clock, `should_stop`, `ends_early` and `checkpoint` are those of rank 0.
        checkpoint: where it is kept between epochs, and where it goes on from if it was cut off before: with the same
            weights, order and chance, its clock where it stood. `ends_early` hears of the earlier epochs again.

    Raises:
        SpecError: where the params cannot work.
        OutOfMemory: where the device has no room.
        NonFiniteLoss: where training diverged.
        BudgetUsedUp: where a pruning strategy takes the whole time budget before training.
        Interrupted: where should_stop said so.
        ProcessLost: where another process of the group has ended, or gives no answer.
    """
    config = spec.resolve(params or {})
    target = Device(device, group=group)
    target.prepare()
    if _models:  # a cycle of the study's own code may hold one; a collection takes 0.2 s, too long for every trial
        gc.collect()
    target.free_cache()
    with target.full_memory_named(config.train.batch_size):
        watch = Stopwatch(clock, target.synchronize, target.mark if target.is_cuda else None)
        data = data.to(target.torch)
        if group.size > 1:  # rank 0's labels, which a comparison may have changed
            data = replace(data, train=replace(data.train, labels=group.same(data.train.labels, "training images")))
        watch.seconds["load"] += load_seconds
        how = (witness, group.agreeing(should_stop), on_epoch, group.agreeing(ends_early), checkpoint)
        # Without a name for the run here, so that the traceback of an error holds no model.
        if (half := half_trained(checkpoint, group)) is not None:
            as_before = config.resolve({"train.compile": half.state["counters"]["is_compiled"]})
            try:
                with target.own_chance(seed):
                    return TrainingRun(as_before, data, target, seed, watch, trust).train(*how, half)
            except NotResumed as error:
                logger.warning("%s: the trial begins anew", error)
        with target.own_chance(seed):
            return TrainingRun(config, data, target, seed, watch, trust).train(*how)


class TrainingRun:
    """One training run: set-up in the constructor, off the clock; epochs in `train`, on it.

    `step` alone is what a probe times.
    """

    def __init__(
        self, config: StudySpec, data: ImageData, device: Device, seed: int, watch: Stopwatch, trust: Trust
    ) -> None:
        count = len(data.train)
        if config.train.batch_size > count:
            raise SpecError(f"batch_size: {config.train.batch_size} is larger than the {count} training images")
        self.config, self.data, self.device, self.seed, self.watch = config, data, device, seed, watch
        self.trust = trust
        device.reset_peak_memory()
        with watch.aside("build"):
            self.learner = Learner(config, data, device, seed, trust)
            _models.add(self.learner.model)
            # Of its own, so that how often a trial is evaluated does not change what it learns.
            self.held_out_generator = torch.Generator(device.torch).manual_seed(seed + 2)
            self.strategy = make_strategy(
                config.pruning, count, seed=seed + 1, device=device.torch, trust=trust, epochs=config.train.epochs
            )
            # Not a method of the run: the cycle would keep the last trial's model in memory through the next one.
            self.passes = ModelPasses(self.learner, watch, seed, partial(make_helper, config, data, device, trust))
            self.feed = Feed(self.learner, self.strategy, self.passes, watch)
        self.is_compiled = False
        if config.clock.warmup_steps:
            self._warm_up()
        if device.is_cuda:
            device.reset_peak_memory()  # a search for kernels takes all memory that it finds
        self.step_seconds: list[float] = []
        self.batch_shapes: set[int] = set()
        self.samples = self.steps = 0
        self.peak_memory_mb = 0.0
        self.full_visits = 0.0  # what the same epochs would have visited without pruning; a cut epoch counts in part

    def train(
        self,
        witness: Witness | None,
        should_stop: Callable[[], bool],
        on_epoch: Callable[[EpochRecord], None],
        ends_early: Callable[[EpochRecord], bool],
        checkpoint: Checkpoint = NOWHERE,
        half: HalfTrained | None = None,
    ) -> Trained:
        """Train until the epochs or the budget are used up; the arguments are those of the function `train`.

        `half` is what was kept of the same run, with its state as `restore` takes it.

        Raises:
            NotResumed: where the run cannot go on from that.
        """
        self.passes.should_stop = should_stop
        curve, on_test = list(half.curve) if half else [], None
        is_due = self.device.group.agreeing(checkpoint.is_due)
        witness = witness or NoWitness()
        witness.start()
        try:
            progress = self._begin() if half is None else self._go_on(half)
            is_over = [record.value is not None and ends_early(record) for record in curve][-1:] == [True]
            while not is_over and (not curve or not progress.is_over(len(curve))):
                curve.append(self._epoch(len(curve), progress, should_stop))
                on_epoch(curve[-1])
                is_over = curve[-1].value is not None and ends_early(curve[-1])
                if not is_over and is_due() and not progress.is_over(len(curve)):
                    self._keep(checkpoint, tuple(curve), progress, witness, half)
            if self.data.test is not None and not is_over:
                with self.watch.aside("evaluate"):
                    on_test = self._accuracy(self.data.test)
        finally:
            self._note_peak()  # before the witness's own memory counts
            verdict = witness.stop()
        result = replace(self._result(tuple(curve), progress), on_test=on_test, **parts_of(half, *verdict))
        return Trained(result, self.learner.model)

    def _begin(self) -> Progress:
        with self.watch.running(), self.watch.phase("prepare"):
            self.strategy.prepare(self.passes)
            self.device.synchronize()
        return self._progress()

    def _go_on(self, half: HalfTrained) -> Progress:
        with self.watch.aside("checkpoint"):
            restore(self, half.state)
            self.watch.go_on(half.elapsed_seconds, half.seconds)
        progress = self._progress()
        restore_progress(progress, half.state)
        return progress

    def _keep(
        self,
        checkpoint: Checkpoint,
        curve: tuple[EpochRecord, ...],
        progress: Progress,
        witness: Witness,
        before: HalfTrained | None,
    ) -> None:
        """Keep the run as it is between two epochs, off the clock."""
        self._note_peak()
        with self.watch.aside("checkpoint"):
            status, evidence = witness.look()
            verdict = self.device.group.worst(status), evidence
            if self.device.group.rank == 0:
                checkpoint.save(keep(self, curve, progress, verdict, before))
        self.device.reset_peak_memory()

    def _note_peak(self) -> None:
        self.peak_memory_mb = max(self.peak_memory_mb, self.device.peak_memory_mb())

    def _progress(self) -> Progress:
        if self.config.train.budget is not None:
            queued, agreed = self.device.queued_steps, self.device.group.agreed
            return BudgetProgress(self.config.train.budget, self.watch.elapsed, queued, agreed)
        assert self.config.train.epochs is not None  # the spec has exactly one of the two
        return EpochProgress(self.config.train.epochs)

    def _epoch(self, epoch: int, progress: Progress, should_stop: Callable[[], bool]) -> EpochRecord:
        """Train one epoch on the clock, then evaluate off it."""
        watch, steps_before, samples_before, offered_before = self.watch, self.steps, self.samples, self.feed.offered
        loss_sum = torch.zeros((), device=self.device.torch)

        def go_on() -> bool:
            if should_stop():
                raise Interrupted(f"told to stop in epoch {epoch}: the configuration can be run again")
            return self.steps == steps_before or not progress.is_over(epoch)

        with watch.running():
            with watch.phase("plan"):
                plan = self._plan(epoch, progress)
                order = self.feed.order(plan)
            self.device.begin_steps(watch.clock())
            for share, batch in self.feed.batches(order, go_on):
                self.step(batch, plan.lr_factor * self._learning_rate(progress.at(epoch, share)), loss_sum)
                self.device.end_step(watch.clock())
                if self.config.train.budget is not None:
                    self.device.pace()
                self._learn(progress)
        self._learn(progress)  # of the last steps, which a device may have ended only now
        steps, samples = self.steps - steps_before, self.samples - samples_before
        if not steps:
            raise SpecError(f"pruning.strategy: {self.config.pruning.strategy} kept no sample in epoch {epoch}")
        self.full_visits += self.strategy.size * (self.feed.offered - offered_before) / len(order)
        loss = float(loss_sum) / samples
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss of epoch {epoch} is {loss}: lower train.lr, or use fp32")
        accuracy = None
        if progress.is_over(epoch + 1) or (epoch + 1) % self.config.train.evaluate_every == 0:
            with watch.aside("evaluate"):
                accuracy = self._accuracy(self.data.held_out)
        return EpochRecord(
            epoch=epoch, train_seconds=watch.elapsed(), steps=steps, samples=samples, loss=loss, value=accuracy
        )

    def _learn(self, progress: Progress) -> None:
        for seconds in self.device.ended_steps():
            self.step_seconds.append(seconds)
            progress.learn(seconds)

    def _learning_rate(self, progress: float) -> float:
        return learning_rate(self.config.train.lr_schedule, self.config.train.lr, progress)

    def _plan(self, epoch: int, progress: Progress) -> EpochPlan:
        try:
            return self.device.group.plan(self.strategy.plan(epoch, min(1.0, progress.at(epoch, 0.0))))
        except BudgetUsedUp:
            # Training is over; the one step that every epoch makes has a learning rate of zero.
            return EpochPlan(select=False)

    def step(self, batch: Batch, lr: float, loss_sum: torch.Tensor) -> None:
        """Take one optimiser step and add the batch's losses to a sum that stays on the device."""
        with self.watch.phase("step"):
            losses, logits = self.learner.step(batch, lr)
            loss_sum += losses.sum()
        with self.watch.phase("observe"):
            self.strategy.observe(batch.indices, losses, logits)
        self.batch_shapes.add(len(batch))
        self.steps += 1
        self.samples += len(batch)

    def _warm_up(self) -> None:
        """Pay off the clock for every batch shape that the strategy expects, in training and in scoring."""
        config, watch, learner = self.config, self.watch, self.learner
        steps, size = config.clock.warmup_steps, config.train.batch_size
        trained = {size, *(batch_sizes(count, size)[-1] for count in self.strategy.epoch_sizes())}
        scored = set(self._scoring_shapes())
        with watch.aside("warmup"):
            learner.warm_up(steps, trained, scored)
            for scale in set(self.strategy.helper_scales) - {None}:
                with self.device.own_chance(self.seed):
                    self.passes.make_helper(scale, self.seed).warm_up(steps, trained, scored)
            if self.device.is_cuda:
                self._rehearse()
            self.is_compiled = bool(self.device.group.agreed(self._pays_for_compilation(len(trained))))
        if self.is_compiled:
            with watch.aside("compile"):
                learner.compile(steps, trained)
        if config.train.cuda_graphs and self.device.captures:
            with watch.aside("capture"):
                # Candidates are gathered in chunks of other sizes, and images of a cache file by the host.
                gathers = self.strategy.candidates == 1 and isinstance(self.data.train.images, Tensor)
                learner.capture(trained, gathers=gathers)
                trained = {min(trained)}
        if self.device.is_cuda:
            with watch.aside("warmup"):
                # Searches and captures free all cached memory: what runs uncaptured shall find its blocks again.
                learner.warm_up(1, trained, scored)

    def _pays_for_compilation(self, shapes: int) -> bool:
        """Whether to compile for so many shapes of batches: `auto` does where training is ten times as long."""
        train = self.config.train
        if isinstance(train.compile, bool):
            return train.compile
        seconds = train.budget
        if seconds is None:
            assert train.epochs is not None  # the spec has exactly one of the two
            visits = visits_of_epochs(self.config.pruning, self.strategy.size, train.epochs)
            steps = sum(count * batch_count(visited, train.batch_size) for visited, count in visits.items())
            began = self.watch.clock()
            self.learner.warm_up(TIMED_STEPS, {train.batch_size}, ())
            self.device.synchronize()
            seconds = steps * (self.watch.clock() - began) / TIMED_STEPS
        return seconds >= WORTH_COMPILING * COMPILATION_SECONDS * shapes

    def _rehearse(self) -> None:
        """Train the same on a few images for some epochs, and throw it away: CUDA loads a kernel when it is first used.

        Once in a process for each strategy. One that cannot do with so few goes unrehearsed, as do those of your own,
        which may be made for the whole set, and where several processes train: a fault of one would leave the others
        waiting.
        """
        config, data, name = self.config, self.data, self.config.pruning.strategy
        if is_code(name) or name in _REHEARSED or self.device.group.size > 1:
            return
        _REHEARSED.add(name)
        few = data.train.take(slice(REHEARSED_BATCHES * config.train.batch_size + 1))
        changes = {"train.budget": None, "train.epochs": REHEARSED_EPOCHS, "train.compile": False}
        changes |= {"train.cuda_graphs": False, "clock.warmup_steps": 0}
        names_full_memory = self.device.full_memory_named(config.train.batch_size)  # a second model may not fit
        with suppress(TrialFailed, SpecError), names_full_memory, self.device.own_chance(self.seed):
            few_data, watch = replace(data, train=few, test=None), Stopwatch(self.watch.clock, self.device.synchronize)
            run = TrainingRun(config.resolve(changes), few_data, self.device, self.seed, watch, self.trust)
            run.train(None, self.passes.should_stop, lambda record: None, lambda record: False)

    def _scoring_shapes(self) -> Iterator[int]:
        if self.device.is_cuda:  # else a first evaluation's search would free what the next epoch's steps lie in
            for part in filter(None, (self.data.held_out, self.data.test)):
                yield from set(batch_sizes(len(part), self.learner.scoring_batch))
        if not self.strategy.needs_model:
            return
        sizes = [(self.strategy.size, self.learner.scoring_batch)]
        if self.strategy.candidates > 1:
            batch = self.config.train.batch_size
            sizes += [(chunk, batch) for chunk in set(batch_sizes(self.strategy.size, self.feed.chunk))]
        for count, size in sizes:
            yield from set(batch_sizes(count, size))

    def _accuracy(self, held_out: ImageSet) -> float:
        """Return the share of images that are classified correctly, on the deterministic transform."""
        learner = self.learner
        sizes = batch_sizes(len(held_out), learner.scoring_batch)
        correct = torch.zeros((), dtype=torch.int64, device=self.device.torch)
        learner.model.eval()
        with torch.inference_mode(), self.device.autocast(learner.precision):
            for images, labels in zip(held_out.images.split(sizes), held_out.labels.split(sizes), strict=True):
                if self.config.data.augment_test:
                    images = augment(images, pad=self.data.pad, flip=self.data.flip, generator=self.held_out_generator)
                own, group = self.device.group.part(len(labels)), self.device.group
                hits = learner.model(learner.normalise(images[own])).argmax(dim=1) == labels[own]
                correct += group.whole(hits, len(labels)).sum()
        learner.model.train()
        return int(correct) / len(held_out.labels)

    def _result(
        self,
        curve: tuple[EpochRecord, ...],
        progress: Progress,
    ) -> TrialResult:
        accuracy = curve[-1].value
        assert accuracy is not None  # the last epoch is always evaluated
        step_ms = [1e3 * seconds for seconds in self.step_seconds]
        middle = median(step_ms)
        seconds: dict[str, Any] = self.watch.seconds
        return TrialResult(
            train_seconds=self.watch.elapsed(),
            value=accuracy,
            keep_fraction=self.samples / self.full_visits,
            epochs=len(curve),
            steps=self.steps,
            samples=self.samples,
            scored_samples=self.passes.scored_samples,
            helper_samples=self.passes.helper_samples,
            parameters=count_parameters(self.learner.model),
            multiply_adds=self.learner.multiply_adds,
            step_ms_median=middle,
            step_ms_mad=median(abs(value - middle) for value in step_ms),
            peak_memory_mb=self.peak_memory_mb,
            final_lr=self._learning_rate(progress.at(len(curve), 0.0)),
            seed=self.seed,
            precision=self.learner.precision,
            weights_sha256=weights_sha256(self.learner.model),
            curve=curve,
            phases=PhaseSeconds(**seconds),
            machine=self.device.machine(),
            batch_shapes=tuple(sorted(self.batch_shapes, reverse=True)),
            architecture=self.learner.architecture,
            compiled=self.is_compiled,
            cuda_graphs=self.config.train.cuda_graphs and self.device.captures,
            judged_on=None if self.data.test is None else "validation",
        )


def make_helper(
    config: StudySpec, data: ImageData, device: Device, trust: Trust, scale: float | None, seed: int
) -> Learner:
    """Return a fresh model for a strategy; compiling it would cost more than it trains."""
    changes: dict[str, Any] = {"train.compile": False, "train.cuda_graphs": False, "model.weights": None}
    if scale is not None:
        changes |= {"model.scale": scale, "model.width_scale": None, "model.depth_scale": None}
    return Learner(config.resolve(changes), data, device, seed, trust)
