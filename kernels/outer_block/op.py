"""The public `outer_attention` and `outer_block`, their operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import choose, no_native_kernel
from titn.kernels.common.device import autocast_dtype
from titn.kernels.common.registration import register
from titn.kernels.common.weights import AttentionWeights, MlpWeights, cast, dtype_of, in_dtype
from titn.kernels.common.wide import as_rows, weight_gradient, wide_reasons
from titn.kernels.layernorm_mlp import layernorm_mlp
from titn.kernels.outer_block.reference import attend, outer_attention_reference


def outer_attention(
    x: Tensor,
    weights: AttentionWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    """LayerNorm, q/k/v, attention, projection and residual; the package states the mathematics.

    More than 72 tokens attend through `scaled_dot_product_attention` whatever the backend, which then is that of the
    linear layers.

    Args:
        x: [B, T, D], float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        weights: of D channels.
        num_heads: divides D.
        eps: added to the variance; in Triton at least 2^-126, so that rows without variance stay numbers.
        residual: whether x is added to the result.
        backend: "auto" (torch: the Triton kernels have not been timed yet; `short_attention` chooses for itself),
            "triton", "torch" or "native".

    Returns:
        [B, T, D]. The Triton backend multiplies in autocast's dtype, else that of x, and returns x's dtype; without the
        residual, the dtype of the products. Gradients of the weights come in the weights' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    if x.dim() != 3:
        raise ValueError(f"outer_attention: x must be [B, T, D], not of {x.dim()} dimensions")
    weights.check("outer_attention", x.shape[2], num_heads)
    dtype = autocast_dtype(x.device.type) or x.dtype
    reasons = {
        "triton": lambda: wide_reasons(x, backend, *weights, dtype=dtype),
        "native": no_native_kernel,
        "torch": list,
    }
    if choose("outer_attention", backend, reasons) == "torch":
        return outer_attention_reference(x, weights, num_heads=num_heads, eps=eps, residual=residual, attention=backend)
    norm_weight, norm_bias, qkv_weight, qkv_bias, proj_weight, proj_bias = weights
    qkv, passed = LayerNormLinear.apply(x, norm_weight, norm_bias, qkv_weight, qkv_bias, eps, dtype)
    heads = attend(qkv, num_heads, backend)
    return LinearResidual.apply(heads, proj_weight, proj_bias, passed if residual else None)


def outer_block(
    x: Tensor,
    attention: AttentionWeights,
    mlp: MlpWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Both halves, `outer_attention` and `layernorm_mlp`, each with its residual: [B, T, D] to [B, T, D].

    Args, Returns, Raises: as those two; eps is that of both LayerNorms.
    """
    middle = outer_attention(x, attention, num_heads=num_heads, eps=eps, backend=backend)
    return layernorm_mlp(middle, mlp, eps=eps, backend=backend)


class LayerNormLinear(torch.autograd.Function):
    """x [B, T, D] to LN(x) weight^T + bias, and x: the gradient of the latter is added in the backward kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor | None,
        norm_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        product_weight = in_dtype(weight, dtype)
        out, mean, rstd = torch.ops.titn.layernorm_linear(x, norm_weight, norm_bias, product_weight, bias, eps)
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, product_weight)
        ctx.set_materialize_grads(False)
        ctx.dtype = weight.dtype
        ctx.dtypes = [dtype_of(vector) for vector in (norm_weight, norm_bias, bias)]
        return out, x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dresidual: Tensor | None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return dresidual, None, None, None, None, None, None
        dx, normed, vectors = torch.ops.titn.layernorm_linear_backward(dout, dresidual, *ctx.saved_tensors)
        dweight = weight_gradient(as_rows(dout), normed).to(ctx.dtype)
        width = dx.shape[-1]
        parts = vectors.split((width, width, dout.shape[-1]))
        dgamma, dbeta, dbias = (cast(part, dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True))
        return dx, dgamma, dbeta, dweight, dbias, None, None


class LinearResidual(torch.autograd.Function):
    """x [B, T, D] to x weight^T + bias + residual, residual [B, T, N] or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        product_weight = in_dtype(weight, x.dtype)
        ctx.save_for_backward(x, product_weight)
        ctx.dtype, ctx.bias_dtype = weight.dtype, dtype_of(bias)
        ctx.has_residual = residual is not None
        return torch.ops.titn.linear_residual(x, product_weight, bias, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        dx, dbias = torch.ops.titn.linear_residual_backward(dout, weight)
        dweight = weight_gradient(as_rows(dout).to(weight.dtype), as_rows(x)).to(ctx.dtype)
        return dx, dweight, cast(dbias, ctx.bias_dtype), dout if ctx.has_residual else None


def _layernorm_linear_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, rows = rest[2], x.numel() // x.shape[-1]
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype)
    return out, x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _layernorm_linear_backward_fake(
    dout: Tensor, dresidual: Tensor | None, x: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    weight, width = rest[-1], x.shape[-1]
    normed = x.new_empty(x.numel() // width, width, dtype=weight.dtype)
    return x.new_empty(x.shape), normed, x.new_empty(2 * width + weight.shape[0], dtype=torch.float32)


def _linear_residual_fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    dtype = weight.dtype if residual is None else residual.dtype
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)


def _linear_residual_backward_fake(dout: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dx = dout.new_empty(*dout.shape[:-1], weight.shape[1], dtype=weight.dtype)
    return dx, dout.new_empty(weight.shape[0], dtype=torch.float32)


_LAUNCH = "titn.kernels.outer_block.launch"
register(
    "layernorm_linear(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, float eps) "
    "-> (Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:layernorm_linear",
    _layernorm_linear_fake,
)
register(
    "layernorm_linear_backward(Tensor dout, Tensor? dresidual, Tensor x, Tensor mean, Tensor rstd, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor weight) -> (Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:layernorm_linear_backward",
    _layernorm_linear_backward_fake,
)
register(
    "linear_residual(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor",
    f"{_LAUNCH}:linear_residual",
    _linear_residual_fake,
)
register(
    "linear_residual_backward(Tensor dout, Tensor weight) -> (Tensor, Tensor)",
    f"{_LAUNCH}:linear_residual_backward",
    _linear_residual_backward_fake,
)
