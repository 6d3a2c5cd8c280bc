"""Image sets that a library or your own code reads (digits, CIFAR, package.module:function), and their download."""

from __future__ import annotations

import contextlib
import random
import socket
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from budgettune.errors import BudgetTuneError, DataError
from budgettune.files import user_path
from budgettune.spec.tables import BUILT_IN_SETS, DataSpec
from budgettune.spec.trust import Trust, contained
from budgettune.text import message_of
from budgettune.training.data.images import SourceImages, as_labels, check_classes, hold_out, image_set

DEFAULT_ROOT = "data"
_DIGITS_LARGEST = 16
_PATIENCE_SECONDS = 30.0


def read_digits(spec: DataSpec) -> SourceImages:
    """Read scikit-learn's 1,797 digits of 8×8, and hold 360 of them out by data.seed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / _DIGITS_LARGEST)).astype(np.uint8)
    facts = BUILT_IN_SETS["digits"]
    digits = image_set(pixels, bunch.target, "digits", facts.classes)
    rest, held = hold_out(digits.labels, facts.test_images, (spec.seed, 0), "digits")
    return SourceImages(train=digits.take(rest), test=digits.take(held), num_classes=facts.classes, flip=facts.flip)


def read_cifar(spec: DataSpec) -> SourceImages:
    """Read CIFAR-10 or CIFAR-100 with torchvision, which fetches them where they are absent.

    Raises:
        DataError: where files are absent or damaged, and cannot be fetched.
    """
    from torchvision import datasets

    loader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[spec.name]
    facts = BUILT_IN_SETS[spec.name]
    root = user_path(spec.root or DEFAULT_ROOT, "data.root")
    folder = str(root / loader.base_folder)
    if _bad_cifar_files(loader, root):
        failure = fetch(root, lambda: loader(str(root), download=True), lambda: not _bad_cifar_files(loader, root))
        if bad := _bad_cifar_files(loader, root):
            raise DataError(
                f"{spec.name}: {', '.join(bad)} in {folder}, and the download of {loader.url} failed "
                f"({failure or 'its files are not the known ones'}): "
                f"put {loader.filename} (md5 {loader.tgz_md5}) into {root}"
            )
    try:
        with quiet():
            parts = [loader(str(root), train=train) for train in (True, False)]
    except Exception as error:  # torchvision unpickles: a damaged file may raise anything
        raise DataError(f"{folder}: cannot be read ({message_of(error)}): delete it and fetch it again") from None
    train, test = (image_set(part.data, part.targets, folder, facts.classes) for part in parts)
    check_classes(train.labels, facts.classes, folder)
    return SourceImages(train=train, test=test, num_classes=facts.classes, flip=facts.flip)


def read_code(spec: DataSpec, trust: Trust) -> SourceImages:
    """Call `package.module:function` with the DataSpec, and check what it returns.

    It returns (train_images, train_labels, test_images, test_labels): images as uint8 arrays or tensors
    [N, C, H, W], [N, H, W, C] or [N, H, W], labels as whole numbers from 0 without gaps. It reads `root`,
    `image_size` and `seed` of the spec as it likes; image_size is applied to what it returns in any case. Its images
    are not mirrored by augmentation, since nothing says that they keep their labels.

    Raises:
        DataError: where it fails, or returns anything else.
    """
    with _random_state_kept():
        function = trust.import_code(spec.name)
        try:
            with contained():
                parts = tuple(function(spec))
        except BudgetTuneError:
            raise
        except Exception as error:  # it is the user's code
            reason = f"{type(error).__name__}: {message_of(error)}"
            raise DataError(
                f"{spec.name} failed ({reason}): correct it; it is called with the study's DataSpec"
            ) from error
    if len(parts) != 4:
        raise DataError(
            f"{spec.name} returned {len(parts)} values: return (train_images, train_labels, test_images, test_labels)"
        )
    train_images, train_labels, test_images, test_labels = parts
    num_classes = int(as_labels(train_labels, f"{spec.name}: training part").max()) + 1
    train = image_set(train_images, train_labels, f"{spec.name}: training part", num_classes)
    test = image_set(test_images, test_labels, f"{spec.name}: test part", num_classes)
    check_classes(train.labels, num_classes, spec.name)
    return SourceImages(train=train, test=test, num_classes=num_classes, flip=False)


@contextlib.contextmanager
def _random_state_kept() -> Iterator[None]:
    """Undo what other people's code does to the global generators."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _bad_cifar_files(loader: Any, root: Path) -> list[str]:
    """Return a word on each file that is missing or has not the known contents."""
    from torchvision.datasets.utils import check_integrity

    bad = []
    known = [*loader.train_list, *loader.test_list, (loader.meta["filename"], loader.meta["md5"])]
    for name, md5 in known:
        path = root / loader.base_folder / name
        if not path.is_file():
            bad.append(f"{name} is missing")
        elif not check_integrity(path, md5):
            bad.append(f"{name} is damaged")
    return bad


def fetch(root: Path, download: Callable[[], object], is_complete: Callable[[], object]) -> str | None:
    """Download into a folder what is not there yet, and return what went wrong, None where nothing did.

    Of workers that start together one downloads while the others wait.
    """
    patience = socket.getdefaulttimeout()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".budgettune-download.lock"), quiet():
            socket.setdefaulttimeout(_PATIENCE_SECONDS)  # torchvision sets none and would wait for a dead mirror
            if not is_complete():
                download()
    except Exception as error:  # torchvision lets network, archive and file errors through as they come
        return message_of(error)
    finally:
        socket.setdefaulttimeout(patience)
    return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep progress off standard output, which belongs to data, and the loaders' warnings off the terminal."""
    with contextlib.redirect_stdout(sys.stderr), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
