"""The pixel embedding in plain PyTorch: the specification, and the backend "torch"."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def squares(images: Tensor, patch: int, size: int) -> Tensor:
    """Images [B, C, H, W] as [B, N, M, C size^2]: patches of `patch` x `patch`, squares of `size` x `size`."""
    batch, channels, height, width = images.shape
    inside = patch // size
    cut = images.reshape(batch, channels, height // patch, inside, size, width // patch, inside, size)
    return cut.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(batch, -1, inside**2, channels * size**2)


def pixel_embedding_reference(
    images: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor, *, patch: int, size: int
) -> Tensor:
    """`titn.kernels.pixel_embedding`: [B, C, H, W] to [B, N, M, E], any floating dtype, autocast included."""
    return F.linear(squares(images, patch, size), weight, bias) + position
