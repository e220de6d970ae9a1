"""LayerNorm and MLP in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from titn.kernels.common.weights import MlpWeights


def layernorm_mlp_reference(x: Tensor, weights: MlpWeights, *, eps: float = 1e-5, residual: bool = True) -> Tensor:
    """`titn.kernels.layernorm_mlp`: [..., D] to [..., D], any floating dtype, autocast included."""
    w = weights
    normed = F.layer_norm(x, x.shape[-1:], w.norm_weight, w.norm_bias, eps)
    branch = F.linear(F.gelu(F.linear(normed, w.fc1_weight, w.fc1_bias)), w.fc2_weight, w.fc2_bias)
    return x + branch if residual else branch
