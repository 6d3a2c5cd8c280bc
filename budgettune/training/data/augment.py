"""What happens to a batch between the image set and the model. All of it is on the training clock."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional


def augment(images: Tensor, *, pad: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Return uint8 [B, C, H, W], each image cropped at random and, with `flip`, mirrored with probability one half.

    A crop goes back to H×W after `pad` zeros were put around the image; 0 for none. The images are left as they are,
    and the result lies on their device. The generator is the only source of randomness: on the CPU it gives the same
    draws for every device; on the device of the images it saves a copy.
    """
    if pad > 0:
        images = _crop(images, pad, generator)
    return _flip(images, generator) if flip else images


def normalise(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """Return (images / 255 - mean) / std of uint8 [B, C, H, W], rounded to dtype once, at the end.

    Mean and std are per channel, of images in [0, 1]. The result is [B, C, H, W] in the memory order of the model, so
    that convolutions take it without a copy.
    """
    factor, shift = _factor_and_shift(tuple(mean), tuple(std), images.device)
    # Planes first, order last: a per-channel product is quick on whole planes and slow on interleaved channels.
    scaled = images.contiguous().float().mul_(factor).add_(shift)
    # Two steps: narrowing and reordering in one is several times slower on the CPU.
    return scaled.to(dtype).contiguous(memory_format=memory_format)


def _crop(images: Tensor, pad: int, generator: torch.Generator) -> Tensor:
    """Crop each image at its own corner, as one selection of image rows.

    Every possible row is a window of the flat padded batch, so a crop is a list of window starts, and the copy
    moves whole rows rather than single pixels.
    """
    batch, channels, height, width = images.shape
    padded = functional.pad(images.contiguous(), (pad, pad, pad, pad))
    pitch = width + 2 * pad
    draws = torch.randint(2 * pad + 1, (2, batch), generator=generator, device=generator.device)
    top, left = draws.to(images.device, non_blocking=True)
    planes = torch.arange(batch * channels, device=images.device).view(batch, channels, 1) * padded.stride(1)
    corners = planes + (top * pitch + left).view(batch, 1, 1)
    starts = corners + torch.arange(height, device=images.device) * pitch
    return padded.view(-1).unfold(0, width, 1).index_select(0, starts.view(-1)).view(images.shape)


def _flip(images: Tensor, generator: torch.Generator) -> Tensor:
    draws = torch.randint(2, (len(images),), generator=generator, device=generator.device)
    mask = (draws.to(images.device, non_blocking=True) * 255).to(torch.uint8).view(-1, 1, 1, 1)
    # torch.where on bytes is not vectorised on the CPU; bit operations are, and choose as well.
    return images.flip(-1).bitwise_xor_(images).bitwise_and_(mask).bitwise_xor_(images)


@lru_cache(maxsize=16)  # building them in every step would make an accelerator wait for the host
def _factor_and_shift(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    with torch.inference_mode(False):  # a cached inference tensor would fail later, in training
        factor = torch.tensor([1 / (255 * s) for s in std], device=device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        return factor.view(-1, 1, 1), shift.view(-1, 1, 1)
