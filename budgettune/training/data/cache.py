"""Images in a file, for sets larger than memory: written once, mapped read-only, gathered batch by batch.

NAME.KEY.npy is uint8 [N, C, H, W] as numpy writes it, and behind it float64 [N, 2, C]: for each image and channel the
sum of its values and of their squares, so that mean and deviation of any subset follow without a pass over the pixels.
The key changes with the content.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np
import torch
from filelock import FileLock
from numpy.lib.format import magic, open_memmap
from torch import Tensor

from budgettune.errors import DataError
from budgettune.files import user_path
from budgettune.text import message_of
from budgettune.training.device import host_bytes

Shape = tuple[int, int, int, int]  # [N, C, H, W]
Write = Callable[[int, np.ndarray], None]
"""Stores images uint8 [B, C, H, W] from a row on; threads may call it at once, each with rows of its own."""
Fill = Callable[[Write], None]
Store = Callable[[Shape, Fill], None]

_FORMAT = 3  # part of the key: another format, or another way to read pictures, is another file
_HEADER_BYTES = 4_096  # a page: images of whole pages do not straddle one more
_ROWS_PER_RELEASE = 32


@dataclass(frozen=True, eq=False)
class MappedImages:
    """Some images of a cache file. Stands in for their tensor, uint8 [N, C, H, W], where a set is used."""

    pixels: np.memmap  # all images of the file, read-only
    moments: np.memmap  # float64 [all, 2, C], likewise
    rows: np.ndarray  # which images, int64 [N]
    device: torch.device = torch.device("cpu")  # where batches go  # noqa: RUF009 (immutable)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> Shape:
        return (len(self.rows), *self.pixels.shape[1:])

    def __getitem__(self, indices: Tensor) -> Tensor:
        """Return a batch as a tensor, uint8 [B, C, H, W], on the device.

        Indices that lie on an accelerator make the host wait for it (`ImageSet.places` brings many at once); the
        images then follow without another wait.
        """
        rows = self.rows[indices.cpu().numpy()]
        batch = host_bytes((len(rows), *self.shape[1:]), self.device)
        self._copy_rows(rows, batch.numpy())
        return batch.to(self.device, non_blocking=True)

    def split(self, sizes: int | list[int]) -> Iterator[Tensor]:
        """Yield all images in order, in parts, as Tensor.split does; each is read when it is asked for."""
        for indices in torch.arange(len(self)).split(sizes):
            yield self[indices]

    def select(self, indices: Tensor | slice) -> MappedImages:
        """Return the images of the indices, in their order, without reading them."""
        return replace(self, rows=self.rows[indices if isinstance(indices, slice) else indices.numpy()])

    def to(self, device: torch.device | str) -> MappedImages:
        return replace(self, device=torch.device(device))

    def sum_moments(self) -> np.ndarray:
        """Return float64 [2, C], exact: the sums of all values of a channel and of their squares."""
        sums: np.ndarray = np.asarray(self.moments[self.rows].sum(axis=0))
        _mapping(self.moments).madvise(mmap.MADV_DONTNEED)
        return sums

    def _copy_rows(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Copy images into out, and leave next to none of the file in resident memory.

        A touched page counts as resident, and recent kernels map up to 2 MB around it: without a release every few
        rows, one batch could make a gigabyte resident. The pages stay in the system's cache, which is not ours.
        """
        pixels, mapping = np.asarray(self.pixels), _mapping(self.pixels)
        for row in rows.tolist():  # have the system read what it lacks at once: three times faster than one by one
            begin = self.pixels.offset % mmap.ALLOCATIONGRANULARITY + row * pixels[0].nbytes
            page = begin - begin % mmap.PAGESIZE
            mapping.madvise(mmap.MADV_WILLNEED, page, begin + pixels[0].nbytes - page)
        for begin in range(0, len(rows), _ROWS_PER_RELEASE):
            part = slice(begin, begin + _ROWS_PER_RELEASE)
            out[part] = pixels[rows[part]]
            mapping.madvise(mmap.MADV_DONTNEED)


def _mapping(array: np.memmap) -> mmap.mmap:
    return cast(mmap.mmap, array.base)


def channel_moments(images: np.ndarray) -> np.ndarray:
    """Return float64 [N, 2, C] of images uint8 [N, C, H, W]: sums of values and of squares, exact below 2**53."""
    values = images.reshape(*images.shape[:2], -1).astype(np.float64)
    return np.stack([values.sum(axis=-1), np.einsum("ncp,ncp->nc", values, values)], axis=1)


