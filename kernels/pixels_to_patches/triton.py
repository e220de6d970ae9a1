"""Launches the kernels of pixels_to_patches, and lists their shipped configurations."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from titn.kernels.common.compilation import Compilation
from titn.kernels.pixels_to_patches.backward import backward_kernel, reduce_kernel
from titn.kernels.pixels_to_patches.configuration import (
    REDUCE_BLOCK,
    REDUCE_ROWS,
    Tile,
    choose_tile,
    constants,
)
from titn.kernels.pixels_to_patches.forward import forward_kernel


def forward(
    pixels: Tensor,
    patches: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Launches the forward kernel; shapes and dtypes as in the package's docstring, all tensors contiguous."""
    (images, n, length, channels), (_, t, width) = pixels.shape, patches.shape
    out = torch.empty_like(patches)
    if out.numel() == 0:
        return out
    tile = choose_tile("forward", _architecture(pixels), length, channels, width, pixels.element_size())
    grid = (triton.cdiv(images * t, tile.rows), tile.tiles)
    with torch.cuda.device_of(pixels):
        forward_kernel[grid](
            pixels, patches, ln_weight, ln_bias, weight, bias, out, images * t, eps,
            **constants(tile, n, t, length, channels, width), HAS_BIAS=bias is not None,
            **tile.options, enable_fp_fusion=True,
        )  # fmt: skip
    return out


def backward(
    gradient: Tensor, pixels: Tensor, ln_weight: Tensor, ln_bias: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of pixels (its dtype), ln_weight, ln_bias, weight and bias (float32); all tensors contiguous."""
    (images, n, length, channels), (_, t, width) = pixels.shape, gradient.shape
    columns, rows = length * channels, images * n
    dpixels = torch.empty_like(pixels)
    dgamma, dbeta = (pixels.new_empty(channels, dtype=torch.float32) for _ in range(2))
    dweight = pixels.new_empty(width, columns, dtype=torch.float32)
    dbias = pixels.new_empty(width, dtype=torch.float32)
    tile = choose_tile("backward", _architecture(pixels), length, channels, width, pixels.element_size())
    chunks = triton.cdiv(length, tile.pixels)
    splits = tile.splits(rows, chunks, _multiprocessors(pixels))
    part_weight = pixels.new_empty(splits, width, columns, dtype=torch.float32)
    part_bias = pixels.new_empty(splits, width, dtype=torch.float32)
    part_norm = pixels.new_empty(splits * tile.tiles * chunks, 2 * channels, dtype=torch.float32)
    with torch.cuda.device_of(pixels):
        backward_kernel[chunks, tile.tiles, splits](
            gradient, pixels, ln_weight, ln_bias, weight, dpixels, part_weight, part_bias, part_norm, rows, eps,
            **constants(tile, n, t, length, channels, width), **tile.options, enable_fp_fusion=True,
        )  # fmt: skip
        blocks = triton.cdiv(width * columns, REDUCE_BLOCK) + triton.cdiv(width, REDUCE_BLOCK) + 1
        reduce_kernel[(blocks,)](
            part_weight, part_bias, part_norm, dweight, dbias, dgamma, dbeta, splits, part_norm.shape[0],
            C=channels, D=width, K=columns, ROWS=REDUCE_ROWS, BLOCK=REDUCE_BLOCK, num_warps=4, num_stages=1,
        )  # fmt: skip
    return dpixels, dgamma, dbeta, dweight, dbias


def shipped(arch: int) -> list[Compilation]:
    """What runs on compute capability `arch`: TITN (patch 8 and 4), TNT-S and TNT-B in bfloat16, TITN in float32."""
    found = []
    for dtype, size, length, channels, width, n in (
        ("bf16", 2, 16, 12, 192, 16),
        ("bf16", 2, 4, 12, 192, 64),
        ("bf16", 2, 16, 24, 384, 196),
        ("bf16", 2, 16, 40, 640, 196),
        ("fp32", 4, 16, 12, 192, 16),
    ):
        forward_tile = choose_tile("forward", arch, length, channels, width, size)
        backward_tile = choose_tile("backward", arch, length, channels, width, size)
        found += _compilations(forward_tile, backward_tile, dtype, (n, n + 2, length, channels, width))
    return found


def _compilations(
    forward_tile: Tile, backward_tile: Tile, dtype: str, shape: tuple[int, int, int, int, int]
) -> list[Compilation]:
    _, _, length, channels, width = shape
    half = f"*{dtype}"
    parameters = dict.fromkeys(("gamma", "beta", "weight"), "*fp32")
    scalars = {"rows": "i32", "eps": "fp32"}
    parts = dict.fromkeys(("part_weight", "part_bias", "part_norm"), "*fp32")
    gradients = dict.fromkeys(("dweight", "dbias", "dgamma", "dbeta"), "*fp32")
    widths = f"{length}x{channels} to {width}" + (" fp32" if dtype == "fp32" else "")
    forward = {"pixels": half, "patches": half, "bias": "*fp32", "out": half} | parameters | scalars
    backward = {"dout": half, "pixels": half, "dpixels": half} | parameters | parts | scalars
    reduce_constants = {"C": channels, "D": width, "K": length * channels, "ROWS": REDUCE_ROWS, "BLOCK": REDUCE_BLOCK}
    return [
        Compilation(
            "pixels_to_patches", "forward", forward_kernel, forward,
            {**constants(forward_tile, *shape), "HAS_BIAS": True}, forward_tile.options, forward_tile.rows, widths,
        ),
        Compilation(
            "pixels_to_patches", "backward", backward_kernel, backward,
            constants(backward_tile, *shape), backward_tile.options, backward_tile.rows, widths,
        ),
        Compilation(
            "pixels_to_patches", "reduction", reduce_kernel,
            parts | gradients | {"splits": "i32", "norm_rows": "i32"},
            reduce_constants, {"num_warps": 4, "num_stages": 1}, 1, widths,
        ),
    ]  # fmt: skip


def _architecture(tensor: Tensor) -> int:
    """Compute capability of the tensor's device, such as 90; 90 in the interpreter."""
    major, minor = torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (9, 0)
    return 10 * major + minor


def _multiprocessors(tensor: Tensor) -> int:
    """Number of multiprocessors of the tensor's device; 8 in the interpreter, where each program costs time."""
    return torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 8
