"""Train one configuration and say what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch

from budgettune.errors import OutOfMemory
from budgettune.records import EpochRecord
from budgettune.spec.study_spec import StudySpec
from budgettune.training.data.load import ImageData
from budgettune.training.device import Device, is_out_of_memory
from budgettune.training.learner import build_model, make_optimizer, weights_sha256
from budgettune.training.run import Nobody, Run, Trained, Witness
from budgettune.training.stopwatch import Stopwatch

__all__ = ["Nobody", "Run", "Trained", "Witness", "build_model", "make_optimizer", "train", "weights_sha256"]


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
    ends_early: Callable[[EpochRecord], bool] = lambda record: False,
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
        allow_import: packages that code named in the spec may come from.
        witness: of disturbance; without one the status is `unverified`.
        clock: seconds, monotonic.
        should_stop: asked before every step.
        on_epoch: told each point of the curve.
        ends_early: asked after each epoch that was evaluated, off the clock, whether training ends with it.

    Raises:
        SpecError: where the params cannot work.
        OutOfMemory: where the device has no room.
        NonFiniteLoss: where training diverged.
        BudgetUsedUp: where a pruning strategy takes the whole time budget before training.
        Interrupted: where should_stop said so.
    """
    config = spec.resolve(params or {})
    box = Device(device)
    box.prepare()
    try:
        with box.own_chance(seed):
            run = Run(config, data.to(box.device), box, seed, Stopwatch(clock, box.synchronize), allow_import)
            return run.train(load_seconds, witness, should_stop, on_epoch, ends_early)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise OutOfMemory(
                f"no memory left on {box.device} at batch size {config.train.batch_size}: "
                f"a smaller batch_size or scale would fit"
            ) from error
        raise
