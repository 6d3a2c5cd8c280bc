import numpy as np
import pytest
import torch
from PIL import Image

from budgettune.errors import DataError
from budgettune.spec.tables import DataSpec
from budgettune.training.data.load import load_data
from tests.support.image_files import pixels, same
from tests.support.image_trees import folder, write_image, write_tree


def test_a_tree_is_read_in_the_order_of_names(tmp_path):
    data = folder(write_tree(tmp_path, each=3))
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.stack([pixels(8, 8, 3, seed=seed) for seed in (0, 1, 2, 100, 101, 102)])
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).numpy(), expected)
    assert (len(data.held_out), data.num_classes, data.channels, data.flip) == (6, 2, 3, False)


def test_grey_files_stay_grey_and_one_colour_file_makes_all_rgb(tmp_path):
    write_tree(tmp_path, mode="L")
    assert folder(tmp_path).channels == 1
    write_image(tmp_path / "test" / "bee" / "colour.png")
    data = folder(tmp_path)
    assert data.channels == 3
    assert torch.equal(data.train.images[:, 0], data.train.images[:, 2])


def test_jpegs_transparency_and_stray_files_are_no_trouble(tmp_path):
    write_tree(tmp_path, each=2, suffix="jpg")
    write_image(tmp_path / "train" / "ant" / "deep" / "clear.PNG", mode="RGBA")
    (tmp_path / "train" / ".cache").mkdir()
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / ".hidden.png").write_text("not an image")
    data = folder(tmp_path)
    assert data.train.images.shape == (5, 3, 8, 8)
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]


def test_a_tree_without_train_and_test_is_split_by_seed_in_proportion(tmp_path):
    write_tree(tmp_path, parts=(".",), each=20)
    first, again, other = (folder(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert first.held_out.labels.bincount().tolist() == [4, 4]
    assert first.train.labels.bincount().tolist() == [16, 16]
    assert same(first.held_out, again.held_out)
    assert not torch.equal(first.held_out.images, other.held_out.images)


def test_files_of_different_sizes_need_an_image_size(tmp_path):
    write_tree(tmp_path)
    write_image(tmp_path / "train" / "bee" / "wide.png", size=(12, 9))
    with pytest.raises(DataError, match=r"wide\.png: 9×12 pixels .* set data\.image_size"):
        folder(tmp_path)
    data = folder(tmp_path, image_size=6)
    assert data.train.images.shape[2:] == (6, 6)
    assert data.held_out.images.shape[2:] == (6, 6)


def test_images_that_are_not_square_need_an_image_size(tmp_path):
    write_tree(tmp_path, size=(12, 8))
    with pytest.raises(DataError, match=r"8×12 .* set data\.image_size"):
        folder(tmp_path)
    assert folder(tmp_path, image_size=8).image_size == 8


def cut(path):
    path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("suffix", ["png", "jpg"])
@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b""), lambda path: path.write_text("<html>")])
def test_a_damaged_image_is_named(tmp_path, suffix, damage):
    write_tree(tmp_path, suffix=suffix)
    path = tmp_path / "train" / "bee" / f"002.{suffix}"
    damage(path)
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert f"{path}: cannot be read as an image" in str(caught.value)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("cached", [True, False])
def test_damaged_images_are_named_together(tmp_path, first, cached):
    root = write_tree(tmp_path / "images")
    damaged = [root / "train" / cls / "003.png" for cls in ("ant", "bee")] + [
        root / "train" / "ant" / "000.png"
    ] * first
    for path in damaged:
        cut(path)
    with pytest.raises(DataError) as caught:
        folder(root, cache=str(tmp_path / "cache") if cached else None)
    one, *others = map(str, sorted(damaged))
    assert str(caught.value).startswith(f"{one}: cannot be read as an image")
    assert str(caught.value).endswith(f"; {len(others)} more such: {', '.join(others)}")
    for path in damaged:  # the advice works
        path.unlink()
    assert len(folder(root).train) == 8 - len(damaged)


def test_sixteen_bit_images_are_refused_rather_than_clipped(tmp_path):
    write_tree(tmp_path, mode="L")
    path = tmp_path / "train" / "ant" / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"deep\.png: more than 8 bits"):
        folder(tmp_path)


def remove_files(path):
    for file in path.iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: remove_files(root / "train" / "bee"), r"train/bee: no images in this class"),
        (lambda root: (root / "test" / "bee").rename(root / "test" / "wasp"), r"classes that training lacks \(wasp\)"),
        (lambda root: (root / "test").rename(root / "other"), r"test: no such folder beside train"),
        (lambda root: (root / "train" / "bee").rename(root / "bee"), r"train: only one class folder, ant"),
    ],
)
def test_a_tree_of_the_wrong_shape_says_how_to_lay_it_out(tmp_path, change, message):
    change(write_tree(tmp_path))
    with pytest.raises(DataError, match=message):
        folder(tmp_path)


def test_a_missing_root_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"data\.root is missing"):
        load_data(DataSpec(name="folder"))
