"""Bytes that a training step moves, counted from the tensors of its operations."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from budgettune.spec.study_spec import StudySpec
from budgettune.training.device import Device
from budgettune.training.profile.probe import Probe, probe_images


def bytes_per_image(config: StudySpec, device: Device) -> float:
    """Return the bytes that a step of a full batch reads and writes for each of its images.

    Every operation counts once what it reads and once what it writes. Where nothing is fused and no cache holds a
    tensor that is a lower bound: batch norm, say, reads its input twice.
    """
    size = config.train.batch_size
    probe = Probe(config, probe_images(config.data, size, device.torch), device)
    with Traffic() as traffic:
        steps = probe.measure(1).steps
    return traffic.bytes / steps / size


class Traffic(TorchDispatchMode):
    """Adds up the bytes of what operations read and write, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view or func in _MOVE_NOTHING:
            return result
        written = [
            value
            for value, declared in zip(args, func._schema.arguments, strict=False)
            if declared.alias_info is not None and declared.alias_info.is_write
        ]
        self.bytes += _size((args, kwargs)) + _size(written or result)
        return result


_MOVE_NOTHING = (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default)


def _size(values: Any) -> int:
    """Return the bytes of all tensors in a nest of values; what is only spread out lies in memory once."""
    tensors = [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]
    return sum(min(one.numel() * one.element_size(), one.untyped_storage().nbytes()) for one in tensors)
