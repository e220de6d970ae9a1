"""Tiles of the kernels of pixels_to_patches: what follows from the shape, and what the table of configurations says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from titn.kernels.common.configurations import configuration

MAX_CHANNELS, MAX_COLUMNS, MAX_WIDTH = 63, 1024, 640  # C, L C and D
REDUCE_ROWS, REDUCE_BLOCK = 16, 128


@dataclass(frozen=True)
class Tile:
    """Tile sizes of a kernel (names as in forward.py's legend).

    Attributes:
        rows: M.
        padded: CP, a power of two above C, so that column C is free for the ones that make the bias gradient.
        pixels: LB, pixels of a chunk.
        wide, narrow: D0 and D1.
        tiles: column tiles that cover D.
        options: launch options.
    """

    rows: int
    padded: int
    pixels: int
    wide: int
    narrow: int
    tiles: int
    options: dict[str, int]

    def splits(self, rows: int, chunks: int, multiprocessors: int) -> int:
        """S of the backward: one program a multiprocessor, but no split without a row tile."""
        return max(1, min(-(-rows // self.rows), multiprocessors // (chunks * self.tiles)))


def choose_tile(kernel: str, arch: int, length: int, channels: int, width: int, element_size: int) -> Tile:
    """The tile of `kernel` for L = length, C = channels, D = width and pixels of element_size bytes on sm_`arch`."""
    padded = max(16, 1 << channels.bit_length())
    if width <= 128:
        wide, narrow = max(16, 1 << (width - 1).bit_length()), 0
    else:
        wide, narrow = (128, 64) if width % 192 == 0 else (128, 0)
    widths = f"{padded} fp32" if element_size == 4 else str(padded)
    settings = configuration(f"pixels_to_patches.{kernel}", widths, arch)
    return Tile(
        rows=settings["rows"],
        padded=padded,
        pixels=min(max(1, settings["columns"] // padded), 1 << (length - 1).bit_length()),
        wide=wide,
        narrow=narrow,
        tiles=-(-width // (wide + narrow)),
        options={"num_warps": settings["num_warps"], "num_stages": 1},
    )


def constants(tile: Tile, n: int, t: int, length: int, channels: int, width: int) -> dict[str, Any]:
    """The `tl.constexpr` arguments that the forward and the backward kernel have in common."""
    shape = {"N": n, "T": t, "L": length, "C": channels, "D": width, "M": tile.rows}
    return {
        **shape, "LB": tile.pixels, "CP": tile.padded, "D0": tile.wide, "D1": tile.narrow, "TILES": tile.tiles,
    }  # fmt: skip
