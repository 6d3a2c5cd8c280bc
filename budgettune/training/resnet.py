"""The paper's scalable ResNet: three stages of basic blocks (He et al. 2016), width and depth scaled together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from budgettune.spec.tables import ModelSpec

_VECTOR = 16  # numbers of 32 bits in a vector of AVX-512


class Projection(nn.Conv2d):
    """A 1×1 convolution without bias, which keeps out of a fault of oneDNN (torch 2.14, CPUs with AVX-512).

    For the gradient of such weights oneDNN writes beyond its memory, and the process dies, where less than a vector of
    channels comes in and threads share out the images unevenly. There the pixels that the stride skips are left out
    beforehand: the same result bit for bit, and a few percent slower, so nowhere else.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels_out, H / stride, W / stride]."""
        if self.stride == (1, 1) or self.in_channels >= _VECTOR or x.is_cuda:
            return super().forward(x)
        # torch's compiler cannot ask for the threads.
        if not torch.compiler.is_compiling() and len(x) % torch.get_num_threads() == 0:
            return super().forward(x)
        return functional.conv2d(x[..., :: self.stride[0], :: self.stride[1]], self.weight)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, which is a 1×1 projection where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                Projection(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, channels_in, H, W] to [B, channels_out, H / stride, W / stride]."""
        out = functional.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        return functional.relu(out + self.shortcut(x), inplace=True)


class ScalableResNet(nn.Module):
    """ResNet for small images: a stem that is never scaled, three stages at strides 1, 2, 2, one linear layer.

    Args:
        widths: realised channels of the three stages.
        blocks: realised basic blocks per stage.
        stem: channels of the stem.
        channels: of the input images.
        num_classes: outputs.
    """

    def __init__(
        self, *, widths: Sequence[int], blocks: int, stem: int = 16, channels: int = 3, num_classes: int = 100
    ) -> None:
        super().__init__()
        self.architecture = {"widths": list(widths), "blocks": blocks, "stem": stem}
        self.stem = nn.Sequential(
            nn.Conv2d(channels, stem, 3, padding=1, bias=False), nn.BatchNorm2d(stem), nn.ReLU(inplace=True)
        )
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            previous = stem if stage == 0 else widths[stage - 1]
            layers.append(BasicBlock(previous, width, stride=1 if stage == 0 else 2))
            layers += [BasicBlock(width, width, stride=1) for _ in range(blocks - 1)]
        self.stages = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_spec(cls, spec: ModelSpec, *, channels: int, num_classes: int, **extra: Any) -> Self:
        """Return the network that a `[model]` table describes; the stem is as wide as the first stage at scale 1."""
        return cls(
            widths=spec.realised_widths,
            blocks=spec.realised_blocks,
            stem=spec.widths[0],
            channels=channels,
            num_classes=num_classes,
            **extra,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map images [B, channels, H, W] to logits [B, num_classes]."""
        return self.head(self.stages(self.stem(x)).mean(dim=(2, 3)))  # type: ignore[no-any-return]


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def count_multiply_adds(model: nn.Module, image_shape: Sequence[int]) -> int:
    """Return the multiply-adds of convolutions and linear layers in one forward pass of one image [C, H, W].

    The model is run once, in evaluation mode, on a zero image on its own device.
    """
    total = 0

    def add(module: Any, _: Any, output: Tensor) -> None:
        nonlocal total
        # Every output value is one dot product as long as the weights that reach it.
        total += output.numel() * module.weight[0].numel()

    layers = [module for module in model.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))]
    handles = [layer.register_forward_hook(add) for layer in layers]
    was_training = model.training
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, *image_shape, device=parameter.device, dtype=parameter.dtype))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return total
