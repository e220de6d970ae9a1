"""Calls of csrc/pixels_to_patches.cpp: the operators' CPU implementations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from titn.kernels.common.device import positive
from titn.kernels.common.native import PixelsToPatches, addresses, bf16, call, in_dtypes, in_float32


def forward(pixels: Tensor, patches: Tensor, *rest: Any) -> Tensor:
    """The operator `pixels_to_patches_native`; rest: norm_weight, norm_bias, weight, bias; eps."""
    *given, eps = rest
    pixels, patches, weights = pixels.contiguous(), patches.contiguous(), in_float32(given)
    out = torch.empty_like(patches)
    call("pixels_to_patches_forward", _told(pixels, patches, weights, eps), pixels, patches, out)
    return out


def backward(gradient: Tensor, pixels: Tensor, *rest: Any) -> list[Tensor]:
    """The operator `pixels_to_patches_native_backward`: gradients of pixels and of every parameter, in their dtypes.

    rest: norm_weight, norm_bias, weight, bias; eps.
    """
    *given, eps = rest
    gradient, pixels, weights = gradient.contiguous(), pixels.contiguous(), in_float32(given)
    dpixels = torch.empty_like(pixels)
    gradients = [None if w is None else torch.empty_like(w) for w in weights]
    told = _told(pixels, gradient, weights, eps)
    call("pixels_to_patches_backward", told, pixels, gradient, dpixels, addresses(gradients))
    return [dpixels, *in_dtypes(gradients, given)]


def _told(pixels: Tensor, patches: Tensor, weights: list[Tensor | None], eps: float) -> PixelsToPatches:
    images, n, length, channels = pixels.shape
    return PixelsToPatches(
        images=images,
        patches=n,
        tokens=patches.shape[1],
        pixels=length,
        channels=channels,
        width=patches.shape[2],
        bf16_pixels=bf16(pixels),
        bf16_patches=bf16(patches),
        eps=positive(eps),
        weights=addresses(weights),
    )
