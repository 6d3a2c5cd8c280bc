"""Train one configuration and say what it cost. Reads top to bottom."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from budgettune.errors import Interrupted, NonFiniteLoss, OutOfMemory, SpecError
from budgettune.records import EpochRecord, PhaseSeconds, TrialResult
from budgettune.spec import StudySpec, TrainSpec, is_code
from budgettune.training.data import ImageData, ImageSet, augment, normalise
from budgettune.training.device import Device, is_out_of_memory, pick_precision
from budgettune.training.imports import import_code
from budgettune.training.pruning import EpochPlan, make_strategy
from budgettune.training.resnet import ScalableResNet, count_multiply_adds, count_parameters
from budgettune.training.schedule import BudgetProgress, EpochProgress, learning_rate
from budgettune.training.stopwatch import Stopwatch

EVALUATION_BATCH = 1_000
EVALUATION_PIXELS = 1_024_000  # a thousand images of 32×32: evaluating larger ones must not set the peak of memory


class Witness(Protocol):
    """Somebody who watches the machine while the clock runs, and says whether the time can be believed."""

    def start(self) -> None:
        """Begin to watch."""

    def stop(self) -> tuple[str, Mapping[str, Any]]:
        """Return the status (clean, disturbed or unverified) and the evidence."""


class Nobody:
    """A witness that saw nothing."""

    def start(self) -> None:
        """Look away."""

    def stop(self) -> tuple[str, Mapping[str, Any]]:
        """Vouch for nothing."""
        return "unverified", {}


@dataclass(frozen=True)
class Trained:
    """A result, and the model that it was measured on."""

    result: TrialResult
    model: nn.Module


def train(
    spec: StudySpec,
    params: Mapping[str, Any] | None = None,
    *,
    seed: int,
    data: ImageData,
    device: torch.device | str = "cpu",
    load_seconds: float = 0.0,
    allow_import: Collection[str] = (),
    witness: Witness | None = None,
    clock: Callable[[], float] = time.perf_counter,
    should_stop: Callable[[], bool] = lambda: False,
    on_epoch: Callable[[EpochRecord], None] = lambda record: None,
) -> Trained:
    """Train one configuration of a study.

    Everything random follows from the seed, and the global random state is left as it was found. On the clock are
    planning, gathering, augmentation, forward, backward, optimiser and observing; off it are building, warm-up and
    evaluation.

    Args:
        spec: of the study.
        params: values of what the study searches.
        seed: of the initial weights, the order of samples, augmentation and the strategy.
        data: what `load_data(spec.data)` gave, on any device.
        device: to train on.
        load_seconds: what loading the data took, for the record.
        allow_import: packages that code named in the spec may come from.
        witness: of disturbance; without one the status is `unverified`.
        clock: seconds, monotonic.
        should_stop: asked before every step.
        on_epoch: told each point of the curve.

    Raises:
        SpecError: where the params cannot work.
        OutOfMemory: where the device has no room.
        NonFiniteLoss: where training diverged.
        Interrupted: where should_stop said so.
    """
    config = spec.resolve(params or {})
    box = Device(device)
    box.prepare()
    cuda_devices = [box.device.index or 0] if box.is_cuda else []
    try:
        with torch.random.fork_rng(devices=cuda_devices):
            torch.manual_seed(seed)
            run = Run(config, data.to(box.device), box, seed, Stopwatch(clock, box.synchronize), allow_import)
            return run.train(load_seconds, witness, should_stop, on_epoch)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"no memory left on {box.device} at batch size {config.train.batch_size}: "
                f"a smaller batch_size or scale would fit"
            ) from error
        raise


def build_model(config: StudySpec, data: ImageData, allow_import: Collection[str] = ()) -> nn.Module:
    """Return the model of a resolved spec, on the CPU, initialised from the global random state.

    Code of your own is called with num_classes, channels, image_size, scale and `[model] options` by name.
    """
    if not is_code(config.model.name):
        return ScalableResNet.from_spec(config.model, channels=data.channels, num_classes=data.num_classes)
    model = import_code(config.model.name, allow_import)(
        num_classes=data.num_classes,
        channels=data.channels,
        image_size=data.image_size,
        scale=config.model.scale,
        **config.model.options,
    )
    if not isinstance(model, nn.Module):
        raise SpecError(f"model.name: {config.model.name} returned {type(model).__name__}: return a torch.nn.Module")
    return model


def make_optimizer(config: TrainSpec, model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimiser of a `[train]` table, with one kernel for all parameters."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, **common)


def weights_sha256(model: nn.Module) -> str:
    """Return a hash of all weights and buffers: equal where two trainings gave identical models."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class Run:
    """One training run: set-up in the constructor, off the clock; epochs in `train`, on it.

    `step` alone is what a probe times.
    """

    def __init__(
        self,
        config: StudySpec,
        data: ImageData,
        box: Device,
        seed: int,
        watch: Stopwatch,
        allow_import: Collection[str],
    ) -> None:
        if config.train.batch_size > len(data.train.labels):
            raise SpecError(
                f"batch_size: {config.train.batch_size} is larger than the {len(data.train.labels)} training images"
            )
        self.config, self.data, self.box, self.seed, self.watch = config, data, box, seed, watch
        box.reset_peak_memory()
        with watch.aside("build"):
            model = build_model(config, data, allow_import)
            self.multiply_adds = count_multiply_adds(model, (data.channels, data.image_size, data.image_size))
            self.model = model.to(box.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.architecture: dict[str, Any] = getattr(model, "architecture", {})
            self.precision = pick_precision(config.train.precision, box.device, self.architecture.get("widths"))
            self.forward = torch.compile(self.model) if config.train.compile else self.model
            self.generator = torch.Generator(box.device).manual_seed(seed)
            # Of its own, so that how often a trial is evaluated does not change what it learns.
            self.held_out_generator = torch.Generator(box.device).manual_seed(seed + 2)
            self.strategy = make_strategy(
                config.pruning, len(data.train.labels), seed=seed + 1, device=box.device, allow_import=allow_import
            )
        with watch.aside("warmup"):
            self._warm_up()
        with watch.aside("build"):
            self.optimizer = make_optimizer(config.train, self.model)
        self.step_seconds: list[float] = []
        self.batch_shapes: set[int] = set()
        self.samples = self.steps = 0
        self.full_visits = 0.0  # what the same epochs would have visited without pruning; a cut epoch counts in part

    def train(
        self,
        load_seconds: float,
        witness: Witness | None,
        should_stop: Callable[[], bool],
        on_epoch: Callable[[EpochRecord], None],
    ) -> Trained:
        """Train until the epochs or the budget are used up; the arguments are those of the function `train`."""
        progress = self._progress()
        curve: list[EpochRecord] = []
        witness = witness or Nobody()
        witness.start()
        try:
            while not curve or not progress.is_over(len(curve)):
                curve.append(self._epoch(len(curve), progress, should_stop))
                on_epoch(curve[-1])
        finally:
            status, evidence = witness.stop()
        return Trained(self._result(tuple(curve), load_seconds, progress, status, evidence), self.model)

    def _progress(self) -> EpochProgress | BudgetProgress:
        if self.config.train.budget is not None:
            return BudgetProgress(self.config.train.budget, self.watch.elapsed)
        assert self.config.train.epochs is not None  # the spec has exactly one of the two
        return EpochProgress(self.config.train.epochs)

    def _epoch(
        self, epoch: int, progress: EpochProgress | BudgetProgress, should_stop: Callable[[], bool]
    ) -> EpochRecord:
        """Train one epoch on the clock, then evaluate off it."""
        watch, steps_before, samples_before = self.watch, self.steps, self.samples
        loss_sum = torch.zeros((), device=self.box.device)
        with watch.running():
            with watch.phase("plan"):
                plan = self.strategy.plan(epoch, min(1.0, progress.at(epoch, 0.0)))
                batches = self._batches(plan)
            for number, (indices, weights) in enumerate(batches):
                if should_stop():
                    raise Interrupted(f"told to stop in epoch {epoch}: the configuration can be run again")
                if number and progress.is_over(epoch):
                    break
                share = progress.at(epoch, number / len(batches))
                self.step(indices, weights, learning_rate_of(self.config.train, share), loss_sum)
                progress.learn(self.step_seconds[-1])
                if (lead := progress.lead()) is not None:
                    self.box.pace(lead)
        steps, samples = self.steps - steps_before, self.samples - samples_before
        self.full_visits += self.strategy.size * samples / sum(len(indices) for indices, _ in batches)
        loss = float(loss_sum) / samples
        if not math.isfinite(loss):
            raise NonFiniteLoss(f"the loss of epoch {epoch} is {loss}: lower train.lr, or use fp32")
        return EpochRecord(
            epoch=epoch,
            train_seconds=watch.elapsed(),
            steps=steps,
            samples=samples,
            loss=loss,
            accuracy=self._accuracy_if_due(epoch, progress),
        )

    def _batches(self, plan: EpochPlan) -> list[tuple[Tensor, Tensor | None]]:
        """Shuffle what the plan keeps and cut it into batches of indices (and weights)."""
        count = self.strategy.size if plan.indices is None else len(plan.indices)
        order = torch.randperm(count, generator=self.generator, device=self.box.device)
        size = self.config.train.batch_size
        indices = (order if plan.indices is None else plan.indices[order]).split(size)
        weights = [None] * len(indices) if plan.weights is None else plan.weights[order].split(size)
        return list(zip(indices, weights, strict=True))

    def step(self, indices: Tensor, weights: Tensor | None, lr: float, loss_sum: Tensor) -> None:
        """Take one optimiser step and add the batch's losses to a sum that stays on the device."""
        watch, began = self.watch, self.watch.clock()
        with watch.phase("data"):
            images, labels = self._gather(indices)
        with watch.phase("step"):
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            losses, logits = self._forward_backward(images, labels, weights)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            loss_sum += losses.sum()
        with watch.phase("observe"):
            self.strategy.observe(indices, losses, logits)
        self.step_seconds.append(watch.clock() - began)
        self.batch_shapes.add(len(indices))
        self.steps += 1
        self.samples += len(indices)

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return a batch of normalised, augmented images and their labels."""
        data = self.data
        images = data.train.images[indices]
        if self.config.data.augment:
            images = augment(images, pad=data.pad, flip=data.flip, generator=self.generator)
        return self._normalise(images), data.train.labels[indices]

    def _normalise(self, images: Tensor) -> Tensor:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return normalise(images, self.data.mean, self.data.std, dtype)

    def _forward_backward(self, images: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Leave gradients in the parameters; return detached losses [B] in float32, and logits [B, classes]."""
        with self.box.autocast(self.precision):
            logits = self.forward(images)
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        (losses if weights is None else losses * weights).mean().backward()
        return losses.detach(), logits.detach()

    def _warm_up(self) -> None:
        """Pay for kernel selection, compilation and first allocations with throwaway steps on random labels.

        Covers every batch shape that the strategy expects, then puts weights and random states back.
        """
        steps, size = self.config.clock.warmup_steps, self.config.train.batch_size
        if not steps:
            return
        snapshot = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        state = self.generator.get_state()
        optimizer = make_optimizer(self.config.train, self.model)
        lasts = {count % size for count in self.strategy.epoch_sizes()} - {0}
        with torch.random.fork_rng(devices=[self.box.device.index or 0] if self.box.is_cuda else []):
            for batch in sorted({size, *lasts}, reverse=True):
                for _ in range(steps):
                    images, _ = self._gather(torch.arange(batch, device=self.box.device))
                    labels = torch.randint(self.data.num_classes, (batch,), device=self.box.device)
                    self._forward_backward(images, labels, None)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
        self.model.load_state_dict(snapshot)
        self.generator.set_state(state)

    def _accuracy_if_due(self, epoch: int, progress: EpochProgress | BudgetProgress) -> float | None:
        last = progress.is_over(epoch + 1)
        if not last and (epoch + 1) % self.config.train.evaluate_every:
            return None
        with self.watch.aside("evaluate"):
            return self._accuracy(self.data.held_out)

    def _accuracy(self, held_out: ImageSet) -> float:
        """Return the share of held-out images that are classified correctly, on the deterministic transform."""
        size = max(1, min(EVALUATION_BATCH, EVALUATION_PIXELS // self.data.image_size**2))
        correct = torch.zeros((), dtype=torch.int64, device=self.box.device)
        self.model.eval()
        with torch.inference_mode(), self.box.autocast(self.precision):
            for images, labels in zip(held_out.images.split(size), held_out.labels.split(size), strict=True):
                if self.config.data.augment_test:
                    images = augment(images, pad=self.data.pad, flip=self.data.flip, generator=self.held_out_generator)
                correct += (self.model(self._normalise(images)).argmax(dim=1) == labels).sum()
        self.model.train()
        return int(correct) / len(held_out.labels)

    def _result(
        self,
        curve: tuple[EpochRecord, ...],
        load_seconds: float,
        progress: EpochProgress | BudgetProgress,
        status: str,
        evidence: Mapping[str, Any],
    ) -> TrialResult:
        accuracy = curve[-1].accuracy
        assert accuracy is not None  # the last epoch is always evaluated
        step_ms = self._step_milliseconds(curve)
        middle = median(step_ms)
        return TrialResult(
            train_seconds=self.watch.elapsed(),
            test_accuracy=accuracy,
            keep_fraction=self.samples / self.full_visits,
            epochs=len(curve),
            steps=self.steps,
            samples=self.samples,
            parameters=count_parameters(self.model),
            multiply_adds=self.multiply_adds,
            step_ms_median=middle,
            step_ms_mad=median(abs(value - middle) for value in step_ms),
            peak_memory_mb=self.box.peak_memory_mb(),
            final_lr=learning_rate_of(self.config.train, progress.at(len(curve), 0.0)),
            seed=self.seed,
            precision=self.precision,
            weights_sha256=weights_sha256(self.model),
            curve=curve,
            phases=PhaseSeconds(load=load_seconds, **self.watch.seconds),
            machine=self.box.machine(),
            batch_shapes=tuple(sorted(self.batch_shapes, reverse=True)),
            architecture=self.architecture,
            status=status,
            evidence=evidence,
        )

    def _step_milliseconds(self, curve: tuple[EpochRecord, ...]) -> list[float]:
        """Return step times: each step's own where the host waits for it, else means over epochs."""
        if not self.box.is_cuda:
            return [1e3 * seconds for seconds in self.step_seconds]
        ends = [0.0, *(epoch.train_seconds for epoch in curve)]
        return [1e3 * (end - begin) / epoch.steps for begin, end, epoch in zip(ends, ends[1:], curve, strict=False)]


def learning_rate_of(config: TrainSpec, progress: float) -> float:
    """Return the learning rate of a `[train]` table at a progress in [0, 1]."""
    return learning_rate(config.lr_schedule, config.lr, progress)
