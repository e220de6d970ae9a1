"""The public `outer_attention` and `outer_block`, their operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from titn.kernels.common.backend import choose
from titn.kernels.common.device import autocast_dtype
from titn.kernels.common.native import native_reasons, wide_limits
from titn.kernels.common.registration import register
from titn.kernels.common.weights import AttentionWeights, MlpWeights, cast, dtype_of, in_dtype
from titn.kernels.common.wide import as_rows, weight_gradient, wide_reasons
from titn.kernels.layernorm_mlp import layernorm_mlp
from titn.kernels.outer_block.reference import attend, outer_attention_reference
from titn.kernels.short_attention.op import MAX_TOKENS, attention_limits


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
        backend: "auto" (native on a CPU up to 192 channels and 72 tokens, else torch: the Triton kernels have not been
            timed yet; `short_attention` chooses for itself), "triton", "torch" or "native" (float32 or bfloat16).

    Returns:
        [B, T, D]. The Triton backend multiplies in autocast's dtype, else that of x, and returns x's dtype; without the
        residual, the dtype of the products. The native one multiplies in float32 and rounds q, k and v to that dtype.
        Gradients of the weights come in the weights' dtypes.

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
        "native": lambda: _native_reasons(x, dtype, weights, backend),
        "torch": list,
    }
    chosen = choose("outer_attention", backend, reasons)
    if chosen == "torch":
        return outer_attention_reference(x, weights, num_heads=num_heads, eps=eps, residual=residual, attention=backend)
    if chosen == "native":
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)):
            return _NativeOuterAttention.apply(x, num_heads, eps, residual, dtype, *weights)
        y, _ = torch.ops.titn.outer_attention_native(x, *weights, num_heads, eps, residual, dtype, False)
        return y
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
    if backend == "triton" and _fits_one(x, attention, mlp, num_heads):
        dtype = autocast_dtype(x.device.type) or x.dtype
        return _OuterBlock.apply(x, num_heads, eps, dtype, *attention, *mlp)
    middle = outer_attention(x, attention, num_heads=num_heads, eps=eps, backend=backend)
    return layernorm_mlp(middle, mlp, eps=eps, backend=backend)


_MATRICES = (2, 4, 8, 10)
"""Places of the matrices among the twelve weights."""


def _fits_one(x: Tensor, attention: AttentionWeights, mlp: MlpWeights, num_heads: int) -> bool:
    """Whether one operator can do the whole block; the two halves say why not, or do without the attention kernels."""
    if x.dim() != 3:
        return False
    attention.check("outer_block", x.shape[2], num_heads)
    mlp.check("outer_block", x.shape[2])
    dtype = autocast_dtype(x.device.type) or x.dtype
    length, width = x.shape[1], x.shape[2] // num_heads
    if wide_reasons(x, "triton", *attention, *mlp, dtype=dtype):
        return False
    return not attention_limits(x, length, width, dtype)


class _OuterBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_heads: int, eps: float, dtype: torch.dtype, *weights: Any) -> Tensor:
        w = [in_dtype(each, dtype) if i in _MATRICES else each for i, each in enumerate(weights)]
        y, *kept = torch.ops.titn.outer_block(x, *w, num_heads, eps)
        ctx.save_for_backward(x, *kept, *w[:3], w[4], *w[6:11])
        ctx.dtypes = [dtype_of(each) for each in weights]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dqkv, dproj, dfc1, dfc2, vectors = torch.ops.titn.outer_block_backward(dy, *ctx.saved_tensors)
        hidden, d = dfc1.shape
        gamma1, beta1, qkv, gamma2, beta2, bias2, bias1, proj = vectors.split((d, d, 3 * d, d, d, d, hidden, d))
        gradients = (gamma1, beta1, dqkv, qkv, dproj, proj, gamma2, beta2, dfc1, bias1, dfc2, bias2)
        return dx, None, None, None, *(cast(g, dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))


def _native_reasons(x: Tensor, dtype: torch.dtype, weights: AttentionWeights, requested: str) -> list[str]:
    cannot = native_reasons(x, *weights, dtype=dtype) or native_reasons(x)
    reasons = cannot or wide_limits(x.shape[-1], dtype, requested)
    if not 1 <= x.shape[1] <= MAX_TOKENS:
        reasons.append(f"no native kernel for {x.shape[1]} tokens, only for 1 to {MAX_TOKENS}")
    return reasons


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
        dx, dweight, dbias = torch.ops.titn.linear_residual_backward(dout, x, weight)
        return dx, dweight.to(ctx.dtype), cast(dbias, ctx.bias_dtype), dout if ctx.has_residual else None


class _NativeOuterAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, num_heads: int, eps: float, residual: bool, dtype: torch.dtype, *weights: Tensor | None
    ) -> Tensor:
        y, qkv = torch.ops.titn.outer_attention_native(x, *weights, num_heads, eps, residual, dtype, True)
        ctx.save_for_backward(x, qkv, *weights)
        ctx.settings = num_heads, eps, residual
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, qkv, *weights = ctx.saved_tensors
        dx, *found = torch.ops.titn.outer_attention_native_backward(dy, x, qkv, *weights, *ctx.settings)
        gradients = iter(found)
        return dx, None, None, None, None, *(None if w is None else next(gradients) for w in weights)


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


def _linear_residual_backward_fake(dout: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    dx, dweight = x.new_empty(x.shape, dtype=weight.dtype), weight.new_empty(weight.shape, dtype=torch.float32)
    return dx, dweight, dweight.new_empty(weight.shape[0])


def _block_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *weights, heads, _ = rest
    batch, length, width = x.shape
    kind = weights[2].dtype
    qkv = x.new_empty(batch, length, 3, heads, width // heads, dtype=kind)
    statistics = x.new_empty(4, batch * length, dtype=torch.float32)
    return x.new_empty(x.shape), qkv, x.new_empty(x.shape, dtype=kind), x.new_empty(x.shape), statistics


def _block_backward_fake(dy: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    _, _, qkv, proj, _, _, fc1, _, fc2 = rest[4:]
    matrices = [x.new_empty(w.shape, dtype=torch.float32) for w in (qkv, proj, fc1, fc2)]
    return x.new_empty(x.shape), *matrices, x.new_empty(9 * x.shape[2] + fc1.shape[0], dtype=torch.float32)


def _native_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    residual, dtype, keep = rest[-3:]
    y = x.new_empty(x.shape, dtype=x.dtype if residual else dtype)
    return y, x.new_empty((*x.shape[:-1], 3 * x.shape[-1]) if keep else 0, dtype=dtype)


def _native_backward_fake(dy: Tensor, x: Tensor, qkv: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(w.new_empty(w.shape) for w in rest[:6] if w is not None)]


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
    "linear_residual_backward(Tensor dout, Tensor x, Tensor weight) -> (Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:linear_residual_backward",
    _linear_residual_backward_fake,
)
register(
    "outer_block(Tensor x, Tensor? norm1_weight, Tensor? norm1_bias, Tensor qkv_weight, Tensor? qkv_bias, "
    "Tensor proj_weight, Tensor? proj_bias, Tensor? norm2_weight, Tensor? norm2_bias, Tensor fc1_weight, "
    "Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias, int num_heads, float eps) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:block",
    _block_fake,
)
register(
    "outer_block_backward(Tensor dy, Tensor x, Tensor qkv, Tensor heads, Tensor middle, Tensor statistics, "
    "Tensor? norm1_weight, Tensor? norm1_bias, Tensor qkv_weight, Tensor proj_weight, Tensor? norm2_weight, "
    "Tensor? norm2_bias, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:block_backward",
    _block_backward_fake,
)
_NATIVE = "titn.kernels.outer_block.native"
_WEIGHTS = (
    "Tensor? norm_weight, Tensor? norm_bias, Tensor qkv_weight, Tensor? qkv_bias, Tensor proj_weight, Tensor? proj_bias"
)
register(
    f"outer_attention_native(Tensor x, {_WEIGHTS}, int num_heads, float eps, bool residual, ScalarType dtype, "
    "bool keep) -> (Tensor, Tensor)",
    f"{_NATIVE}:forward",
    _native_fake,
    native=True,
)
register(
    f"outer_attention_native_backward(Tensor dy, Tensor x, Tensor qkv, {_WEIGHTS}, int num_heads, float eps, "
    "bool residual) -> Tensor[]",
    f"{_NATIVE}:backward",
    _native_backward_fake,
    native=True,
)


def product_operations(x: tuple[int, ...]) -> int:
    """Operations of a forward's products on x [B, T, D], two a multiply-accumulate, from shapes alone."""
    images, length, width = x
    return 2 * images * length * width * (4 * width + 2 * length)


@register_flop_formula(torch.ops.titn.outer_attention_native)
def _forward_operations(x: Any, *rest: Any, **_: Any) -> int:
    return product_operations(x)


@register_flop_formula(torch.ops.titn.outer_attention_native_backward)
def _backward_operations(dy: Any, x: Any, *rest: Any, **_: Any) -> int:
    return 2 * product_operations(x)
