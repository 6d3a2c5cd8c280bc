"""A model that learns: built from a spec, fed with images, stepped by its optimiser, asked for scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from budgettune.errors import SpecError
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import TrainSpec, is_code, library_of
from budgettune.spec.trust import Trust, contained
from budgettune.text import first_line
from budgettune.training.data.load import ImageData, augment, normalise
from budgettune.training.device import Device, compilation_named, compiled, is_out_of_memory, pick_precision
from budgettune.training.named_models import State, build_named, fill, read_weights
from budgettune.training.pruning import Scores
from budgettune.training.resnet import ScalableResNet, count_multiply_adds

EVALUATION_BATCH = 1_000  # images of 32×32; fewer of larger ones: evaluation must not set the peak of memory
GPU_EVALUATION_BATCH = 4_000  # a GPU is done with a thousand before the host has launched the next
_MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}


@dataclass(frozen=True)
class Batch:
    """Samples to train on."""

    indices: Tensor  # int64 [B], of the training samples
    images: Tensor  # [B, C, H, W], normalised and augmented
    labels: Tensor  # int64 [B]
    weights: Tensor | None = None  # float32 [B], factors on the losses; None for all one

    def __len__(self) -> int:
        return len(self.indices)


def taken(batch: Batch, part: Tensor | slice) -> Batch:
    """Return some samples of a batch, with images in the memory order of the batch."""
    is_last = batch.images.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if is_last else torch.contiguous_format
    images = batch.images[part].contiguous(memory_format=order)
    weights = None if batch.weights is None else batch.weights[part]
    return Batch(batch.indices[part], images, batch.labels[part], weights)


def build_model(config: StudySpec, data: ImageData, trust: Trust = Trust()) -> nn.Module:
    """Return the model of a resolved spec, on the CPU, initialised from the global random state or from a file.

    Code of your own is called with num_classes, channels, image_size, scale and `[model] options` by name.
    """
    weights = None if config.model.weights is None else read_weights(config.model.weights)
    model = _initialised(config, data, trust, weights)
    if weights is not None:
        done = fill(model, weights, config.model, data.num_classes)
        model.architecture = {**getattr(model, "architecture", {}), "weights": done}  # type: ignore[assignment]
    return model


def _initialised(config: StudySpec, data: ImageData, trust: Trust, weights: State | None) -> nn.Module:
    shape = {"channels": data.channels, "num_classes": data.num_classes}
    if library_of(config.model.name):
        return build_named(config.model, **shape, image_size=data.image_size, weights=weights)
    if not is_code(config.model.name):
        return ScalableResNet.from_spec(config.model, **shape)
    build = trust.import_code(config.model.name)
    with contained():
        model = build(**shape, image_size=data.image_size, scale=config.model.scale, **config.model.options)
    if not isinstance(model, nn.Module):
        raise SpecError(f"model.name: {config.model.name} returned {type(model).__name__}: return a torch.nn.Module")
    return model


def make_optimizer(config: TrainSpec, model: nn.Module, *, captures: bool = False) -> torch.optim.Optimizer:
    """Return the optimiser of a `[train]` table, with one kernel for all parameters.

    `captures` is for devices whose steps may be captured: the learning rate is then a tensor. Steps that are not
    captured take it so too, because a rate in float32 is not quite the number in the spec.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    common: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if captures:
        common["lr"] = torch.tensor(config.lr, device=parameters[0].device)
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **common)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(parameters, **common, capturable=captures)
    optimizer._warned_capturable_if_run_uncaptured = (
        True  # torch would advise against it, but fused steps cost the same
    )
    return optimizer


