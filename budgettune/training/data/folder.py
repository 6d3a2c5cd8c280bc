"""Images of your own, in a folder for each class."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from budgettune.errors import DataError
from budgettune.machine.fingerprint import usable_cores
from budgettune.spec.tables import DataSpec
from budgettune.text import message_of
from budgettune.training.data.cache import Fill, MappedImages, Shape, Write, cache_path, content_key, mapped_images
from budgettune.training.data.images import ImageSet, SourceImages, hold_out
from budgettune.training.data.sources import quiet

T = TypeVar("T")

HELD_OUT_FRACTION = 0.2
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_GREY_MODES = frozenset(("1", "L", "LA", "La"))
_DEEP_MODES = ("I", "F")  # and I;16, I;16B, …
_MOST_THREADS = 16
_BLOCK_BYTES = 2**20
_LAYOUT = "lay it out as train/CLASS/IMAGE and test/CLASS/IMAGE, or as CLASS/IMAGE to have it split"


def read_folder(spec: DataSpec) -> SourceImages:
    """Read `root`/train/CLASS/* and `root`/test/CLASS/*, or `root`/CLASS/* and hold a fifth of every class out.

    Classes are numbered in the order of their names. Images are grey where all files are, else RGB. Where
    image_size is given, each file is resized as it is decoded, so that large photographs never lie in memory whole.
    Where cache is given, the images stay in a file there, which is written by the first who needs it.

    Raises:
        DataError: where the tree has another shape, a file cannot be decoded or has another size, or the cache cannot
            be written.
    """
    if spec.root is None:
        raise DataError(f"data.root is missing: set it to the folder of your images; {_LAYOUT}")
    root = Path(spec.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: correct data.root; {_LAYOUT}")
    parts = [root / "train", root / "test"]
    present = [part for part in parts if part.is_dir()]
    if len(present) == 1:
        missing = next(part for part in parts if part not in present)
        raise DataError(f"{missing}: no such folder beside {present[0].name}: {_LAYOUT}")
    folders = present or [root]
    classes = _classes(folders[0])
    if odd := sorted(set(classes) ^ set(_classes(folders[-1]))):
        raise DataError(
            f"{folders[1]}: other classes than {folders[0]} ({', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}): "
            f"give both the same class folders"
        )
    listed = [_files(folder, classes) for folder in folders]
    files = [file for part in listed for file in part]
    images = ImageSet(_read(root, [path for path, _ in files], spec), torch.tensor([label for _, label in files]))
    if present:
        train, test = images.take(slice(len(listed[0]))), images.take(slice(len(listed[0]), None))
    else:
        count = max(1, round(len(images) * HELD_OUT_FRACTION))
        rest, held = hold_out(images.labels, count, (spec.seed, 0), str(root))
        train, test = images.take(rest), images.take(held)
    # Nothing says that a mirrored image still shows the same class: it may be text or a hand.
    return SourceImages(train=train, test=test, num_classes=len(classes), flip=False)


def _classes(folder: Path) -> list[str]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} class folders, at least two are needed: {_LAYOUT}")
    return classes


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[str, int]]:
    """Return every image file with its label, in the order of names."""
    files = []
    for label, name in enumerate(classes):
        paths = list(_images_under(folder / name))
        if not paths:
            raise DataError(
                f"{folder / name}: no images in this class ({', '.join(_SUFFIXES)}): add some, or delete the folder"
            )
        files += [(path, label) for path in paths]
    return files


def _images_under(folder: Path | str) -> Iterator[str]:
    with os.scandir(folder) as found:  # plain text: a million Paths would fill a gigabyte
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _images_under(entry.path)
        elif entry.name.lower().endswith(_SUFFIXES) and not entry.name.startswith(".") and entry.is_file():
            yield entry.path


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
    with quiet():
        first = _decode(paths[0], size)
    height, width = first.shape[:2]

    def store_in(channels: int) -> T:
        shape = channels, height, width
        return store((len(paths), *shape), partial(_decode_all, paths, size, shape))

    try:
        return store_in(1 if first.ndim == 2 else 3)
    except _ColourFoundError:  # among grey ones: begin again, rather than open every file twice
        return store_in(3)


def _decode_all(paths: Sequence[str], size: int | None, shape: tuple[int, int, int], write: Write) -> None:
    """Decode in several threads, each a block of neighbours at a time, which it writes in place."""
    per_block = max(1, _BLOCK_BYTES // math.prod(shape))
    ends = threading.Event()

    def decode_block(row: int) -> None:
        part = paths[row : row + per_block]
        block = np.empty((len(part), *shape), np.uint8)
        for image, path in zip(block, part, strict=True):
            if ends.is_set():  # a block may be hundreds of photographs, and the pool waits for those that began
                return
            image[:] = _planes(_decode(path, size), shape, path, paths[0])
        write(row, block)

    with quiet(), ThreadPoolExecutor(min(_MOST_THREADS, usable_cores())) as pool:
        try:
            for _ in pool.map(decode_block, range(0, len(paths), per_block)):
                pass  # raises the first error, and drops the blocks that have not begun
        finally:
            ends.set()


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


def _decode(path: str, size: int | None) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            mode = opened.mode
            if mode.startswith(_DEEP_MODES):
                raise DataError(f"{path}: more than 8 bits per pixel (mode {mode}): save it as an 8-bit image")
            image = opened.convert("L" if mode in _GREY_MODES else "RGB")
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.array(image)
    except DataError:
        raise
    except Exception as error:  # a damaged file may trip its decoder anywhere
        raise DataError(f"{path}: cannot be read as an image ({message_of(error)}): replace it or delete it") from None
