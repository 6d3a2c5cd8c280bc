"""What a configuration asks of the machine and offers to learning, read from its spec alone, run or not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from budgettune.errors import SpecError
from budgettune.predict.arithmetic import Arithmetic, ImageShape, inferred_shape, known_shape, resnet_arithmetic
from budgettune.prune_rates import largest_drop, profile
from budgettune.records import TrialRecord
from budgettune.spec import TRAINING_IMAGES, DataSpec, ModelSpec, PruningSpec, StudySpec, full_key, is_code

ALIGNMENT = 8
"""Channels that kernels like; `precision = "auto"` takes bf16 only where all widths are multiples of it."""

LENGTH_KEYS = ("train.epochs", "train.budget")
"""Settings that say how long training goes on, and nothing else."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A configuration without its length. `Workloads` makes one of each, so that two are equal where they are the same.

    Attributes:
        number: of the workload among its study's.
        params: searched values, those of its length left out.
        config: the resolved spec.
        images: that one epoch without pruning visits.
        arithmetic: of one forward pass of one image.
        is_estimated: whether the arithmetic is a guess: a model of your own at a size that never ran.
    """

    number: int
    params: Mapping[str, Any]
    config: StudySpec
    images: int
    arithmetic: Arithmetic
    is_estimated: bool

    @property
    def batch(self) -> int:
        """Images per step."""
        return self.config.train.batch_size

    @cached_property
    def is_aligned(self) -> bool:
        """Whether all widths are multiples of what kernels like; taken to be so for a model of your own."""
        model = self.config.model
        return is_code(model.name) or all(width % ALIGNMENT == 0 for width in model.realised_widths)

    @cached_property
    def network(self) -> str:
        """A text that workloads share exactly where they build the same network for the same images."""
        model, data = self.config.model, self.config.data
        if is_code(model.name):
            size = f"{model.name} at scale {model.scale:g}" + "".join(f" {k}={v}" for k, v in model.options.items())
        else:
            size = f"{'/'.join(map(str, model.realised_widths))} × {model.realised_blocks}"
        return size if data.image_size is None else f"{size}, {data.image_size} pixels"

    @cached_property
    def kind(self) -> str:
        """What else a step depends on beside network and batch."""
        train, data = self.config.train, self.config.data
        extras = [train.optimizer, "compiled" if train.compile else "", "" if data.augment else "not augmented"]
        return " ".join([train.precision, *filter(None, extras)])

    @cached_property
    def step(self) -> str:
        """A text that workloads share exactly where their steps cost the same, pruning aside."""
        return f"{self.network}, batch {self.batch}, {self.kind}"

    def value(self, key: str) -> Any:
        """Return a setting by its full dotted key."""
        found: Any = self.config
        for part in key.split("."):
            found = found[part] if isinstance(found, Mapping) else getattr(found, part)
        return found

    def epoch_sizes(self, epochs: int) -> Counter[int]:
        """Return how many epochs of a run visit how many samples.

        Raises:
            SpecError: where the strategy cannot reach its prune rate in so few epochs.
        """
        drop = largest_drop(self.config.pruning, epochs)
        sizes: Counter[int] = Counter()
        for part, count in _parts(self.config.pruning.model_copy(update={"prune_rate": 0.0}), epochs):
            sizes[max(1, self.images - round(drop * part * self.images))] += count
        return sizes

    def visits(self, epochs: int) -> int:
        """Return the samples that a run of some epochs visits.

        Raises:
            SpecError: where the strategy cannot reach its prune rate in so few epochs.
        """
        return sum(size * count for size, count in self.epoch_sizes(epochs).items())

    def can_train(self, epochs: int) -> bool:
        """Whether the strategy can reach its prune rate in so few epochs."""
        try:
            self.epoch_sizes(epochs)
        except SpecError:
            return False
        return True


Run = tuple[Workload, int]
"""A workload and the epochs that it is trained for."""


@lru_cache(maxsize=8_192)
def _parts(pruning: PruningSpec, epochs: int) -> tuple[tuple[float, int], ...]:
    return tuple(Counter(profile(pruning, epoch, epoch / epochs) for epoch in range(epochs)).items())


def effective_steps(sizes: Mapping[int, int], batch: int, fixed_share: float) -> float:
    """Return what epochs cost in full steps: a last batch that is not full costs the fixed share, and by its size.

    Args:
        sizes: epochs by the samples that they visit.
        batch: images of a full step.
        fixed_share: of a full step's time that does not depend on the batch, in [0, 1].
    """
    return sum(count * _steps(size, batch, fixed_share) for size, count in sizes.items())


def _steps(size: int, batch: int, fixed_share: float) -> float:
    full, rest = divmod(size, batch)
    return full + (fixed_share + (1 - fixed_share) * rest / batch if rest else 0.0)


class Workloads:
    """Makes the workloads of one study; what its spec does not tell is read from its trials.

    Args:
        spec: of the study.
        records: of its trials, in any state.
    """

    def __init__(self, spec: StudySpec, records: Sequence[TrialRecord]) -> None:
        self.spec = spec
        self._records = [record for record in records if record.parameters and record.multiply_adds]
        self._cache: dict[tuple[tuple[str, Any], ...], Workload] = {}

    def of(self, params: Mapping[str, Any]) -> Workload:
        """Return the workload of searched values.

        Raises:
            SpecError: where they cannot work.
        """
        own = {key: value for key, value in params.items() if full_key(key) not in LENGTH_KEYS}
        key = tuple(sorted(own.items()))
        if key not in self._cache:
            self._cache[key] = self._make(own)
        return self._cache[key]

    def _make(self, params: dict[str, Any]) -> Workload:
        config = self._resolved(params)
        arithmetic, is_estimated = self._arithmetic(config)
        return Workload(
            number=len(self._cache),
            params=params,
            config=config,
            images=self._images(config.data),
            arithmetic=arithmetic,
            is_estimated=is_estimated,
        )

    def _resolved(self, params: Mapping[str, Any]) -> StudySpec:
        """Return the spec of one trial, as long as it may be for any prune rate to be within reach."""
        return self.spec.resolve({**params, "train.budget": None, "train.epochs": None})

    # --- Images -----------------------------------------------------------------------------------------------------

    def _images(self, data: DataSpec) -> int:
        if data.train_size is not None:
            return data.train_size
        known = TRAINING_IMAGES.get(data.name)
        if known is not None:
            return known - round(known * data.validation_fraction) * (data.evaluate_on == "validation")
        return self._visited_images

    @cached_property
    def _visited_images(self) -> int:
        """Images of a set that is not built in: its trials' visits over the share of all that they are."""
        for record in self._records:
            if record.curve and record.keep_fraction:
                visits = sum(epoch.samples for epoch in record.curve)
                return max(1, round(visits / record.keep_fraction / len(record.curve)))
        return 10_000

    def _shape(self, data: DataSpec) -> ImageShape | None:
        shape = known_shape(data) or self._seen_shape
        if shape is None or data.image_size is None:
            return shape
        return ImageShape(shape.channels, data.image_size, shape.num_classes)

    @cached_property
    def _seen_shape(self) -> ImageShape | None:
        for record in self._records:
            model = self._resolved(_without_length(record.params)).model
            if not is_code(model.name) and record.parameters and record.multiply_adds:
                return inferred_shape(model, record.parameters, record.multiply_adds)
        return None

    # --- Arithmetic -------------------------------------------------------------------------------------------------

    def _arithmetic(self, config: StudySpec) -> tuple[Arithmetic, bool]:
        if not is_code(config.model.name):
            shape = self._shape(config.data)
            return resnet_arithmetic(config.model, shape or ImageShape(3, 32, 10)), shape is None
        return self._code_arithmetic(config.model)

    def _code_arithmetic(self, model: ModelSpec) -> tuple[Arithmetic, bool]:
        """Return what trials of a model of your own recorded, else powers of its numbers through what they did."""
        seen = self._seen_sizes
        if (found := seen.get(_numbers(model))) is not None:
            return _bare(*found), False
        logs = [_log_law({key: value[which] for key, value in seen.items()}, _numbers(model)) for which in (0, 1)]
        return _bare(round(math.exp(logs[0])), round(math.exp(logs[1]))), True

    @cached_property
    def _seen_sizes(self) -> dict[tuple[tuple[str, Any], ...], tuple[int, int]]:
        found = {}
        for record in self._records:
            model = self._resolved(_without_length(record.params)).model
            if record.multiply_adds and record.parameters:
                found[_numbers(model)] = (record.multiply_adds, record.parameters)
        return found


