"""Made-up images of CIFAR-100's shape, for the paper's grid where CIFAR cannot be had: learnable, and not at once.

    budgettune study create paper --set data.name=benchmarks.support.cifar_shaped:images --set data.train_size=2000
    budgettune worker paper --allow-import benchmarks

Every class has a smooth pattern of its own in three colours. An image is that pattern, moved, brightened or darkened,
with the pattern of another class shining through and noise on top.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from budgettune.spec.tables import DataSpec

CLASSES, SIZE, TEST_IMAGES = 100, 32, 2_000
WAVES = 5  # of a pattern along each side: no detail is finer than a sixth of the image
FARTHEST = 6  # pixels that a pattern is moved by
STRONGEST_OTHER = 0.7  # of a pattern that shines through, against the image's own
NOISE = 0.6  # standard deviation, against a pattern's of 1
CONTRAST = 45.0  # levels of grey that one standard deviation takes

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]


def images(spec: DataSpec) -> tuple[Images, Labels, Images, Labels]:
    """Return training images uint8[N, 3, 32, 32] with labels int64[N], then test images and labels.

    N is the spec's `train_size` and what a validation part takes, 50,000 where it is not set; the same seed gives the
    same images.
    """
    count = 50_000
    if spec.train_size is not None:
        kept = 1.0 if spec.evaluate_on == "test" else 1.0 - spec.validation_fraction
        count = int(np.ceil(spec.train_size / kept)) + 1
    rng = np.random.default_rng([spec.seed, 100])
    patterns = _patterns(rng)
    return *_drawn(patterns, count, rng), *_drawn(patterns, TEST_IMAGES, np.random.default_rng([spec.seed, 101]))


def _patterns(rng: np.random.Generator) -> NDArray[np.float32]:
    """Return a smooth pattern per class, float32[classes, 3, size, size], each of mean 0 and standard deviation 1."""
    places = np.arange(SIZE) / SIZE
    waves = np.array(
        [wave(2 * np.pi * k * places) / k for k in range(1, WAVES + 1) for wave in (np.cos, np.sin)], dtype=np.float32
    )
    weights = rng.normal(size=(CLASSES, 3, len(waves), len(waves))).astype(np.float32)
    drawn = np.einsum("kcab,ax,by->kcxy", weights, waves, waves, optimize=True)
    drawn -= drawn.mean(axis=(2, 3), keepdims=True)
    return np.asarray(drawn / drawn.std(axis=(1, 2, 3), keepdims=True), dtype=np.float32)


def _drawn(patterns: NDArray[np.float32], count: int, rng: np.random.Generator) -> tuple[Images, Labels]:
    labels = rng.permutation(np.arange(count) % CLASSES)
    others = (labels + rng.integers(1, CLASSES, count)) % CLASSES
    shares = rng.uniform(0, STRONGEST_OTHER, count).astype(np.float32)
    gains = rng.uniform(0.6, 1.4, count).astype(np.float32)
    found = np.empty((count, 3, SIZE, SIZE), dtype=np.uint8)
    for index in range(count):
        own, other = (
            np.roll(patterns[kind], rng.integers(-FARTHEST, FARTHEST + 1, 2), axis=(1, 2))
            for kind in (labels[index], others[index])
        )
        noise = rng.normal(0, NOISE, own.shape)
        grey = 128 + CONTRAST * (gains[index] * (own + shares[index] * other) + noise)
        found[index] = np.clip(grey, 0, 255)
    return found, labels
