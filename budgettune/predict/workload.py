"""Configurations as work: what each asks of the machine and offers to learning, from its spec alone, run or not.

A configuration that never ran has no record of its multiply-adds. Here they are counted layer by layer, as
`budgettune.training.resnet` builds them (a test holds the two against each other). A model of a library or of your own
has no such formula. Own training code has no images either: its epoch counts as one visit of one sample, in one step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from budgettune.errors import SpecError, UsageError
from budgettune.records import TrialRecord
from budgettune.spec.axes import RangeSpec
from budgettune.spec.documents import full_key
from budgettune.spec.pruning import PruningSpec, visits_of_epochs
from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import AUTO, BUILT_IN_SETS, DataSpec, ModelSpec, is_code

LANES = 16
"""32-bit numbers in a vector of AVX-512: channels are computed in groups of so many, full or not."""

USUAL = BUILT_IN_SETS["cifar10"]
"""Taken for a set of your own: sizes only count against those of the same study."""

LENGTH_KEYS = ("train.epochs", "train.budget")
"""Settings that say how long training goes on, and nothing else."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What one forward pass of one image costs."""

    multiply_adds: int  # of convolutions and the linear layer
    padded: int  # the same with channels rounded up to full vectors
    traffic: int  # numbers that layers write, channels rounded up likewise
    layers: int  # convolutions, each with its batch norm: launches and fixed costs


def resnet_arithmetic(model: ModelSpec, data: DataSpec) -> Arithmetic:
    """Return what the built-in ResNet of a `[model]` table computes for the images of a `[data]` table."""
    images = data.facts or USUAL
    layers = list(_convolutions(model, images.channels, data.image_size or images.size))
    head = model.realised_widths[-1] * images.classes
    return Arithmetic(
        multiply_adds=sum(fan_in * outputs * pixels for fan_in, outputs, pixels in layers) + head,
        padded=sum(fan_in * _full(outputs) * pixels for fan_in, outputs, pixels in layers) + head,
        traffic=sum(_full(outputs) * pixels for _, outputs, pixels in layers),
        layers=len(layers),
    )


