"""Images that stay in their files: an array of them without its memory."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import ExifTags, Image

from titn.pipelines.pictures import fit, opaque

CHUNK = 1024
"""Images that are held at a time where all of them are gone through."""

_BY_DALI = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}
"""Formats and modes that DALI decodes to the RGB that Pillow makes of them; all others are decoded by Pillow."""


class UndecodableImage(ValueError):
    """A file that cannot be read or decoded; the message names it."""

    def __init__(self, path: Path, error: Exception) -> None:
        reason = "it is no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
        super().__init__(f"cannot decode the image {path}: {str(reason) or type(error).__name__}")


class ImageFiles:
    """N images in files, to be used as the array uint8 [N, S, S, 3] that they would make.

    `images[rows]` are such images again, `np.asarray(images)` and `images[3]` their pixels: decoded by Pillow, upright,
    on white where they are transparent, RGB, and brought to size as torchvision's Resize and CenterCrop do.

    Args:
        paths: N files of one image each.
        image_size: height and width S, in pixels.
        sha256: hexadecimal `digest` of the images, where it is known.

    Raises:
        UndecodableImage: while pixels are made.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[Path], image_size: int, sha256: str | None = None) -> None:
        self.paths, self.image_size, self._sha256 = tuple(paths), image_size, sha256

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """[N, S, S, 3]."""
        return len(self.paths), self.image_size, self.image_size, 3

    @property
    def size(self) -> int:
        """Number of bytes that an array would have."""
        return len(self.paths) * self.image_size**2 * 3

    @overload
    def __getitem__(self, rows: int | np.integer[Any]) -> np.ndarray: ...

    @overload
    def __getitem__(self, rows: slice | np.ndarray) -> ImageFiles: ...

    def __getitem__(self, rows: int | np.integer[Any] | slice | np.ndarray) -> np.ndarray | ImageFiles:
        if isinstance(rows, (int, np.integer)):
            return by_pillow(self.paths[rows], self.image_size)
        chosen = np.arange(len(self.paths))[rows].tolist()
        return ImageFiles([self.paths[row] for row in chosen], self.image_size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("images in files cannot be an array without a copy")
        images = np.empty(self.shape, np.uint8)

        def decode(row: int) -> None:
            images[row] = by_pillow(self.paths[row], self.image_size)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(decode, range(len(self.paths))):
                pass
        return images if dtype is None else images.astype(dtype, copy=False)

    def chunks(self) -> Iterator[np.ndarray]:
        """All pixels, `CHUNK` images at a time; once gone through, `digest` is known."""
        state = _begun(self)
        for start in range(0, len(self), CHUNK):
            chunk = np.asarray(self[start : start + CHUNK])
            state.update(chunk.data)
            yield chunk
        self._sha256 = state.hexdigest()

    def digest(self) -> str:
        """SHA-256 of type, shape and pixels, the same as of an array (`digest`)."""
        if self._sha256 is None:
            for _ in self.chunks():
                pass
        assert self._sha256 is not None
        return self._sha256


Images = np.ndarray | ImageFiles
"""uint8 [N, S, S, C], in memory or in files."""


def chunks(images: Images) -> Iterator[np.ndarray]:
    """All images, `CHUNK` at a time, uint8 [up to CHUNK, S, S, C]."""
    if isinstance(images, ImageFiles):
        return images.chunks()
    return (images[start : start + CHUNK] for start in range(0, len(images), CHUNK))


def digest(array: Images) -> str:
    """SHA-256 of an array's type, shape and contents."""
    if isinstance(array, ImageFiles):
        return array.digest()
    state = _begun(array)
    state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def _begun(array: Images) -> Any:
    return hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a file before it is decoded: height and width of the upright image, and who decodes it."""

    height: int
    width: int
    by_dali: bool


def read_header(data: bytes) -> Header:
    """Raises OSError or what else Pillow raises for a file that is no image."""
    with Image.open(io.BytesIO(data)) as image:
        turned = 1
        with contextlib.suppress(SyntaxError, ValueError, KeyError, TypeError, struct.error):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        by_dali = (image.format, image.mode) in _BY_DALI and not image.has_transparency_data
        by_dali = by_dali and (turned == 1 or image.format == "JPEG") and image.info.get("icc_profile") is None
        deep = image.format == "PNG" and image.tile and "16" in str(image.tile[0][3])
        height, width = image.size if turned in (5, 6, 7, 8) else image.size[::-1]
        return Header(height, width, by_dali and not deep)


def by_pillow(file: Path | bytes, size: int) -> np.ndarray:
    """A file or its content decoded, upright, on white, RGB and brought to size by Pillow, uint8 [size, size, 3].

    Raises:
        UndecodableImage: where a path is given, the file cannot be read or decoded. Of content, what Pillow raises.
    """
    if isinstance(file, Path):
        try:
            return by_pillow(file.read_bytes(), size)
        except Exception as error:  # decoders of damaged files raise many types
            raise UndecodableImage(file, error) from None
    with Image.open(io.BytesIO(file)) as opened:
        image, _ = opaque(opened, 3)
        return np.asarray(fit(image, size))
