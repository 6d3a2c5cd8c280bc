"""Small files in the exact formats that the readers take."""

import gzip
import struct

import numpy as np
import torch

from budgettune.spec.tables import DataSpec
from budgettune.training.data.fashion_mnist import FILES
from budgettune.training.data.load import load_data

IMAGES, LABELS = FILES[0].replace("-", "_"), FILES[1].replace("-", "_")


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def cycle(count, classes=10):
    return (np.arange(count) % classes).astype(np.uint8)


def same(left, right):
    return torch.equal(left.images, right.images) and torch.equal(left.labels, right.labels)


def idx(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_fashion(folder, *, zipped=False, train=100, test=40, **replaced):
    folder.mkdir(parents=True, exist_ok=True)
    arrays = (pixels(train, 28, 28), cycle(train), pixels(test, 28, 28, seed=1), cycle(test))
    for name, array in zip(FILES, arrays, strict=True):
        content = replaced.get(name.replace("-", "_"), idx(array))
        (folder / (f"{name}.gz" if zipped else name)).write_bytes(gzip.compress(content) if zipped else content)
    return arrays


def fashion(root, **settings):
    return load_data(DataSpec(name="fashion-mnist", root=str(root), **settings))
