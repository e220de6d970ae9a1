"""The inner block in plain PyTorch: the specification, and the backend "torch".

`inner_block_innermost` is the same with the sequence index innermost, for a CPU under torch.compile, which vectorises
the last axis: tensors are [S / G, C, L, G], G sequences side by side. Compiled under bfloat16 autocast at
4,096 x 16 x 12 with 4 heads, forward and backward of a whole TNT block took 141 ms of CPU time against 154 ms with the
reference (Zen 4, one thread, medians of 9 interleaved rounds, one run on a machine that was not idle).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from titn.kernels.common.weights import AttentionWeights, MlpWeights
from titn.kernels.layernorm_mlp.reference import layernorm_mlp_reference

GROUP = 64


def inner_block_reference(
    x: Tensor, attention: AttentionWeights, mlp: MlpWeights, *, num_heads: int, eps: float = 1e-5
) -> Tensor:
    """The inner block of `titn.kernels.inner_block`: [S, L, C] to [S, L, C], any floating dtype, autocast included."""
    sequences, length, channels = x.shape
    a = attention
    normed = F.layer_norm(x, (channels,), a.norm_weight, a.norm_bias, eps)
    qkv = F.linear(normed, a.qkv_weight, a.qkv_bias).view(sequences, length, 3, num_heads, channels // num_heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-1, -2)).softmax(-1)
    heads = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(sequences, length, channels)
    return layernorm_mlp_reference(x + F.linear(heads, a.proj_weight, a.proj_bias), mlp, eps=eps)


def inner_block_innermost(
    x: Tensor,
    attention: AttentionWeights,
    mlp: MlpWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    group: int = GROUP,
) -> Tensor:
    """As `inner_block_reference`, for a number of sequences that `group` (G) divides."""
    sequences, length, channels = x.shape
    x = x.view(-1, group, length, channels).permute(0, 3, 2, 1).contiguous()
    normed = _layer_norm(x, attention.norm_weight, attention.norm_bias, eps)
    qkv = _linear(normed, attention.qkv_weight, attention.qkv_bias)
    q, k, v = qkv.view(-1, 3, num_heads, channels // num_heads, length, group).unbind(1)  # [S / G, H, d, L, G]
    scores = ((q * q.shape[2] ** -0.5).unsqueeze(4) * k.unsqueeze(3)).sum(2)  # [S / G, H, L query, L key, G]
    statistics = torch.promote_types(scores.dtype, torch.float32)
    scores = scores.to(statistics)
    weights = torch.exp(scores - scores.amax(3, keepdim=True).detach())
    heads = (weights.unsqueeze(2) * v.unsqueeze(3).to(statistics)).sum(4) / weights.sum(3).unsqueeze(2)
    x = x + _linear(heads.flatten(1, 2), attention.proj_weight, attention.proj_bias)
    hidden = F.gelu(_linear(_layer_norm(x, mlp.norm_weight, mlp.norm_bias, eps), mlp.fc1_weight, mlp.fc1_bias))
    x = x + _linear(hidden, mlp.fc2_weight, mlp.fc2_bias)
    return x.permute(0, 3, 2, 1).reshape(sequences, length, channels)


def _layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm over axis 1 of [S / G, C, L, G]."""
    centred = x - x.mean(1, keepdim=True)
    normed = centred * torch.rsqrt((centred * centred).mean(1, keepdim=True) + eps)
    if weight is not None:
        normed = normed * weight[:, None, None]
    return normed if bias is None else normed + bias[:, None, None]


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Linear over axis 1: [S / G, in, L, G] to [S / G, out, L, G]."""
    groups, _, length, group = x.shape
    product = torch.bmm(weight.expand(groups, -1, -1), x.flatten(2)).view(groups, -1, length, group)
    return product if bias is None else product + bias[:, None, None].to(product.dtype)
