"""Fashion-MNIST from its four IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from budgettune.errors import DataError
from budgettune.files import user_path
from budgettune.spec.tables import BUILT_IN_SETS, DataSpec
from budgettune.text import message_of
from budgettune.training.data.images import ImageSet, SourceImages, check_classes, image_set
from budgettune.training.data.sources import DEFAULT_ROOT, fetch

FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_UNSIGNED_BYTE = 8
_FACTS = BUILT_IN_SETS["fashion-mnist"]


def read_fashion_mnist(spec: DataSpec) -> SourceImages:
    """Read the four files, gzipped or not, under `root` or `root`/FashionMNIST/raw; fetch them where they are absent.

    Raises:
        DataError: where they cannot be fetched, or one of them is damaged.
    """
    root = user_path(spec.root or DEFAULT_ROOT, "data.root")
    if not (files := find_files(root)):
        from torchvision.datasets import FashionMNIST

        failure = fetch(root, lambda: FashionMNIST(str(root), download=True), lambda: find_files(root))
        if not (files := find_files(root)):
            raise DataError(
                f"fashion-mnist: {root} has not all of {', '.join(FILES)} (each may end in .gz), and the download "
                f"failed ({failure or 'files are missing after it'}): put the four files there, or install Debian's "
                f'package dataset-fashion-mnist and set data.root = "/usr/share/datasets/fashion-mnist"'
            )
    train, test = (_read_pair(*files[part : part + 2]) for part in (0, 2))
    check_classes(train.labels, _FACTS.classes, str(files[1]))
    return SourceImages(train=train, test=test, num_classes=_FACTS.classes, flip=_FACTS.flip)


def find_files(root: Path) -> list[Path] | None:
    """Return the paths of the four files in their order, None where no folder has all of them."""
    for folder in (root, root / "FashionMNIST" / "raw"):
        plain_or_zipped = [(folder / name, folder / f"{name}.gz") for name in FILES]
        found = [next((path for path in paths if path.is_file()), None) for paths in plain_or_zipped]
        if all(found):
            return [path for path in found if path]
    return None


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """Return an IDX file of unsigned bytes, gzipped where its name ends in .gz.

    The format: two zero bytes, the type of the entries, the number of dimensions, each dimension as a big-endian
    32-bit number, the entries (http://yann.lecun.com/exdb/mnist).

    Raises:
        DataError: where the file cannot be read, is of another kind, or is not as long as its header says.
    """
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _damaged(path, f"cannot be read ({message_of(error)})") from None
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes((0, 0, _UNSIGNED_BYTE, dimensions)):
        kind = f"an IDX file of {dimensions} dimension{'s' if dimensions > 1 else ''}"
        raise _damaged(path, f"not {kind} (it begins with 0x{content[:4].hex()})")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).tolist()
    here, told = len(content) - start, math.prod(shape)
    if here != told:
        kind = "truncated" if here < told else "too long"
        raise _damaged(path, f"{kind}: {here} bytes of data where its header says {told}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _read_pair(images_path: Path, labels_path: Path) -> ImageSet:
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if images.shape[1:] != (_FACTS.size, _FACTS.size):
        height, width = images.shape[1:]
        raise _damaged(images_path, f"images of {height}×{width}, Fashion-MNIST has {_FACTS.size}×{_FACTS.size}")
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path}: {len(labels)} labels for the {len(images)} images of {images_path.name}: "
            f"fetch both again, from the same place"
        )
    if len(images) == 0:
        raise _damaged(images_path, "no images")
    return image_set(images, labels, str(labels_path), _FACTS.classes)


def _damaged(path: Path, what: str) -> DataError:
    return DataError(f"{path}: {what}: delete it and fetch it again")
