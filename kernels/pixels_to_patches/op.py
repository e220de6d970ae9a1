"""The public `pixels_to_patches`: checks its arguments, chooses the backend and registers the Triton operation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import autocast_dtype, choose, interpreting, triton_reasons
from titn.kernels.pixels_to_patches.configuration import MAX_CHANNELS, MAX_COLUMNS, MAX_WIDTH
from titn.kernels.pixels_to_patches.reference import project

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)

_library = torch.library.Library("titn", "FRAGMENT")
_library.define(
    "pixels_to_patches(Tensor pixels, Tensor patches, Tensor ln_weight, Tensor ln_bias, Tensor weight, Tensor? bias, "
    "float eps) -> Tensor"
)
_library.define(
    "pixels_to_patches_backward(Tensor gradient, Tensor pixels, Tensor ln_weight, Tensor ln_bias, Tensor weight, "
    "float eps) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def _forward(
    pixels: Tensor,
    patches: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    from titn.kernels.pixels_to_patches import triton

    bias = None if bias is None else bias.contiguous()
    pixels, patches, ln_weight, ln_bias, weight = (
        t.contiguous() for t in (pixels, patches, ln_weight, ln_bias, weight)
    )
    return triton.forward(pixels, patches, ln_weight, ln_bias, weight, bias, eps)


def _backward(
    gradient: Tensor, pixels: Tensor, ln_weight: Tensor, ln_bias: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from titn.kernels.pixels_to_patches import triton

    gradient, pixels, ln_weight, ln_bias, weight = (
        t.contiguous() for t in (gradient, pixels, ln_weight, ln_bias, weight)
    )
    return triton.backward(gradient, pixels, ln_weight, ln_bias, weight, eps)


for _key in ("CUDA", "CPU") if interpreting() else ("CUDA",):
    _library.impl("pixels_to_patches", _forward, _key)
    _library.impl("pixels_to_patches_backward", _backward, _key)


@torch.library.register_fake("titn::pixels_to_patches")
def _(
    pixels: Tensor,
    patches: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    return torch.empty_like(patches, memory_format=torch.contiguous_format)


@torch.library.register_fake("titn::pixels_to_patches_backward")
def _(
    gradient: Tensor, pixels: Tensor, ln_weight: Tensor, ln_bias: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    parameters = (ln_weight, ln_bias, weight)
    dgamma, dbeta, dweight = (torch.empty(p.shape, dtype=torch.float32, device=p.device) for p in parameters)
    dpixels = torch.empty_like(pixels, memory_format=torch.contiguous_format)
    return dpixels, dgamma, dbeta, dweight, weight.new_empty(weight.shape[0], dtype=torch.float32)


class _PixelsToPatches(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        pixels: Tensor,
        patches: Tensor,
        ln_weight: Tensor,
        ln_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(pixels, ln_weight, ln_bias, weight)
        ctx.eps, ctx.bias_dtype = eps, None if bias is None else bias.dtype
        return torch.ops.titn.pixels_to_patches(pixels, patches, ln_weight, ln_bias, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        pixels, ln_weight, ln_bias, weight = ctx.saved_tensors
        if not any(ctx.needs_input_grad[i] for i in (0, 2, 3, 4, 5)):
            return None, gradient, None, None, None, None, None
        dpixels, dgamma, dbeta, dweight, dbias = torch.ops.titn.pixels_to_patches_backward(
            gradient, pixels, ln_weight, ln_bias, weight, ctx.eps
        )
        return (
            dpixels,
            gradient,
            dgamma.to(ln_weight.dtype),
            dbeta.to(ln_bias.dtype),
            dweight.to(weight.dtype),
            None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype),
            None,
        )


def pixels_to_patches(
    pixels: Tensor,
    patches: Tensor,
    ln_weight: Tensor,
    ln_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Normalise, flatten and project the pixels of every patch and add them to rows 1..N of patches.

    Args:
        pixels: `[B, N, L, C]`, any floating dtype and strides.
        patches: `[B, T, D]` with T >= N + 1: one row in front, T - N - 1 behind.
        ln_weight, ln_bias: `[C]`, of the norm over channels.
        weight: `[D, L * C]`; pixel l, channel c of a patch is column l * C + c.
        bias: `[D]` or None.
        eps: added to the variance.
        backend: "auto" (triton, else torch), "torch" or "triton".

    Returns:
        A new tensor `[B, T, D]` in the dtype of patches. Under autocast the product is in autocast's dtype.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the requested backend cannot run here.
    """
    _check(pixels, patches, ln_weight, ln_bias, weight, bias)

    def why_not_triton() -> list[str]:
        return triton_reasons(pixels, backend) + _unsupported(pixels, patches, weight)

    reasons = {
        "triton": why_not_triton,
        "native": lambda: ["this version has no native kernel for it"],
        "torch": list,
    }
    if choose("pixels_to_patches", backend, reasons) == "torch":
        return project(pixels, patches, ln_weight, ln_bias, weight, bias, eps)
    pixels = pixels.to(autocast_dtype(pixels.device.type) or pixels.dtype)
    return _PixelsToPatches.apply(pixels, patches, ln_weight, ln_bias, weight, bias, eps)


def _check(
    pixels: Tensor, patches: Tensor, ln_weight: Tensor, ln_bias: Tensor, weight: Tensor, bias: Tensor | None
) -> None:
    if pixels.dim() != 4 or patches.dim() != 3 or pixels.shape[0] != patches.shape[0]:
        shapes = f"{tuple(pixels.shape)} and {tuple(patches.shape)}"
        raise ValueError(f"pixels_to_patches: pixels and patches must be [B, N, L, C] and [B, T, D], not {shapes}")
    (_, n, length, channels), (_, t, width) = pixels.shape, patches.shape
    if t < n + 1:
        raise ValueError(f"pixels_to_patches: {n} patches need at least {n + 1} rows of patches, not {t}")
    expected = {
        "ln_weight": (ln_weight, (channels,)),
        "ln_bias": (ln_bias, (channels,)),
        "weight": (weight, (width, length * channels)),
        "bias": (bias, (width,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"pixels_to_patches: {name} must have the shape {shape}, not {tuple(tensor.shape)}")


def _unsupported(pixels: Tensor, patches: Tensor, weight: Tensor) -> list[str]:
    """Why the Triton kernels have no configuration for these inputs."""
    (length, channels), width = pixels.shape[2:], patches.shape[2]
    reasons = []
    if channels > MAX_CHANNELS or length * channels > MAX_COLUMNS or width > MAX_WIDTH:
        limits = f"at most {MAX_CHANNELS} channels, {MAX_COLUMNS} columns and patches {MAX_WIDTH} wide"
        reasons.append(f"{length} pixels of {channels} channels to {width}: kernels exist for {limits}")
    if 0 in (length, channels, width, pixels.shape[1]):
        reasons.append("an empty patch has nothing to project")
    for name, tensor in (("pixels", pixels), ("patches", patches), ("weight", weight)):
        if tensor.dtype not in _FLOATS:
            reasons.append(f"{name} are {tensor.dtype}, kernels exist for float32, float16 and bfloat16")
    return reasons
