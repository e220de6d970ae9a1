"""Launches the kernels of the pixel embedding."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from titn.kernels.common.device import programs
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.weights import contiguous
from titn.kernels.pixel_embedding.kernels import backward_kernel, forward_kernel

ROWS = 128
OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
PROGRAMS_PER_MULTIPROCESSOR = 4


def forward(
    images: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor, patch: int, size: int, dtype: torch.dtype
) -> Tensor:
    """The operator `pixel_embedding`: [B, N, L, E] in `dtype`."""
    images, weight, bias, position = contiguous(images, weight, bias, position)
    constants = kernel_constants(images, weight.shape[0], patch, size)
    patches = images.shape[0] * constants["N"]
    out = images.new_empty(images.shape[0], constants["N"], constants["L"], weight.shape[0], dtype=dtype)
    if patches:
        grid = (triton.cdiv(patches * constants["L"], ROWS),)
        with torch.cuda.device_of(images):
            forward_kernel[grid](images, weight, bias, position, out, patches, **constants, R=ROWS, **OPTIONS)
    return out


def backward(dout: Tensor, images: Tensor, patch: int, size: int) -> Tensor:
    """The operator `pixel_embedding_backward`: in one, float32, dweight [E, K], dposition [L, E] and dbias [E]."""
    dout, images = contiguous(dout, images)
    constants = kernel_constants(images, dout.shape[3], patch, size)
    patches, outputs, padded = images.shape[0] * constants["N"], constants["E"], padded_pixels(constants["L"])
    width = outputs * (constants["K"] + constants["L"] + 1)
    rows = max(ROWS, padded)
    count = programs(images, triton.cdiv(patches, rows // padded), PROGRAMS_PER_MULTIPROCESSOR) if patches else 0
    partial = images.new_empty(count, width, dtype=torch.float32)
    if patches:
        with torch.cuda.device_of(images):
            backward_kernel[(count,)](dout, images, partial, patches, **constants, LP=padded, R=rows, **OPTIONS)
    return summed(partial)


def kernel_constants(images: Tensor, outputs: int, patch: int, size: int) -> dict[str, int]:
    """Of both kernels, for images [B, C, H, W]."""
    _, channels, height, width = images.shape
    values, side = channels * size**2, patch // size
    return {
        "N": height // patch * (width // patch), "GRID": width // patch, "L": side**2, "SIDE": side, "S": size,
        "K": values, "KP": max(16, triton.next_power_of_2(values)), "E": outputs,
        "EP": max(16, triton.next_power_of_2(outputs)),
    }  # fmt: skip


def padded_pixels(length: int) -> int:
    """LP."""
    return int(triton.next_power_of_2(length))
