import random
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from budgettune.errors import DataError, UsageError
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.images import ImageSet, hold_out
from budgettune.training.data.load import load_data
from tests.support.image_files import IMAGES, fashion, idx, same, write_fashion


def test_digits_are_split_in_proportion_and_reach_white():
    data = load_data(DataSpec(name="digits"))
    assert data.train.images.shape == (1_437, 1, 8, 8)
    assert data.held_out.images.shape == (360, 1, 8, 8)
    assert int(data.train.images.min()) == 0
    assert int(data.train.images.max()) == 255
    assert (data.held_out.labels.bincount() - 36).abs().max() <= 1
    assert not data.flip


def test_the_split_follows_the_seed_and_nothing_else():
    first, again, other = (load_data(DataSpec(name="digits", seed=seed)) for seed in (3, 3, 4))
    assert same(first.train, again.train)
    assert same(first.held_out, again.held_out)
    assert not torch.equal(first.held_out.images, other.held_out.images)


def test_global_random_states_stay_as_they_are():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    load_data(DataSpec(name="digits", evaluate_on="validation", train_size=100))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Load images from a function with the given body."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(body, *, allow=("bt_images",), **settings):
        sys.modules.pop("bt_images", None)
        text = f"import random\nimport numpy as np\nimport torch\ndef load(spec):\n    {body}\n"
        (tmp_path / "bt_images.py").write_text(text)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        return load_data(DataSpec(name="bt_images:load", **settings), trust=Trust(allow))

    yield load
    sys.modules.pop("bt_images", None)


def returning(images="np.zeros((20, 8, 8, 3), np.uint8)", labels="np.arange(20) % 4"):
    return f"return {images}, {labels}, np.zeros((8, 8, 8, 3), np.uint8), np.arange(8) % 4"


@pytest.mark.parametrize("shape", ["20, 8, 8, 3", "20, 3, 8, 8"])
@pytest.mark.parametrize("library", ["np", "torch"])
def test_own_images_may_be_arrays_or_tensors_with_channels_first_or_last(own, shape, library):
    dtype = "dtype=torch.uint8" if library == "torch" else "dtype=np.uint8"
    data = own(returning(f"{library}.zeros(({shape}), {dtype})"))
    assert data.train.images.shape == (20, 3, 8, 8)
    assert (data.num_classes, data.flip, data.train.labels.dtype) == (4, False, torch.int64)


def test_own_images_without_channels_are_grey_and_the_spec_is_handed_over(own):
    body = "x = np.full((20, 8, 8), spec.seed, np.uint8); y = np.arange(20) % 2; return x, y, x, y"
    data = own(body, seed=7)
    assert data.train.images.shape == (20, 1, 8, 8)
    assert int(data.train.images[0, 0, 0, 0]) == 7


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (returning("np.zeros((20, 8, 8, 3))"), "images are float64, not uint8"),
        (returning("np.zeros((20, 8, 8, 9), np.uint8)"), r"shape \(20, 8, 8, 9\)"),
        (returning("np.zeros((20, 64), np.uint8)"), r"shape \(20, 64\)"),
        (returning("np.zeros((0, 8, 8, 3), np.uint8)"), "no images"),
        (returning("np.zeros((19, 8, 8, 3), np.uint8)"), "19 images but 20 labels"),
        (returning("'text'"), "images are no array of numbers"),
        (returning("3"), "images are a single value"),
        (returning("np.zeros((20, 8, 8, 1), np.uint8)"), "1 channels in training images and 3"),
        (returning("np.zeros((20, 9, 9, 3), np.uint8)"), r"9×9 and others of 8×8 pixels: set data\.image_size"),
        (returning(labels="np.arange(20) / 4"), "labels are float64"),
        (returning(labels="np.zeros((20, 4), int)"), r"labels are int64 of the shape \(20, 4\)"),
        (returning(labels="np.zeros(0, int)"), "no labels"),
        (returning(labels="np.arange(20) % 4 - 1"), "label -1 is out of range"),
        (returning(labels="np.arange(20) % 3"), "test part: label 3 is out of range"),
        (returning(labels="np.arange(20) % 4 * 2"), "no training image of class 1, 3, 5:"),
        (returning(labels="np.arange(20) * 10**15"), r"no training image of class 1, 2, 3, 4, 5 …"),
        ("x = np.zeros((9, 8, 8), np.uint8); return x, np.zeros(9, int), x, np.zeros(9, int)", "only one class"),
        ("return 1, 2, 3", "returned 3 values"),
        ("return None", "failed .*TypeError"),
        ("return open('/nowhere/images')", "failed .*FileNotFoundError"),
    ],
)
def test_what_own_code_gets_wrong_is_named(own, body, message):
    with pytest.raises(DataError, match=message) as caught:
        own(body)
    assert "bt_images:load" in str(caught.value)


@pytest.mark.parametrize("settings", [{}, {"evaluate_on": "validation", "validation_fraction": 0.05}])
def test_classes_that_nothing_judges_are_said_of_arrays_too(own, caplog, settings):
    """Also where the validation part is too small for all of them, whatever the test part has."""
    test_labels = "np.arange(8) % 4" if settings else "np.arange(8) % 2"
    images = "np.zeros((20, 8, 8, 3), np.uint8), np.arange(20) % 4, np.zeros((8, 8, 8, 3), np.uint8)"
    data = own(f"return {images}, {test_labels}", **settings)
    judged = set(data.held_out.labels.tolist())
    lacking = ", ".join(f"class {label}" for label in range(4) if label not in judged)
    part = settings.get("evaluate_on", "test")
    assert len(judged) < data.num_classes == 4
    assert f"bt_images:load: no {part} images of {lacking}: accuracy says nothing of that" in caplog.text


