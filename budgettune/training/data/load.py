"""The images of a study: read once, split by data.seed, kept as bytes, ready to move to the device."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from budgettune.errors import DataError
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.text import listing, message_of, warn_once
from budgettune.training.data.augment import augment, normalise
from budgettune.training.data.fashion_mnist import read_fashion_mnist
from budgettune.training.data.images import ImageSet, SourceImages, copies, hold_out
from budgettune.training.data.sources import read_cifar, read_code, read_digits
from budgettune.training.device import is_out_of_memory

__all__ = ["ImageData", "ImageSet", "augment", "load_data", "normalise"]


def _read_folder(spec: DataSpec) -> SourceImages:
    from budgettune.training.data.folder import read_folder  # and Pillow, which no other set needs

    return read_folder(spec)


_READERS: dict[str, Callable[[DataSpec], SourceImages]] = {
    "digits": read_digits,
    "fashion-mnist": read_fashion_mnist,
    "cifar10": read_cifar,
    "cifar100": read_cifar,
    "folder": _read_folder,
}
logger = logging.getLogger(__name__)
_PAD_FRACTION = 8  # the usual 4 pixels around the 32 of CIFAR, in proportion


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageData:
    """What one study trains and is judged on."""

    name: str
    train: ImageSet  # after the validation part and train_size are taken off
    held_out: ImageSet  # test images, or the validation part
    test: ImageSet | None = None  # test images where the validation part is held out, for the last figure alone
    num_classes: int  # labels run from 0 to num_classes - 1
    mean: tuple[float, ...]  # per channel of the training images, in [0, 1]
    std: tuple[float, ...]  # the same; 1 for a channel that is constant
    flip: bool  # whether a mirrored image keeps its label
    pad: int  # zeros around an image before a random crop

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def image_size(self) -> int:
        return int(self.train.images.shape[-1])

    def to(self, device: torch.device | str) -> ImageData:
        """Return the same images on a device; those of a cache file stay there, and their batches go to it.

        Raises:
            DataError: where the device has no room for them.
        """
        try:
            train, held_out = self.train.to(device), self.held_out.to(device)
            return replace(self, train=train, held_out=held_out, test=self.test and self.test.to(device))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            parts = filter(None, (self.train, self.held_out, self.test))
            size_mb = sum(math.prod(part.images.shape) for part in parts) / 2**20
            there = "keep them in a file with data.cache" if self.name == "folder" else "set a smaller data.train_size"
            raise DataError(f"{self.name}: no room on {device} for {size_mb:,.0f} MiB of images: {there}") from error


def load_data(spec: DataSpec, *, trust: Trust = Trust()) -> ImageData:
    """Read the images of a study.

    The same spec and files give the same images in the same order. No global random state is touched.

    Raises:
        DataError: where files are missing, damaged or of the wrong shape; the message names the file and the fix.
        SpecError: where package.module:function cannot be imported.
        UsageError: where its package is not allowed.
    """
    reader = _READERS.get(spec.name)
    try:
        source = reader(spec) if reader else read_code(spec, trust)
    except OSError as error:
        raise DataError(f"{spec.name}: {message_of(error)}: check data.root and its permissions") from None
    train, judging = _split(source, spec)
    if spec.image_size is not None:
        train, judging = (
            train.resized(spec.image_size),
            {k: part.resized(spec.image_size) for k, part in judging.items()},
        )
    for name, part in judging.items():
        _check_shapes(train.images.shape, part.images.shape, spec.name)
        _say_lacking(part, name, source, spec)
        if spec.facts is None:
            _say_copies(train, part, name, spec)
    # A million names of files are 100 MB.
    train, judging = replace(train, files=None), {name: replace(part, files=None) for name, part in judging.items()}
    mean, std = _channel_statistics(train)
    return ImageData(
        name=spec.name,
        train=train,
        held_out=judging[spec.evaluate_on],
        test=judging["test"] if spec.evaluate_on == "validation" else None,
        num_classes=source.num_classes,
        mean=mean,
        std=std,
        flip=source.flip if spec.flip is None else spec.flip,
        pad=max(1, train.images.shape[-1] // _PAD_FRACTION),
    )


def _split(source: SourceImages, spec: DataSpec) -> tuple[ImageSet, dict[str, ImageSet]]:
    """Return the images to train, and by name those that judge.

    The validation part is cut first, so that it stays the same for every train_size; then the subset is taken.
    """
    train, judging = source.train, {"test": source.test}
    if spec.evaluate_on == "validation":
        count = max(1, round(len(train) * spec.validation_fraction))
        rest, held = hold_out(train.labels, count, (spec.seed, 1), f"{spec.name}: data.validation_fraction")
        train, judging = train.take(rest), {"validation": train.take(held), **judging}
    if spec.train_size is None:
        return train, judging
    if spec.train_size > len(train):
        raise DataError(
            f"{spec.name}: data.train_size is {spec.train_size} and there are {len(train)} training images: "
            f"set it to {len(train)} at most, or leave it out"
        )
    order = np.random.default_rng([spec.seed, 2]).permutation(len(train))
    subset = train.take(torch.from_numpy(np.sort(order[: spec.train_size])))
    if missing := source.num_classes - len(subset.labels.unique()):
        size = f"data.train_size = {spec.train_size}"
        lost = f"{missing} of {source.num_classes} classes without a training image"
        warn_once(logger, f"{spec.name}: {size} leaves {lost}: raise it")
    return subset, judging


def _check_shapes(train: Sequence[int], held_out: Sequence[int], name: str) -> None:
    (channels, height, width), other = train[1:], tuple(held_out[1:])
    if other[0] != channels:
        raise DataError(
            f"{name}: {channels} channels in training images and {other[0]} in the others: make them the same"
        )
    if height != width or other != (channels, height, width):
        raise DataError(
            f"{name}: training images of {height}×{width} and others of {other[1]}×{other[2]} pixels: "
            f"set data.image_size to bring all to one square size"
        )


def _say_lacking(held_out: ImageSet, part: str, source: SourceImages, spec: DataSpec) -> None:
    judged = set(held_out.labels.tolist())
    names = source.class_names or [f"class {label}" for label in range(source.num_classes)]
    if lacking := [name for label, name in enumerate(names) if label not in judged]:
        parts = f"no {part} images of {listing(lacking)}"
        warn_once(logger, f"{spec.root or spec.name}: {parts}: accuracy says nothing of that")


def _say_copies(train: ImageSet, held_out: ImageSet, part: str, spec: DataSpec) -> None:
    if not (found := copies(train, held_out)):
        return
    row, twin = found[0]
    which = f"image {row} is training image {twin}"
    if train.files is not None and held_out.files is not None:
        which = f"{held_out.files[row]} is {train.files[twin]}"
    warn_once(
        logger,
        f"{spec.root or spec.name}: {len(found)} of {len(held_out)} {part} images are training images too "
        f"({which}): accuracy is too high by what is remembered; delete the copies",
    )


def _channel_statistics(train: ImageSet) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel in [0, 1], from exact sums."""
    count, _, height, width = train.images.shape
    values = count * height * width
    means, stds = [], []
    for channel_sums in train.sum_moments().T.tolist():
        total, squares = map(int, channel_sums)  # whole numbers do not round
        std = math.sqrt(max(0, values * squares - total**2)) / values / 255
        means.append(total / values / 255)
        stds.append(std if std > 1e-6 else 1.0)  # a constant channel would divide by zero
    return tuple(means), tuple(stds)
