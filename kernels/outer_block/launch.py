"""Launches the kernels of the patch-level block."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.device import architecture, interpreting, positive
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.weights import AttentionWeights, MlpWeights, contiguous
from titn.kernels.common.wide import Wide, as_rows, copy_in, weight_gradient, wide
from titn.kernels.outer_block.backward import backward_kernel, tail_backward_kernel
from titn.kernels.outer_block.forward import forward_kernel, tail_kernel
from titn.kernels.short_attention.launch import packed_backward, packed_forward


def block(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator `outer_block`: y, and for the backward q, k and v [B, T, 3, H, D / H], heads, the middle residual.

    Last of all float32 [4, n]: mean and 1 / deviation of the n rows of x, and of the middle. rest: the twelve weights,
    matrices in the products' dtype; num_heads; eps.
    """
    *given, num_heads, eps = rest
    w = contiguous(*given)
    attention, mlp = AttentionWeights(*w[:6]), MlpWeights(*w[6:])
    rows, kind = as_rows(x), mlp.fc1_weight.dtype
    (n, width), hidden = rows.shape, mlp.fc1_weight.shape[0]
    qkv = x.new_empty(*x.shape[:-1], 3, num_heads, width // num_heads, dtype=kind)
    statistics = x.new_empty(4, n, dtype=torch.float32)
    norm = attention.norm_weight, attention.norm_bias
    _forward(
        rows,
        None,
        qkv.view(n, 3 * width),
        statistics[0],
        statistics[1],
        *norm,
        attention.qkv_weight,
        attention.qkv_bias,
        eps,
    )
    heads = packed_forward(qkv, (width // num_heads) ** -0.5)
    middle, y = torch.empty_like(rows), torch.empty_like(rows)
    if n:
        c = wide("outer_block.tail_forward", width, kind, architecture(x))
        with torch.cuda.device_of(x):
            tail_kernel[triton.cdiv(n, c.rows),](
                heads, rows, middle, y, statistics[2], statistics[3], attention.proj_weight, attention.proj_bias, *mlp,
                n, positive(eps), **tail_constants(c, width, hidden), **c.options,
            )  # fmt: skip
    return y.view(x.shape), qkv, heads.view(x.shape), middle.view(x.shape), statistics


def block_backward(
    dy: Tensor, x: Tensor, qkv: Tensor, heads: Tensor, middle: Tensor, statistics: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The operator `outer_block_backward`: dx, gradients of the four matrices and, in one, of all vectors [9 D + F].

    All but dx in float32. The vectors: norm1_weight, norm1_bias, qkv_bias [3 D], norm2_weight, norm2_bias, fc2_bias,
    fc1_bias [F], proj_bias. rest: norm1_weight, norm1_bias, qkv_weight, proj_weight, norm2_weight, norm2_bias,
    fc1_weight, fc1_bias, fc2_weight.
    """
    norm1_weight, norm1_bias, qkv_weight, proj_weight, *mlp = contiguous(*rest)
    fc1_weight, kind = mlp[2], qkv_weight.dtype
    rows, gradient = as_rows(x), as_rows(dy)
    (n, width), hidden = rows.shape, fc1_weight.shape[0]
    dx, dmiddle = torch.empty_like(rows), torch.empty_like(rows)
    normed, dheads = (x.new_empty(n, width, dtype=kind) for _ in range(2))
    activation, dhidden = (x.new_empty(n, hidden, dtype=kind) for _ in range(2))
    dy_copy, dmiddle_copy = copy_in(gradient, kind), copy_in(dmiddle, kind)
    c = wide("outer_block.tail_backward", width, kind, architecture(x))
    programs = triton.cdiv(n, c.rows)
    partial = x.new_empty(programs, 4 * width + hidden, dtype=torch.float32)
    if n:
        with torch.cuda.device_of(x):
            tail_backward_kernel[programs,](
                as_rows(middle), gradient, statistics[2], statistics[3], proj_weight, *mlp, dmiddle, dheads, normed,
                activation, dhidden, dy_copy, dmiddle_copy, partial, n, **tail_constants(c, width, hidden), **c.options,
            )  # fmt: skip
    dfc1 = weight_gradient(dhidden, normed)
    dfc2 = weight_gradient(gradient if dy_copy is None else dy_copy, activation)
    dproj = weight_gradient(dmiddle if dmiddle_copy is None else dmiddle_copy, as_rows(heads))
    dqkv = packed_backward(dheads.view(qkv.select(2, 0).shape), qkv, qkv.shape[-1] ** -0.5).view(n, 3 * width)
    more = _backward(
        dqkv, rows, dmiddle, statistics[0], statistics[1], norm1_weight, norm1_bias, qkv_weight, dx, normed, None
    )
    return dx.view(x.shape), weight_gradient(dqkv, normed), dproj, dfc1, dfc2, summed(more, partial)


def tail_constants(c: Wide, width: int, hidden: int) -> dict[str, Any]:
    """Of both kernels of the tail."""
    columns = -(-width // c.columns)
    return {
        "D": width, "F": hidden, "M": c.rows, "CB": c.columns, "NC": columns, "FB": c.block,
        "FAST": not interpreting(),
    }  # fmt: skip


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
    partial = _backward(as_rows(dout), rows, incoming, mean, rstd, norm_weight, norm_bias, weight, dx, normed, None)
    return dx.view(x.shape), normed, summed(partial)


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The operator: x weight^T + bias + residual, in residual's dtype (None: that of weight)."""
    weight, bias = contiguous(weight, bias)
    added = None if residual is None else as_rows(residual)
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype if residual is None else residual.dtype)
    _forward(as_rows(x), added, out, None, None, None, None, weight, bias, 0.0)
    return out


def linear_residual_backward(dout: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The operator: dx [..., D] in the dtype of weight, dweight [N, D] and dbias [N] in float32."""
    dx, rows = torch.empty_like(x, dtype=weight.dtype, memory_format=torch.contiguous_format), as_rows(dout)
    copy = copy_in(rows, weight.dtype)
    partial = _backward(rows, None, None, None, None, None, None, weight.contiguous(), dx, None, copy)
    return dx, weight_gradient(rows if copy is None else copy, as_rows(x)), summed(partial)


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
    """Launches `backward_kernel` with its tensors (rest: from dresidual to dout_copy), which fills the last three.

    Returns each program's share of the vectors' gradients.
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
    return partial


def kernel_constants(c: Wide, width: int, outputs: int, norm: bool) -> dict[str, Any]:
    columns = -(-width // c.columns)
    return {"D": width, "N": outputs, "M": c.rows, "CB": c.columns, "NC": columns, "FB": c.block, "NORM": norm}
