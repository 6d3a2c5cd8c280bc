import hashlib
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pytest
import torch
from torchvision import datasets

from budgettune.errors import DataError
from budgettune.spec.tables import DataSpec
from budgettune.training.data.load import load_data
from tests.support.image_files import FILES, IMAGES, LABELS, cycle, fashion, idx, pixels, write_fashion

CLOSED_PORT = "http://127.0.0.1:9/"
REAL_FASHION = os.environ.get("BUDGETTUNE_FASHION_MNIST") or None


@pytest.fixture(autouse=True)
def unreachable(monkeypatch):
    """No test leaves this machine: every mirror is a closed port of it."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [CLOSED_PORT])
    for loader in (datasets.CIFAR10, datasets.CIFAR100):
        monkeypatch.setattr(loader, "url", CLOSED_PORT + loader.filename)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("folder", [".", "FashionMNIST/raw"])
def test_fashion_mnist_is_read_plain_or_zipped_in_both_layouts(tmp_path, folder, zipped):
    arrays = write_fashion(tmp_path / folder, zipped=zipped)
    data = fashion(tmp_path)
    assert np.array_equal(data.train.images[:, 0].numpy(), arrays[0])
    assert np.array_equal(data.train.labels.numpy(), arrays[1])
    assert np.array_equal(data.held_out.images[:, 0].numpy(), arrays[2])
    assert np.array_equal(data.held_out.labels.numpy(), arrays[3])
    assert (data.train.images.dtype, data.train.labels.dtype) == (torch.uint8, torch.int64)
    assert (data.channels, data.image_size, data.num_classes, data.flip, data.pad) == (1, 28, 10, True, 3)


@pytest.mark.parametrize(
    ("replaced", "file", "message"),
    [
        ({IMAGES: idx(pixels(100, 28, 28))[:-5]}, FILES[0], "truncated"),
        ({IMAGES: idx(pixels(100, 28, 28)) + b"more"}, FILES[0], "too long"),
        ({IMAGES: b"\0\0"}, FILES[0], "not an IDX file"),
        ({IMAGES: b"<html>404</html>" * 9}, FILES[0], "not an IDX file"),
        ({IMAGES: idx(cycle(100))}, FILES[0], "not an IDX file of 3 dimensions"),
        ({IMAGES: idx(pixels(100, 14, 14))}, FILES[0], "14×14"),
        ({IMAGES: idx(pixels(0, 28, 28)), LABELS: idx(cycle(0))}, FILES[0], "no images"),
        ({LABELS: idx(cycle(99))}, FILES[1], "99 labels for the 100 images"),
        ({LABELS: idx(cycle(100, 11))}, FILES[1], "label 10 is out of range"),
        ({LABELS: idx(cycle(100, 8))}, FILES[1], "no training image of class 8, 9"),
    ],
)
def test_a_damaged_fashion_mnist_file_is_named(tmp_path, replaced, file, message):
    write_fashion(tmp_path, **replaced)
    with pytest.raises(DataError) as caught:
        fashion(tmp_path)
    assert file in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b"not a zip" + content])
def test_a_damaged_zip_is_named(tmp_path, damage):
    write_fashion(tmp_path, zipped=True)
    path = tmp_path / f"{FILES[0]}.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{FILES[0]}.gz: cannot be read"):
        fashion(tmp_path)


def test_an_unreachable_download_names_the_folder_the_files_and_the_fix(tmp_path, capfd):
    with pytest.raises(DataError) as caught:
        fashion(tmp_path / "new")
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path / "new"), *FILES, "dataset-fashion-mnist", "data.root", "refused"):
        assert part in message
    assert capfd.readouterr().out == ""


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="dataset-fashion-mnist"):
        fashion(tmp_path / "file")


def test_one_missing_file_is_a_clear_error_too(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / FILES[3]).unlink()
    with pytest.raises(DataError, match=FILES[3]):
        fashion(tmp_path)


def test_sets_of_the_real_size_load(tmp_path):
    write_fashion(tmp_path, train=60_000, test=10_000)
    data = fashion(tmp_path)
    assert (len(data.train), len(data.held_out)) == (60_000, 10_000)


@pytest.mark.fashion
@pytest.mark.skipif(REAL_FASHION is None, reason="set BUDGETTUNE_FASHION_MNIST to the folder of the real files")
def test_the_real_fashion_mnist():
    data = fashion(REAL_FASHION)
    assert data.train.images.shape == (60_000, 1, 28, 28)
    assert data.held_out.images.shape == (10_000, 1, 28, 28)
    assert data.train.labels.bincount().tolist() == [6_000] * 10
    assert data.held_out.labels.bincount().tolist() == [1_000] * 10
    assert data.mean == pytest.approx((0.2860,), abs=1e-4)
    assert data.std == pytest.approx((0.3530,), abs=1e-4)


CIFAR = {"cifar10": (datasets.CIFAR10, 10, "labels"), "cifar100": (datasets.CIFAR100, 100, "fine_labels")}


def write_cifar(root, monkeypatch, name, *, per_batch=None, packed=False, num_classes=None):
    """Write small batches of torchvision's layout, and make theirs the known checksums."""
    loader, classes, key = CIFAR[name]
    count = per_batch or 2 * classes
    folder = root / loader.base_folder
    folder.mkdir(parents=True)

    def dump(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / file).read_bytes()).hexdigest()

    def batch(file, seed):
        labels = cycle(count, num_classes or classes).tolist()
        return file, dump(file, {"data": pixels(count, 3072, seed=seed), key: labels})

    monkeypatch.setattr(loader, "train_list", [batch(f, seed) for seed, (f, _) in enumerate(loader.train_list)])
    monkeypatch.setattr(loader, "test_list", [batch(f, 9) for f, _ in loader.test_list])
    md5 = dump(loader.meta["filename"], {loader.meta["key"]: [str(cls) for cls in range(classes)]})
    monkeypatch.setattr(loader, "meta", {**loader.meta, "md5": md5})
    if packed:
        with tarfile.open(root / loader.filename, "w:gz") as archive:
            archive.add(folder, loader.base_folder)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        monkeypatch.setattr(loader, "tgz_md5", hashlib.md5((root / loader.filename).read_bytes()).hexdigest())
    return folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CIFAR)