def _without_length(params: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in params.items() if full_key(key) not in LENGTH_KEYS}


def _numbers(model: ModelSpec) -> tuple[tuple[str, Any], ...]:
    return (("name", model.name), ("scale", model.scale), *sorted(model.options.items()))


def _bare(multiply_adds: int, parameters: int) -> Arithmetic:
    """Return the arithmetic of a network of which nothing else is known."""
    return Arithmetic(
        multiply_adds=multiply_adds, padded=multiply_adds, traffic=multiply_adds, layers=1, parameters=parameters
    )


def _log_law(seen: Mapping[tuple[tuple[str, Any], ...], int], wanted: tuple[tuple[str, Any], ...]) -> float:
    """Return the log of a count at numbers that never ran: powers of them, held near 2 for the scale and 1 for others."""
    names = [name for name, value in wanted if isinstance(value, (int, float)) and value > 0]
    if not seen:
        return math.log(1e6) + 2 * math.log(dict(wanted)["scale"])
    expected = np.array([2.0 if name == "scale" else 1.0 for name in names])
    rows = np.array([_logs(key, names) for key in seen])
    here, counts = np.array(_logs(wanted, names)), np.log(list(seen.values()))
    centre, middle = rows.mean(0), counts.mean()
    spread = rows - centre
    misfit = counts - middle - spread @ expected
    powers = expected + np.linalg.solve(spread.T @ spread + 0.01 * np.eye(len(names)), spread.T @ misfit)
    return float(middle + (here - centre) @ powers)


def _logs(numbers: tuple[tuple[str, Any], ...], names: Sequence[str]) -> list[float]:
    values = dict(numbers)
    return [math.log(values[name]) if values.get(name) else 0.0 for name in names]


def finished(records: Sequence[TrialRecord]) -> Iterator[TrialRecord]:
    """Yield the trials that a model can learn from: complete, with finite values and a curve."""
    for record in records:
        if record.state == "COMPLETE" and record.curve and record.train_seconds and record.test_accuracy is not None:
            yield record
