"""The public `pixels_to_patches`, its operators and their gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from titn.kernels.common.backend import choose, triton_reasons
from titn.kernels.common.device import autocast_dtype
from titn.kernels.common.native import native_reasons, wide_limits
from titn.kernels.common.registration import register
from titn.kernels.common.weights import cast, check_shapes, dtype_of
from titn.kernels.pixels_to_patches.reference import project

_NOTHING = ["an empty patch has nothing to project"]
MAX_CHANNELS, MAX_COLUMNS, MAX_WIDTH = 63, 1024, 640  # C, L C and D


def pixels_to_patches(
    pixels: Tensor,
    patches: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Normalise, flatten and project the pixels of every patch and add them to rows 1..N of patches.

    `passing_pixels` does the same for pixels that are used further.

    Args:
        pixels: `[B, N, L, C]`, any floating dtype and strides.
        patches: `[B, T, D]` with T >= N + 1: one row in front, T - N - 1 behind.
        norm_weight, norm_bias: `[C]`, of the norm over channels.
        weight: `[D, L * C]`; pixel l, channel c of a patch is column l * C + c.
        bias: `[D]` or None.
        eps: added to the variance; in Triton at least 2^-126, so that rows without variance stay numbers.
        backend: "auto" (triton on a GPU, native on a CPU, else torch), "triton", "native" (float32 or bfloat16) or
            "torch".

    Returns:
        A new tensor `[B, T, D]` in the dtype of patches. Under autocast the product is in autocast's dtype, by
        backend "native" that of pixels rounded to it, in float32.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the requested backend cannot run here.
    """
    out, _ = passing_pixels(pixels, patches, norm_weight, norm_bias, weight, bias, eps=eps, backend=backend)
    return out


