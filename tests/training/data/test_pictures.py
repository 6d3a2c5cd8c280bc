"""One picture as pixels: upright, on a stated background, and what is refused by name."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from budgettune.errors import DataError
from budgettune.training.data import cache
from budgettune.training.data.pictures import decode
from tests.support.image_files import pixels
from tests.support.image_trees import folder, write_tree

ORIENTATION = 0x0112
# What EXIF says of how pixels lie, and what turns an upright array into that.
LAID = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.transpose(1, 0, 2),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].transpose(1, 0, 2),
    8: lambda upright: np.rot90(upright, -1),
}


def turned(path, upright, orientation, **settings):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(np.ascontiguousarray(LAID[orientation](upright))).save(path, exif=exif, **settings)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", LAID)
def test_a_picture_that_says_how_the_camera_was_held_is_turned_upright(tmp_path, suffix, orientation):
    upright, path = pixels(6, 9, 3), tmp_path / f"1.{suffix}"
    turned(path, upright, orientation, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(decode(str(path), None), upright)


def test_a_photograph_of_a_phone_is_turned_upright(tmp_path):
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8] = 255  # the sky
    turned(tmp_path / "1.jpg", upright, 6)
    found = decode(str(tmp_path / "1.jpg"), None)
    assert found.shape == (16, 32, 3)
    assert found[:6].mean() > 250 > 5 > found[10:].mean()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")  # as the reader of a tree does
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0"])
def test_a_damaged_note_on_orientation_turns_nothing_and_is_no_error(tmp_path, exif):
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "1.jpg", exif=exif)
    assert decode(str(tmp_path / "1.jpg"), None).shape == (8, 8, 3)


def test_a_cache_of_pictures_that_were_left_turned_is_made_anew(tmp_path, monkeypatch):
    root, store = write_tree(tmp_path / "images"), str(tmp_path / "cache")
    monkeypatch.setattr(cache, "_FORMAT", 2)  # of before they were turned
    folder(root, cache=store)
    (former,) = (tmp_path / "cache").glob("*.npy")
    monkeypatch.undo()
    folder(root, cache=store)
    (present,) = (tmp_path / "cache").glob("*.npy")
    assert present != former


def hidden_under(mode, clear):
    """Return an image whose left half is an opaque grey, and whose right half hides red."""
    image = np.full((4, 8, 4), (90, 90, 90, 255), np.uint8)
    image[:, 4:] = (200, 0, 0, clear)
    return Image.fromarray(image).convert(mode)


def palette():
    image = Image.fromarray(np.repeat(np.array([[0] * 4 + [1] * 4], np.uint8), 4, axis=0), "P")
    image.putpalette([90, 90, 90, 200, 0, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("make", "suffix", "how"),
    [
        (lambda: hidden_under("RGBA", 0), "png", {}),
        (lambda: hidden_under("RGBA", 0), "webp", {"lossless": True, "exact": True}),
        (lambda: hidden_under("RGBA", 0), "tif", {}),
        (lambda: hidden_under("LA", 0), "png", {}),
        (palette, "png", {"transparency": 1}),
        (palette, "gif", {"transparency": 1}),
        (lambda: hidden_under("RGBA", 0).convert("RGB"), "png", {"transparency": (200, 0, 0)}),
    ],
    ids=["RGBA", "webp", "tiff", "LA", "P", "gif", "colour key"],
)
def test_what_lies_under_transparent_pixels_is_not_trained_on(tmp_path, make, suffix, how):
    path = tmp_path / f"1.{suffix}"
    make().save(path, **how)
    found = decode(str(path), None)
    assert (found[:, :4] == 90).all()
    assert (found[:, 4:] == 255).all()
    assert found.ndim == (2 if make().mode == "LA" else 3)


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    hidden_under("RGBA", 51).save(tmp_path / "1.png")  # a fifth
    assert decode(str(tmp_path / "1.png"), None)[0, 7].tolist() == [244, 204, 204]


def test_opaque_pictures_with_a_channel_for_transparency_are_as_without_it(tmp_path):
    rgb = pixels(8, 8, 3)
    Image.fromarray(np.dstack([rgb, np.full((8, 8), 255, np.uint8)])).save(tmp_path / "1.png")
    assert np.array_equal(decode(str(tmp_path / "1.png"), None), rgb)


def test_a_picture_with_a_large_note_is_read(tmp_path):
    note = PngImagePlugin.PngInfo()
    note.add_text("history", "edited " * 200_000, zip=True)
    Image.fromarray(pixels(8, 8, 3)).save(tmp_path / "1.png", pnginfo=note)
    assert np.array_equal(decode(str(tmp_path / "1.png"), None), pixels(8, 8, 3))


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "1.jpg", quality=100)
    red, green, blue = decode(str(tmp_path / "1.jpg"), None)[0, 0].tolist()
    assert red > 240 > 15 > max(green, blue)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_more_than_eight_bits_of_grey_are_refused_rather_than_thinned_in_silence(tmp_path, suffix):
    path = tmp_path / f"1.{suffix}"
    Image.fromarray(np.full((8, 8), 4_000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"more than 8 bits per pixel .*: save it as an 8-bit image"):
        decode(str(path), None)


def test_of_an_animated_picture_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "1.gif", save_all=True, append_images=frames[1:])
    assert decode(str(tmp_path / "1.gif"), 4)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\xff\xd8\xff\xe0 and no more"])
@pytest.mark.parametrize("suffix", ["JPG", "gif", "webp"])
def test_what_is_named_like_a_picture_and_is_none_is_named(tmp_path, content, suffix):
    root = write_tree(tmp_path)
    path = root / "train" / "ant" / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        folder(root)
    assert f"{path}: cannot be read as an image" in str(caught.value)
