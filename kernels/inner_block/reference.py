"""The inner block in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def inner_block_reference(
    x: Tensor,
    ln1_weight: Tensor | None,
    ln1_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ln2_weight: Tensor | None,
    ln2_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    num_heads: int,
    eps: float = 1e-5,
) -> Tensor:
    """The inner block of `titn.kernels.inner_block`: [S, L, C] to [S, L, C], any floating dtype, autocast included."""
    sequences, length, channels = x.shape
    normed = F.layer_norm(x, (channels,), ln1_weight, ln1_bias, eps)
    qkv = F.linear(normed, qkv_weight, qkv_bias).view(sequences, length, 3, num_heads, channels // num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
    heads = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(sequences, length, channels)
    x = x + F.linear(heads, proj_weight, proj_bias)
    normed = F.layer_norm(x, (channels,), ln2_weight, ln2_bias, eps)
    return x + F.linear(F.gelu(F.linear(normed, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
