"""Tile sizes of the kernels of pixels_to_patches by architecture, widths and dtype, found by offline compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_CHANNELS, MAX_COLUMNS, MAX_WIDTH = 63, 1024, 640  # C, L C and D
REDUCE_ROWS, REDUCE_BLOCK = 16, 128


@dataclass(frozen=True)
class Configuration:
    """Tile sizes (names as in triton.py's legend).

    Attributes:
        padded: CP, a power of two above C, so that column C is free for the ones that make the bias gradient.
        pixels: LB, pixels of a chunk.
        wide, narrow: D0 and D1.
        tiles: column tiles that cover D.
        forward_rows, backward_rows: M of each kernel.
        warps: warps of a program.
    """

    padded: int
    pixels: int
    wide: int
    narrow: int
    tiles: int
    forward_rows: int
    backward_rows: int
    warps: int

    def splits(self, rows: int, chunks: int, multiprocessors: int) -> int:
        """S of the backward: one program a multiprocessor, but no split without a row tile."""
        return max(1, min(-(-rows // self.backward_rows), multiprocessors // (chunks * self.tiles)))


def configure(arch: int, length: int, channels: int, width: int, element_size: int) -> Configuration:
    """The configuration for L = length, C = channels, D = width and pixels of element_size bytes on sm_`arch`."""
    padded = max(16, 1 << channels.bit_length())
    if width <= 128:
        wide, narrow = max(16, 1 << (width - 1).bit_length()), 0
    else:
        wide, narrow = (128, 64) if width % 192 == 0 else (128, 0)
    if element_size == 4:
        chunk, forward_rows, backward_rows = 32, 32 if padded <= 32 else 16, 16
    else:
        rows = 64 if arch >= 90 else 32
        chunk, forward_rows, backward_rows = 64, rows, rows if padded <= 32 else 32
    return Configuration(
        padded=padded,
        pixels=min(max(1, chunk // padded), 1 << (length - 1).bit_length()),
        wide=wide,
        narrow=narrow,
        tiles=-(-width // (wide + narrow)),
        forward_rows=forward_rows,
        backward_rows=backward_rows,
        warps=8,
    )


def constants(c: Configuration, rows: int, n: int, t: int, length: int, channels: int, width: int) -> dict[str, Any]:
    """The `tl.constexpr` arguments that the forward and the backward kernel have in common."""
    shape = {"N": n, "T": t, "L": length, "C": channels, "D": width}
    return {**shape, "M": rows, "LB": c.pixels, "CP": c.padded, "D0": c.wide, "D1": c.narrow, "TILES": c.tiles}
