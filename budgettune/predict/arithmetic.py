"""What a ResNet of `[model]` computes, by formula: arithmetic, padded arithmetic, traffic and parameters. No torch.

A configuration that never ran has no record of its multiply-adds. Here they are counted from the spec alone, layer by
layer as `budgettune.training.resnet` builds them (a test holds the two against each other).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from budgettune.spec import DataSpec, ModelSpec

LANES = 16
"""32-bit numbers in a vector of AVX-512: channels are computed in groups of so many, full or not."""

LARGEST_IMAGE = 1_024


@dataclass(frozen=True)
class ImageShape:
    """What a network reads and tells apart: channels, pixels on a side, classes."""

    channels: int
    size: int
    num_classes: int


SHAPES = {
    "digits": ImageShape(1, 8, 10),
    "fashion-mnist": ImageShape(1, 28, 10),
    "cifar10": ImageShape(3, 32, 10),
    "cifar100": ImageShape(3, 32, 100),
}


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """What one forward pass of one image costs.

    Attributes:
        multiply_adds: of convolutions and the linear layer.
        padded: the same with channels rounded up to full vectors.
        traffic: numbers that layers write, channels rounded up likewise.
        layers: convolutions, each with its batch norm: launches and fixed costs.
        parameters: trainable ones.
    """

    multiply_adds: int
    padded: int
    traffic: int
    layers: int
    parameters: int


@dataclass(frozen=True)
class _Convolution:
    inputs: int
    outputs: int
    kernel: int
    size: int  # pixels on a side of its output

    @property
    def weights(self) -> int:
        return self.inputs * self.outputs * self.kernel**2


def resnet_arithmetic(model: ModelSpec, shape: ImageShape) -> Arithmetic:
    """Return what the built-in ResNet of a `[model]` table computes for images of a shape."""
    convolutions = list(_convolutions(model, shape))
    head = model.realised_widths[-1] * shape.num_classes
    return Arithmetic(
        multiply_adds=sum(layer.weights * layer.size**2 for layer in convolutions) + head,
        padded=sum(_padded(layer) for layer in convolutions) + head,
        traffic=sum(_full(layer.outputs) * layer.size**2 for layer in convolutions),
        layers=len(convolutions),
        # Every convolution has a batch norm of two numbers per channel; the head has a bias.
        parameters=sum(layer.weights + 2 * layer.outputs for layer in convolutions) + head + shape.num_classes,
    )


def _convolutions(model: ModelSpec, shape: ImageShape) -> Iterator[_Convolution]:
    stem, size = model.widths[0], shape.size
    yield _Convolution(shape.channels, stem, 3, size)
    before = stem
    for stage, width in enumerate(model.realised_widths):
        stride = 1 if stage == 0 else 2
        size = math.ceil(size / stride)
        if stride != 1 or before != width:
            yield _Convolution(before, width, 1, size)
        for _ in range(model.realised_blocks):
            yield _Convolution(before, width, 3, size)
            yield _Convolution(width, width, 3, size)
            before = width


def _padded(layer: _Convolution) -> int:
    return layer.inputs * _full(layer.outputs) * layer.kernel**2 * layer.size**2


def _full(channels: int) -> int:
    return math.ceil(channels / LANES) * LANES


def known_shape(data: DataSpec) -> ImageShape | None:
    """Return the shape of a built-in set as its `[data]` table asks for it; None for all others."""
    shape = SHAPES.get(data.name)
    if shape is None or data.image_size is None:
        return shape
    return ImageShape(shape.channels, data.image_size, shape.num_classes)


def inferred_shape(model: ModelSpec, parameters: int, multiply_adds: int) -> ImageShape | None:
    """Return the shape of the images that a ResNet was trained on, from what its trial recorded.

    Of grey and coloured images the one is right whose classes and pixels come out whole; None where neither does.
    """
    for channels in (1, 3):
        bare = resnet_arithmetic(model, ImageShape(channels, 1, 0)).parameters
        classes, rest = divmod(parameters - bare, model.realised_widths[-1] + 1)
        if rest or classes < 1:
            continue
        for size in range(1, LARGEST_IMAGE + 1):
            shape = ImageShape(channels, size, classes)
            if resnet_arithmetic(model, shape).multiply_adds >= multiply_adds:
                break
        if resnet_arithmetic(model, shape).multiply_adds == multiply_adds:
            return shape
    return None

