"""Launches the kernels of pixels_to_patches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.configurations import configuration
from titn.kernels.common.device import architecture, positive, programs
from titn.kernels.common.weights import contiguous
from titn.kernels.pixels_to_patches.backward import backward_kernel, reduce_kernel
from titn.kernels.pixels_to_patches.forward import forward_kernel

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


def forward(pixels: Tensor, patches: Tensor, *rest: Any) -> Tensor:
    """The operator `pixels_to_patches`; rest: norm_weight, norm_bias, weight, bias; eps."""
    *given, eps = rest
    pixels, patches, *parameters = contiguous(pixels, patches, *given)
    (images, n, length, channels), (_, t, width) = pixels.shape, patches.shape
    out = torch.empty_like(patches)
    if out.numel() == 0:
        return out
    tile = choose_tile("forward", architecture(pixels), length, channels, width, pixels.element_size())
    grid = (triton.cdiv(images * t, tile.rows), tile.tiles)
    with torch.cuda.device_of(pixels):
        forward_kernel[grid](
            pixels, patches, *parameters, out, images * t, positive(eps),
            **constants(tile, n, t, length, channels, width), HAS_BIAS=parameters[3] is not None,
            **tile.options, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def backward(gradient: Tensor, pixels: Tensor, passed: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    """The operator `pixels_to_patches_backward`: gradients of pixels (its dtype) and of the parameters (float32).

    passed: the gradient of the pixels that were passed on, which is added to theirs. rest: norm_weight, norm_bias,
    weight; eps.
    """
    *given, eps = rest
    gradient, pixels, passed, *parameters = contiguous(gradient, pixels, passed, *given)
    (images, n, length, channels), (_, t, width) = pixels.shape, gradient.shape
    columns, rows = length * channels, images * n
    dpixels = torch.empty_like(pixels)
    dgamma, dbeta, dbias = (pixels.new_empty(k, dtype=torch.float32) for k in (channels, channels, width))
    dweight = pixels.new_empty(width, columns, dtype=torch.float32)
    tile = choose_tile("backward", architecture(pixels), length, channels, width, pixels.element_size())
    chunks = triton.cdiv(length, tile.pixels)
    shares = chunks * tile.tiles  # programs that a split of the rows takes
    splits = max(1, programs(pixels, triton.cdiv(rows, tile.rows) * shares) // shares)
    part_weight = pixels.new_empty(splits, width, columns, dtype=torch.float32)
    part_bias = pixels.new_empty(splits, width, dtype=torch.float32)
    part_norm = pixels.new_empty(splits * shares, 2 * channels, dtype=torch.float32)
    with torch.cuda.device_of(pixels):
        backward_kernel[chunks, tile.tiles, splits](
            gradient, pixels, passed, *parameters, dpixels, part_weight, part_bias, part_norm, rows, positive(eps),
            **constants(tile, n, t, length, channels, width), **tile.options, enable_fp_fusion=True,
        )  # fmt: skip
        blocks = triton.cdiv(width * columns, REDUCE_BLOCK) + triton.cdiv(width, REDUCE_BLOCK) + 1
        reduce_kernel[(blocks,)](
            part_weight, part_bias, part_norm, dweight, dbias, dgamma, dbeta, splits, part_norm.shape[0],
            C=channels, D=width, K=columns, ROWS=REDUCE_ROWS, BLOCK=REDUCE_BLOCK, num_warps=4, num_stages=1,
        )  # fmt: skip
    return dpixels, dgamma, dbeta, dweight, dbias
