"""Trees of images as people have them: what is read, what is left out and said, what is in two parts at once."""

import os
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from budgettune.errors import DataError
from budgettune.spec.tables import DataSpec
from budgettune.spec.trust import Trust
from budgettune.training.data.load import load_data
from tests.support.image_files import pixels, same
from tests.support.image_trees import folder, write_image, write_tree

HIDDEN = [".ipynb_checkpoints", "__MACOSX", "@eaDir", ".thumbnails", "$RECYCLE.BIN", "lost+found"]


def counts(data):
    return data.num_classes, data.train.labels.bincount().tolist(), data.held_out.labels.bincount().tolist()


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("parts", [("train", "test"), (".",)])
def test_hidden_and_system_folders_are_skipped_at_every_depth(tmp_path, parts, hidden, caplog):
    root = write_tree(tmp_path, parts=parts, each=10)
    before = folder(root)
    for found in [path for path in root.rglob("*") if path.is_dir()]:
        shutil.copytree(found, found / hidden / "copies")
    (root / parts[0] / "ant" / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    (root / parts[0] / "ant" / "._000.png").write_bytes(b"\0\5\x16\7")
    after = folder(root)
    assert same(after.train, before.train)
    assert same(after.held_out, before.held_out)
    assert "not read" not in caplog.text


@pytest.mark.parametrize("evaluate_on", ["test", "validation"])
@pytest.mark.parametrize("parts", [("train", "test"), (".",)])
def test_pictures_that_are_in_both_parts_are_counted_and_named(tmp_path, parts, evaluate_on, caplog):
    root = write_tree(tmp_path, parts=parts, each=10)
    folder(root, evaluate_on=evaluate_on, validation_fraction=0.4)
    assert "training images too" not in caplog.text
    for part in parts:
        for path in list((root / part / "bee").iterdir()):  # under another name, and where one looks least
            shutil.copy(path, root / parts[0] / "ant" / f"copy {part}{path.name}")
    data = folder(root, evaluate_on=evaluate_on, validation_fraction=0.4)
    rows = {bytes(image.numpy()) for image in data.train.images}
    twice = sum(bytes(image.numpy()) in rows for image in data.held_out.images)
    kind = "test" if evaluate_on == "test" else "validation"
    assert f"{twice} of {len(data.held_out)} {kind} images are training images too" in caplog.text
    assert str(root) in caplog.text.partition("images too (")[2]
    assert twice


def test_pictures_in_both_parts_of_a_cached_set_are_found_too(tmp_path, caplog):
    root = write_tree(tmp_path / "images", each=10)
    shutil.copy(root / "train" / "bee" / "003.png", root / "test" / "bee" / "003.png")
    for _ in range(2):  # built, then found
        folder(root, cache=str(tmp_path / "cache"))
    where = f"{root}/test/bee/003.png is {root}/train/bee/003.png"
    assert caplog.text.count(f"1 of 20 test images are training images too ({where})") == 1


SPLITS = [
    ("Training", "Testing"),
    ("Train", "Test"),
    ("TRAIN", "TEST"),
    ("training", "validation"),
    ("train", "val"),
    ("train", "valid"),
    ("train", "dev"),
    ("training_set", "test_set"),
    ("Trainset", "Testset"),
    ("train_images", "test_images"),
    ("train2017", "val2017"),
    ("seg_train", "seg_test"),
    ("seg_train/seg_train", "seg_test/seg_test"),
    ("archive/train", "archive/test"),
]


@pytest.mark.parametrize("parts", SPLITS)
def test_parts_under_other_names_are_parts_and_no_classes(tmp_path, parts, caplog):
    data = folder(write_tree(tmp_path, parts=parts, each=3))
    assert counts(data) == (2, [3, 3], [3, 3])
    assert f"{tmp_path}: 2 classes (ant, bee), 6 training and 6 test images" in caplog.text


def test_parts_inside_every_class_are_parts(tmp_path):
    write_tree(tmp_path, parts=("ant", "bee"), classes=("Train", "Test"), each=3)
    assert counts(folder(tmp_path)) == (2, [3, 3], [3, 3])


def test_of_test_and_validation_beside_one_another_test_judges_and_the_other_is_said_to_lie_unused(tmp_path, caplog):
    write_tree(tmp_path, parts=("train", "val", "test", "extra"), each=3)
    assert folder(tmp_path).held_out.images.shape[0] == 6
    assert "not used: 6 × picture in extra, 6 × picture in val" in caplog.text
    assert "not read" not in caplog.text  # they are JPEG or PNG, and saving them as such would help nobody


@pytest.mark.parametrize("names", [("bus", "car", "train"), ("control", "test"), ("test_tube", "train_station")])
def test_classes_whose_names_are_those_of_parts_stay_classes(tmp_path, names):
    assert folder(write_tree(tmp_path, parts=(".",), classes=names, each=5)).num_classes == len(names)


def test_two_folders_for_one_part_are_refused_by_name(tmp_path):
    write_tree(tmp_path, parts=("train2014", "train2017", "val"))
    with pytest.raises(DataError, match="train2014 and train2017 look like the same part"):
        folder(tmp_path)
    shutil.rmtree(tmp_path / "train2014")
    assert folder(tmp_path).num_classes == 2


@pytest.mark.parametrize("classes", [("training", "testing"), ("train", "dev"), ("train", "val", "bus")])
def test_classes_that_are_named_like_parts_hear_that_and_the_advice_works(tmp_path, classes):
    write_tree(tmp_path, parts=(".",), classes=classes, each=5)
    train, test, *_ = classes
    with pytest.raises(DataError, match=f"{train} and {test} look like .*; if they are classes, rename one of them"):
        folder(tmp_path)
    (tmp_path / train).rename(tmp_path / "railway")
    assert folder(tmp_path).num_classes == len(classes)


@pytest.mark.parametrize(("there", "missing"), [("Training", "test"), ("Testing", "train")])
def test_a_part_alone_is_refused_and_both_advices_work(tmp_path, there, missing):
    write_tree(tmp_path, parts=(there,), each=5)
    advice = f"{missing}: no such folder beside {there}: add it, or set data.root to {tmp_path / there} to split that"
    with pytest.raises(DataError) as caught:
        folder(tmp_path)
    assert advice in str(caught.value)
    assert counts(folder(tmp_path / there)) == (2, [4, 4], [1, 1])
    write_tree(tmp_path, parts=(missing,), each=2)
    assert folder(tmp_path).num_classes == 2


def test_a_folder_too_many_above_the_classes_is_refused_and_the_advice_works(tmp_path):
    write_tree(tmp_path, parts=("PetImages",), each=5)
    with pytest.raises(DataError, match="only one class folder, PetImages: at least two") as caught:
        folder(tmp_path)
    assert f"set data.root to {tmp_path / 'PetImages'} if the classes lie in it" in str(caught.value)
    assert counts(folder(tmp_path / "PetImages")) == (2, [4, 4], [1, 1])


class TestUnread:
    def test_what_pillow_reads_is_read_whatever_its_name(self, tmp_path, caplog):
        root = write_tree(tmp_path, each=1)
        for number, name in enumerate(["a.GIF", "b.jfif", "c", "d.jpg_large", "e.tga", "f.jp2", "g.qoi", "h.webp"]):
            image = Image.fromarray(pixels(8, 8, 3, seed=number))
            suffix = name.partition(".")[2].lower()
            image.save(root / "train" / "ant" / name, {"jfif": "jpeg", "jpg_large": "jpeg", "": "png"}.get(suffix))
        assert counts(folder(root))[1] == [9, 1]
        assert "not read" not in caplog.text

    def test_what_is_there_and_not_read_is_counted_and_named_once(self, tmp_path, caplog):
        root = write_tree(tmp_path)
        place = root / "train" / "ant"
        for name in ("a.heic", "b.heic", "notes.txt", "no suffix", "labels.h5", "doc.pdf", "film.mpeg"):
            (place / name).write_bytes(b"%PDF and more")
        (place / "broken.png").symlink_to("nowhere")
        (place / "loop").symlink_to("loop")
        (place / "round").symlink_to(root / "train")
        write_image(root / "train" / "stray.png")
        for _ in range(2):
            assert counts(folder(root))[1] == [4, 4]
        text = caplog.text
        assert text.count("not read: ") == 1
        for part in (
            "2 × .heic",
            "1 × .txt",
            "1 × without suffix",
            "2 × broken link",
            "1 × link in a circle",
            "1 × .h5",
        ):
            assert part in text
        stray = root / "train" / "stray.png"
        stray = f"not used: 1 × picture outside the class folders (the first: {stray}): move what should count"
        assert stray in text
        assert f"the first: {place / 'a.heic'}" in text

    def test_a_class_of_other_files_alone_says_what_they_are(self, tmp_path):
        root = write_tree(tmp_path)
        shutil.rmtree(root / "train" / "bee")
        (root / "train" / "bee").mkdir()
        (root / "train" / "bee" / "1.heic").write_bytes(b"ftypheic")
        message = (
            rf"train/bee: no images in this class, but 1 × \.heic .*: add some, or delete {root}/train/bee and .*test"
        )
        with pytest.raises(DataError, match=message):
            folder(root)

    def test_linked_folders_are_read(self, tmp_path):
        root = write_tree(tmp_path / "here")
        elsewhere = write_tree(tmp_path / "there", parts=(".",), classes=("more", "wasp"), each=2)
        (root / "train" / "ant" / "linked").symlink_to(elsewhere / "more")
        (root / "train" / "wasp").symlink_to(elsewhere / "wasp")
        assert counts(folder(root))[:2] == (3, [6, 4, 2])

    def test_numbers_for_science_beside_pictures_are_left_out_rather_than_refused(self, tmp_path, caplog):
        root = write_tree(tmp_path)
        (root / "train" / "ant" / "depth.pfm").write_bytes(b"Pf\n8 8\n-1.0\n" + bytes(256))
        assert counts(folder(root))[1] == [4, 4]
        assert "1 × .pfm" in caplog.text


class TestClasses:
    def test_a_test_set_that_lacks_a_class_is_taken_and_said(self, tmp_path, caplog):
        root = write_tree(tmp_path, classes=("ant", "bee", "wasp"))
        shutil.rmtree(root / "test" / "bee")
        (root / "test" / "wasp" / "000.png").unlink()
        assert counts(folder(root)) == (3, [4, 4, 4], [4, 0, 3])
        assert f"{root}: no test images of bee: accuracy says nothing of that" in caplog.text

    def test_an_empty_test_class_lacks_images_like_an_absent_one(self, tmp_path, caplog):
        root = write_tree(tmp_path)
        shutil.rmtree(root / "test" / "bee")
        (root / "test" / "bee").mkdir()
        assert folder(root).num_classes == 2
        assert "no test images of bee" in caplog.text

    def test_the_advices_on_a_class_that_training_lacks_lead_out(self, tmp_path):
        """Add, or delete there: neither meets another refusal."""
        for advice in ("add", "delete"):
            root = write_tree(tmp_path / advice, classes=("ant", "bee", "wasp"))
            shutil.rmtree(root / "train" / "wasp")
            with pytest.raises(DataError, match=r"test: classes that training lacks \(wasp\): add .*, or delete"):
                folder(root)
            if advice == "add":
                write_image(root / "train" / "wasp" / "1.png")
            else:
                shutil.rmtree(root / "test" / "wasp")
            assert folder(root).num_classes == (3 if advice == "add" else 2)

    def test_the_advices_on_an_empty_training_class_lead_out(self, tmp_path):
        for advice in ("add", "delete"):
            root = write_tree(tmp_path / advice, classes=("ant", "bee", "wasp"))
            shutil.rmtree(root / "train" / "wasp")
            (root / "train" / "wasp").mkdir()
            with pytest.raises(DataError) as caught:
                folder(root)
            assert f"add some, or delete {root}/train/wasp and {root}/test/wasp" in str(caught.value)
            if advice == "add":
                write_image(root / "train" / "wasp" / "1.png")
            else:
                shutil.rmtree(root / "train" / "wasp")
                shutil.rmtree(root / "test" / "wasp")
            assert folder(root).num_classes == (3 if advice == "add" else 2)

    def test_a_test_part_without_any_image_is_refused(self, tmp_path):
        root = write_tree(tmp_path)
        shutil.rmtree(root / "test")
        (root / "test" / "ant").mkdir(parents=True)
        with pytest.raises(DataError, match="no test images: add some; lay it out as"):
            folder(root)

    def test_test_images_without_class_folders_are_said_to_lie_there(self, tmp_path):
        """As competitions give them, who keep the labels to themselves."""
        root = write_tree(tmp_path)
        shutil.rmtree(root / "test")
        write_image(root / "test" / "1.png")
        stray = re.escape(f"no test images, but 1 × picture outside the class folders (the first: {root}/test/1.png)")
        with pytest.raises(DataError, match=f"{stray}: add some; lay it out as"):
            folder(root)
        assert folder(root / "train").num_classes == 2  # the advice's other layout

    @pytest.mark.parametrize(
        ("train", "test"), [("Ant", "ant"), ("caf\u00e9", "cafe\u0301"), ("Stra\u00dfe", "STRASSE"), ("ant", "ant ")]
    )
    def test_a_class_spelt_another_way_in_the_test_part_is_the_same(self, tmp_path, train, test):
        write_tree(tmp_path, parts=("train",), classes=(train, "bee"))
        write_tree(tmp_path, parts=("test",), classes=(test, "bee"))
        assert counts(folder(tmp_path)) == (2, [4, 4], [4, 4])

    def test_letters_that_differ_in_case_alone_are_classes_of_their_own(self, tmp_path):
        write_tree(tmp_path, classes=("A", "a"))
        if len(list((tmp_path / "train").iterdir())) == 1:
            pytest.skip("this disk knows no case")
        assert counts(folder(tmp_path)) == (2, [4, 4], [4, 4])

    @pytest.mark.parametrize("sizes", [(1, 2), (1, 1, 1, 1, 1, 2), (3, 1)])
    def test_a_class_of_one_picture_stays_in_training(self, tmp_path, sizes):
        for number, size in enumerate(sizes):
            write_tree(tmp_path, parts=(".",), classes=(f"c{number}",), each=size)
        data = folder(tmp_path)
        assert data.train.labels.unique().tolist() == list(range(len(sizes)))
        assert len(data.held_out) >= 1

    def test_one_picture_in_each_class_leaves_none_to_judge_by(self, tmp_path):
        write_tree(tmp_path, parts=(".",), each=1)
        with pytest.raises(DataError, match="one image in each class, and none left to judge by: add more"):
            folder(tmp_path)


def test_a_subset_that_lacks_a_class_is_said(tmp_path, caplog):
    folder(write_tree(tmp_path, classes=[f"c{number}" for number in range(9)]), train_size=5)
    assert re.search(r"data\.train_size = 5 leaves [4-8] of 9 classes without a training image: raise it", caplog.text)


def test_a_folder_that_may_not_be_read_is_no_damaged_image(tmp_path):
    root = write_tree(tmp_path)
    path = root / "train" / "ant" / "000.png"
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(DataError, match=r"Permission denied.*check data\.root and its permissions"):
        folder(root)


def test_own_arrays_in_both_parts_are_reported_by_number(tmp_path, monkeypatch, caplog):
    images, labels = pixels(20, 8, 8), np.arange(20) % 2
    monkeypatch.setattr(f"{__name__}.load", lambda data: (images, labels, images[5:9], labels[5:9]), raising=False)
    data = load_data(DataSpec(name=f"{__name__}:load"), trust=Trust(["tests"]))
    assert torch.equal(data.held_out.images[0, 0], torch.from_numpy(images[5]))
    assert "4 of 4 test images are training images too (image 0 is training image 5)" in caplog.text
