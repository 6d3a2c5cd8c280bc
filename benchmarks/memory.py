"""How much memory does a trial hold, with the images in memory and with the images in a cache file?

    python -m benchmarks.memory                            # a folder of 100,000 images of 64×64
    python -m benchmarks.memory --images 20000             # a smaller one
    python -m benchmarks.memory --fashion-root FOLDER      # a full Fashion-MNIST trial as well

Every run has a process of its own. The peak is the largest resident set that the kernel saw (VmHWM), which counts
pages of mapped files as well; it begins anew between loading and training. `beyond torch` is what is left of it
without the peak of a process that only imports torch. The images are noise, tinted by class, so that accuracy tells
whether the right labels came with them. The folder lies in the system's temporary folder ($TMPDIR). Linux only.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.support import common

CLASSES = 10
BLOCKS = 8  # of noise on a side: single pixels of noise are no picture, and large as JPEG
TARGET_MB = 1_024


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What one process saw; None where it did not train.

    Attributes:
        load_mb: MiB at the peak until the images were loaded.
        train_mb: MiB at the peak of training and evaluation.
        data_seconds: the share of train_seconds that went into gathering and augmentation.
    """

    load_seconds: float
    load_mb: float
    train_seconds: float | None = None
    train_mb: float | None = None
    data_seconds: float | None = None
    accuracy: float | None = None


def write_images(root: Path, count: int, size: int) -> None:
    """Write root/CLASS/NUMBER.jpg with ten classes in equal parts."""
    for label in range(CLASSES):
        (root / f"class-{label}").mkdir(parents=True)

    def write_one(number: int) -> None:
        label = number % CLASSES
        rng = np.random.default_rng(number)
        tint = np.random.default_rng(label).integers(64, 192, 3)
        noise = np.clip(tint + rng.normal(0, 48, (BLOCKS, BLOCKS, 3)), 0, 255).astype(np.uint8)
        image = Image.fromarray(noise).resize((size, size), Image.Resampling.NEAREST)
        image.save(root / f"class-{label}" / f"{number:07d}.jpg", quality=80)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(write_one, range(count)):
            pass


def import_torch() -> float:
    """Return MiB at the peak of a process that imports torch and no more."""
    import torch  # noqa: F401

    return _peak_mb()


def load(data: dict[str, Any], threads: int) -> Peaks:
    """Load the images and go."""
    return _load(data, threads)[1]


def load_and_train(document: dict[str, Any], threads: int) -> Peaks:
    """Load the images and train one configuration."""
    from budgettune.spec.study_spec import StudySpec
    from budgettune.training.trainer import train

    images, loaded = _load(document["data"], threads)
    result = train(StudySpec.from_document(document), seed=0, data=images).result  # begins a new peak itself
    return Peaks(
        load_seconds=loaded.load_seconds,
        load_mb=loaded.load_mb,
        train_seconds=result.train_seconds,
        train_mb=result.peak_memory_mb,
        data_seconds=result.phases.data,
        accuracy=result.test_accuracy,
    )


def _load(data: dict[str, Any], threads: int) -> tuple[Any, Peaks]:
    import torch

    from budgettune.spec.tables import DataSpec
    from budgettune.training.data.load import load_data

    torch.set_num_threads(threads)
    began = time.perf_counter()
    images = load_data(DataSpec(**data))
    return images, Peaks(load_seconds=time.perf_counter() - began, load_mb=_peak_mb())


def _peak_mb() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1_024


def study(data: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Return a study file with one short trial on the images."""
    train = {"epochs": options.epochs, "batch_size": options.batch_size, "precision": "auto"}
    model, pruning = {"blocks": options.blocks}, {"strategy": "full"}
    return {"name": "memory", "data": data, "model": model, "train": train, "pruning": pruning}


def runs(options: argparse.Namespace, folder: Path) -> Iterator[tuple[str, Peaks]]:
    """Yield the name of a run and its peaks, the baseline (images in memory) first."""
    plain = {"name": "folder", "root": str(folder / "images")}
    cached = plain | {"cache": str(folder / "cache")}
    yield "in memory, loaded only", common.fresh_process(load, plain, options.threads)
    yield "cache, built", common.fresh_process(load, cached, options.threads)
    yield "cache, used", common.fresh_process(load_and_train, study(cached, options), options.threads)
    if options.fashion_root:
        fashion = study({"name": "fashion-mnist", "root": options.fashion_root}, options)
        yield "Fashion-MNIST, in memory", common.fresh_process(load_and_train, fashion, options.threads)


def row(name: str, peaks: Peaks, torch_mb: float) -> common.Row:
    """Return a line of the table."""
    beyond = {
        "load, beyond torch (MiB)": peaks.load_mb - torch_mb,
        "training, beyond torch (MiB)": None if peaks.train_mb is None else peaks.train_mb - torch_mb,
    }
    return {
        "images": name,
        "load (s)": peaks.load_seconds,
        "load (MiB)": peaks.load_mb,
        "training (s)": peaks.train_seconds,
        "of it data (s)": peaks.data_seconds,
        "training (MiB)": peaks.train_mb,
        **beyond,
        f"under {TARGET_MB:,} MiB": max(value for value in beyond.values() if value is not None) < TARGET_MB,
        "accuracy": peaks.accuracy,
    }


def parse() -> argparse.Namespace:
    """Return the options of the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=100_000, help="files in the folder; a fifth is held out")
    options.add_argument("--image-size", type=int, default=64, help="pixels on a side")
    options.add_argument("--batch-size", type=int, default=64)
    options.add_argument("--blocks", type=int, default=1, help="of the network, per stage")
    options.add_argument("--epochs", type=int, default=1)
    options.add_argument("--threads", type=int, default=common.usable_cores())
    options.add_argument("--fashion-root", help="folder of the Fashion-MNIST files, to train on all 60,000 too")
    options.add_argument("--json", type=Path, help="file to write all numbers to")
    return options.parse_args()


def main() -> None:
    """Write the folder, run everything, print the table."""
    options = parse()
    info = common.fingerprint(device="cpu", threads=options.threads)
    print(common.describe(info))
    torch_mb = common.fresh_process(import_torch)
    with tempfile.TemporaryDirectory(prefix="budgettune-memory-") as folder:
        began = time.perf_counter()
        write_images(Path(folder) / "images", options.images, options.image_size)
        raw_mb = options.images * 3 * options.image_size**2 / 2**20
        print(f"{options.images:,} files written in {time.perf_counter() - began:.0f} s, {raw_mb:,.0f} MiB as bytes")
        rows = [row(name, peaks, torch_mb) for name, peaks in runs(options, Path(folder))]
    size = f"{options.images:,} images of {options.image_size}×{options.image_size}"
    title = f"Peak resident memory: {size}, batch {options.batch_size}; importing torch takes {torch_mb:,.0f} MiB"
    common.print_table(title, rows)
    common.write_json(options, info, torch_mb=torch_mb, runs=rows)


if __name__ == "__main__":
    common.start(main)
