"""Host arrays to the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; Triton compiles a kernel anew for pointers that are aligned to less


def upload(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """The arrays on `device`: for CUDA one copy from pinned memory, which waits for nothing."""
    if device.type != "cuda":
        return [torch.from_numpy(np.ascontiguousarray(array)).to(device) for array in arrays]
    one = Rows([array[None] for array in arrays])
    return one.tensors(one.on_host(pinned=True).to(device, non_blocking=True)[0])


class Rows:
    """Arrays [n, ...] as n rows of bytes: in a row lies one of each, from a multiple of ALIGNMENT on.

    Attributes:
        arrays: as given.
        width: of a row, in bytes, a multiple of ALIGNMENT.
    """

    def __init__(self, arrays: Sequence[np.ndarray]) -> None:
        self.arrays = arrays
        self._sizes = [array.dtype.itemsize * math.prod(array.shape[1:]) for array in arrays]
        ends = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in self._sizes)])
        *self._starts, self.width = ends.tolist()

    def on_host(self, *, pinned: bool) -> Tensor:
        """The rows, uint8 [n, width]; what lies between the arrays is left as it is."""
        host = torch.empty(len(self.arrays[0]), self.width, dtype=torch.uint8, pin_memory=pinned)
        for start, size, array in zip(self._starts, self._sizes, self.arrays, strict=True):
            host.numpy()[:, start : start + size].view(array.dtype)[:] = array.reshape(len(array), -1)
        return host

    def tensors(self, row: Tensor) -> list[Tensor]:
        """One of each array: views of a row, uint8 [width], on any device."""
        return [
            row[start : start + size].view(torch.from_numpy(array[:0]).dtype).view(array.shape[1:])
            for start, size, array in zip(self._starts, self._sizes, self.arrays, strict=True)
        ]
