"""Launches the kernels of layernorm_mlp."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.device import architecture, interpreting, positive
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.weights import MlpWeights, contiguous
from titn.kernels.common.wide import Wide, as_rows, copy_in, weight_gradient, wide
from titn.kernels.layernorm_mlp.backward import backward_kernel
from titn.kernels.layernorm_mlp.forward import forward_kernel


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `layernorm_mlp`: y [..., D], mean [n] and 1 / deviation [n] of the n rows of x.

    rest: the six weights, both matrices in the products' dtype; eps; residual.
    """
    *given, eps, residual = rest
    rows, w = as_rows(x), MlpWeights(*contiguous(*given))
    n, width = rows.shape
    y = torch.empty_like(rows, dtype=None if residual else w.fc1_weight.dtype)
    mean, rstd = (x.new_empty(n, dtype=torch.float32) for _ in range(2))
    c = wide("layernorm_mlp.forward", width, w.fc1_weight.dtype, architecture(x))
    if n:
        with torch.cuda.device_of(x):
            forward_kernel[triton.cdiv(n, c.rows),](
                rows,
                y,
                mean,
                rstd,
                *w,
                n,
                positive(eps),
                **kernel_constants(c, width, w.fc1_weight.shape[0], residual),
                **c.options,
            )
    return y.view(x.shape), mean, rstd


def backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `layernorm_mlp_backward`: dx, dfc1_weight, dfc2_weight, and the vectors' gradients [3 D + F].

    All but dx in float32; the order of the vectors: norm_weight, norm_bias, fc2_bias, fc1_bias. rest: the weights
    without fc2_bias; residual.
    """
    *given, residual = rest
    rows, gradient, w = as_rows(x), as_rows(dy), MlpWeights(*contiguous(*given, None))
    (n, width), hidden, kind = rows.shape, w.fc1_weight.shape[0], w.fc1_weight.dtype
    dx = torch.empty_like(rows)
    normed = x.new_empty(n, width, dtype=kind)
    activation, dhidden = (x.new_empty(n, hidden, dtype=kind) for _ in range(2))
    copy = copy_in(gradient, kind)
    c = wide("layernorm_mlp.backward", width, kind, architecture(x))
    programs = triton.cdiv(n, c.rows)
    partial = x.new_empty(programs, 3 * width + hidden, dtype=torch.float32)
    if n:
        with torch.cuda.device_of(x):
            backward_kernel[programs,](
                rows, gradient, mean, rstd, *w[:5], dx, normed, activation, dhidden, copy, partial, n,
                **kernel_constants(c, width, hidden, residual), **c.options,
            )  # fmt: skip
    dfc1 = weight_gradient(dhidden, normed)
    dfc2 = weight_gradient(gradient if copy is None else copy, activation)
    return dx.view(x.shape), dfc1, dfc2, summed(partial)


def kernel_constants(c: Wide, width: int, hidden: int, residual: bool) -> dict[str, Any]:
    return {
        "D": width, "F": hidden, "M": c.rows, "CB": c.columns, "NC": -(-width // c.columns), "FB": c.block,
        "RESIDUAL": residual, "FAST": not interpreting(),
    }  # fmt: skip