@contextmanager
def capture_named() -> Iterator[None]:
    """Raise SpecError where CUDA refuses to capture what runs inside."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        reason = f"a step of this network cannot be captured ({first_line(error)})"
        raise SpecError(f"train.cuda_graphs: {reason}: set it to false") from error


class Learner:
    """A model with its optimiser, precision and source of chance. Knows neither the clock nor pruning.

    The spec is resolved, and the data lie on the device. Initial weights come from the global random state; the order
    of augmentation from a generator of its own, which begins at the seed.
    """

    def __init__(self, config: StudySpec, data: ImageData, device: Device, seed: int, trust: Trust) -> None:
        self.config, self.data, self.device = config, data, device
        model = build_model(config, data, trust)
        self.multiply_adds = count_multiply_adds(model, (data.channels, data.image_size, data.image_size))
        self.memory_format = _MEMORY_FORMATS[config.train.memory_format]
        self.model = model.to(device.torch, memory_format=self.memory_format)  # type: ignore[call-overload]
        self.architecture: dict[str, Any] = getattr(model, "architecture", {})
        self.precision = pick_precision(config.train.precision, device.torch, self.architecture.get("widths"))
        device.set_arithmetic(self.precision, deterministic=config.train.deterministic)
        self.generator = torch.Generator(device.torch).manual_seed(seed)
        self.optimizer = make_optimizer(config.train, self.model, captures=device.captures)
        self._compiled: dict[int, Callable[[Tensor], Tensor]] = {}  # for batches of these sizes
        self._gathers: dict[int, Callable[..., tuple[Tensor, ...]]] = {}  # captured, likewise
        self._updates: dict[int, Callable[..., tuple[Tensor, ...]]] = {}
        linear = (layer for layer in self.model.modules() if isinstance(layer, nn.Linear))
        makes_logits = [layer for layer in linear if layer.out_features == data.num_classes]
        self.head = makes_logits[-1] if makes_logits else None

    @property
    def scoring_batch(self) -> int:
        """Images that evaluation and scoring take at a time."""
        most = GPU_EVALUATION_BATCH if self.device.is_cuda else EVALUATION_BATCH
        return max(1, min(most, most * 32**2 // self.data.image_size**2))

    def gather(self, indices: Tensor, places: Tensor, weights: Tensor | None = None) -> Batch:
        """Return a batch of normalised, augmented images with their labels; places as `ImageSet.places` gives them.

        The next batch may lie in the memory of this one: train on it, or take from it, before another is gathered.
        """
        images, labels = self._gathers.get(len(indices), self._gather)(indices, places)
        return Batch(indices, images, labels, weights)

    def _gather(self, indices: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        data = self.data
        images = data.train.images[places]
        if self.config.data.augment:
            images = augment(images, pad=data.pad, flip=data.flip, generator=self.generator)
        return self.normalise(images), data.train.labels[indices]

    def normalise(self, images: Tensor) -> Tensor:
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return normalise(images, self.data.mean, self.data.std, dtype, self.memory_format)

    def step(self, batch: Batch, lr: float) -> tuple[Tensor, Tensor]:
        """Take one optimiser step; return detached losses [B] in float32, and logits [B, classes]."""
        self._set_rate(lr)
        own, count = self._own(batch), len(batch)
        if (captured := self._updates.get(count)) is None:
            losses, logits = self._update(own.images, own.labels, own.weights, count=count)
        else:
            weights = torch.ones_like(own.labels, dtype=torch.float32) if own.weights is None else own.weights
            losses, logits = (value.clone() for value in captured(own.images, own.labels, weights))  # they may be kept
        if self.device.group.size == 1:
            return losses, logits
        told = self._whole(torch.cat([losses.unsqueeze(1), logits.float()], dim=1), count)  # in one go
        return told[:, 0], told[:, 1:]

    def _set_rate(self, lr: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def _own(self, batch: Batch) -> Batch:
        """Return this rank's part of a batch."""
        group = self.device.group
        return batch if group.size == 1 else taken(batch, group.part(len(batch)))

    def _whole(self, values: Tensor, count: int) -> Tensor:
        return self.device.group.whole(values, count)

    def _update(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        *,
        count: int,
        optimizer: torch.optim.Optimizer | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Take a step on this rank's part of a batch of count samples."""
        optimizer, forward = optimizer or self.optimizer, self._compiled.get(count, self.model)
        try:
            with self.device.autocast(self.precision):
                logits = forward(images)
        except ValueError as error:
            if len(labels) == 1 and "more than 1 value per channel" in str(error):  # in torch's words
                least = 2 * self.device.group.size  # two for each process
                raise SpecError(
                    f"train.batch_size: this network normalises over its batch, and cannot learn from a batch of one "
                    f"image: take at least {least}, and keep at least {least} images in every epoch"
                ) from None
            raise
        losses = functional.cross_entropy(logits.float(), labels, reduction="none")
        (losses if weights is None else losses * weights).mean().backward()
        self.device.group.average(self.model, count)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return losses.detach(), logits.detach()

    def score_batch(self, batch: Batch) -> Scores:
        """Return what the model says of a batch in evaluation mode, learning nothing and moving no statistic."""
        own, count = self._own(batch), len(batch)
        seen: list[Tensor] = []
        hook = self.head and self.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        self.model.eval()
        try:
            # Not inference mode: strategies keep what they get, and inference tensors cannot be written to later.
            with torch.no_grad(), self.device.autocast(self.precision):
                logits = self.model(own.images).float()
        finally:
            self.model.train()
            if hook:
                hook.remove()
        losses = self._whole(functional.cross_entropy(logits, own.labels, reduction="none"), count)
        embedding = self._whole(seen[-1].flatten(1).float(), count) if seen else None
        return Scores(batch.indices, batch.labels, losses, self._whole(logits, count), embedding)

    def warm_up(self, steps: int, trained: Iterable[int], scored: Iterable[int]) -> None:
        """Pay for kernel selection and first allocations with throwaway steps on random labels.

        So many steps are taken for each size of batch in training and in evaluation mode. Weights and random states
        are put back, by this as by `compile` and `capture`.
        """
        with self._thrown_away() as optimizer:
            self._throw_away(steps, trained, optimizer)
            for size in sorted(set(scored), reverse=True):
                for _ in range(steps):
                    self.score_batch(self._throwaway(size))

    def compile(self, steps: int, trained: Iterable[int]) -> None:
        """Compile what trains on batches of these sizes, with throwaway steps of each.

        Batches of other sizes take the model as it is: their first one would stop the clock for a compilation.

        Raises:
            SpecError: where the network cannot be compiled, or not on this box.
        """
        forward = compiled(self.model)
        self._compiled = dict.fromkeys(trained, forward)
        with self._thrown_away() as optimizer, compilation_named():
            self._throw_away(steps, self._compiled, optimizer)

    def capture(self, trained: Iterable[int], *, gathers: bool) -> None:
        """Capture what trains on batches of these sizes, and with `gathers` what gathers them, as CUDA graphs.

        They are captured with the optimiser's own state, which is made for it and then zeroed: as good as none.

        Raises:
            SpecError: where the network cannot be captured.
        """
        with self._thrown_away(), capture_named():
            self._set_rate(0.0)
            for size in sorted(set(trained), reverse=True):
                batch = self._throwaway(size)
                own = self._own(batch)
                self._update(own.images, own.labels, count=size)
                if gathers:
                    places = batch.indices.clone(), batch.indices.clone()
                    self._gathers[size] = self.device.capture(self._gather, places, self.generator)
                    own = self._own(replace(batch, images=self._gathers[size](*places)[0]))
                inputs = own.images, own.labels, torch.ones(len(own), device=self.device.torch)
                self._updates[size] = self.device.capture(partial(self._update, count=size), inputs, self.generator)
            for state in self.optimizer.state.values():
                for value in filter(torch.is_tensor, state.values()):
                    value.zero_()

    @contextmanager
    def _thrown_away(self) -> Iterator[torch.optim.Optimizer]:
        """Yield an optimiser for steps that shall not count, and put weights and random states back after them."""
        snapshot = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        state = self.generator.get_state()
        with self.device.own_chance(), self.device.measuring_kernels():
            yield make_optimizer(self.config.train, self.model, captures=self.device.captures)
        self.model.load_state_dict(snapshot)
        self.generator.set_state(state)

    def _throw_away(self, steps: int, sizes: Iterable[int], optimizer: torch.optim.Optimizer) -> None:
        for size in sorted(set(sizes), reverse=True):
            for _ in range(steps):
                own = self._own(self._throwaway(size))
                self._update(own.images, own.labels, count=size, optimizer=optimizer)

    def _throwaway(self, size: int) -> Batch:
        indices = torch.arange(size, device=self.device.torch) % len(self.data.train)
        batch = self.gather(indices, self.data.train.places(indices))
        return replace(batch, labels=torch.randint(self.data.num_classes, (size,), device=self.device.torch))