def cache_path(folder: str, root: Path, image_size: int | None) -> Path:
    """Return FOLDER/NAME of the images under a root at a size; it stays the same when the images change.

    Raises:
        DataError: where the folder lies inside the root, where it would look like a class of images.
    """
    place, root = user_path(folder, "data.cache"), root.resolve()
    if place.resolve().is_relative_to(root):
        raise DataError(f"data.cache: {place} lies inside data.root: name a folder outside {root}")
    digest = hashlib.sha256(f"{root}\n{image_size}".encode("utf-8", "surrogateescape")).hexdigest()
    return place / f"{root.name}-{digest[:12]}"


def content_key(root: Path, paths: Sequence[str], image_size: int | None) -> str:
    """Return a hash that changes whenever a file is added, removed, renamed or written."""
    digest = hashlib.sha256(f"{_FORMAT} {image_size}\n".encode())
    for path in paths:
        status = os.stat(path)  # noqa: PTH116 (a Path for each of a million files costs memory and time)
        line = f"{os.path.relpath(path, root)}\0{status.st_size}\0{status.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def mapped_images(path: Path, key: str, build: Callable[[Store], None]) -> MappedImages:
    """Return the images of the cache FOLDER/NAME, written first where there are none of that key.

    Of several processes one writes while the others wait. A file takes its name when it is whole. `build` is asked to
    store all images, through a function of their shape and of what writes them.

    Raises:
        DataError: where the files cannot be written or read, and what build raises.
    """
    try:
        images = open_cache(path, key)
        if images is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if open_cache(path, key) is None:  # nobody wrote it while we waited for the lock
                    build(partial(write_cache, path, key))
            images = open_cache(path, key)
    except OSError as error:
        raise DataError(f"data.cache: {path}: {message_of(error)}: make room there, or name another folder") from None
    if images is None:
        raise DataError(f"data.cache: {path} was replaced while it was opened: give each data.root its own folder")
    return images


def open_cache(path: Path, key: str) -> MappedImages | None:
    """Return all images of a cache, or None where it has none of that key, or its file is damaged."""
    file = path.with_name(f"{path.name}.{key}.npy")
    try:
        pixels = open_memmap(file, mode="r")
        shape = len(pixels), 2, pixels.shape[1]
        moments = np.memmap(file, np.float64, "r", pixels.offset + pixels.nbytes, shape)
        is_whole = file.stat().st_size == moments.offset + moments.nbytes
    except FileNotFoundError:
        return None
    except OSError:
        raise
    except Exception:  # a damaged header may trip numpy's parser anywhere
        return None
    is_ours = is_whole and pixels.dtype == np.uint8 and pixels.ndim == 4
    return MappedImages(pixels, moments, np.arange(len(pixels))) if is_ours else None


def write_cache(path: Path, key: str, shape: Shape, fill: Fill) -> None:
    """Write a cache whole or not at all, with no more in memory than what fill hands over at a time.

    What the cache had before is deleted; who has it mapped keeps it.
    """
    size, moments_size = math.prod(shape[1:]), 2 * shape[1] * np.dtype(np.float64).itemsize
    moments_begin = _HEADER_BYTES + shape[0] * size
    unfinished = path.with_name(f"{path.name}.unfinished")  # of a killed process too: the lock's holder writes over it

    def write(row: int, images: np.ndarray) -> None:
        # Opened anew, because threads share no position; not mapped, because a full disk would be a crash.
        with unfinished.open("r+b") as file:
            file.seek(_HEADER_BYTES + row * size)
            file.write(np.ascontiguousarray(images).data)
            file.seek(moments_begin + row * moments_size)
            file.write(channel_moments(images).data)

    try:
        with unfinished.open("wb") as file:
            header = repr({"descr": "|u1", "fortran_order": False, "shape": shape}).ljust(_HEADER_BYTES - 13) + "\n"
            file.write(magic(3, 0) + len(header).to_bytes(4, "little") + header.encode())
            file.flush()
            if hasattr(os, "posix_fallocate"):  # not on macOS; a full disk is noticed before hours of decoding
                os.posix_fallocate(file.fileno(), 0, moments_begin + shape[0] * moments_size)
            fill(write)
            os.fsync(file.fileno())
        whole = unfinished.replace(path.with_name(f"{path.name}.{key}.npy"))
    finally:
        unfinished.unlink(missing_ok=True)
    for other in path.parent.iterdir():
        if other.name.startswith(f"{path.name}.") and other.suffix != ".lock" and other != whole:
            other.unlink()
