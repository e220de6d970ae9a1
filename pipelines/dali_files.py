"""The `dali` pipeline over image files that do not fit into memory: each run decodes the files it needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from titn.pipelines.dali_pipeline import DaliPipeline
from titn.pipelines.image_files import Header, ImageFiles, UndecodableImage, by_pillow, read_header
from titn.pipelines.pictures import placed

_RUN_IMAGES = 512
"""Of a run, of which the first two are waited for."""

_DECODED_PIXELS = 1 << 25
"""Pixels of full size, 100 MB, that are in memory at a time, or those of one image."""


class DaliFilePipeline(DaliPipeline):
    """`DaliPipeline` over files, decoded again for every batch and brought to size as torchvision's Resize and
    CenterCrop do (shorter side, bilinear with antialiasing, then the centre).

    JPEG and PNG files of 8 bits, RGB or grey, are decoded by DALI, on the GPU where `device` is one; palette, CMYK,
    transparent (on white), 16-bit and other files by Pillow. EXIF orientation is honoured. DALI resizes in float32 and
    rounds once, Pillow in fixed point and twice: on photographs a byte is off by 0.2 on average at most, one in a
    hundred by more than 2 (tests/pipelines/test_dali_files.py). The files of the next run are decoded while the batches
    of one are used.

    Args:
        images: the files.
        labels, mean, std, device, threads, dtype: see `DaliPipeline`; three channels.

    Raises:
        UndecodableImage: a file cannot be read or decoded, while batches are made; it is named.
    """

    def __init__(
        self,
        images: ImageFiles,
        labels: np.ndarray,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        threads: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(images, labels, mean=mean, std=std, device=device, threads=threads, dtype=dtype)
        self._paths = images.paths
        self._headers: dict[int, Header] = {}
        self._decoder: Any = None
        self._thread: ThreadPoolExecutor | None = None

    def close(self) -> None:
        super().close()
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)
        self._thread = self._decoder = None

    def _run_images(self) -> int:
        return _RUN_IMAGES

    def _begin(self, ids: np.ndarray) -> Callable[[], np.ndarray]:
        self._thread = self._thread or ThreadPoolExecutor(1)
        return self._thread.submit(self._pixels, ids).result

    def _pixels(self, ids: np.ndarray) -> np.ndarray:
        """uint8 [n, S, S, 3]; runs in the one thread that has the decoder."""
        pixels = np.empty((len(ids), self.image_size, self.image_size, 3), np.uint8)
        rows: list[int] = []
        files: list[bytes] = []
        held = 0
        for row, id_ in enumerate(ids.tolist()):
            data = self._read(id_)
            header = self._headers[id_]
            if not header.by_dali:
                pixels[row] = self._by_pillow(id_, data)
                continue
            rows.append(row)
            files.append(data)
            held += header.height * header.width
            if held >= _DECODED_PIXELS:
                pixels[rows] = self._by_dali(ids[rows].tolist(), files)
                rows, files, held = [], [], 0
        if rows:
            pixels[rows] = self._by_dali(ids[rows].tolist(), files)
        return pixels

    def _read(self, id_: int) -> bytes:
        try:
            data = self._paths[id_].read_bytes()
            if id_ not in self._headers:
                self._headers[id_] = read_header(data)
        except Exception as error:  # decoders of damaged files raise many types
            raise UndecodableImage(self._paths[id_], error) from None
        return data

    def _by_pillow(self, id_: int, data: bytes) -> np.ndarray:
        try:
            return by_pillow(data, self.image_size)
        except Exception as error:
            raise UndecodableImage(self._paths[id_], error) from None

    def _by_dali(self, ids: list[int], files: list[bytes]) -> np.ndarray:
        """Files brought to size by DALI, uint8 [n, S, S, 3]."""
        try:
            return self._decoded(files, [self._headers[id_] for id_ in ids])
        except RuntimeError as failure:
            self._decoder = None
            for id_, data in zip(ids, files, strict=True):  # DALI does not say which file it was
                self._by_pillow(id_, data)
            raise ValueError(f"DALI cannot decode one of {len(ids)} files: {failure}") from None

    def _decoded(self, files: list[bytes], headers: list[Header]) -> np.ndarray:
        from titn.pipelines.dali_decoder import decoder

        if self._decoder is None or self._decoder.max_batch_size < len(files):
            self._decoder = decoder(self.image_size, self.threads, self.device, len(files))
        fits = [placed(header.height, header.width, self.image_size) for header in headers]
        self._decoder.feed_input("files", [np.frombuffer(file, np.uint8) for file in files])
        self._decoder.feed_input("size", np.array([size for size, _ in fits], np.float32))
        self._decoder.feed_input("corner", np.array([corner for _, corner in fits], np.int32))
        (images,) = self._decoder.run()
        return np.asarray(images.as_cpu().as_tensor())
