"""The public `pixel_embedding`, its operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import choose, no_native_kernel, triton_reasons
from titn.kernels.common.device import autocast_dtype
from titn.kernels.common.registration import register
from titn.kernels.common.weights import cast, check_shapes, dtype_of
from titn.kernels.pixel_embedding.reference import pixel_embedding_reference

MAX_VALUES, MAX_OUTPUTS, MAX_PIXELS = 64, 64, 64  # K, E and L


def pixel_embedding(
    images: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    position: Tensor,
    *,
    patch: int,
    size: int,
    backend: str = "auto",
) -> Tensor:
    """Cut, flatten and project the squares of every patch and add their positions; the package has the mathematics.

    Args:
        images: `[B, C, H, W]`, float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        weight: `[E, C * size**2]`.
        bias: `[E]` or None.
        position: `[L, E]`, L = (patch / size)^2 pixels of a patch.
        patch: width of a patch; divides H and W.
        size: width of a square; divides `patch`.
        backend: "auto" (torch: the Triton kernels have not been timed yet), "triton", "torch" or "native".

    Returns:
        `[B, N, L, E]`. Triton: in the dtype of the product, which is autocast's, else that of the images. Gradients
        come in the parameters' dtypes; the images have one in backend "torch" only.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    if images.dim() != 4:
        raise ValueError(f"pixel_embedding: images must be [B, C, H, W], not of {images.dim()} dimensions")
    channels, height, width = images.shape[1:]
    if size < 1 or patch < 1 or patch % size or height % patch or width % patch:
        raise ValueError(f"pixel_embedding: squares of {size} in patches of {patch} do not tile {height} x {width}")
    outputs, length = weight.shape[0], (patch // size) ** 2
    shapes = ((outputs, channels * size**2), (outputs,), (length, outputs))
    check_shapes("pixel_embedding", ("weight", "bias", "position"), (weight, bias, position), shapes)
    dtype = autocast_dtype(images.device.type) or images.dtype

    def why_not_triton() -> list[str]:
        reasons = triton_reasons(images, backend, weight, bias, position, dtype=dtype)
        if backend == "auto":
            reasons.append("not yet shown to beat torch.compile: ask for it by name")
        sizes = weight.shape[1], outputs, length
        if not all(1 <= n <= most for n, most in zip(sizes, (MAX_VALUES, MAX_OUTPUTS, MAX_PIXELS), strict=True)):
            most = f"{MAX_VALUES} values, {MAX_OUTPUTS} channels and {MAX_PIXELS} pixels"
            reasons.append(
                f"{sizes[0]} values of a square to {outputs} channels, {length} pixels a patch: up to {most}"
            )
        if images.requires_grad:
            reasons.append("the kernels have no gradient of the images")
        return reasons

    reasons = {"triton": why_not_triton, "native": no_native_kernel, "torch": list}
    if choose("pixel_embedding", backend, reasons) == "torch":
        return pixel_embedding_reference(images, weight, bias, position, patch=patch, size=size)
    return _PixelEmbedding.apply(images, weight, bias, position, patch, size, dtype)


class _PixelEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, *rest: Any) -> Tensor:
        weight, bias, position, patch, size, dtype = rest
        ctx.save_for_backward(images)
        ctx.cut = patch, size
        ctx.dtypes = [dtype_of(each) for each in (weight, bias, position)]
        return torch.ops.titn.pixel_embedding(images, weight, bias, position, patch, size, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        (images,) = ctx.saved_tensors
        vectors = torch.ops.titn.pixel_embedding_backward(dout, images, *ctx.cut)
        _, _, length, outputs = dout.shape
        values = images.shape[1] * ctx.cut[1] ** 2
        weight, positions, dbias = vectors.split((outputs * values, length * outputs, outputs))
        dweight, dposition = weight.view(outputs, values), positions.view(length, outputs)
        gradients = (cast(g, dtype) for g, dtype in zip((dweight, dbias, dposition), ctx.dtypes, strict=True))
        return None, *gradients, None, None, None


def _forward_fake(
    images: Tensor, weight: Tensor, bias: Tensor | None, position: Tensor, patch: int, size: int, dtype: torch.dtype
) -> Tensor:
    batch, _, height, width = images.shape
    return images.new_empty(batch, height // patch * (width // patch), *position.shape, dtype=dtype)


def _backward_fake(dout: Tensor, images: Tensor, patch: int, size: int) -> Tensor:
    _, _, length, outputs = dout.shape
    return dout.new_empty(outputs * (images.shape[1] * size**2 + length + 1), dtype=torch.float32)


_LAUNCH = "titn.kernels.pixel_embedding.launch"
register(
    "pixel_embedding(Tensor images, Tensor weight, Tensor? bias, Tensor position, int patch, int size, "
    "ScalarType dtype) -> Tensor",
    f"{_LAUNCH}:forward",
    _forward_fake,
)
register(
    "pixel_embedding_backward(Tensor dout, Tensor images, int patch, int size) -> Tensor",
    f"{_LAUNCH}:backward",
    _backward_fake,
)
