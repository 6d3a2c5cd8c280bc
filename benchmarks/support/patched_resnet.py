"""The built-in ResNet on patches of 2 × 2 pixels: a network for 28×28 images that one core can train for many epochs.

    budgettune compare benchmarks/tables/fashion-28x28.toml --allow-import benchmarks

Nothing of an image is lost, and a quarter of the places are left to convolve.
"""

from __future__ import annotations

from torch import nn

from budgettune.training.resnet import ScalableResNet

PATCH = 2  # pixels along each side


def network(num_classes: int, channels: int, image_size: int, scale: float) -> nn.Module:
    """Return a network of images [B, channels, size, size], of widths 16, 32, 64 × scale."""
    widths = [round(width * scale) for width in (16, 32, 64)]
    return nn.Sequential(
        nn.PixelUnshuffle(PATCH),
        ScalableResNet(widths=widths, blocks=1, stem=widths[0], channels=channels * PATCH**2, num_classes=num_classes),
    )
