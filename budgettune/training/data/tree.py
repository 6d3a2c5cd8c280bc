"""A tree of images in folders: which parts and classes it has, which files are read, and which are not."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from budgettune.errors import DataError
from budgettune.text import listing
from budgettune.training.data.pictures import is_picture, suffix_of

LAYOUT = "lay it out as train/CLASS/IMAGE and test/CLASS/IMAGE, or as CLASS/IMAGE to have it split"

# What systems and programs leave beside files, apart from names that begin with a dot.
_SYSTEM = frozenset(
    (
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
        *("__macosx", "@eadir", "#recycle", "lost+found", "__pycache__"),
    )
)
_PARTS = {
    "train": frozenset(("train", "training", "trn")),
    "test": frozenset(("test", "testing", "tst")),
    "validation": frozenset(("val", "valid", "validation", "eval", "evaluation", "dev")),
}
_FILLERS = re.compile(r"data|sets?|images?|photos?|pictures?|splits?|folders?")

Classes = dict[str, list[Path]]
"""The folders of each class, in the order of names."""


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name.casefold() in _SYSTEM


@dataclass(frozen=True)
class ImageTree:
    """Where the images of each class lie."""

    train: Classes
    test: Classes | None  # None where nothing is set apart
    above: Sequence[Path]  # folders that hold those of the classes, or of the parts
    unused: Sequence[Path] = ()  # folders beside the parts


@dataclass
class Unread:
    """What lies in a tree and is not read: how much of which kind, and one of them by name."""

    counts: Counter[str] = field(default_factory=Counter)  # by kind, as a word
    first: str = ""  # path

    def add(self, kind: str, path: str) -> None:
        self.first = self.first or path
        self.counts[kind] += 1

    def __str__(self) -> str:
        kinds = ", ".join(f"{count} × {kind}" for kind, count in self.counts.most_common())
        return f"{kinds} (the first: {self.first})"


def find_tree(root: Path) -> ImageTree:
    """Return the classes of root/train/CLASS and root/test/CLASS, of root/CLASS/train and …/test, or of root/CLASS.

    Parts may have other usual names, in any case. Where there is a test and a validation part, test is taken.

    Raises:
        DataError: where it is laid out in another way.
    """
    outer, root = root, _inner(root)
    folders = _folders(root)
    trains, tests = _find_parts(folders)
    if trains and tests:
        train, test = _only(trains), _only(tests)
        if not _folders(train) and not _folders(test):
            raise DataError(
                f"{root}: {train.name} and {test.name} look like the training and the test part, and hold no class "
                f"folders: {LAYOUT}; if they are classes, rename one of them"
            )
        classes = _classes(_inner(train))
        test_classes = _aligned(_grouped(_folders(_inner(test))), classes, test)
        above = dict.fromkeys((outer, root, train, _inner(train), test, _inner(test)))
        unused = [folder for folder in folders if folder not in (*trains, *tests)]
        return ImageTree(classes, test_classes, list(above), unused)
    if parts := [part for part in (*trains, *tests) if _folders(part)]:  # else a class, such as train beside bus
        missing, part = root / ("test" if trains else "train"), parts[0]
        raise DataError(
            f"{missing}: no such folder beside {part.name}: add it, or set data.root to {part} to split that"
        )
    classes = _classes(root)
    within = {cls: [_find_parts(_folders(folder)) for folder in folders] for cls, folders in classes.items()}
    if all(len(trains) == len(tests) == 1 for parts in within.values() for trains, tests in parts):
        by_part = [{cls: [one for both in parts for one in both[n]] for cls, parts in within.items()} for n in (0, 1)]
        return ImageTree(by_part[0], by_part[1], [root, *folders])
    return ImageTree(classes, None, list(dict.fromkeys((outer, root))))


def list_images(classes: Classes, unread: Unread) -> dict[str, list[str]]:
    """Return the paths of all images of each class, in the order of names."""
    return {
        name: [path for folder in folders for path in images_under(folder, unread)] for name, folders in classes.items()
    }


def count_unused(tree: ImageTree, unread: Unread) -> None:
    """Count the pictures that lie beside the folders of classes and of parts."""
    for folder in tree.above:
        for entry in _entries(folder):
            if _holds(entry.is_file) and is_picture(entry.path):
                unread.add("picture outside the class folders", entry.path)
    for folder in tree.unused:
        for path in images_under(folder, Unread()):
            unread.add(f"picture in {folder.name}", path)


def images_under(folder: Path, unread: Unread) -> Iterator[str]:
    """Yield the image files below a folder, links followed, but for those that lead back to a folder above."""
    return _images_under(str(folder), unread, frozenset(map(_identity, folder.absolute().parents)))


def _images_under(folder: str, unread: Unread, above: frozenset[tuple[int, int]]) -> Iterator[str]:
    if (identity := _identity(folder)) in above:
        unread.add("link in a circle", folder)
        return
    for entry in _entries(folder):
        if _holds(entry.is_dir):
            yield from _images_under(entry.path, unread, above | {identity})
        elif _holds(entry.is_file):
            if is_picture(entry.path):
                yield entry.path
            else:
                unread.add(suffix_of(entry.path) or "without suffix", entry.path)
        else:
            unread.add("broken link" if entry.is_symlink() else "not a file", entry.path)


def _identity(folder: str | Path) -> tuple[int, int]:
    status = os.stat(folder)  # noqa: PTH116 (plain text: a million Paths would fill a gigabyte)
    return status.st_dev, status.st_ino


def _entries(folder: str | Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as found:
        return sorted((entry for entry in found if not is_hidden(entry.name)), key=lambda entry: entry.name)


def _holds(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a link to itself
        return False


def _folders(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(folder) if _holds(entry.is_dir)]


def _inner(folder: Path) -> Path:
    """Return the only folder inside where an archive left one, of the same name or with the parts in it."""
    folders = _folders(folder)
    if len(folders) == 1 and (folders[0].name == folder.name or all(_find_parts(_folders(folders[0])))):
        return folders[0]
    return folder


def _find_parts(folders: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the folders that look like the training part, and those that look like the test part."""
    found: dict[str | None, list[Path]] = defaultdict(list)
    for folder in folders:
        found[_part_of(folder)].append(folder)
    return found["train"], found["test"] or found["validation"]


