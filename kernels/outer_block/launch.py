"""Launches the kernels of the patch-level block."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.device import architecture, positive
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.weights import contiguous
from titn.kernels.common.wide import Wide, as_rows, wide
from titn.kernels.outer_block.backward import backward_kernel
from titn.kernels.outer_block.forward import forward_kernel


def layernorm_linear(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: LN(x) weight^T + bias of x [..., D] in the dtype of weight, mean [n] and 1 / deviation [n].

    rest: norm_weight, norm_bias, weight [N, D], bias; eps.
    """
    *given, eps = rest
    norm_weight, norm_bias, weight, bias = contiguous(*given)
    rows = as_rows(x)
    mean, rstd = (x.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(2))
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype)
    _forward(rows, None, out, mean, rstd, norm_weight, norm_bias, weight, bias, eps)
    return out, mean, rstd


def layernorm_linear_backward(
    dout: Tensor, dresidual: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: dx with dresidual added, the rows of LN(x) in the dtype of weight, and [2 D + N] vectors in one.

    Those are the gradients of norm_weight, norm_bias and bias. rest: norm_weight, norm_bias, weight.
    """
    norm_weight, norm_bias, weight = contiguous(*rest)
    rows, incoming = as_rows(x), None if dresidual is None else as_rows(dresidual)
    dx, normed = torch.empty_like(rows), torch.empty_like(rows, dtype=weight.dtype)
    vectors = _backward(as_rows(dout), rows, incoming, mean, rstd, norm_weight, norm_bias, weight, dx, normed)
    return dx.view(x.shape), normed, vectors


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The operator: x weight^T + bias + residual, in residual's dtype (None: that of weight)."""
    weight, bias = contiguous(weight, bias)
    added = None if residual is None else as_rows(residual)
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype if residual is None else residual.dtype)
    _forward(as_rows(x), added, out, None, None, None, None, weight, bias, 0.0)
    return out


def linear_residual_backward(dout: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The operator: dx [..., D] in the dtype of weight, and dbias [N] in float32."""
    dx = dout.new_empty(*dout.shape[:-1], weight.shape[1], dtype=weight.dtype)
    return dx, _backward(as_rows(dout), None, None, None, None, None, None, weight.contiguous(), dx, None)


def _forward(x: Tensor, residual: Tensor | None, out: Tensor, mean: Tensor | None, *rest: Any) -> None:
    """Launches `forward_kernel` with its tensors; rest: from rstd to bias, eps."""
    *tensors, eps = rest
    (rows, width), weight = x.shape, tensors[-2]
    if rows == 0:
        return
    c = wide("outer_block.forward", width, weight.dtype, architecture(x))
    named = kernel_constants(c, width, weight.shape[0], mean is not None) | c.options
    with torch.cuda.device_of(x):
        forward_kernel[triton.cdiv(rows, c.rows),](x, residual, out, mean, *tensors, rows, positive(eps), **named)


def _backward(dout: Tensor, x: Tensor | None, *rest: Tensor | None) -> Tensor:
    """Launches `backward_kernel` with its tensors (rest: from dresidual to normed), which fills dx and normed.

    Returns the vectors' gradients.
    """
    weight = rest[5]
    assert weight is not None
    rows, (outputs, width) = dout.shape[0], weight.shape
    c = wide("outer_block.backward", width, weight.dtype, architecture(dout))
    programs = triton.cdiv(rows, c.rows)
    partial = dout.new_empty(programs, outputs + (0 if x is None else 2 * width), dtype=torch.float32)
    if rows:
        constants = kernel_constants(c, width, outputs, x is not None)
        with torch.cuda.device_of(dout):
            backward_kernel[programs,](dout, x, *rest, partial, rows, **constants, **c.options)
    return summed(partial)


def kernel_constants(c: Wide, width: int, outputs: int, norm: bool) -> dict[str, Any]:
    columns = -(-width // c.columns)
    return {"D": width, "N": outputs, "M": c.rows, "CB": c.columns, "NC": columns, "FB": c.block, "NORM": norm}