def passing_pixels(
    pixels: Tensor,
    patches: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """As `pixels_to_patches`, and the pixels: what is made of these has its gradient added within the backward kernel.

    Returns:
        The new patches, and a view of the pixels.
    """
    if pixels.dim() != 4 or patches.dim() != 3 or pixels.shape[0] != patches.shape[0]:
        both = f"{tuple(pixels.shape)} and {tuple(patches.shape)}"
        raise ValueError(f"pixels_to_patches: pixels and patches must be [B, N, L, C] and [B, T, D], not {both}")
    (_, n, length, channels), (_, t, width) = pixels.shape, patches.shape
    if t < n + 1:
        raise ValueError(f"pixels_to_patches: {n} patches need at least {n + 1} rows of patches, not {t}")
    parameters = (norm_weight, norm_bias, weight, bias)
    shapes = ((channels,), (channels,), (width, length * channels), (width,))
    check_shapes("pixels_to_patches", ("norm_weight", "norm_bias", "weight", "bias"), parameters, shapes)

    dtype = autocast_dtype(pixels.device.type) or pixels.dtype
    reasons = {
        "triton": lambda: triton_reasons(pixels, backend, patches, *parameters, dtype=dtype) + _limits(pixels, patches),
        "native": lambda: _native_reasons(pixels, patches, parameters, dtype, backend),
        "torch": list,
    }
    chosen = choose("pixels_to_patches", backend, reasons)
    if chosen == "torch":
        return project(pixels, patches, *parameters, eps), pixels
    if chosen == "native":
        return _NativePixelsToPatches.apply(pixels.to(dtype), patches, *parameters, eps), pixels
    out, passed = _PixelsToPatches.apply(pixels.to(dtype), patches, *parameters, eps)
    return out, passed if pixels.dtype == dtype else pixels


def _native_reasons(
    pixels: Tensor, patches: Tensor, parameters: tuple[Tensor | None, ...], dtype: torch.dtype, requested: str
) -> list[str]:
    cannot = native_reasons(pixels, *parameters, dtype=dtype) or native_reasons(patches) or _empty(pixels)
    return cannot or wide_limits(0, dtype, requested)


def _limits(pixels: Tensor, patches: Tensor) -> list[str]:
    """Why the Triton kernels have no tile for these sizes."""
    (_, length, channels), width = pixels.shape[1:], patches.shape[2]
    reasons = []
    if channels > MAX_CHANNELS or length * channels > MAX_COLUMNS or width > MAX_WIDTH:
        limits = f"at most {MAX_CHANNELS} channels, {MAX_COLUMNS} columns and patches {MAX_WIDTH} wide"
        reasons.append(f"{length} pixels of {channels} channels to {width}: kernels exist for {limits}")
    return reasons + (_empty(pixels) if width else _NOTHING)


def _empty(pixels: Tensor) -> list[str]:
    return _NOTHING if 0 in pixels.shape[1:] else []


class _PixelsToPatches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        patches: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(pixels, norm_weight, norm_bias, weight)
        ctx.set_materialize_grads(False)
        ctx.eps, ctx.bias_dtype = eps, dtype_of(bias)
        out = torch.ops.titn.pixels_to_patches(pixels, patches, norm_weight, norm_bias, weight, bias, eps)
        return out, pixels.view_as(pixels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor | None, passed: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return passed, None, None, None, None, None, None
        pixels, norm_weight, norm_bias, weight = ctx.saved_tensors
        if not any(ctx.needs_input_grad[i] for i in (0, 2, 3, 4, 5)):
            return None, gradient, None, None, None, None, None
        dpixels, dgamma, dbeta, dweight, dbias = torch.ops.titn.pixels_to_patches_backward(
            gradient, pixels, passed, norm_weight, norm_bias, weight, ctx.eps
        )
        return (
            dpixels,
            gradient,
            dgamma.to(norm_weight.dtype),
            dbeta.to(norm_bias.dtype),
            dweight.to(weight.dtype),
            cast(dbias, ctx.bias_dtype),
            None,
        )


class _NativePixelsToPatches(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pixels: Tensor, patches: Tensor, *rest: Any) -> Tensor:
        *parameters, eps = rest
        ctx.save_for_backward(pixels, *parameters)
        ctx.eps = eps
        return torch.ops.titn.pixels_to_patches_native(pixels, patches, *parameters, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, *parameters = ctx.saved_tensors
        if not any(needed for i, needed in enumerate(ctx.needs_input_grad) if i != 1):
            return None, gradient, None, None, None, None, None
        dpixels, *found = torch.ops.titn.pixels_to_patches_native_backward(gradient, pixels, *parameters, ctx.eps)
        gradients = iter(found)
        return dpixels, gradient, *(None if p is None else next(gradients) for p in parameters), None


def _forward_fake(pixels: Tensor, patches: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(patches, memory_format=torch.contiguous_format)


def _backward_fake(gradient: Tensor, pixels: Tensor, passed: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    *parameters, _ = rest
    dgamma, dbeta, dweight = (torch.empty(p.shape, dtype=torch.float32, device=p.device) for p in parameters)
    dpixels = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    return dpixels, dgamma, dbeta, dweight, dweight.new_empty(dweight.shape[0])


def _native_backward_fake(gradient: Tensor, pixels: Tensor, *rest: Any) -> list[Tensor]:
    return [pixels.new_empty(pixels.shape), *(p.new_empty(p.shape) for p in rest[:4] if p is not None)]


_LAUNCH = "titn.kernels.pixels_to_patches.launch"
register(
    "pixels_to_patches(Tensor pixels, Tensor patches, Tensor norm_weight, Tensor norm_bias, Tensor weight, "
    "Tensor? bias, float eps) -> Tensor",
    f"{_LAUNCH}:forward",
    _forward_fake,
)
register(
    "pixels_to_patches_backward(Tensor gradient, Tensor pixels, Tensor? passed, Tensor norm_weight, Tensor norm_bias, "
    "Tensor weight, float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:backward",
    _backward_fake,
)
_NATIVE = "titn.kernels.pixels_to_patches.native"
_PARAMETERS = "Tensor norm_weight, Tensor norm_bias, Tensor weight, Tensor? bias"
register(
    f"pixels_to_patches_native(Tensor pixels, Tensor patches, {_PARAMETERS}, float eps) -> Tensor",
    f"{_NATIVE}:forward",
    _forward_fake,
    native=True,
)
register(
    f"pixels_to_patches_native_backward(Tensor gradient, Tensor pixels, {_PARAMETERS}, float eps) -> Tensor[]",
    f"{_NATIVE}:backward",
    _native_backward_fake,
    native=True,
)


def product_operations(pixels: tuple[int, ...], patches: tuple[int, ...]) -> int:
    """Operations of a forward's product, two a multiply-accumulate, from the shapes [B, N, L, C] and [B, T, D]."""
    return 2 * math.prod(pixels) * patches[2]


@register_flop_formula(torch.ops.titn.pixels_to_patches_native)
def _forward_operations(pixels: Any, patches: Any, *rest: Any, **_: Any) -> int:
    return product_operations(pixels, patches)


@register_flop_formula(torch.ops.titn.pixels_to_patches_native_backward)
def _backward_operations(gradient: Any, pixels: Any, *rest: Any, **_: Any) -> int:
    return 2 * product_operations(pixels, gradient)
