"""Pixels to patches in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def project(
    pixels: Tensor,
    patches: Tensor,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """The operation of the package's docstring, pixels [B, N, L, C] and patches [B, T, D] to [B, T, D]."""
    normed = F.layer_norm(pixels, pixels.shape[-1:], norm_weight, norm_bias, eps)
    rows = F.linear(normed.flatten(2), weight, bias)
    behind = patches.shape[1] - pixels.shape[1] - 1
    return patches + F.pad(rows, (0, 0, 1, behind)).to(patches.dtype)
