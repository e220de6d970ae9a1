"""LayerNorm and MLP in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def layernorm_mlp_reference(
    x: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float = 1e-5,
    residual: bool = True,
) -> Tensor:
    """`titn.kernels.layernorm_mlp`: [..., D] to [..., D], any floating dtype, autocast included."""
    normed = F.layer_norm(x, x.shape[-1:], ln_weight, ln_bias, eps)
    branch = F.linear(F.gelu(F.linear(normed, fc1_weight, fc1_bias)), fc2_weight, fc2_bias)
    return x + branch if residual else branch
