"""Launches the kernels of both heads."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.class_heads.backward import backward_kernel
from titn.kernels.class_heads.forward import forward_kernel
from titn.kernels.common.device import positive
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.weights import contiguous
from titn.kernels.common.wide import weight_gradient

OPTIONS = {"num_warps": 4, "num_stages": 1, "enable_fp_fusion": True}
IMAGES, COLUMNS, CLASSES = 16, 64, 32
"""M, CB and FB: small tiles, as there are two rows for an image and each reads all of its tokens."""


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `class_heads`: both logits, and features [2, B, D] and statistics [4, B] in float32.

    rest: norm_weight, norm_bias, weight and bias of each head; pooled; eps.
    """
    *given, pooled, eps = rest
    x, *parameters = contiguous(x, *given)
    images, _, width = x.shape
    weight = parameters[2]
    out, other = (x.new_empty(images, weight.shape[0], dtype=weight.dtype) for _ in range(2))
    features = x.new_empty(2, images, width, dtype=torch.float32)
    statistics = x.new_empty(4, images, dtype=torch.float32)
    if images:
        with torch.cuda.device_of(x):
            forward_kernel[triton.cdiv(images, IMAGES), 2](
                x, features, out, other, statistics, *parameters, images, pooled, positive(eps),
                **kernel_constants(x.shape[1], width, weight.shape[0]), **OPTIONS,
            )  # fmt: skip
    return out, other, features, statistics


def backward(
    dout: Tensor, other_dout: Tensor, x: Tensor, features: Tensor, statistics: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator `class_heads_backward`: dx, dweight of both heads and, in one, the vectors' gradients.

    All but dx in float32; the vectors [2, 2 D + K]: norm_weight, norm_bias and bias of each head. rest: norm_weight,
    norm_bias and weight of each head; pooled.
    """
    *given, pooled = rest
    dout, other_dout, features, *parameters = contiguous(dout, other_dout, features, *given)
    weight, dx = parameters[2], torch.empty(x.shape, dtype=x.dtype, device=x.device)
    images, tokens, width = x.shape
    classes, tiles = weight.shape[0], triton.cdiv(images, IMAGES)
    normed, dfeatures = torch.empty_like(features, dtype=weight.dtype), torch.empty_like(features)
    partial = features.new_empty(2, tiles, 2 * width + classes)
    if images:
        with torch.cuda.device_of(x):
            backward_kernel[tiles, 2](
                dout, other_dout, features, statistics, *parameters, dx, dfeatures, normed, partial, images, pooled,
                **kernel_constants(tokens, width, classes), **OPTIONS,
            )  # fmt: skip
    own, other = (weight_gradient(g.to(weight.dtype), n) for g, n in zip((dout, other_dout), normed, strict=True))
    return dx, own, other, summed(*partial).view(2, 2 * width + classes)


def kernel_constants(tokens: int, width: int, classes: int) -> dict[str, int]:
    columns = min(COLUMNS, max(16, triton.next_power_of_2(width)))
    return {
        "T": tokens, "D": width, "K": classes, "M": IMAGES, "CB": columns, "NC": triton.cdiv(width, columns),
        "FB": CLASSES,
    }  # fmt: skip
