"""Images of your own, in a folder for each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from budgettune.errors import DataError
from budgettune.spec import DataSpec
from budgettune.training.download import one_line, quiet
from budgettune.training.images import ImageSet, SourceImages, hold_out

HELD_OUT_FRACTION = 0.2
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
_GREY_MODES = frozenset(("1", "L", "LA", "La"))
_DEEP_MODES = ("I", "F")  # and I;16, I;16B, …
_MOST_THREADS = 16
_LAYOUT = "lay it out as train/CLASS/IMAGE and test/CLASS/IMAGE, or as CLASS/IMAGE to have it split"


def read_folder(spec: DataSpec) -> SourceImages:
    """Read `root`/train/CLASS/* and `root`/test/CLASS/*, or `root`/CLASS/* and hold a fifth of every class out.

    Classes are numbered in the order of their names. Images are grey where all files are, else RGB. Where
    image_size is given, each file is resized as it is decoded, so that large photographs never lie in memory whole.

    Raises:
        DataError: where the tree has another shape, or a file cannot be decoded or has another size.
    """
    root = _root(spec)
    parts = [root / "train", root / "test"]
    present = [part for part in parts if part.is_dir()]
    if len(present) == 1:
        missing = next(part for part in parts if part not in present)
        raise DataError(f"{missing}: no such folder beside {present[0].name}: {_LAYOUT}")
    folders = present or [root]
    classes = _classes(folders[0])
    for folder in folders[1:]:
        _check_same_classes(classes, folders[0], folder)
    sets = _read_sets([_files(folder, classes) for folder in folders], spec.image_size)
    train, test = sets if len(sets) == 2 else _split(sets[0], spec.seed, str(root))
    # Nothing says that a mirrored image still shows the same class: it may be text or a hand.
    return SourceImages(train=train, test=test, num_classes=len(classes), flip=False)


def _root(spec: DataSpec) -> Path:
    if spec.root is None:
        raise DataError(f"data.root is missing: set it to the folder of your images; {_LAYOUT}")
    root = Path(spec.root).expanduser()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder: correct data.root; {_LAYOUT}")
    return root


def _classes(folder: Path) -> list[str]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(classes) < 2:
        raise DataError(f"{folder}: {len(classes)} class folders, at least two are needed: {_LAYOUT}")
    return classes


def _check_same_classes(classes: Sequence[str], train: Path, test: Path) -> None:
    odd = sorted(set(classes) ^ set(_classes(test)))
    if odd:
        raise DataError(
            f"{test}: other classes than {train} ({', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}): "
            f"give both the same class folders"
        )


def _files(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Return every image file with its label, in the order of names."""
    files = []
    for label, name in enumerate(classes):
        paths = [path for path in sorted((folder / name).rglob("*")) if _is_image(path)]
        if not paths:
            raise DataError(
                f"{folder / name}: no images in this class ({', '.join(_SUFFIXES)}): add some, or delete the folder"
            )
        files += [(path, label) for path in paths]
    return files


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and not path.name.startswith(".") and path.is_file()


def _read_sets(parts: Sequence[Sequence[tuple[Path, int]]], size: int | None) -> list[ImageSet]:
    files = [file for part in parts for file in part]
    arrays = _decode_all([path for path, _ in files], size)
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.stack([array] * 3, axis=-1) for array in arrays]
    sets, start = [], 0
    for part in parts:
        stacked = torch.from_numpy(np.stack(arrays[start : start + len(part)]))
        images = stacked.permute(0, 3, 1, 2).contiguous() if stacked.ndim == 4 else stacked.unsqueeze(1)
        sets.append(ImageSet(images, torch.tensor([label for _, label in part])))
        start += len(part)
    return sets


def _decode_all(paths: Sequence[Path], size: int | None) -> list[np.ndarray]:
    """Return uint8 [H, W] or [H, W, 3] for each file, all of one height and width."""
    arrays: list[np.ndarray] = []
    threads = min(_MOST_THREADS, os.cpu_count() or 1)
    with quiet(), ThreadPoolExecutor(threads) as pool:
        for path, array in zip(paths, pool.map(lambda path: _decode(path, size), paths), strict=True):
            if arrays and array.shape[:2] != arrays[0].shape[:2]:
                raise DataError(
                    f"{path}: {_size(array)} pixels where {paths[0]} has {_size(arrays[0])}: "
                    f"set data.image_size to bring all to one size"
                )
            arrays.append(array)
    return arrays


def _decode(path: Path, size: int | None) -> np.ndarray:
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
        raise DataError(f"{path}: cannot be read as an image ({one_line(error)}): replace it or delete it") from None


def _size(array: np.ndarray) -> str:
    return f"{array.shape[0]}×{array.shape[1]}"


def _split(images: ImageSet, seed: int, where: str) -> tuple[ImageSet, ImageSet]:
    count = max(1, round(len(images) * HELD_OUT_FRACTION))
    rest, held = hold_out(images.labels, count, (seed, 0), where)
    return images.take(rest), images.take(held)
