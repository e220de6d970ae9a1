"""Short attention in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale q k^T) v over the last two axes.

    Args:
        q, k, v: `[S, H, L, d]`, one floating dtype, any strides.

    Returns:
        `[S, H, L, d]` in the dtype of v; the softmax is taken in float32 (float64 for float64 inputs).
    """
    scores = q @ k.transpose(-2, -1)
    statistics = torch.float64 if scores.dtype == torch.float64 else torch.float32
    weights = torch.softmax(scores.to(statistics) * scale, dim=-1)
    return weights.to(v.dtype) @ v
