"""Pillow images of any mode and size as networks take them: upright, opaque, grey or RGB, square."""

from __future__ import annotations

import contextlib
import struct

import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

_MODES = {1: "L", 3: "RGB"}
_BITS_PER_SAMPLE = 258  # TIFF's tag


def placed(height: int, width: int, size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Height and width of an image whose shorter side is brought to `size`, and the corner of its centre."""
    if width <= height:
        height, width = int(size * height / width), size
    else:
        height, width = size, int(size * width / height)
    return (height, width), (round((height - size) / 2), round((width - size) / 2))


def fit(image: Image.Image, size: int) -> Image.Image:
    """Bring an image to size x size: shorter side to `size` (bilinear, antialiased), then the centre.

    The same pixels as torchvision's `Resize(size)` followed by `CenterCrop(size)`.
    """
    if image.size == (size, size):
        return image
    (height, width), (top, left) = placed(image.height, image.width, size)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def opaque(image: Image.Image, channels: int) -> tuple[Image.Image, bool]:
    """An image upright, on white, in mode L (1 channel) or RGB (3), and whether any of it was transparent.

    Of 16 bits per channel (or 12) the upper 8 are taken: Pillow does so itself where there are several channels, but
    its own conversion of grey ones would make nearly all of them white.

    Raises:
        ValueError: 32 bits per channel, of which nothing says what is black and what white.
    """
    image, transparent = _on_white(_eight_bits(_upright(image)))
    return image.convert(_MODES[channels]), transparent


def _upright(image: Image.Image) -> Image.Image:
    # EXIF data that cannot be read say nothing about the orientation
    with contextlib.suppress(SyntaxError, ValueError, KeyError, TypeError, struct.error):
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 bits in mode L, or LA where a value of it is transparent; any other of 8 bits as it is."""
    if not image.mode.startswith(("I", "F")):
        return image
    if not image.mode.startswith("I;16") and (image.mode, image.format) != ("I", "PPM"):
        raise ValueError("it has 32 bits per channel; convert it to 8 bits")
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] if isinstance(image, TiffImageFile) else 16
    values = np.asarray(image).astype(np.int32)
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    clear = image.info.get("transparency")
    if clear is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))))


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image composed on white, and whether any pixel of it is not opaque."""
    if not image.has_transparency_data:
        return image, False
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema()[0] == 255:
        return image, False
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image)
    return ground, True
