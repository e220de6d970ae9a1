"""Both heads in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from titn.kernels.class_heads.op import HeadWeights


def class_heads_reference(
    x: Tensor, heads: tuple[HeadWeights, HeadWeights], *, pooled: int, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """`titn.kernels.class_heads`: [B, T, D] to two [B, K], any floating dtype, autocast included."""
    features = x[:, :pooled].mean(1) if pooled > 1 else x[:, 0], x[:, -1]
    first, second = (
        F.linear(F.layer_norm(each, each.shape[-1:], w.norm_weight, w.norm_bias, eps), w.weight, w.bias)
        for each, w in zip(features, heads, strict=True)
    )
    return first, second
