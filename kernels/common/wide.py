"""What the operations on wide rows share: reasons, tiles, and the library product for the gradients of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.backend import triton_reasons
from titn.kernels.common.configurations import configuration

WIDEST = 640


@dataclass(frozen=True)
class Wide:
    """Tiles of a kernel that keeps whole rows on the chip.

    Attributes:
        rows: M, rows of a program.
        columns: CB, columns of one tile of the rows.
        block: FB, columns of the other width that pass at a time.
        options: launch options.
    """

    rows: int
    columns: int
    block: int
    options: dict[str, Any]


def wide(kernel: str, width: int, dtype: torch.dtype, arch: int) -> Wide:
    """Tiles of `kernel` for rows of `width` channels and products in `dtype` on compute capability `arch`."""
    sizes = "fp32" if dtype == torch.float32 else str(next(w for w in (192, 384, 640) if width <= w))
    settings = configuration(kernel, sizes, arch)
    columns = min(settings["columns"], max(16, 1 << (width - 1).bit_length()))
    options = {"num_warps": settings["num_warps"], "num_stages": settings["num_stages"], "enable_fp_fusion": True}
    return Wide(settings["rows"], columns, settings["block"], options)


def wide_reasons(x: Tensor, requested: str, *weights: Tensor | None, dtype: torch.dtype) -> list[str]:
    """Why the Triton kernels for wide rows cannot run on x [..., D] with products in `dtype`."""
    reasons = triton_reasons(x, requested, *weights, dtype=dtype)
    if requested == "auto":
        reasons.append("not yet shown to beat torch.compile: ask for it by name")
    if not 1 <= x.shape[-1] <= WIDEST:
        reasons.append(f"rows of {x.shape[-1]} channels, kernels exist for 1 to {WIDEST}")
    return reasons


def weight_gradient(dout: Tensor, inputs: Tensor) -> Tensor:
    """dout^T inputs, [rows, N] and [rows, K] to float32 [N, K], summed in float32."""
    if dout.is_cuda and dout.dtype != torch.float32:
        return torch.mm(dout.t(), inputs, out_dtype=torch.float32)
    return dout.float().t() @ inputs.float()


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as contiguous [rows, D]."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def copy_in(rows: Tensor, dtype: torch.dtype) -> Tensor | None:
    """Room for a kernel's copy of rows in the dtype of the products; None where they are in it already."""
    return None if rows.dtype == dtype else torch.empty_like(rows, dtype=dtype)