def _part_of(folder: Path) -> str | None:
    """Return which part a folder is by its name; where that says more, it must hold folders, as a class does not."""
    words = set(re.findall("[a-z]+", _FILLERS.sub(" ", folder.name.casefold())))
    part = next((part for part, names in _PARTS.items() if words & names), None)
    return part if part is None or len(words) == 1 or _folders(folder) else None


def _only(parts: Sequence[Path]) -> Path:
    parts = [part for part in parts if part.name in _PARTS] or parts
    if len(parts) > 1:
        names = " and ".join(part.name for part in parts)
        raise DataError(f"{parts[0].parent}: {names} look like the same part: keep one of them there")
    return parts[0]


def _classes(folder: Path) -> Classes:
    classes = _grouped(_folders(folder))
    if len(classes) < 2:
        if not classes:
            raise DataError(f"{folder}: no class folders: at least two are needed; {LAYOUT}")
        only = next(iter(classes.values()))[0]
        inside = f"set data.root to {only} if the classes lie in it, else " if _folders(only) else ""
        raise DataError(f"{folder}: only one class folder, {only.name}: at least two are needed; {inside}{LAYOUT}")
    return classes


def _grouped(folders: Sequence[Path]) -> Classes:
    """Return folders by the names of their classes: é is one letter or two, as the system that wrote it likes."""
    classes: Classes = defaultdict(list)
    for folder in folders:
        classes[unicodedata.normalize("NFC", folder.name)].append(folder)
    return {name: classes[name] for name in sorted(classes)}


def _aligned(test: Classes, train: Classes, folder: Path) -> Classes:
    """Return the test folders by the names of training, but for case and space; those that test lacks are empty."""
    by_fold: dict[str, list[str]] = defaultdict(list)
    for name in train:
        by_fold[_folded(name)].append(name)
    aligned: Classes = {name: [] for name in train}
    strangers = []
    for name, folders in test.items():
        names = [name] if name in train else by_fold[_folded(name)]
        if len(names) == 1:
            aligned[names[0]] += folders
        else:
            strangers.append(name)
    if strangers:
        raise DataError(
            f"{folder}: classes that training lacks ({listing(strangers)}): add training images of them, or delete "
            f"their folders here"
        )
    return aligned


def _folded(name: str) -> str:
    return name.strip().casefold()
