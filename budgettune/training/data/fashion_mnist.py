"""Fashion-MNIST from its four IDX files."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np

from budgettune.errors import DataError
from budgettune.spec.tables import BUILT_IN_SETS, DataSpec
from budgettune.text import message_of
from budgettune.training.data.images import ImageSet, SourceImages, check_classes, image_set
from budgettune.training.data.sources import DEFAULT_ROOT, downloading

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_UNSIGNED_BYTE = 8
_FACTS = BUILT_IN_SETS["fashion-mnist"]


def read_fashion_mnist(spec: DataSpec) -> SourceImages:
    """Read the four files, gzipped or not, under `root` or `root`/FashionMNIST/raw; fetch them where they are absent.

    Raises:
        DataError: where they cannot be fetched, or one of them is damaged.
    """
    root = Path(spec.root or DEFAULT_ROOT).expanduser()
    files = find_files(root) or _fetch(root)
    train, test = (_read_pair(*files[part : part + 2]) for part in (0, 2))
    check_classes(train.labels, _FACTS.classes, str(files[1]))
    return SourceImages(train=train, test=test, num_classes=_FACTS.classes, flip=_FACTS.flip)


def find_files(root: Path) -> list[Path] | None:
    """Return the paths of the four files in their order, None where no folder has all of them."""
    for folder in (root, root / "FashionMNIST" / "raw"):
        found = [path for path in (_either(folder / name) for name in FILES) if path]
        if len(found) == len(FILES):
            return found
    return None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return an IDX file of unsigned bytes, gzipped where its name ends in .gz.

    The format: two zero bytes, the type of the entries, the number of dimensions, each dimension as a big-endian
    32-bit number, the entries (http://yann.lecun.com/exdb/mnist).

    Raises:
        DataError: where the file cannot be read, is of another kind, or is not as long as its header says.
    """
    content = _content(path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        raise DataError(
            f"{path}: not an IDX file of {dimensions} dimension{'s' if dimensions > 1 else ''} "
            f"(it begins with 0x{content[:4].hex()}): {_REPLACE}"
        )
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) - start != math.prod(shape):
        kind = "truncated" if len(content) - start < math.prod(shape) else "too long"
        raise DataError(
            f"{path}: {kind}: {len(content) - start} bytes of data where its header says {math.prod(shape)}: {_REPLACE}"
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


_REPLACE = "delete it and fetch it again"


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({message_of(error)}): {_REPLACE}") from None


def _read_pair(images_path: Path, labels_path: Path) -> ImageSet:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (_FACTS.size, _FACTS.size):
        height, width = images.shape[1:]
        raise DataError(
            f"{images_path}: images of {height}×{width}, Fashion-MNIST has {_FACTS.size}×{_FACTS.size}: {_REPLACE}"
        )
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}: "
            f"fetch both again, from the same place"
        )
    if len(images) == 0:
        raise DataError(f"{images_path}: no images: {_REPLACE}")
    return image_set(images, labels, str(labels_path), _FACTS.classes)


def _either(path: Path) -> Path | None:
    candidates = (path, path.with_name(f"{path.name}.gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _fetch(root: Path) -> list[Path]:
    from torchvision.datasets import FashionMNIST

    try:
        with downloading(root):
            if not find_files(root):  # another worker may have been quicker
                FashionMNIST(str(root), download=True)
        reason = "files are missing after it"
    except Exception as error:  # torchvision lets network, archive and file errors through as they come
        reason = message_of(error)
    files = find_files(root)
    if not files:
        raise DataError(
            f"fashion-mnist: {root} has not all of {', '.join(FILES)} (each may end in .gz), and the download failed "
            f"({reason}): put the four files there, or install Debian's package dataset-fashion-mnist and set "
            f'data.root = "/usr/share/datasets/fashion-mnist"'
        )
    return files
