"""A few steps of one configuration, timed: what it costs per FLOP, without any training to speak of."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from statistics import fmean, median, pstdev

import torch

from budgettune.spec.study_spec import StudySpec
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import ImageData, ImageSet, load_data
from budgettune.training.device import Device
from budgettune.training.profile.kernels import Kernel, kernels_of
from budgettune.training.trainer import TrainingRun
from budgettune.trial.stopwatch import Stopwatch

_STRETCHES = 3  # that a measurement is cut into on a device which the host does not wait for at every step
_SHORTEST_STRETCH = 8  # in steps: a single one there is launch plus device, which overlap in training
_FLOP_PER_MULTIPLY_ADD = 6  # two operations, in the forward pass and twice in the backward pass


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What one configuration's steps cost: milliseconds are per step."""

    batch_size: int
    precision: str  # fp32 or bf16, as realised
    widths: tuple[int, ...]  # realised channels of the stages; empty for a model that does not tell
    blocks: int | None  # realised basic blocks per stage; None likewise
    multiply_adds: int  # of one forward pass of one image
    steps: int  # timed
    ms_median: float
    ms_mad: float  # median absolute deviation
    ms_mean: float  # as a whole run has them: stalls count
    ms_error: float  # standard error of the mean

    @property
    def flop_per_step(self) -> float:
        """Operations of a training step: forward, and two products of the same size backward."""
        return float(_FLOP_PER_MULTIPLY_ADD * self.multiply_adds * self.batch_size)

    @property
    def flops_per_second(self) -> float:
        """Achieved operations per second; those of layers without weights are not counted."""
        return self.flop_per_step / (self.ms_median / 1e3)


class Probe:
    """One configuration, built and warmed up as the trainer does it, whose steps can be timed in rounds.

    Nothing is pruned and no image is read twice: a step is gathering, augmentation, forward, backward and optimiser.
    The global random state is left as it was found.

    Args:
        config: a resolved spec; its pruning and its length of training play no part.
        data: at least batch_size images on the device, such as `probe_images` gives.
        cudnn_benchmark: whether cuDNN measures its kernels, as in training, or trusts its heuristic.
        clock: seconds, monotonic.

    Raises:
        SpecError: where the configuration cannot work.
        OutOfMemory: where the device has no room for it.
    """

    def __init__(
        self,
        config: StudySpec,
        data: ImageData,
        device: Device,
        *,
        cudnn_benchmark: bool = True,
        trust: Trust = Trust(),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device, self.clock, self.cudnn_benchmark = device, clock, cudnn_benchmark
        changes = {"pruning.strategy": "full", "pruning.prune_rate": 0.0, "train.budget": None, "model.weights": None}
        # "auto" goes by the length of a run, and here is none.
        self.config = config.resolve({**changes, "train.compile": config.train.compile is True})
        first = data.train.take(slice(config.train.batch_size))
        data = replace(data, train=first, held_out=first)
        with self._guarded(), device.own_chance(0):
            self._run = TrainingRun(self.config, data, device, 0, Stopwatch(clock, device.synchronize), trust)
        self._indices = torch.arange(config.train.batch_size, device=device.torch)
        self._losses = torch.zeros((), device=device.torch)

    def measure(self, steps: int) -> ProbeResult:
        """Time some steps, one by one on a CPU, elsewhere in a few stretches, none of them short."""
        size = max(_SHORTEST_STRETCH, steps // _STRETCHES) if self.device.is_cuda else 1
        with self._guarded():
            self._set_arithmetic()
            ms = [self._stretch(size) for _ in range(max(1, steps // size))]
        learner = self._run.learner
        return ProbeResult(
            batch_size=self.config.train.batch_size,
            precision=learner.precision,
            widths=tuple(learner.architecture.get("widths", ())),
            blocks=learner.architecture.get("blocks"),
            multiply_adds=learner.multiply_adds,
            steps=size * len(ms),
            ms_median=median(ms),
            ms_mad=median(abs(value - median(ms)) for value in ms),
            ms_mean=fmean(ms),
            ms_error=pstdev(ms) / math.sqrt(len(ms)),
        )

    def kernels(self) -> tuple[Kernel, ...]:
        """Return what one step runs, dearest first."""
        with self._guarded():
            self._set_arithmetic()
            return kernels_of(self._step, self.device)

    def _set_arithmetic(self) -> None:
        """Set what holds for the whole process: a probe of another precision may have been timed before this one."""
        precision, train = self._run.learner.precision, self.config.train
        self.device.set_arithmetic(precision, deterministic=train.deterministic)

    def _step(self) -> None:
        self._run.step(self._run.feed.gather(self._indices), self.config.train.lr, self._losses)

    def _stretch(self, steps: int) -> float:
        """Return milliseconds per step."""
        self.device.synchronize()
        began = self.clock()
        for _ in range(steps):
            self._step()
        self.device.synchronize()
        return 1e3 * (self.clock() - began) / steps

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Have cuDNN choose as this probe wants it, and name what a full device means."""
        before, self.device.measures_kernels = self.device.measures_kernels, self.cudnn_benchmark
        try:
            with self.device.full_memory_named(self.config.train.batch_size):
                yield
        finally:
            self.device.measures_kernels = before


def fewest_steps(device: Device, on_cpu: int) -> int:
    """Return how many steps a measurement needs at least: on a GPU as many as make three stretches."""
    return _STRETCHES * _SHORTEST_STRETCH if device.is_cuda else on_cpu


def probe_images(spec: DataSpec, count: int, device: torch.device, trust: Trust = Trust()) -> ImageData:
    """Return images to probe with: `count` random ones in the shape of a built-in set, else the set's own.

    Raises:
        DataError: where a set that is not built in cannot be read.
    """
    facts = spec.facts
    if facts is None:
        return replace(load_data(spec, trust=trust), test=None).to(device)
    size = spec.image_size or facts.size
    generator = torch.Generator().manual_seed(spec.seed)
    images = torch.randint(256, (count, facts.channels, size, size), dtype=torch.uint8, generator=generator)
    random = ImageSet(images, torch.randint(facts.classes, (count,), generator=generator))
    return ImageData(
        name=spec.name,
        train=random,
        held_out=random,
        num_classes=facts.classes,
        mean=(0.5,) * facts.channels,
        std=(0.25,) * facts.channels,
        flip=facts.flip if spec.flip is None else spec.flip,
        pad=max(1, size // 8),
    ).to(device)
