"""Launches the augmentation."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from titn.kernels.augment import forward as kernel
from titn.kernels.common.weights import contiguous


def kernel_constants(size: int, channels: int, mix: str) -> dict[str, int]:
    """`mix`: "none", "box" or "blend"."""
    kind = {"none": 0, "box": kernel.BOX.value, "blend": kernel.BLEND.value}[mix]
    return {"MIX": kind, "S": size, "C": channels, "P": max(512, triton.next_power_of_2(size * size))}


def launch_options(pixels: int, size: int) -> dict[str, int]:
    """Eight pixels a thread. Rows and columns of a size that is no power of two are divisions, kept in registers."""
    registers = 96 if size == triton.next_power_of_2(size) else 128
    return {"num_warps": pixels // 256, "num_stages": 1, "maxnreg": registers, "enable_fp_fusion": False}


def augment(
    images: Tensor,
    rows: Tensor,
    pairs: Tensor,
    box: Tensor | None,
    lam: Tensor | None,
    scale: Tensor,
    offset: Tensor,
    padding: int,
    dtype: torch.dtype,
) -> Tensor:
    """The batch, `dtype` [B, C, S, S]."""
    channels, size, batch = images.shape[1], images.shape[2], len(pairs)
    out = images.new_empty((batch, channels, size, size), dtype=dtype)
    if not batch:
        return out
    mix = "box" if box is not None else "blend" if lam is not None else "none"
    slots = (rows.shape[1] - kernel.HEAD.value) // kernel.SLOT.value
    # what is not mixed by is not read: any pointer of the right type stands for it
    tensors = contiguous(
        images, rows, pairs, pairs if box is None else box, scale if lam is None else lam, scale, offset
    )
    constants = kernel_constants(size, channels, mix)
    with torch.cuda.device_of(images):
        kernel.augment[(batch,)](
            *tensors, out, slots, padding, channels, **constants, **launch_options(constants["P"], size)
        )
    return out