def test_own_code_is_not_run_unless_allowed(own):
    with pytest.raises(UsageError, match="--allow-import bt_images"):
        own("raise SystemExit('ran')", allow=())


def test_own_code_cannot_move_the_global_random_states(own):
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    own("random.seed(1); np.random.seed(1); torch.manual_seed(1); " + returning())
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]


def rows(images):
    return {bytes(image.numpy()) for image in images}


def test_the_validation_part_is_stratified_never_trained_on_and_the_same_for_every_train_size(tmp_path):
    write_fashion(tmp_path)
    test = fashion(tmp_path).held_out
    whole = fashion(tmp_path, evaluate_on="validation", validation_fraction=0.2)
    part = fashion(tmp_path, evaluate_on="validation", validation_fraction=0.2, train_size=30)
    assert whole.held_out.labels.bincount().tolist() == [2] * 10
    assert same(whole.held_out, part.held_out)
    assert (len(whole.train), len(part.train)) == (80, 30)
    assert rows(part.train.images) < rows(whole.train.images)
    assert not rows(whole.train.images) & rows(whole.held_out.images)
    assert not rows(whole.held_out.images) & rows(test.images)


def test_a_train_size_is_a_fixed_random_subset_that_leaves_the_test_images_alone(tmp_path):
    write_fashion(tmp_path)
    small, again, large = (fashion(tmp_path, train_size=size) for size in (20, 20, 50))
    other = fashion(tmp_path, train_size=20, seed=1)
    assert same(small.train, again.train)
    assert rows(small.train.images) < rows(large.train.images)
    assert rows(small.train.images) != rows(other.train.images)
    assert same(small.held_out, fashion(tmp_path).held_out)


@pytest.mark.parametrize(("settings", "there"), [({}, 100), ({"evaluate_on": "validation"}, 90)])
def test_a_train_size_over_what_is_there_says_how_many_there_are(tmp_path, settings, there):
    write_fashion(tmp_path)
    assert len(fashion(tmp_path, train_size=there, **settings).train) == there
    with pytest.raises(DataError, match=rf"data\.train_size is {there + 1} and there are {there}"):
        fashion(tmp_path, train_size=there + 1, **settings)


def test_a_validation_part_that_leaves_a_class_without_images_is_refused(tmp_path):
    write_fashion(tmp_path)
    with pytest.raises(DataError, match="cannot hold out 95 of 100"):
        fashion(tmp_path, evaluate_on="validation", validation_fraction=0.95)


def test_holding_out_keeps_one_of_every_class_and_the_exact_count():
    labels = torch.tensor([0] * 1 + [1] * 2 + [2] * 97)
    for count in (1, 20, 50, 97):
        rest, held = hold_out(labels, count, (0,), "labels")
        assert len(held) == count
        assert sorted([*rest.tolist(), *held.tolist()]) == list(range(100))
        assert set(labels[rest].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("size", [14, 28, 40])
def test_image_size_resizes_all_images(tmp_path, size):
    write_fashion(tmp_path)
    data = fashion(tmp_path, image_size=size)
    assert data.train.images.shape == (100, 1, size, size)
    assert data.held_out.images.shape == (40, 1, size, size)
    assert data.train.images.dtype == torch.uint8
    assert data.image_size == size


def test_shrinking_averages_rather_than_drops_pixels(tmp_path):
    stripes = np.zeros((100, 28, 28), np.uint8)
    stripes[:, :, ::2] = 200
    write_fashion(tmp_path, **{IMAGES: idx(stripes)})
    middle = fashion(tmp_path, image_size=14).train.images[..., 2:-2].float()
    assert (middle - 100).abs().max() <= 2


def test_mean_and_std_are_those_of_the_training_part_by_channel(own):
    body = (
        "rng = np.random.default_rng(0); x = rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8); "
        "x[..., 1] //= 2; x[..., 2] = 9; y = np.arange(40) % 4; return x, y, 255 - x, y"
    )
    data = own(body, train_size=25)
    scaled = data.train.images.double() / 255
    assert data.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist())
    assert data.std[:2] == pytest.approx(scaled.std((0, 2, 3), correction=0)[:2].tolist())
    assert data.std[2] == 1.0


def test_moving_to_a_device_moves_every_tensor():
    data = load_data(DataSpec(name="digits", train_size=50)).to("meta")
    tensors = (data.train.images, data.train.labels, data.held_out.images, data.held_out.labels)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert (len(data.train), data.image_size) == (50, 8)


@pytest.mark.parametrize(
    ("name", "advice"), [("folder", "a file with data.cache"), ("digits", "a smaller data.train_size")]
)
def test_a_set_that_a_device_has_no_room_for_is_a_fault_of_the_data(name, advice, monkeypatch):
    def full(images, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    data = replace(load_data(DataSpec(name="digits")), name=name)
    monkeypatch.setattr(ImageSet, "to", full)
    with pytest.raises(DataError, match=rf"{name}: no room on cuda:0 for 0 MiB of images: .*{advice}"):
        data.to(torch.device("cuda", 0))


def test_a_root_may_begin_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_fashion(Path(tmp_path) / "images")
    assert len(fashion("~/images").train) == 100


@pytest.mark.parametrize("name", ["folder", "cifar10", "fashion-mnist"])
def test_a_root_in_a_home_that_is_not_here_is_a_fault_of_the_box(name, no_home):
    with pytest.raises(UsageError, match=r"data\.root: ~/images: no such home folder on this box"):
        load_data(DataSpec(name=name, root="~/images"))
