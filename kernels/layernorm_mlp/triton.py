"""Launches the kernels of layernorm_mlp, and lists their shipped configurations."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.backend import interpreting
from titn.kernels.common.compilation import Compilation
from titn.kernels.common.partial_sums import sum_compilation, summed
from titn.kernels.common.wide import Wide, weight_gradient, wide
from titn.kernels.layernorm_mlp.backward import backward_kernel
from titn.kernels.layernorm_mlp.forward import forward_kernel

SHIPPED_WIDTHS = (192, 384, 640)


def forward(
    x: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    eps: float,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [n, D], mean [n] and 1 / deviation [n] of x [n, D]; all contiguous, both weights in the products' dtype."""
    rows, width = x.shape
    y = torch.empty_like(x, dtype=None if residual else fc1_weight.dtype)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    c = wide("layernorm_mlp.forward", width, fc1_weight)
    if rows:
        with torch.cuda.device_of(x):
            forward_kernel[triton.cdiv(rows, c.rows),](
                x, y, mean, rstd, ln_weight, ln_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, rows, eps,
                **_constants(c, width, fc1_weight.shape[0], residual), **c.options,
            )  # fmt: skip
    return y, mean, rstd


def backward(
    dy: Tensor,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx, dfc1_weight, dfc2_weight and the vectors' gradients, one after the other: [3 D + F], float32.

    Their order: ln_weight, ln_bias, fc2_bias, fc1_bias.
    """
    (rows, width), hidden = x.shape, fc1_weight.shape[0]
    dx = torch.empty_like(x)
    kind = fc1_weight.dtype
    normed = x.new_empty(rows, width, dtype=kind)
    activation, dhidden = (x.new_empty(rows, hidden, dtype=kind) for _ in range(2))
    c = wide("layernorm_mlp.backward", width, fc1_weight)
    programs = triton.cdiv(rows, c.rows)
    partial = x.new_empty(programs, 3 * width + hidden, dtype=torch.float32)
    if rows:
        with torch.cuda.device_of(x):
            backward_kernel[programs,](
                x, dy, mean, rstd, ln_weight, ln_bias, fc1_weight, fc1_bias, fc2_weight,
                dx, normed, activation, dhidden, partial, rows,
                **_constants(c, width, hidden, residual), **c.options,
            )  # fmt: skip
    dfc1 = weight_gradient(dhidden, normed)
    dfc2 = weight_gradient(dy.to(kind), activation)
    return dx, dfc1, dfc2, summed(partial)


def shipped(arch: int) -> list[Compilation]:
    """What runs on compute capability `arch`: the widths of TITN, TNT-S and TNT-B, hidden 4 D, in bfloat16."""
    found = []
    for width in SHIPPED_WIDTHS:
        hidden = 4 * width
        vectors = dict.fromkeys(("ln_weight", "ln_bias", "fc1_bias", "fc2_bias", "mean", "rstd"), "*fp32")
        forward = vectors | dict.fromkeys(("x", "y", "fc1_weight", "fc2_weight"), "*bf16")
        forward |= {"n_rows": "i32", "eps": "fp32"}
        halves = ("x", "dy", "dx", "fc1_weight", "fc2_weight", "normed_out", "activation", "dhidden")
        backward = vectors | dict.fromkeys(halves, "*bf16") | {"partial": "*fp32", "n_rows": "i32"}
        del backward["fc2_bias"]
        for kernel, function, types in (
            ("forward", forward_kernel, forward),
            ("backward", backward_kernel, backward),
        ):
            c = wide(f"layernorm_mlp.{kernel}", width, torch.bfloat16, arch)
            constants = _constants(c, width, hidden, True) | {"FAST": True}
            passes = (-(-hidden // c.block), constants["NC"])
            widths = f"{width} to {hidden}"
            found.append(
                Compilation("layernorm_mlp", kernel, function, types, constants, c.options, c.rows, widths, passes)
            )
    return [*found, sum_compilation("layernorm_mlp", "any")]


def _constants(c: Wide, width: int, hidden: int, residual: bool) -> dict[str, Any]:
    return {
        "D": width, "F": hidden, "M": c.rows, "CB": c.columns, "NC": -(-width // c.columns), "FB": c.block,
        "RESIDUAL": residual, "FAST": not interpreting(),
    }  # fmt: skip