def test_cifar_is_read_from_files_and_from_its_archive(tmp_path, monkeypatch, capfd, name, packed):
    write_cifar(tmp_path, monkeypatch, name, packed=packed)
    data = load_data(DataSpec(name=name, root=str(tmp_path)))
    loader, classes, _ = CIFAR[name]
    count = 2 * classes
    assert len(data.train) == count * len(loader.train_list)
    assert np.array_equal(data.train.images[:count].numpy(), pixels(count, 3072).reshape(count, 3, 32, 32))
    assert np.array_equal(data.held_out.images.numpy(), pixels(count, 3072, seed=9).reshape(count, 3, 32, 32))
    assert data.held_out.labels.tolist() == cycle(count, classes).tolist()
    assert (data.channels, data.image_size, data.num_classes, data.flip, data.pad) == (3, 32, classes, True, 4)
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("name", CIFAR)
def test_absent_cifar_that_cannot_be_fetched_names_the_archive_and_where_it_belongs(tmp_path, name):
    with pytest.raises(DataError) as caught:
        load_data(DataSpec(name=name, root=str(tmp_path)))
    message = str(caught.value)
    assert "\n" not in message
    for part in (str(tmp_path), CIFAR[name][0].filename, CIFAR[name][0].tgz_md5, "is missing", "refused"):
        assert part in message


def test_a_damaged_cifar_file_is_named(tmp_path, monkeypatch):
    folder = write_cifar(tmp_path, monkeypatch, "cifar10")
    (folder / "data_batch_3").write_bytes(b"cut")
    with pytest.raises(DataError, match="data_batch_3 is damaged") as caught:
        load_data(DataSpec(name="cifar10", root=str(tmp_path)))
    assert "missing" not in str(caught.value)


def test_a_damaged_cifar_archive_is_a_clear_error(tmp_path):
    (tmp_path / datasets.CIFAR10.filename).write_bytes(b"cut")
    with pytest.raises(DataError, match=r"put cifar-10-python\.tar\.gz"):
        load_data(DataSpec(name="cifar10", root=str(tmp_path)))


def test_cifar_labels_out_of_range_are_refused(tmp_path, monkeypatch):
    write_cifar(tmp_path, monkeypatch, "cifar10", num_classes=11)
    with pytest.raises(DataError, match="label 10 is out of range"):
        load_data(DataSpec(name="cifar10", root=str(tmp_path)))


@pytest.fixture
def mirror(tmp_path):
    """Serve a folder over HTTP on this machine alone."""
    served = tmp_path / "mirror"
    served.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SilentHandler, directory=str(served)))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield served, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


class SilentHandler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):  # noqa: A002
        pass


def test_absent_files_are_fetched_once_without_a_word_on_standard_output(tmp_path, monkeypatch, mirror, capfd):
    served, url = mirror
    write_fashion(served, zipped=True)
    known = [(f"{name}.gz", hashlib.md5((served / f"{name}.gz").read_bytes()).hexdigest()) for name in FILES]
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [url])
    monkeypatch.setattr(datasets.FashionMNIST, "resources", known)
    root = tmp_path / "new"
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: len(fashion(root).train), range(4)))
    assert loaded == [100] * 4
    for path in served.iterdir():
        path.unlink()
    assert len(fashion(root).train) == 100
    assert capfd.readouterr().out == ""


def test_a_download_of_other_contents_is_refused(tmp_path, monkeypatch, mirror):
    served, url = mirror
    write_fashion(served, zipped=True)
    monkeypatch.setattr(datasets.FashionMNIST, "mirrors", [url])
    with pytest.raises(DataError, match=r"the download failed .*corrupted"):
        fashion(tmp_path / "new")