def _convolutions(model: ModelSpec, channels: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Yield fan-in (inputs times the area of the kernel), outputs, and pixels of an output of each convolution."""
    before = model.widths[0]
    yield 9 * channels, before, size**2
    for stage, width in enumerate(model.realised_widths):
        stride = 1 if stage == 0 else 2
        size = math.ceil(size / stride)
        if stride != 1 or before != width:
            yield before, width, size**2
        for _ in range(model.realised_blocks):
            yield 9 * before, width, size**2
            yield 9 * width, width, size**2
            before = width


def _full(channels: int) -> int:
    return math.ceil(channels / LANES) * LANES


@dataclass(frozen=True, kw_only=True, eq=False)
class Workload:
    """A configuration without its length. `Workloads` makes one of each: two are equal where they are the same."""

    number: int  # among its study's
    params: Mapping[str, Any]  # searched values, those of its length left out
    config: StudySpec  # resolved
    images: int  # that one epoch without pruning visits; 1 of own training code
    arithmetic: Arithmetic | None  # of one forward pass of one image; None where no formula tells

    @property
    def is_own_code(self) -> bool:
        return self.config.train.is_own_code

    @property
    def batch(self) -> int:
        return 1 if self.is_own_code else self.config.train.batch_size

    @cached_property
    def step_variant(self) -> str:
        """What a step depends on beside network and batch."""
        train, data = self.config.train, self.config.data
        extras = [
            train.optimizer,
            {True: "compiled", AUTO: "compiled where it pays"}.get(train.compile, ""),
            "graphs" if train.cuda_graphs else "",
            "deterministic" if train.deterministic else "",
            "" if train.memory_format == "channels_last" else train.memory_format,
            "" if data.augment else "not augmented",
        ]
        return " ".join([train.precision, *filter(None, extras)])

    @cached_property
    def step(self) -> str:
        """A text that workloads share exactly where their steps cost the same, pruning aside."""
        if self.is_own_code:
            return self.config.step_label()
        model, size = self.config.model, self.config.data.image_size
        pixels = "" if size is None else f", {size} pixels"
        network = model.network
        if is_code(model.name):
            network = " ".join([f"{model.name} × {model.scale:g}", *(f"{k}={v}" for k, v in model.options.items())])
        return f"{network}{pixels}, batch {self.batch}, {self.step_variant}"

    def value(self, dotted_key: str) -> Any:
        """Return a setting; None where it is one of a table of your own that has no such key."""
        setting: Any = self.config
        for part in dotted_key.split("."):
            setting = setting.get(part) if isinstance(setting, Mapping) else getattr(setting, part)
        return setting

    def visited(self, record: TrialRecord) -> list[float]:
        """Return what each epoch of a trial visited: samples, or of own code epochs, the last maybe in part."""
        curve = record.curve
        if not self.is_own_code:
            return [float(epoch.samples or 0) for epoch in curve]
        visited = [1.0] * len(curve)
        usual, last = curve[0].steps, curve[-1].steps
        if len(curve) > 1 and usual and last:
            visited[-1] = min(1.0, last / usual)  # a time budget cuts it short
        return visited

    def epoch_sizes(self, epochs: int) -> Mapping[int, int]:
        """Return how many epochs of a run visit how many samples.

        Raises:
            SpecError: where the strategy cannot reach its prune rate in so few epochs.
        """
        return _epoch_sizes(self.config.pruning, self.images, epochs)

    def visits(self, epochs: int) -> int:
        """Return the samples that a run of some epochs visits; raise where `epoch_sizes` does."""
        return sum(size * count for size, count in self.epoch_sizes(epochs).items())

    def can_train(self, epochs: int) -> bool:
        """Whether the strategy can reach its prune rate in so few epochs."""
        try:
            self.epoch_sizes(epochs)
        except SpecError:
            return False
        return True

    def fewest_epochs(self) -> int:
        """Return the epochs of the shortest run in which the strategy reaches its prune rate."""
        return next(epochs for epochs in range(1, 10_000) if self.can_train(epochs))


RunLength = tuple[Workload, int]
"""A workload and the epochs that it is trained for."""


@lru_cache(maxsize=8_192)
def _epoch_sizes(pruning: PruningSpec, images: int, epochs: int) -> Mapping[int, int]:
    return visits_of_epochs(pruning, images, epochs)


class Workloads:
    """Makes the workloads of one study; its trials, in any state, tell how many images a set of your own has."""

    def __init__(self, spec: StudySpec, records: Sequence[TrialRecord]) -> None:
        self.spec = spec
        self._records = records
        self._cache: dict[tuple[tuple[str, Any], ...], Workload] = {}

    @cached_property
    def have_arithmetic(self) -> bool:
        """Whether a formula tells the arithmetic of all configurations of the study."""
        names = self.spec.search.get("model.name", ())
        listed = () if isinstance(names, RangeSpec) else names
        return not self.spec.train.is_own_code and not any(
            is_code(str(name)) for name in (self.spec.model.name, *listed)
        )

    def of(self, params: Mapping[str, Any]) -> Workload:
        """Return the workload of searched values.

        Raises:
            SpecError: where they cannot work.
        """
        own = {key: value for key, value in params.items() if full_key(key) not in LENGTH_KEYS}
        key = tuple(sorted(own.items()))
        if key not in self._cache:
            # Without its length, so that it takes the usual one, within reach of most prune rates.
            config = self.spec.resolve({**own, "train.budget": None, "train.epochs": None})
            self._cache[key] = Workload(
                number=len(self._cache),
                params=own,
                config=config,
                images=1 if config.train.is_own_code else self._images(config.data),
                arithmetic=resnet_arithmetic(config.model, config.data) if self.have_arithmetic else None,
            )
        return self._cache[key]

    def find(self, params: Mapping[str, Any]) -> Workload | None:
        """Return the workload of searched values, None where they cannot work together."""
        try:
            return self.of(params)
        except SpecError:
            return None

    def finished(self) -> list[TrialRecord]:
        """Return the trials that a model can learn from: complete, with finite values, a curve and known params."""
        return [
            record
            for record in self._records
            if record.state == "COMPLETE"
            and record.curve
            and record.train_seconds
            and record.value is not None
            and self.find(record.params) is not None
        ]

    def _images(self, data: DataSpec) -> int:
        if data.train_size is not None:
            return data.train_size
        return self._visited_images if data.part_sizes is None else data.part_sizes[0]

    @cached_property
    def _visited_images(self) -> int:
        """Images of a set of your own: a trial's visits over the share of all that they are."""
        for record in self._records:
            if record.curve and record.keep_fraction:
                visited = sum(epoch.samples or 0 for epoch in record.curve)
                return max(1, round(visited / record.keep_fraction / len(record.curve)))
        raise UsageError("how many images an epoch visits is not known before a trial has finished: run one first")
