"""Calls of csrc/outer_attention.cpp: the operators' CPU implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.device import positive
from titn.kernels.common.native import OuterAttention, addresses, bf16, call, in_dtypes, in_float32


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The operator `outer_attention_native`: y, and where `keep` q, k and v (else empty), from x [B, T, D].

    rest: the six weights; num_heads; eps; residual; dtype, of the products' results; keep.
    """
    *given, num_heads, eps, residual, dtype, keep = rest
    x, weights = x.contiguous(), in_float32(given)
    y = torch.empty_like(x, dtype=x.dtype if residual else dtype)
    qkv = x.new_empty((*x.shape[:-1], 3 * x.shape[-1]) if keep else 0, dtype=dtype)
    told = _told(x, qkv, weights, num_heads, eps, residual)
    call("outer_attention_forward", told, x, y, qkv if keep else None)
    return y, qkv


def backward(dy: Tensor, x: Tensor, qkv: Tensor, *rest: Any) -> list[Tensor]:
    """The operator `outer_attention_native_backward`: gradients of x and of the weights that are there.

    rest: the six weights; num_heads; eps; residual.
    """
    *given, num_heads, eps, residual = rest
    x, weights = x.contiguous(), in_float32(given)
    dy = dy.to(x.dtype if residual else qkv.dtype).contiguous()
    dx = torch.empty_like(x)
    gradients = [None if w is None else torch.empty_like(w) for w in weights]
    told = _told(x, qkv, weights, num_heads, eps, residual)
    call("outer_attention_backward", told, x, qkv, dy, dx, addresses(gradients))
    return [dx, *in_dtypes(gradients, given)]


def _told(
    x: Tensor, qkv: Tensor, weights: list[Tensor | None], num_heads: int, eps: float, residual: bool
) -> OuterAttention:
    images, length, width = x.shape
    return OuterAttention(
        images=images,
        length=length,
        width=width,
        heads=num_heads,
        bf16=bf16(x),
        bf16_kept=bf16(qkv),
        residual=residual,
        eps=positive(eps),
        weights=addresses(weights),
    )
