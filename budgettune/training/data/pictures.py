"""One file as pixels: what counts as a picture, turned upright, in grey or RGB, with nothing hidden in transparency."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

from budgettune.errors import DataError
from budgettune.text import message_of

# Notes and profiles that image programs write may be larger than the 1 MB that Pillow allows each.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY

BACKGROUND = "white"  # that transparent pixels are laid on; documented in docs/your-data.md

_USUAL = (".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
_KNOWN_BY_CONTENT = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "AVIF")
# Covers of other things, or what another program would have to draw.
_NO_PICTURES = frozenset(("BUFR", "EPS", "FITS", "GRIB", "HDF5", "IPTC", "MCIDAS", "MPEG", "WMF"))
_GREY_MODES = frozenset(("1", "L", "LA", "La"))
_DEEP_MODES = ("I", "F")  # and I;16, I;16B, …
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def suffix_of(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 (a Path for each of a million files costs memory and time)


def is_picture(path: str) -> bool:
    """Whether a file is to be read: by a usual suffix, else where Pillow finds a picture of 8 bits per pixel in it.

    A damaged file of a usual suffix is to be read, so that it is named; of another suffix or none it is no picture.
    """
    suffix = suffix_of(path)
    if suffix in _USUAL:
        return True
    by_suffix = Image.registered_extensions().get(suffix)
    if by_suffix in _NO_PICTURES:
        return False
    formats = [name for name in (by_suffix, *_KNOWN_BY_CONTENT) if name in Image.OPEN]
    try:
        with Image.open(path, formats=formats) as image:
            return not image.mode.startswith(_DEEP_MODES)
    except Exception:  # any file may trip any parser
        return False


def decode(path: str, size: int | None) -> np.ndarray:
    """Return uint8 [H, W, 3], or [H, W] of a grey file; square at a size. Of an animated one the first frame counts.

    Raises:
        DataError: where it is damaged, or has more than 8 bits per pixel.
        PermissionError: where it may not be read.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(_DEEP_MODES):
                raise DataError(f"{path}: more than 8 bits per pixel (mode {opened.mode}): save it as an 8-bit image")
            opened.load()
            image = _opaque(_upright(opened))
        if size is not None and image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BILINEAR)
        return np.array(image)
    except (DataError, PermissionError):
        raise
    except Exception as error:  # a damaged file may trip its decoder anywhere
        raise DataError(f"{path}: cannot be read as an image ({message_of(error)}): replace it or delete it") from None


def _upright(image: Image.Image) -> Image.Image:
    """Return the image as the camera was held: its pixels may lie turned, with a note in EXIF."""
    turn = None
    with suppress(Exception):  # a damaged note turns nothing
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    return image if turn is None else image.transpose(turn)


def _opaque(image: Image.Image) -> Image.Image:
    """Return L or RGB. What lies under transparent pixels is chance, and would be trained on."""
    mode = "L" if image.mode in _GREY_MODES else "RGB"
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, BACKGROUND)
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(mode)
