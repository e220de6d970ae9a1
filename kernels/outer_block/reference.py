"""The attention half of the patch-level block in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from titn.kernels.common.weights import AttentionWeights
from titn.kernels.short_attention import short_attention
from titn.kernels.short_attention.op import MAX_TOKENS


def attend(qkv: Tensor, num_heads: int, backend: str) -> Tensor:
    """[B, T, 3 D] of packed q, k and v to [B, T, D]; more than 72 tokens attend by scaled_dot_product_attention."""
    batch, length, packed = qkv.shape
    qkv = qkv.view(batch, length, 3, num_heads, packed // 3 // num_heads)
    if length <= MAX_TOKENS:
        heads = short_attention(qkv, backend=backend)
    else:
        q, k, v = qkv.transpose(1, 3).unbind(2)
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    return heads.reshape(batch, length, packed // 3)


def outer_attention_reference(
    x: Tensor,
    weights: AttentionWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    residual: bool = True,
    attention: str = "torch",
) -> Tensor:
    """`titn.kernels.outer_attention`: [B, T, D] to [B, T, D]; `attention` is the backend of `short_attention`."""
    w = weights
    normed = F.layer_norm(x, x.shape[-1:], w.norm_weight, w.norm_bias, eps)
    heads = attend(F.linear(normed, w.qkv_weight, w.qkv_bias), num_heads, attention)
    branch = F.linear(heads, w.proj_weight, w.proj_bias)
    return x + branch if residual else branch
