"""Encoded images to uint8 arrays of one size, with a key of each image's content."""

from __future__ import annotations

import hashlib
import io
import os
import struct
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from titn.errors import UserError
from titn.pipelines.pictures import fit, opaque

_SMALL = 10_000


class Decoded(NamedTuple):
    """One image: pixels uint8 [size, size, channels], key of its content, whether any of it was transparent."""

    pixels: np.ndarray
    key: int
    transparent: bool


class DecodedImages(NamedTuple):
    """Images uint8 [N, size, size, channels], content keys uint64 [N], which were transparent bool [N]."""

    images: np.ndarray
    keys: np.ndarray
    transparent: np.ndarray


def decode(data: bytes, size: int, channels: int) -> Decoded:
    """Decode one image file, turned upright as its EXIF orientation says, on white where it is transparent.

    Args:
        data: the encoded file (JPEG, PNG, WebP, ...), of 16 bits per channel the upper 8; of several frames the first.
        size: height and width of the result, in pixels.
        channels: 1 (grey) or 3 (RGB).

    Returns:
        The pixels and the key of the upright, opaque image before it is brought to `size`: a hash of its width, height
        and pixels, the same for every file format and image size.

    Raises:
        ValueError: 32 bits per channel. Whatever Pillow raises for a damaged file passes through.
    """
    if not data:
        raise ValueError("it is empty (0 bytes)")
    with Image.open(io.BytesIO(data)) as opened:
        image, transparent = opaque(opened, channels)
        content = hashlib.blake2b(struct.pack("<II", *image.size), digest_size=8)
        content.update(image.tobytes())
        pixels = np.asarray(fit(image, size)).reshape(size, size, channels)
    return Decoded(pixels, int.from_bytes(content.digest(), "little"), transparent)


def decode_all(
    count: int,
    load: Callable[[int], bytes],
    where: Callable[[int], str],
    *,
    size: int,
    channels: int,
    bad: dict[int, str] | None = None,
    keep: bool = True,
) -> DecodedImages:
    """Decode `count` images into one array.

    Args:
        count: number of images, at least 1.
        load: gives the encoded bytes of image i.
        where: names image i in an error.
        size: height and width, in pixels.
        channels: 1 or 3.
        bad: where given, takes the reason for each image that cannot be read, by number; its pixels are then zero.
        keep: whether the pixels are wanted; without, there are no images (0 of them).

    Returns:
        The images, uint8 [count, size, size, channels], and what `decode` says of each.

    Raises:
        UserError: an image cannot be read and there is no `bad`, or all of them do not fit into memory.
    """
    if keep and (shortage := memory_shortage(count, size, channels)):
        raise UserError(
            f"{shortage}; use a smaller --image-size, or --pipeline dali on a folder of image files, which decodes "
            f"those of each batch"
        )
    images = np.empty((count if keep else 0, size, size, channels), np.uint8)
    keys, transparent = np.empty(count, np.uint64), np.empty(count, bool)

    def run(rows: Sequence[int]) -> None:
        for row in rows:
            try:
                pixels, keys[row], transparent[row] = decode(load(row), size, channels)
                if keep:
                    images[row] = pixels
            except Exception as error:  # decoders of damaged files raise many types
                reason = str(error) or type(error).__name__
                if isinstance(error, Image.UnidentifiedImageError):
                    reason = "it is no image of a known format"
                if bad is None:
                    raise UserError(f"cannot read the image {where(row)}: {reason}") from None
                bad[row], keys[row], transparent[row] = reason, 0, False
                images[row : row + 1] = 0

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
    return DecodedImages(images, keys, transparent)


def memory_shortage(count: int, size: int, channels: int) -> str | None:
    """In words, why so many images of size x size pixels do not fit into memory; None: they do."""
    needed, available = count * size * size * channels, available_memory()
    if needed <= available:
        return None
    return (
        f"{count:,} images of {size}x{size} pixels take {needed / 2**30:,.1f} GiB, and {available / 2**30:,.1f} GiB of "
        f"memory are free"
    )


def available_memory() -> int:
    """Bytes that can be allocated without swapping; unlimited where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return sys.maxsize


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
