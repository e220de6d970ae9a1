"""Encoded images to uint8 arrays of one size."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from titn.errors import UserError

_MODES = {1: "L", 3: "RGB"}
_DEEP_MODES = ("I", "F")  # Pillow's names of modes with more than 8 bits begin with these
_SMALL = 10_000


def fit(image: Image.Image, size: int) -> Image.Image:
    """Bring an image to size x size: shorter side to `size` (bilinear, antialiased), then the centre.

    The same pixels as torchvision's `Resize(size)` followed by `CenterCrop(size)`.
    """
    width, height = image.size
    if width == height == size:
        return image
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


def decode(data: bytes, size: int, channels: int) -> np.ndarray:
    """Decode one image file.

    Args:
        data: the encoded file (JPEG, PNG, WebP, ...), 8 bits per channel.
        size: height and width of the result, in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        uint8 [size, size, channels].

    Raises:
        ValueError: more than 8 bits per channel. Whatever Pillow raises for a damaged file passes through.
    """
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith(_DEEP_MODES):
            raise ValueError("it has more than 8 bits per channel; convert it to 8 bits")
        return np.asarray(fit(image.convert(_MODES[channels]), size)).reshape(size, size, channels)


def decode_all(
    count: int, load: Callable[[int], bytes], where: Callable[[int], str], *, size: int, channels: int
) -> np.ndarray:
    """Decode `count` images into one array.

    Args:
        count: number of images, at least 1.
        load: gives the encoded bytes of image i.
        where: names image i in an error.
        size: height and width, in pixels.
        channels: 1 or 3.

    Returns:
        uint8 [count, size, size, channels].

    Raises:
        UserError: an image cannot be read, or all of them do not fit into memory.
    """
    try:
        images = np.empty((count, size, size, channels), np.uint8)
    except MemoryError:
        raise UserError(
            f"{count:,} images of {size}x{size} pixels do not fit into memory; use a smaller size"
        ) from None

    def run(rows: Sequence[int]) -> None:
        for row in rows:
            try:
                images[row] = decode(load(row), size, channels)
            except Exception as error:  # decoders of damaged files raise many types
                raise UserError(f"cannot read the image {where(row)}: {str(error) or type(error).__name__}") from None

    try:
        small = len(load(0)) < _SMALL
    except OSError:
        small = True
    # On 10,000 CIFAR images (2 kB each) two threads took 1.2 s against 1.05 s of one: they fight for the interpreter.
    if small:
        run(range(count))
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(run, np.array_split(np.arange(count), min(count, 64 * (os.cpu_count() or 1)))):
                pass
    return images


def resize_grey(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of grey images: uint8 [N, H, W] to uint8 [N, size, size, 1]."""
    resized = np.empty((len(images), size, size, 1), np.uint8)
    for row, image in enumerate(images):
        resized[row, :, :, 0] = np.asarray(fit(Image.fromarray(image), size))
    return resized


def resize_colour(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resize of RGB images: uint8 [N, H, W, 3] to uint8 [N, size, size, 3]."""
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([np.asarray(fit(Image.fromarray(image), size)) for image in images])
