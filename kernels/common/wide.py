"""What the operations on wide rows share: reasons, tiles, and the library product for the gradients of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.backend import interpreting, triton_reasons
from titn.kernels.common.configurations import configuration

WIDEST = 640
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


def wide(kernel: str, width: int, like: Tensor | torch.dtype, architecture: int | None = None) -> Wide:
    """Tiles of `kernel` for rows of `width` channels and products in the dtype (and on the device) of `like`."""
    dtype = like if isinstance(like, torch.dtype) else like.dtype
    if architecture is None:
        architecture = _architecture(like)
    sizes = "fp32" if dtype == torch.float32 else str(next(w for w in (192, 384, 640) if width <= w))
    settings = configuration(kernel, sizes, architecture)
    columns = min(settings["columns"], max(16, 1 << (width - 1).bit_length()))
    options = {"num_warps": settings["num_warps"], "num_stages": settings["num_stages"], "enable_fp_fusion": True}
    return Wide(settings["rows"], columns, settings["block"], options)


def wide_reasons(dtype: torch.dtype, tensors: tuple[Tensor | None, ...], requested: str) -> list[str]:
    """Why the Triton kernels for wide rows cannot run: x comes first in `tensors`; products would be in `dtype`."""
    x, *parameters = [t for t in tensors if t is not None]
    reasons = triton_reasons(x, requested)
    if interpreting() and requested == "triton" and dtype == torch.bfloat16 != x.dtype:
        reasons.append("the interpreter computes wrong bfloat16 results")
    if requested == "auto":
        reasons.append("not yet shown to beat torch.compile: ask for it by name")
    if not 1 <= x.shape[-1] <= WIDEST:
        reasons.append(f"rows of {x.shape[-1]} channels, kernels exist for 1 to {WIDEST}")
    if dtype not in DTYPES or any(t.dtype not in DTYPES for t in (x, *parameters)):
        reasons.append("a tensor is none of float32, float16, bfloat16")
    if any(p.device != x.device for p in parameters):
        reasons.append("x and the parameters are on different devices")
    return reasons


def weight_gradient(dout: Tensor, inputs: Tensor) -> Tensor:
    """dout^T inputs, [rows, N] and [rows, K] to float32 [N, K], summed in float32."""
    if dout.is_cuda and dout.dtype != torch.float32:
        return torch.mm(dout.t(), inputs, out_dtype=torch.float32)
    return dout.float().t() @ inputs.float()


def as_rows(x: Tensor) -> Tensor:
    """[..., D] as contiguous [rows, D]."""
    return x.reshape(-1, x.shape[-1]).contiguous()


def contiguous(*parameters: Any) -> list[Any]:
    """Parameters made contiguous; absent ones stay None."""
    return [None if p is None else p.contiguous() for p in parameters]


def _architecture(like: Any) -> int:
    if isinstance(like, Tensor) and like.is_cuda:
        major, minor = torch.cuda.get_device_capability(like.device)
        return 10 * major + minor
    return 0
