"""What a ResNet of `[model]` computes, by formula: arithmetic, padded arithmetic and traffic. No torch.

A configuration that never ran has no record of its multiply-adds. Here they are counted from the spec alone, layer by
layer as `budgettune.training.resnet` builds them (a test holds the two against each other).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from budgettune.spec.tables import IMAGE_SHAPES, DataSpec, ModelSpec

LANES = 16
"""32-bit numbers in a vector of AVX-512: channels are computed in groups of so many, full or not."""

USUAL_SHAPE = (3, 32, 10)
"""Taken for a set of your own: sizes only count against those of the same study."""


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What one forward pass of one image costs.

    Attributes:
        multiply_adds: of convolutions and the linear layer.
        padded: the same with channels rounded up to full vectors.
        traffic: numbers that layers write, channels rounded up likewise.
        layers: convolutions, each with its batch norm: launches and fixed costs.
    """

    multiply_adds: int
    padded: int
    traffic: int
    layers: int


@dataclass(frozen=True)
class _Convolution:
    inputs: int
    outputs: int
    kernel: int
    size: int  # pixels on a side of its output

    def multiply_adds(self, outputs: int) -> int:
        return self.inputs * outputs * self.kernel**2 * self.size**2


def resnet_arithmetic(model: ModelSpec, data: DataSpec) -> Arithmetic:
    """Return what the built-in ResNet of a `[model]` table computes for the images of a `[data]` table."""
    channels, size, num_classes = IMAGE_SHAPES.get(data.name, USUAL_SHAPE)
    convolutions = list(_convolutions(model, channels, data.image_size or size))
    head = model.realised_widths[-1] * num_classes
    return Arithmetic(
        multiply_adds=sum(layer.multiply_adds(layer.outputs) for layer in convolutions) + head,
        padded=sum(layer.multiply_adds(_full(layer.outputs)) for layer in convolutions) + head,
        traffic=sum(_full(layer.outputs) * layer.size**2 for layer in convolutions),
        layers=len(convolutions),
    )


def _convolutions(model: ModelSpec, channels: int, size: int) -> Iterator[_Convolution]:
    before = model.widths[0]
    yield _Convolution(channels, before, 3, size)
    for stage, width in enumerate(model.realised_widths):
        stride = 1 if stage == 0 else 2
        size = math.ceil(size / stride)
        if stride != 1 or before != width:
            yield _Convolution(before, width, 1, size)
        for _ in range(model.realised_blocks):
            yield _Convolution(before, width, 3, size)
            yield _Convolution(width, width, 3, size)
            before = width


def _full(channels: int) -> int:
    return math.ceil(channels / LANES) * LANES
