"""The `dali` pipeline over image files that do not fit into memory: each run decodes the files it needs."""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image

from titn.pipelines.dali_pipeline import DaliPipeline
from titn.pipelines.pictures import fit, opaque, placed

_BY_DALI = {("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "RGB"), ("PNG", "L")}
"""Formats and modes that DALI decodes to the RGB that Pillow makes of them; all others are decoded by Pillow."""


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a file before it is decoded: height and width of the upright image, and who decodes it."""

    height: int
    width: int
    by_dali: bool


class DaliFilePipeline(DaliPipeline):
    """`DaliPipeline` over files, decoded again for every batch and brought to size as torchvision's Resize and
    CenterCrop do (shorter side, bilinear with antialiasing, then the centre).

    JPEG and PNG files of 8 bits, RGB or grey, are decoded by DALI, on the GPU where `device` is one; palette, CMYK,
    transparent (on white) and other files by Pillow, which would clip grey images of 16 bits: they are refused. EXIF
    orientation is honoured. DALI resizes in float32 and rounds once, Pillow in fixed point and twice: on photographs a
    byte is off by 0.2 on average at most, one in a hundred by more than 2 (tests/pipelines/test_dali_files.py).

    Args:
        paths: N image files.
        labels: integers [N].
        image_size: height and width S of the batches, in pixels.
        mean, std, device, threads, dtype: see `DaliPipeline`; three channels.
        skip_bad: decode every file once beforehand and leave out those that cannot be decoded.

    Attributes:
        skipped: the files that were left out, each with the reason.

    Raises:
        ValueError: a file cannot be read or decoded (while batches are made, too); it is named.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: np.ndarray,
        image_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        threads: int | None = None,
        dtype: torch.dtype = torch.float32,
        skip_bad: bool = False,
    ) -> None:
        if len(paths) != len(labels):
            raise ValueError(f"there must be as many paths as labels, not {len(paths)} and {len(labels)}")
        self.skipped: list[tuple[Path, str]] = []
        self._headers: list[Header] = []
        kept = []
        for row, path in enumerate(paths):
            try:
                self._headers.append(read_header(path))
                if skip_bad:
                    by_pillow(path.read_bytes(), image_size)
                kept.append(row)
            except Exception as error:  # decoders of damaged files raise many types
                if not skip_bad:
                    raise _undecodable(path, error) from None
                del self._headers[len(kept) :]
                self.skipped.append((path, str(error) or type(error).__name__))
        if not kept:
            raise ValueError(f"none of {len(paths):,} files can be decoded")
        self._paths = [paths[row] for row in kept]
        shape = (len(kept), image_size, image_size, 3)
        empty = np.broadcast_to(np.zeros((), np.uint8), shape)  # of any size, in one byte of memory
        super().__init__(
            empty, np.asarray(labels)[kept], mean=mean, std=std, device=device, threads=threads, dtype=dtype
        )
        self._decoder: Any = None

    def close(self) -> None:
        super().close()
        self._decoder = None

    def _pixels(self, ids: np.ndarray) -> np.ndarray:
        size = self.image_size
        pixels = np.empty((len(ids), size, size, 3), np.uint8)
        files = [self._read(id_) for id_ in ids]
        by_dali = np.array([self._headers[id_].by_dali for id_ in ids])
        for row in np.flatnonzero(~by_dali):
            try:
                pixels[row] = by_pillow(files[row], size)
            except Exception as error:
                raise _undecodable(self._paths[ids[row]], error) from None
        rows = np.flatnonzero(by_dali)
        if len(rows):
            try:
                pixels[rows] = self._decoded([files[row] for row in rows], [self._headers[id_] for id_ in ids[rows]])
            except RuntimeError as failure:
                self._decoder = None
                for row in rows:  # DALI does not say which file it was
                    try:
                        by_pillow(files[row], size)
                    except Exception as error:
                        raise _undecodable(self._paths[ids[row]], error) from None
                raise ValueError(f"DALI cannot decode one of {len(rows)} files: {failure}") from None
        return pixels

    def _read(self, id_: int) -> bytes:
        try:
            return self._paths[id_].read_bytes()
        except OSError as error:
            raise _undecodable(self._paths[id_], error) from None

    def _decoded(self, files: list[bytes], headers: list[Header]) -> np.ndarray:
        """Files brought to size by DALI, uint8 [n, S, S, 3]."""
        from titn.pipelines.dali_decoder import decoder

        if self._decoder is None or self._decoder.max_batch_size < len(files):
            self._decoder = decoder(self.image_size, self.threads, self.device, len(files))
        fits = [placed(header.height, header.width, self.image_size) for header in headers]
        self._decoder.feed_input("files", [np.frombuffer(file, np.uint8) for file in files])
        self._decoder.feed_input("size", np.array([size for size, _ in fits], np.float32))
        self._decoder.feed_input("corner", np.array([corner for _, corner in fits], np.int32))
        (images,) = self._decoder.run()
        return np.asarray(images.as_cpu().as_tensor())


def read_header(path: Path) -> Header:
    """Raises OSError or what else Pillow raises for a file that is no image."""
    with Image.open(path) as image:
        turned = 1
        with contextlib.suppress(SyntaxError, ValueError, KeyError, TypeError, struct.error):
            turned = image.getexif().get(ExifTags.Base.Orientation, 1)
        by_dali = (image.format, image.mode) in _BY_DALI and not image.has_transparency_data
        by_dali = by_dali and (turned == 1 or image.format == "JPEG") and image.info.get("icc_profile") is None
        deep = image.format == "PNG" and image.tile and "16" in str(image.tile[0][3])
        height, width = image.size if turned in (5, 6, 7, 8) else image.size[::-1]
        return Header(height, width, by_dali and not deep)


def by_pillow(data: bytes, size: int) -> np.ndarray:
    """Decoded, upright, on white, RGB and brought to size by Pillow, uint8 [size, size, 3].

    Raises:
        ValueError: more than 8 bits per channel. Whatever Pillow raises for a damaged file passes through.
    """
    with Image.open(io.BytesIO(data)) as opened:
        image, _ = opaque(opened, 3)
        return np.asarray(fit(image, size))


def _undecodable(path: Path, error: Exception) -> ValueError:
    reason = "it is no image of a known format" if isinstance(error, Image.UnidentifiedImageError) else error
    return ValueError(f"cannot decode the image {path}: {str(reason) or type(error).__name__}")
