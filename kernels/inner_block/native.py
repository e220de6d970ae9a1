"""Calls of csrc/inner_block.cpp: the operators' CPU implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.device import positive
from titn.kernels.common.native import InnerBlock, addresses, bf16, call, in_dtypes, in_float32

LONGEST = 64
WIDEST = 48
"""Channels up to which it is taken unasked. Forward and backward in 4 heads took 0.61 of eager PyTorch's time with 48,
0.84 with 64 and 1.03 with 128 (AVX2, float32, 16 tokens, one thread of a machine that was not idle)."""


def limits(length: int, channels: int, requested: str) -> list[str]:
    """Why native code has no sequences of this size, or does not take them unasked."""
    reasons = [] if 1 <= length <= LONGEST else [f"sequences of {length} are not within 1 to {LONGEST}"]
    if requested == "auto" and channels > WIDEST:
        reasons.append(f"{channels} channels are more than {WIDEST}: PyTorch's products are as fast")
    return reasons


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The operator `inner_block_native`: y, and the middle residual where `keep` (else empty), from x [S, L, C].

    rest: the twelve weights; num_heads; eps; keep.
    """
    *given, num_heads, eps, keep = rest
    x, weights = x.contiguous(), in_float32(given)
    y = torch.empty_like(x)
    mid = torch.empty_like(x) if keep else x.new_empty(0)
    call("inner_block_forward", _told(x, weights, num_heads, eps), x, y, mid if keep else None)
    return y, mid


def backward(dy: Tensor, x: Tensor, mid: Tensor, *rest: Any) -> list[Tensor]:
    """The operator `inner_block_native_backward`: gradients of x and of every weight that is there, in their dtypes.

    rest: the twelve weights; num_heads; eps.
    """
    *given, num_heads, eps = rest
    x, dy, weights = x.contiguous(), dy.contiguous(), in_float32(given)
    dx = torch.empty_like(x)
    gradients = [None if w is None else torch.empty_like(w) for w in weights]
    call("inner_block_backward", _told(x, weights, num_heads, eps), x, mid, dy, dx, addresses(gradients))
    return [dx, *in_dtypes(gradients, given)]


def _told(x: Tensor, weights: list[Tensor | None], num_heads: int, eps: float) -> InnerBlock:
    sequences, length, channels = x.shape
    fc1 = weights[8]
    assert fc1 is not None
    return InnerBlock(
        sequences=sequences,
        length=length,
        channels=channels,
        heads=num_heads,
        hidden=fc1.shape[0],
        bf16=bf16(x),
        eps=positive(eps),
        weights=addresses(weights),
    )
