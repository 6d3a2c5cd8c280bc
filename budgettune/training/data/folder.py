"""Images of your own, in a folder for each class."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from budgettune.errors import DataError
from budgettune.files import user_path
from budgettune.machine.fingerprint import usable_cores
from budgettune.spec.tables import DataSpec
from budgettune.text import listing, warn_once
from budgettune.training.data.cache import Fill, MappedImages, Shape, Write, cache_path, content_key, mapped_images
from budgettune.training.data.images import ImageSet, SourceImages, hold_out
from budgettune.training.data.pictures import decode
from budgettune.training.data.sources import quiet
from budgettune.training.data.tree import LAYOUT, ImageTree, Unread, count_unused, find_tree, list_images

T = TypeVar("T")

HELD_OUT_FRACTION = 0.2
_MOST_THREADS = 16
_BLOCK_BYTES = 2**20

logger = logging.getLogger(__name__)


def read_folder(spec: DataSpec) -> SourceImages:
    """Read `root`/train/CLASS/* and `root`/test/CLASS/*, or `root`/CLASS/* and hold a fifth of every class out.

    Classes are numbered in the order of their names. Images are grey where all files are, else RGB. Where
    image_size is given, each file is resized as it is decoded, so that large photographs never lie in memory whole.
    Where cache is given, the images stay in a file there, which is written by the first who needs it. What was found,
    and what was not read, is said once.

    Raises:
        DataError: where the tree has another shape, a file cannot be decoded or has another size, or the cache cannot
            be written.
    """
    if spec.root is None:
        raise DataError(f"data.root is missing: set it to the folder of your images; {LAYOUT}")
    root = user_path(spec.root, "data.root")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: correct data.root; {LAYOUT}")
    with quiet():
        tree, unread, unused = find_tree(root), Unread(), Unread()
        listed = [list_images(classes, unread) for classes in (tree.train, tree.test) if classes is not None]
        count_unused(tree, unused)
    _check(root, tree, listed)
    paths = [path for part in listed for found in part.values() for path in found]
    labels = [label for part in listed for label, found in enumerate(part.values()) for _ in found]
    images = ImageSet(_read(root, paths, spec), torch.tensor(labels), np.array(paths, dtype=object))
    if tree.test is not None:
        count = sum(map(len, listed[0].values()))
        train, test = images.take(slice(count)), images.take(slice(count, None))
    else:
        count = min(max(1, round(len(images) * HELD_OUT_FRACTION)), len(images) - len(tree.train))
        rest, held = hold_out(images.labels, count, (spec.seed, 0), str(root))
        train, test = images.take(rest), images.take(held)
    _say(root, tree, train, test, unread, unused)
    # Nothing says that a mirrored image still shows the same class: it may be text or a hand.
    return SourceImages(train=train, test=test, num_classes=len(tree.train), flip=False, class_names=tuple(tree.train))


def _check(root: Path, tree: ImageTree, listed: Sequence[dict[str, list[str]]]) -> None:
    """Raise DataError where a class has no training image, or there are too few to judge by."""
    for name, found in listed[0].items():
        if not found:
            unread = Unread()
            list_images({name: tree.train[name]}, unread)
            but = f", but {unread}: add some" if unread.counts else ": add some"
            folders = " and ".join(str(folder) for folder in [*tree.train[name], *(tree.test or {}).get(name, [])])
            raise DataError(f"{tree.train[name][0]}: no images in this class{but}, or delete {folders}")
    if tree.test is not None and not any(listed[1].values()):
        there = Unread()
        list_images(tree.test, there)
        count_unused(tree, there)
        raise DataError(f"{root}: no test images{f', but {there}' if there.counts else ''}: add some; {LAYOUT}")
    if tree.test is None and sum(map(len, listed[0].values())) == len(tree.train):
        raise DataError(f"{root}: one image in each class, and none left to judge by: add more")


def _say(root: Path, tree: ImageTree, train: ImageSet, test: ImageSet, unread: Unread, unused: Unread) -> None:
    """Say once what was found, so that a tree that is misread does not go unnoticed."""
    found = (
        f"{len(tree.train)} classes ({listing(list(tree.train))}), {len(train)} training and {len(test)} test images"
    )
    warn_once(logger, f"{root}: {found}{', held out' if tree.test is None else ''}")
    if unread.counts:
        warn_once(logger, f"{root}: not read: {unread}: save as JPEG or PNG what should count")
    if unused.counts:
        warn_once(logger, f"{root}: not used: {unused}: move what should count into the folder of its class")


def _read(root: Path, paths: Sequence[str], spec: DataSpec) -> Tensor | MappedImages:
    size = spec.image_size
    if spec.cache is None:
        return _decode_into(_in_memory, paths, size)
    path, key = cache_path(spec.cache, root, size), content_key(root, paths, size)
    return mapped_images(path, key, lambda store: _decode_into(store, paths, size))


def _in_memory(shape: Shape, fill: Fill) -> Tensor:
    images = torch.empty(shape, dtype=torch.uint8)
    array = images.numpy()

    def write(row: int, block: np.ndarray) -> None:
        array[row : row + len(block)] = block

    fill(write)
    return images


def _decode_into(store: Callable[[Shape, Fill], T], paths: Sequence[str], size: int | None) -> T:
    """Decode all files into a store, and return what it makes of them: grey where all of them are, else RGB."""
    first, path = _first_whole(paths, size)
    height, width = first.shape[:2]

    def store_in(channels: int) -> T:
        shape = channels, height, width
        return store((len(paths), *shape), partial(_decode_all, paths, size, shape, path))

    try:
        return store_in(1 if first.ndim == 2 else 3)
    except _ColourFoundError:  # among grey ones: begin again, rather than open every file twice
        return store_in(3)


def _first_whole(paths: Sequence[str], size: int | None) -> tuple[np.ndarray, str]:
    """Return the first image that is not damaged, and its path."""
    damage: DataError | None = None
    with quiet():
        for path in paths:
            try:
                return decode(path, size), path
            except DataError as error:
                damage = damage or error
    assert damage is not None
    raise damage


def _decode_all(paths: Sequence[str], size: int | None, shape: tuple[int, int, int], first: str, write: Write) -> None:
    """Decode in several threads, each a block of neighbours at a time, which it writes in place.

    Damaged files are named together, for who mends one would else meet the next.
    """
    per_block = max(1, _BLOCK_BYTES // math.prod(shape))
    ends = threading.Event()
    damages: dict[str, DataError] = {}

    def decode_block(row: int) -> None:
        part = paths[row : row + per_block]
        block = np.empty((len(part), *shape), np.uint8)
        for image, path in zip(block, part, strict=True):
            if ends.is_set():  # a block may be hundreds of photographs, and the pool waits for those that began
                return
            try:
                array = decode(path, size)
            except DataError as error:
                damages[path] = error
            else:
                image[:] = _planes(array, shape, path, first)
        write(row, block)

    with quiet(), ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as pool:
        try:
            for _ in pool.map(decode_block, range(0, len(paths), per_block)):
                pass  # raises the first error, and drops the blocks that have not begun
        finally:
            ends.set()
    if damages:
        one, *others = sorted(damages)
        more = f"; {len(others)} more such: {listing(others)}" if others else ""
        raise DataError(f"{damages[one]}{more}")


def _planes(array: np.ndarray, shape: tuple[int, int, int], path: str, first: str) -> np.ndarray:
    """Return [C, H, W] or [1, H, W] of an image that is uint8 [H, W, C] or [H, W]."""
    channels, height, width = shape
    if array.shape[:2] != (height, width):
        raise DataError(
            f"{path}: {array.shape[0]}×{array.shape[1]} pixels where {first} has {height}×{width}: "
            f"set data.image_size to bring all to one size"
        )
    if array.ndim == 2:
        return array[None]
    if channels == 1:
        raise _ColourFoundError
    return array.transpose(2, 0, 1)


class _ColourFoundError(Exception):
    """A colour file among grey ones."""
