"""Calls of csrc/layernorm_mlp.cpp: the operators' CPU implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.device import positive
from titn.kernels.common.native import LayerNormMlp, addresses, bf16, call, in_dtypes, in_float32


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The operator `layernorm_mlp_native`: y, and where `keep` the hidden columns before GELU (else empty).

    rest: the six weights; eps; residual; dtype, of the products' results; keep.
    """
    *given, eps, residual, dtype, keep = rest
    x, weights = x.contiguous(), in_float32(given)
    y = torch.empty_like(x, dtype=x.dtype if residual else dtype)
    hidden = x.new_empty((*x.shape[:-1], given[2].shape[0]) if keep else 0, dtype=dtype)
    told = _told(x, hidden, weights, eps, residual)
    call("layernorm_mlp_forward", told, x, y, hidden if keep else None)
    return y, hidden


def backward(dy: Tensor, x: Tensor, hidden: Tensor, *rest: Any) -> list[Tensor]:
    """The operator `layernorm_mlp_native_backward`: gradients of x and of every weight that is there, in their dtypes.

    rest: the six weights; eps; residual.
    """
    *given, eps, residual = rest
    x, weights = x.contiguous(), in_float32(given)
    dy = dy.to(x.dtype if residual else hidden.dtype).contiguous()
    dx = torch.empty_like(x)
    gradients = [None if w is None else torch.empty_like(w) for w in weights]
    told = _told(x, hidden, weights, eps, residual)
    call("layernorm_mlp_backward", told, x, hidden, dy, dx, addresses(gradients))
    return [dx, *in_dtypes(gradients, given)]


def _told(x: Tensor, hidden: Tensor, weights: list[Tensor | None], eps: float, residual: bool) -> LayerNormMlp:
    fc1 = weights[2]
    assert fc1 is not None
    return LayerNormMlp(
        rows=x.numel() // x.shape[-1],
        width=x.shape[-1],
        hidden=fc1.shape[0],
        bf16=bf16(x),
        bf16_kept=bf16(hidden),
        residual=residual,
        eps=positive(eps),
        weights=addresses(weights),
    )
