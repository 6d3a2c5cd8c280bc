"""A training run between two epochs as bytes, and a run that goes on from them to the same end, bit by bit."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from budgettune.records import EpochRecord
from budgettune.text import first_line, message_of
from budgettune.training.device import Device, is_out_of_memory
from budgettune.training.feed import Feed
from budgettune.training.group import Alone
from budgettune.training.learner import Learner
from budgettune.training.passes import ModelPasses
from budgettune.training.pruning import Strategy
from budgettune.trial.checkpoint import Checkpoint, HalfTrained, parts_of
from budgettune.trial.schedule import BudgetProgress, Progress
from budgettune.trial.stopwatch import Stopwatch

logger = logging.getLogger(__name__)

COUNTERS = ("samples", "steps", "full_visits", "peak_memory_mb", "is_compiled")


class NotResumed(Exception):
    """What was kept of a run does not fit this one."""


class Run(Protocol):
    """What there is to keep of a `TrainingRun`."""

    learner: Learner
    strategy: Strategy
    passes: ModelPasses
    feed: Feed
    watch: Stopwatch
    device: Device
    held_out_generator: torch.Generator
    step_seconds: list[float]
    batch_shapes: set[int]


def keep(
    run: Run,
    curve: tuple[EpochRecord, ...],
    progress: Progress,
    verdict: tuple[str, Mapping[str, Any]],
    before: HalfTrained | None,
) -> HalfTrained:
    """Return a run between two epochs, with the verdict on this process's part; `before` is what it went on from."""
    return HalfTrained(
        curve=curve,
        elapsed_seconds=run.watch.elapsed(),
        seconds=dict(run.watch.seconds),
        state=to_bytes(run, progress),
        **parts_of(before, *verdict),
    )


def to_bytes(run: Run, progress: Progress) -> bytes:
    """Return all that `restore` needs, for a reader that runs no code (`torch.load(weights_only=True)`)."""
    learner = run.learner
    document = {
        "torch": str(torch.__version__),
        "model": learner.model.state_dict(),
        "optimizer": [learner.optimizer.state.get(parameter, {}) for parameter in _parameters(learner)],
        "strategy": run.strategy.state_dict(),
        "order": learner.generator.get_state(),
        "held_out": run.held_out_generator.get_state(),
        "global": run.device.chance(),
        "counters": {name: getattr(run, name) for name in COUNTERS},
        "scored_samples": run.passes.scored_samples,
        "helper_samples": run.passes.helper_samples,
        "offered": run.feed.offered,
        "step_seconds": torch.tensor(run.step_seconds, dtype=torch.float64),
        "batch_shapes": sorted(run.batch_shapes),
        "began": progress.began if isinstance(progress, BudgetProgress) else None,
    }
    content = io.BytesIO()
    torch.save(document, content)
    return content.getvalue()


def read(content: bytes) -> dict[str, Any]:
    """Return what `to_bytes` put together, with all tensors on the CPU.

    Raises:
        ValueError: where another release of torch, which may calculate otherwise, has kept it.
    """
    document: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if document["torch"] != str(torch.__version__):
        raise ValueError(f"kept by torch {document['torch']}, and this is {torch.__version__}")
    return document


def half_trained(checkpoint: Checkpoint, group: Alone) -> HalfTrained | None:
    """Return what is kept of a trial that was cut off, with its state as `restore` takes it."""
    half = checkpoint.load(bytes_only=True) if group.rank == 0 else None
    try:
        state = read(half.state) if half else None
    except Exception as error:  # whatever is wrong with it
        logger.warning("%s is not used (%s): the trial begins anew", checkpoint.path, message_of(error))
        half = None
    if group.size > 1:
        content = group.content(half.to_bytes() if half else None)
        half = None if content is None else HalfTrained.from_bytes(content, bytes_only=True)
        state = read(half.state) if half else None
    return None if half is None else replace(half, state=state)


def restore(run: Run, document: Mapping[str, Any]) -> None:
    """Put a run of the same configuration, which has not begun, where another one was.

    Tensors are written in place, because captured graphs read them where they lie.

    Raises:
        NotResumed: where it does not fit, as where code of the user's own was changed.
    """
    try:
        _restore(run, document)
    except (RuntimeError, LookupError, ValueError, TypeError, AttributeError) as error:
        if is_out_of_memory(error):
            raise
        raise NotResumed(f"the half-trained trial does not fit what is trained now ({first_line(error)})") from error


def _restore(run: Run, document: Mapping[str, Any]) -> None:
    learner = run.learner
    learner.model.load_state_dict(document["model"])
    for parameter, kept in zip(_parameters(learner), document["optimizer"], strict=True):
        _put(learner.optimizer.state[parameter], kept, parameter.device)
    run.strategy.passes = run.passes
    run.strategy.load_state_dict(document["strategy"])
    learner.generator.set_state(document["order"])
    run.held_out_generator.set_state(document["held_out"])
    for name in COUNTERS:
        setattr(run, name, document["counters"][name])
    run.passes.scored_samples, run.passes.helper_samples = document["scored_samples"], document["helper_samples"]
    run.feed.offered = document["offered"]
    run.step_seconds[:] = document["step_seconds"].tolist()
    run.batch_shapes.update(document["batch_shapes"])
    run.device.set_chance(document["global"])


def restore_progress(progress: Progress, document: Mapping[str, Any]) -> None:
    """Let a time budget be used up where it would have been."""
    if isinstance(progress, BudgetProgress):
        progress.began = document["began"]
        for seconds in document["step_seconds"].tolist():
            progress.learn(seconds)


def _parameters(learner: Learner) -> list[Tensor]:
    return [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]


def _put(state: dict[str, Any], kept: Mapping[str, Any], device: torch.device) -> None:
    for name, value in kept.items():
        there = state.get(name)
        if isinstance(value, Tensor) and isinstance(there, Tensor):
            there.copy_(value)
        else:  # a fused optimiser keeps all of it beside its parameter
            state[name] = value.to(device) if isinstance(value, Tensor) else value
