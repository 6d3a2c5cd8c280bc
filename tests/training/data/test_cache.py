"""Image sets in a file: the same images as in memory, built once, by one process, whole or not at all."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from budgettune.errors import DataError
from budgettune.spec.study_spec import load_spec
from budgettune.spec.tables import DataSpec
from budgettune.training.data.cache import channel_moments, mapped_images, open_cache, write_cache
from budgettune.training.data.load import load_data
from budgettune.training.device import Device
from budgettune.training.trainer import train
from tests.support.image_files import pixels

CLASSES = ("ant", "bee", "cow")
SHAPE = (100, 3, 7, 7)  # rows that no page boundary fits
IMAGES = pixels(*SHAPE)

BUILDER = """
import sys
from pathlib import Path
import numpy as np
from budgettune.training.data.cache import mapped_images

images = np.random.default_rng(0).integers(0, 256, (100, 3, 7, 7), dtype=np.uint8)

def fill(write):
    write(0, images[:50])
    print("half", flush=True)
    sys.stdin.readline()
    write(50, images[50:])

mapped_images(Path(sys.argv[1]), "key", lambda store: store(images.shape, fill))
"""


def write_tree(root, *, each=10, mode="RGB", size=8):
    for label, cls in enumerate(CLASSES):
        (root / cls).mkdir(parents=True)
        for number in range(each):
            shape = (size, size) if mode == "L" else (size, size, 3)
            Image.fromarray(pixels(*shape, seed=100 * label + number)).save(root / cls / f"{number:03d}.png")
    return root


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "images")


@pytest.fixture
def store(tmp_path):
    return tmp_path / "cache"


def load(root, cache=None, **settings):
    return load_data(DataSpec(name="folder", root=str(root), cache=cache and str(cache), **settings))


def everything(images):
    return torch.cat(list(images.split(7)))


def write_all(write):
    for row in range(0, len(IMAGES), 30):
        write(row, IMAGES[row : row + 30])


def never(store):
    raise AssertionError("built again")


@pytest.mark.parametrize(
    "settings",
    [{}, {"image_size": 6}, {"evaluate_on": "validation", "train_size": 13}, {"seed": 3}],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_a_cached_set_is_the_set_in_memory(root, store, settings):
    mapped, plain = load(root, store, **settings), load(root, **settings)
    assert (mapped.mean, mapped.std) == (plain.mean, plain.std)
    assert (mapped.channels, mapped.image_size, mapped.num_classes) == (3, plain.image_size, 3)
    for part, other in ((mapped.train, plain.train), (mapped.held_out, plain.held_out)):
        assert torch.equal(everything(part.images), other.images)
        assert torch.equal(part.labels, other.labels)
        backwards = torch.arange(len(part)).flip(0)
        assert torch.equal(part.images[backwards], other.images[backwards])


def test_train_and_test_folders_share_one_file(tmp_path, store):
    for part in ("train", "test"):
        write_tree(tmp_path / "images" / part, each=4)
    mapped = load(tmp_path / "images", store)
    assert len(list(store.glob("*.npy"))) == 1
    assert torch.equal(everything(mapped.held_out.images), load(tmp_path / "images").held_out.images)


def test_training_from_the_file_gives_the_same_weights(root, store):
    spec = load_spec("digits").with_overrides(["train.epochs=2", "train.batch_size=8", "search={}"])
    hashes = [train(spec, seed=1, data=load(root, cache)).result.weights_sha256 for cache in (store, None)]
    assert hashes[0] == hashes[1]


def test_a_second_load_decodes_nothing(root, store):
    first = load(root, store)
    path = root / "bee" / "003.png"
    status = path.stat()
    path.write_bytes(bytes(status.st_size))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert torch.equal(everything(load(root, store).train.images), everything(first.train.images))


def rewrite(root):
    Image.fromarray(pixels(8, 8, 3, seed=999)).save(root / "ant" / "000.png")


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        lambda root: (root / "ant" / "000.png").unlink(),
        lambda root: (root / "ant" / "000.png").rename(root / "bee" / "new.png"),
        lambda root: Image.fromarray(pixels(8, 8, 3)).save(root / "cow" / "new.png"),
    ],
    ids=["rewritten", "removed", "moved", "added"],
)
def test_a_changed_folder_is_read_again_and_the_file_of_before_goes(root, store, change):
    before = load(root, store)
    old = everything(before.train.images)
    change(root)
    after, plain = load(root, store), load(root)
    assert torch.equal(everything(after.train.images), plain.train.images)
    assert torch.equal(everything(before.train.images), old)  # who has the old set keeps it
    assert sorted(path.suffix for path in store.iterdir()) == [".lock", ".npy"]


def test_one_colour_file_among_grey_ones_makes_all_rgb(tmp_path, store):
    root = write_tree(tmp_path / "images", mode="L")
    assert load(root, store).channels == 1
    Image.fromarray(pixels(8, 8, 3)).save(root / "cow" / "colour.png")
    assert torch.equal(everything(load(root, store).train.images), load(root).train.images)


def test_a_damaged_image_leaves_no_cache(root, store):
    (root / "cow" / "009.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"009\.png: cannot be read as an image"):
        load(root, store)
    assert [path.suffix for path in store.iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole[: -len(IMAGES) * 48],
        lambda whole: whole + b"more",
        lambda whole: b"",
        lambda whole: bytes(len(whole)),
        lambda whole: b"[1]\n",
        lambda whole: whole.replace(b"|u1", b"<f8", 1),
        lambda whole: whole.replace(b"shape", b"shake", 1),
        lambda whole: whole.replace(b"(100, 3, 7, 7)", b"(100, 3, 7, 1)", 1),
        lambda whole: whole.replace(b", 7, 7)", b", 49)  ", 1),
        lambda whole: whole.replace(b"(100,", b"(1_00", 1),
        lambda whole: whole.replace(b"(100,", b"((100", 1),
    ],
    ids=[
        "cut",
        "no-moments",
        "long",
        "empty",
        "zeros",
        "other",
        "type",
        "key",
        "shape",
        "dimensions",
        "number",
        "syntax",
    ],
)
def test_a_file_that_is_not_whole_is_built_again(tmp_path, damage):
    path = tmp_path / "set"
    write_cache(path, "key", SHAPE, write_all)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert open_cache(path, "key") is None
    images = mapped_images(path, "key", lambda store: store(SHAPE, write_all))
    assert np.array_equal(everything(images).numpy(), IMAGES)
    assert open_cache(path, "another key") is None


def test_numpy_reads_the_images(tmp_path):
    write_cache(tmp_path / "set", "key", SHAPE, write_all)
    assert np.array_equal(np.load(tmp_path / "set.key.npy"), IMAGES)


def test_a_file_of_the_former_format_is_not_read_and_goes(root, store):
    load(root, store)
    (file,) = store.glob("*.npy")
    former = file.with_name(file.name.replace(file.suffixes[-2] + file.suffix, ".images"))
    file.rename(former)
    assert torch.equal(everything(load(root, store).train.images), load(root).train.images)
    assert sorted(path.suffix for path in store.iterdir()) == [".lock", ".npy"]


def start_builder(path):
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert builder.stdout.readline() == "half\n"
    return builder


def test_a_killed_build_is_not_taken_for_whole_and_does_not_block_the_next(tmp_path):
    path = tmp_path / "set"
    with start_builder(path) as builder:
        builder.kill()
    assert open_cache(path, "key") is None
    images = mapped_images(path, "key", lambda store: store(SHAPE, write_all))
    assert np.array_equal(everything(images).numpy(), IMAGES)
    assert sorted(found.name for found in tmp_path.iterdir()) == ["set.key.npy", "set.lock"]


def test_while_one_process_builds_another_waits_and_takes_what_it_built(tmp_path):
    path = tmp_path / "set"
    found = []
    waiter = threading.Thread(target=lambda: found.append(mapped_images(path, "key", never)))
    with start_builder(path) as builder:
        waiter.start()
        waiter.join(0.3)
        assert waiter.is_alive()
        builder.communicate("go on\n")
    waiter.join(30)
    assert builder.returncode == 0
    assert np.array_equal(everything(found[0]).numpy(), IMAGES)


@pytest.mark.parametrize("place", [".", "cache", ".cache/deep"])
def test_a_cache_among_the_images_is_refused(root, place):
    with pytest.raises(DataError, match=r"lies inside data\.root: name a folder outside"):
        load(root, root / place)


def test_a_place_that_cannot_be_written_is_named(root, store):
    store.write_text("a file")
    with pytest.raises(DataError, match=r"data\.cache: .*make room there, or name another folder"):
        load(root, store)


def test_moments_are_exact_for_every_subset(tmp_path):
    path = tmp_path / "set"
    write_cache(path, "key", SHAPE, write_all)
    images = open_cache(path, "key")
    rows = torch.tensor([5, 99, 0])
    chosen = IMAGES[rows.numpy()].astype(np.int64)
    expected = np.stack([chosen.sum((0, 2, 3)), (chosen**2).sum((0, 2, 3))])
    assert np.array_equal(images.select(rows).sum_moments(), expected)
    assert np.array_equal(channel_moments(IMAGES[rows.numpy()]).sum(axis=0), expected)


def test_a_choice_of_a_choice_reads_the_right_rows_for_the_right_device(tmp_path):
    path = tmp_path / "set"
    write_cache(path, "key", SHAPE, write_all)
    images = open_cache(path, "key").select(torch.arange(0, 100, 2)).select(slice(10, 20))
    assert images.shape == (10, 3, 7, 7)
    assert np.array_equal(images[torch.tensor([0, 9])].numpy(), IMAGES[[20, 38]])
    assert images.to("meta")[torch.tensor([3])].device.type == "meta"
    with pytest.raises(IndexError):
        images[torch.tensor([10])]


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_reading_all_in_random_order_leaves_next_to_nothing_resident(tmp_path):
    path, shape = tmp_path / "large", (16_384, 3, 64, 64)  # 200 MB

    def fill(write):
        block = pixels(512, *shape[1:])
        for row in range(0, shape[0], 512):
            write(row, block)

    write_cache(path, "key", shape, fill)
    images, device = open_cache(path, "key"), Device("cpu")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(128)
    device.reset_peak_memory()
    before = device.peak_memory_mb()
    for indices in order:
        images[indices]
    assert device.peak_memory_mb() - before < 80  # 32 rows of at most 2 MB each, and a batch
