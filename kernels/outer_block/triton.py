"""Launches the kernels of the patch-level block, and lists their shipped configurations."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.compilation import Compilation
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.wide import Wide, wide
from titn.kernels.outer_block.linear import backward_kernel, forward_kernel

SHIPPED_WIDTHS = (192, 384, 640)


def layernorm_linear(
    x: Tensor, ln_weight: Tensor | None, ln_bias: Tensor | None, weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """LN(x) weight^T + bias in the dtype of weight, mean and 1 / deviation; x [n, D], weight [N, D], contiguous."""
    rows = x.shape[0]
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    out = x.new_empty(rows, weight.shape[0], dtype=weight.dtype)
    _launch_forward(x, None, out, mean, rstd, ln_weight, ln_bias, weight, bias, eps)
    return out, mean, rstd


def layernorm_linear_backward(
    dout: Tensor,
    dresidual: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """dx with dresidual added, LN(x) in the dtype of weight, and dln_weight, dln_bias, dbias in one: [2 D + N]."""
    dx = torch.empty_like(x)
    normed = torch.empty_like(x, dtype=weight.dtype)
    vectors = _launch_backward(dout, x, dresidual, mean, rstd, ln_weight, ln_bias, weight, dx, normed)
    return dx, normed, vectors


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """x weight^T + bias + residual, in residual's dtype (None: that of weight); all contiguous."""
    out = x.new_empty(x.shape[0], weight.shape[0], dtype=weight.dtype if residual is None else residual.dtype)
    _launch_forward(x, residual, out, None, None, None, None, weight, bias, 0.0)
    return out


def linear_residual_backward(dout: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """dx [n, D] in the dtype of weight, and dbias [N] in float32."""
    dx = dout.new_empty(dout.shape[0], weight.shape[1], dtype=weight.dtype)
    return dx, _launch_backward(dout, None, None, None, None, None, None, weight, dx, None)


def shipped(arch: int) -> list[Compilation]:
    """What runs on compute capability `arch`: q/k/v and projection of TITN, TNT-S and TNT-B, in bfloat16."""
    found = []
    for width in SHIPPED_WIDTHS:
        for norm, name, outputs in ((True, "qkv", 3 * width), (False, "projection", width)):
            absent = {} if norm else dict.fromkeys(("mean", "rstd", "ln_weight", "ln_bias"), None)
            vectors = dict.fromkeys(("mean", "rstd", "ln_weight", "ln_bias", "bias"), "*fp32")
            forward = dict.fromkeys(("x", "residual", "out", "weight"), "*bf16") | vectors
            forward |= {"n_rows": "i32", "eps": "fp32"}
            backward = dict.fromkeys(("dout", "x", "dresidual", "weight", "dx", "normed_out"), "*bf16") | vectors
            backward |= {"partial": "*fp32", "n_rows": "i32"}
            del backward["bias"]
            unused = {
                "forward": absent | ({"residual": None} if norm else {}),
                "backward": {} if norm else absent | dict.fromkeys(("x", "dresidual", "normed_out"), None),
            }
            for kernel, function, types in (
                ("forward", forward_kernel, forward),
                ("backward", backward_kernel, backward),
            ):
                c = wide(f"outer_block.{kernel}", width, torch.bfloat16, arch)
                constants = _constants(c, width, outputs, norm) | unused[kernel]
                given = {argument: kind for argument, kind in types.items() if argument not in unused[kernel]}
                passes, widths = (-(-outputs // c.block), constants["NC"]), f"{width} to {outputs}"
                label = f"{name} {kernel}"
                found.append(
                    Compilation("outer_block", label, function, given, constants, c.options, c.rows, widths, passes)
                )
    return found


def _launch_forward(
    x: Tensor,
    residual: Tensor | None,
    out: Tensor,
    mean: Tensor | None,
    rstd: Tensor | None,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> None:
    (rows, width), outputs = x.shape, weight.shape[0]
    if rows == 0:
        return
    c = wide("outer_block.forward", width, weight)
    with torch.cuda.device_of(x):
        forward_kernel[triton.cdiv(rows, c.rows),](
            x, residual, out, mean, rstd, ln_weight, ln_bias, weight, bias, rows, eps,
            **_constants(c, width, outputs, mean is not None), **c.options,
        )  # fmt: skip


def _launch_backward(
    dout: Tensor,
    x: Tensor | None,
    dresidual: Tensor | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    weight: Tensor,
    dx: Tensor,
    normed: Tensor | None,
) -> Tensor:
    """Fills dx and normed; returns the vectors' gradients."""
    rows, (outputs, width) = dout.shape[0], weight.shape
    c = wide("outer_block.backward", width, weight)
    programs = triton.cdiv(rows, c.rows)
    partial = dout.new_empty(programs, outputs + (0 if x is None else 2 * width), dtype=torch.float32)
    if rows:
        with torch.cuda.device_of(dout):
            backward_kernel[programs,](
                dout, x, dresidual, mean, rstd, ln_weight, ln_bias, weight, dx, normed, partial, rows,
                **_constants(c, width, outputs, x is not None), **c.options,
            )  # fmt: skip
    return summed(partial)


def _constants(c: Wide, width: int, outputs: int, norm: bool) -> dict[str, Any]:
    columns = -(-width // c.columns)
    return {"D": width, "N": outputs, "M": c.rows, "CB": c.columns, "NC": columns, "FB": c.block, "NORM": norm}
