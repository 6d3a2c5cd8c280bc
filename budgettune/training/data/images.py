"""Images and labels as tensors: what every source turns its files into, checked and split."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from budgettune.errors import DataError
from budgettune.text import listing
from budgettune.training.data.cache import MappedImages, channel_moments

_CHANNELS = range(1, 5)
_PART_BYTES = 2**20
_RESIZED_BYTES = 2**25  # at a time: no signal is heard inside a call, and a large set takes seconds


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with a label each."""

    images: Tensor | MappedImages  # uint8 [N, C, H, W], in memory or in a cache file
    labels: Tensor  # int64 [N]
    files: np.ndarray | None = None  # [N] of their paths, where each lies in a file

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor | slice) -> ImageSet:
        """Return the images of the indices, in their order; those of a cache file stay there."""
        images = self.images.select(indices) if isinstance(self.images, MappedImages) else self.images[indices]
        rows = indices if isinstance(indices, slice) else indices.numpy()
        return ImageSet(images, self.labels[indices], None if self.files is None else self.files[rows])

    def places(self, indices: Tensor) -> Tensor:
        """Return indices where `images[…]` reads them: on the host for a cache file, else as they are.

        One copy of an epoch's order, made here, saves an accelerator from waiting for the host at every batch.
        """
        return indices.cpu() if isinstance(self.images, MappedImages) else indices

    def to(self, device: torch.device | str) -> ImageSet:
        return ImageSet(self.images.to(device), self.labels.to(device))

    def resized(self, size: int) -> ImageSet:
        """Return square images: antialiased bilinear, sides stretched where they differ; a cache was built so."""
        if isinstance(self.images, MappedImages) or self.images.shape[-2:] == (size, size):
            return self
        resized = self.images.new_empty((*self.images.shape[:2], size, size))
        count = max(1, _RESIZED_BYTES // max(self.images[0].numel(), resized[0].numel()))
        for into, part in zip(resized.split(count), self.images.split(count), strict=True):
            into.copy_(functional.interpolate(part, size=(size, size), mode="bilinear", antialias=True))
        return ImageSet(resized, self.labels)

    def sum_moments(self) -> np.ndarray:
        """Return float64 [2, C], exact: the sums of all values of a channel and of their squares, in bounded memory."""
        if isinstance(self.images, MappedImages):
            return self.images.sum_moments()
        parts = self.images.split(max(1, _PART_BYTES // self.images[0].numel()))
        sums: np.ndarray = np.sum([channel_moments(part.numpy()).sum(axis=0) for part in parts], axis=0)
        return sums

    def fingerprints(self) -> np.ndarray:
        """Return opaque values [N] that images share where they are the same, and else next to never."""
        moments = self._moments()
        return np.ascontiguousarray(moments.reshape(len(moments), -1)).view(f"V{moments[0].nbytes}").ravel()

    def _moments(self) -> np.ndarray:
        if isinstance(self.images, MappedImages):
            return np.asarray(self.images.moments[self.images.rows])
        parts = self.images.split(max(1, _PART_BYTES // self.images[0].numel()))
        return np.concatenate([channel_moments(part.numpy()) for part in parts])

    def digest(self, row: int) -> bytes:
        return hashlib.blake2b(self.images[torch.tensor([row])].numpy().tobytes()).digest()


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceImages:
    """All that a source has, before any choice of the study."""

    train: ImageSet  # at least one of every class
    test: ImageSet  # of the same number of channels
    num_classes: int  # labels run from 0 to num_classes - 1
    flip: bool  # whether a mirrored image keeps its label
    class_names: Sequence[str] | None = None  # in the order of labels, where the source knows them


def image_set(images: Any, labels: Any, where: str, num_classes: int) -> ImageSet:
    """Return images and labels as checked tensors.

    Images are a uint8 array or tensor [N, C, H, W], [N, H, W, C] or [N, H, W], of 1 to 4 channels; labels whole numbers
    [N] in 0 … num_classes - 1. `where` is the file or code that they come from, for messages.

    Raises:
        DataError: where they are anything else.
    """
    checked_images, checked_labels = _as_images(images, where), as_labels(labels, where)
    if len(checked_images) != len(checked_labels):
        raise DataError(
            f"{where}: {len(checked_images)} images but {len(checked_labels)} labels: give one label for each image"
        )
    low, high = int(checked_labels.min()), int(checked_labels.max())
    if low < 0:
        raise DataError(f"{where}: label {low} is out of range: number the classes from 0")
    if high >= num_classes:
        raise DataError(f"{where}: label {high} is out of range: the {num_classes} classes are 0 to {num_classes - 1}")
    return ImageSet(checked_images, checked_labels)


def _as_images(values: Any, where: str) -> Tensor:
    """Return a contiguous tensor [N, C, H, W]; raise DataError where it is not uint8, not images, or empty."""
    images = _tensor(values, f"{where}: images")
    if images.dtype != torch.uint8:
        kind = str(images.dtype).removeprefix("torch.")
        raise DataError(f"{where}: images are {kind}, not uint8: scale them to 0 … 255, round, and convert them")
    if len(images) == 0:
        raise DataError(f"{where}: no images: give at least one for each class")
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.ndim == 4 and images.shape[1] not in _CHANNELS:
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or images.shape[1] not in _CHANNELS or 0 in images.shape:
        raise DataError(
            f"{where}: images have the shape {tuple(values.shape)}: "
            f"give [N, C, H, W], [N, H, W, C] or [N, H, W] with 1 to 4 channels"
        )
    return images.contiguous()


def as_labels(values: Any, where: str) -> Tensor:
    """Return labels as an int64 tensor [N].

    Raises:
        DataError: where they are not whole numbers, not of one dimension, or there are none.
    """
    labels = _tensor(values, f"{where}: labels")
    if labels.ndim != 1 or labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        kind = str(labels.dtype).removeprefix("torch.")
        raise DataError(
            f"{where}: labels are {kind} of the shape {tuple(labels.shape)}: give whole numbers of the shape [N]"
        )
    if len(labels) == 0:
        raise DataError(f"{where}: no labels: give one for each image")
    return labels.long()


def check_classes(labels: Tensor, num_classes: int, where: str) -> None:
    """Raise DataError where there are fewer than two classes, or one has no training image."""
    if num_classes < 2:
        raise DataError(f"{where}: only one class: a classifier needs at least two")
    present = set(labels.unique().tolist())
    empty = list(itertools.islice((cls for cls in range(num_classes) if cls not in present), 6))
    if empty:
        raise DataError(
            f"{where}: no training image of class {listing([*map(str, empty)])}: "
            f"add some, or number the classes from 0 without gaps"
        )


def hold_out(labels: Tensor, count: int, seed: Sequence[int], where: str) -> tuple[Tensor, Tensor]:
    """Return indices that remain (at least one of every class) and `count` held out, with every class in proportion.

    Both are int64 and ascending; the seed decides which. `where` is what is being cut, for messages.

    Raises:
        DataError: where so many cannot be held out.
    """
    classes, sizes = np.unique(labels.numpy(), return_counts=True)
    if count > len(labels) - len(classes):
        raise DataError(
            f"{where}: cannot hold out {count} of {len(labels)} images and keep one of each class for training: "
            f"add images, or hold out fewer"
        )
    rng = np.random.default_rng(list(seed))
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for cls, quota in zip(classes, _quotas(sizes, count), strict=True):
        mask[torch.from_numpy(rng.permutation(np.flatnonzero(labels.numpy() == cls))[:quota])] = True
    return (~mask).nonzero().flatten(), mask.nonzero().flatten()


def _quotas(sizes: np.ndarray, count: int) -> np.ndarray:
    """Share count out by size, largest remainder first, leaving at least one of each class."""
    shares = sizes * count / sizes.sum()
    quotas: np.ndarray = np.minimum(np.floor(shares).astype(np.int64), sizes - 1)
    while quotas.sum() < count:
        quotas[np.argmax(np.where(quotas < sizes - 1, shares - quotas, -np.inf))] += 1
    return quotas


def copies(train: ImageSet, held_out: ImageSet) -> list[tuple[int, int]]:
    """Return the rows of held-out images that are training images too, each with the row of the first of those."""
    ours, theirs = train.fingerprints(), held_out.fingerprints()
    rows = {train.digest(row): row for row in np.flatnonzero(np.isin(ours, theirs))[::-1].tolist()}
    alike = np.flatnonzero(np.isin(theirs, ours)).tolist()
    return [(row, rows[digest]) for row in alike if (digest := held_out.digest(row)) in rows]


def _tensor(values: Any, what: str) -> Tensor:
    if isinstance(values, Tensor):
        tensor = values.detach().cpu()
    else:
        try:
            # Torch shares the memory, so it must be whole and writable.
            tensor = torch.from_numpy(np.require(np.asarray(values), requirements=("C", "W")))
        except (TypeError, ValueError) as error:
            raise DataError(f"{what} are no array of numbers ({error}): give a numpy array or a tensor") from None
    if tensor.ndim == 0:
        raise DataError(f"{what} are a single value: give a numpy array or a tensor with one entry for each image")
    return tensor
