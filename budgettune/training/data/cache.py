"""Images in a file, for sets larger than memory: written once, mapped read-only, gathered batch by batch.

The file is one page of JSON, then uint8 [N, C, H, W], then float64 [N, 2, C]: for each image and channel the sum of
its values and of their squares, so that mean and deviation of any subset follow without a pass over the pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from budgettune.errors import DataError
from budgettune.text import message_of
from budgettune.training.device import host_bytes

Shape = tuple[int, int, int, int]
Write = Callable[[int, np.ndarray], None]
"""Stores images uint8 [B, C, H, W] from a row on; threads may call it at once, each with rows of its own."""
Fill = Callable[[Write], None]
Store = Callable[[Shape, Fill], None]

_FORMAT = 1  # part of the key: another format is another file
_HEADER_BYTES = 4_096
_ROWS_PER_RELEASE = 32


class CacheFile:
    """A whole cache file, mapped read-only.

    Args:
        descriptor: of the open file, which may be closed afterwards.
        shape: [N, C, H, W] of its images.
    """

    def __init__(self, descriptor: int, shape: Shape) -> None:
        self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        count, channels = shape[:2]
        pixels = np.frombuffer(self._map, np.uint8, math.prod(shape), _HEADER_BYTES)
        moments = np.frombuffer(self._map, np.float64, count * 2 * channels, _HEADER_BYTES + pixels.nbytes)
        self.shape = shape
        self._pixels = pixels.reshape(shape)
        self._moments = moments.reshape(count, 2, channels)

    def copy_rows(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy images into out, uint8 [B, C, H, W], and leave next to none of the file in resident memory.

        A touched page counts as resident, and recent kernels map up to 2 MB around it: without a release every few
        rows, one batch could make a gigabyte resident. The pages stay in the system's cache, which is not ours.
        """
        self._ask_for(rows)
        for begin in range(0, len(rows), _ROWS_PER_RELEASE):
            part = slice(begin, begin + _ROWS_PER_RELEASE)
            out[part] = self._pixels[rows[part]]
            self._map.madvise(mmap.MADV_DONTNEED)

    def sum_moments(self, rows: np.ndarray) -> np.ndarray:
        """Return float64 [2, C], exact: the sums of values and of squared values over some images."""
        sums: np.ndarray = self._moments[rows].sum(axis=0)
        self._map.madvise(mmap.MADV_DONTNEED)
        return sums

    def _ask_for(self, rows: np.ndarray) -> None:
        """Have the system read all rows that are not in its cache at once: three times faster than one by one."""
        size = math.prod(self.shape[1:])
        for row in rows.tolist():
            begin = _HEADER_BYTES + row * size
            page = begin - begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_WILLNEED, page, begin + size - page)


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Some images of a cache file. Stands in for their tensor, uint8 [N, C, H, W], where a set is used.

    Attributes:
        file: where they are.
        rows: which, int64 [N].
        device: where batches go.
    """

    file: CacheFile
    rows: np.ndarray
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> Shape:
        """[N, C, H, W]."""
        return (len(self.rows), *self.file.shape[1:])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return a batch as a tensor, uint8 [B, C, H, W], on the device.

        Indices that lie on an accelerator make the host wait for it (`ImageSet.places` brings many at once); the
        images then follow without another wait.
        """
        rows = self.rows[indices.cpu().numpy()]
        batch = host_bytes((len(rows), *self.shape[1:]), self.device)
        self.file.copy_rows(rows, batch.numpy())
        return batch.to(self.device, non_blocking=True)

    def split(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, size at a time, as Tensor.split does; each is read when it is asked for."""
        for indices in torch.arange(len(self)).split(size):
            yield self[indices]

    def select(self, indices: Tensor | slice) -> MappedImages:
        """Return the images of the indices, in their order, without reading them."""
        return replace(self, rows=self.rows[indices if isinstance(indices, slice) else indices.numpy()])

    def to(self, device: torch.device | str) -> MappedImages:
        """Return the same images for batches on a device."""
        return replace(self, device=torch.device(device))

    def sum_moments(self) -> np.ndarray:
        """Return float64 [2, C], exact: the sums of all values of a channel and of their squares."""
        return self.file.sum_moments(self.rows)


def channel_moments(images: np.ndarray) -> np.ndarray:
    """Return float64 [N, 2, C] of images uint8 [N, C, H, W]: sums of values and of squares, exact below 2**53."""
    values = images.reshape(*images.shape[:2], -1).astype(np.float64)
    return np.stack([values.sum(axis=-1), np.einsum("ncp,ncp->nc", values, values)], axis=1)


def cache_file(folder: str, root: Path, image_size: int | None) -> Path:
    """Return the cache file of the images under a root at a size; it stays the same when the images change.

    Raises:
        DataError: where the folder lies inside the root, where it would look like a class of images.
    """
    place, root = Path(folder).expanduser(), root.resolve()
    if place.resolve().is_relative_to(root):
        raise DataError(f"data.cache: {place} lies inside data.root: name a folder outside {root}")
    digest = hashlib.sha256(f"{root}\n{image_size}".encode("utf-8", "surrogateescape")).hexdigest()
    return place / f"{root.name}-{digest[:12]}.images"


def content_key(root: Path, paths: Sequence[str], image_size: int | None) -> str:
    """Return a hash that changes whenever a file is added, removed, renamed or written."""
    digest = hashlib.sha256(f"{_FORMAT} {image_size}\n".encode())
    for path in paths:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of a million files costs memory and time)
        line = f"{os.path.relpath(path, root)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def mapped_images(path: Path, key: str, build: Callable[[Store], None]) -> MappedImages:
    """Return the images of a cache file, written first where there is none of that key.

    Of several processes one writes while the others wait. A file takes its name when it is whole.

    Args:
        path: of the cache file.
        key: of the content that it must have.
        build: asked to store all images, through a function of their shape and of what writes them.

    Raises:
        DataError: where the file cannot be written or read, and what build raises.
    """
    try:
        images = open_cache(path, key)
        if images is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                if open_cache(path, key) is None:  # nobody wrote it while we waited for the lock
                    build(partial(write_cache, path, key))
            images = open_cache(path, key)
    except OSError as error:
        raise DataError(f"data.cache: {path}: {message_of(error)}: make room there, or name another folder") from None
    if images is None:
        raise DataError(f"data.cache: {path} was replaced while it was opened: give each data.root its own folder")
    return images


def open_cache(path: Path, key: str) -> MappedImages | None:
    """Return all images of a cache file, or None where it is missing, cut short or of another key."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(_HEADER_BYTES))
            count, channels, height, width = header["shape"]
            shape = count, channels, height, width
            if header["key"] != key or os.fstat(file.fileno()).st_size != _file_bytes(shape):
                return None
            return MappedImages(CacheFile(file.fileno(), shape), np.arange(count))
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # none, or a page that is no header of ours
        return None


def write_cache(path: Path, key: str, shape: Shape, fill: Fill) -> None:
    """Write a cache file whole or not at all, with no more in memory than what fill hands over at a time."""
    unfinished = path.with_suffix(".unfinished")  # of a killed process too: the lock's holder writes over it
    try:
        with unfinished.open("wb") as file:
            _reserve(file.fileno(), _file_bytes(shape))
            fill(partial(_write_images, file.fileno(), shape))
            header = json.dumps({"format": _FORMAT, "key": key, "dtype": "uint8", "shape": shape})
            _write_all(file.fileno(), header.ljust(_HEADER_BYTES - 1).encode() + b"\n", 0)
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_images(file: int, shape: Shape, row: int, images: np.ndarray) -> None:
    moments = channel_moments(images)
    _write_all(file, np.ascontiguousarray(images).data.cast("B"), _HEADER_BYTES + row * math.prod(shape[1:]))
    _write_all(file, moments.data.cast("B"), _HEADER_BYTES + math.prod(shape) + row * moments[0].nbytes)


def _write_all(file: int, content: bytes | memoryview, offset: int) -> None:
    """Write at an offset: threads share no position, and a full disk is an error where a mapping would crash."""
    rest = memoryview(content)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def _reserve(file: int, count: int) -> None:
    """Take the room at once, so that a full disk is noticed before hours of decoding."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, count)
    else:  # macOS
        os.ftruncate(file, count)


def _file_bytes(shape: Shape) -> int:
    return _HEADER_BYTES + math.prod(shape) + shape[0] * 2 * shape[1] * np.dtype(np.float64).itemsize
