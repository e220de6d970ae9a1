"""The public `layernorm_mlp`, its operators and their gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from titn.kernels.common.backend import choose
from titn.kernels.common.device import autocast_dtype
from titn.kernels.common.native import native_reasons, wide_limits
from titn.kernels.common.registration import register
from titn.kernels.common.weights import MlpWeights, cast, dtype_of, in_dtype
from titn.kernels.common.wide import wide_reasons
from titn.kernels.layernorm_mlp.reference import layernorm_mlp_reference


def layernorm_mlp(
    x: Tensor, weights: MlpWeights, *, eps: float = 1e-5, residual: bool = True, backend: str = "auto"
) -> Tensor:
    """`x + fc2(gelu(fc1(LayerNorm(x))))`; the package states the mathematics.

    Args:
        x: [..., D], float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        weights: of D channels and any hidden width.
        eps: added to the variance; in Triton at least 2^-126, so that rows without variance stay numbers.
        residual: whether x is added to the result.
        backend: "auto" (native on a CPU up to 192 channels, else torch: the Triton kernels have not been timed yet),
            "triton", "torch" or "native" (float32 or bfloat16).

    Returns:
        [..., D]. The Triton backend multiplies in autocast's dtype, else that of x, and returns x's dtype; without the
        residual, the dtype of the products. The native one multiplies in float32 and rounds to that dtype what it keeps
        for the backward. Gradients of the weights come in the weights' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    if x.dim() < 1:
        raise ValueError("layernorm_mlp: x must be [..., D]")
    weights.check("layernorm_mlp", x.shape[-1])
    dtype = autocast_dtype(x.device.type) or x.dtype
    reasons = {
        "triton": lambda: wide_reasons(x, backend, *weights, dtype=dtype),
        "native": lambda: _native_reasons(x, dtype, weights, backend),
        "torch": list,
    }
    chosen = choose("layernorm_mlp", backend, reasons)
    if chosen == "torch":
        return layernorm_mlp_reference(x, weights, eps=eps, residual=residual)
    if chosen == "triton":
        return _LayerNormMLP.apply(x, *weights, eps, residual, dtype)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)):
        return _NativeLayerNormMLP.apply(x, eps, residual, dtype, *weights)
    y, _ = torch.ops.titn.layernorm_mlp_native(x, *weights, eps, residual, dtype, False)
    return y


def _native_reasons(x: Tensor, dtype: torch.dtype, weights: MlpWeights, requested: str) -> list[str]:
    cannot = native_reasons(x, *weights, dtype=dtype) or native_reasons(x)
    return cannot or wide_limits(x.shape[-1], dtype, requested)


class _LayerNormMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *rest: Any) -> Tensor:
        *weights, eps, residual, dtype = rest
        norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias = weights
        w1, w2 = in_dtype(fc1_weight, dtype), in_dtype(fc2_weight, dtype)
        y, mean, rstd = torch.ops.titn.layernorm_mlp(
            x, norm_weight, norm_bias, w1, fc1_bias, w2, fc2_bias, eps, residual
        )
        ctx.save_for_backward(x, mean, rstd, norm_weight, norm_bias, w1, fc1_bias, w2)
        ctx.residual = residual
        ctx.dtypes = [dtype_of(w) for w in weights]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dfc1, dfc2, vectors = torch.ops.titn.layernorm_mlp_backward(dy, *ctx.saved_tensors, ctx.residual)
        hidden, width = dfc1.shape
        dgamma, dbeta, dbias2, dbias1 = vectors.split((width, width, width, hidden))
        gradients = (dgamma, dbeta, dfc1, dbias1, dfc2, dbias2)
        cast_gradients = [cast(g, dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)]
        return dx, *cast_gradients, None, None, None


class _NativeLayerNormMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, residual: bool, dtype: torch.dtype, *weights: Tensor | None) -> Tensor:
        y, hidden = torch.ops.titn.layernorm_mlp_native(x, *weights, eps, residual, dtype, True)
        ctx.save_for_backward(x, hidden, *weights)
        ctx.settings = eps, residual
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, *weights = ctx.saved_tensors
        dx, *found = torch.ops.titn.layernorm_mlp_native_backward(dy, x, hidden, *weights, *ctx.settings)
        gradients = iter(found)
        return dx, None, None, None, *(None if w is None else next(gradients) for w in weights)


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=x.dtype if rest[-1] else rest[2].dtype, device=x.device)
    rows = x.numel() // x.shape[-1]
    return y, x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _backward_fake(
    dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _, _, fc1_weight, _, fc2_weight, _ = rest
    vectors = x.new_empty(3 * x.shape[-1] + fc1_weight.shape[0], dtype=torch.float32)
    dfc1, dfc2 = (x.new_empty(w.shape, dtype=torch.float32) for w in (fc1_weight, fc2_weight))
    return x.new_empty(x.shape), dfc1, dfc2, vectors


def _native_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    fc1_weight, (residual, dtype, keep) = rest[2], rest[-3:]
    y = x.new_empty(x.shape, dtype=x.dtype if residual else dtype)
    return y, x.new_empty((*x.shape[:-1], fc1_weight.shape[0]) if keep else 0, dtype=dtype)


def _native_backward_fake(dy: Tensor, x: Tensor, hidden: Tensor, *rest: Any) -> list[Tensor]:
    return [x.new_empty(x.shape), *(w.new_empty(w.shape) for w in rest[:6] if w is not None)]


_LAUNCH = "titn.kernels.layernorm_mlp.launch"
_NATIVE = "titn.kernels.layernorm_mlp.native"
_WEIGHTS = (
    "Tensor? norm_weight, Tensor? norm_bias, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias"
)
register(
    f"layernorm_mlp(Tensor x, {_WEIGHTS}, float eps, bool residual) -> (Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:forward",
    _forward_fake,
)
register(
    "layernorm_mlp_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, bool residual) -> (Tensor, Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:backward",
    _backward_fake,
)
register(
    f"layernorm_mlp_native(Tensor x, {_WEIGHTS}, float eps, bool residual, ScalarType dtype, bool keep) "
    "-> (Tensor, Tensor)",
    f"{_NATIVE}:forward",
    _native_fake,
    native=True,
)
register(
    f"layernorm_mlp_native_backward(Tensor dy, Tensor x, Tensor hidden, {_WEIGHTS}, float eps, bool residual) "
    "-> Tensor[]",
    f"{_NATIVE}:backward",
    _native_backward_fake,
    native=True,
)


def product_operations(x: tuple[int, ...], *weights: tuple[int, ...] | None) -> int:
    """Operations of a forward's products on x [..., D], two a multiply-accumulate, from shapes alone."""
    fc1 = weights[2]
    assert fc1 is not None
    return 4 * math.prod(x) * fc1[0]


@register_flop_formula(torch.ops.titn.layernorm_mlp_native)
def _forward_operations(x: Any, *rest: Any, **_: Any) -> int:
    return product_operations(x, *rest)


@register_flop_formula(torch.ops.titn.layernorm_mlp_native_backward)
def _backward_operations(dy: Any, x: Any, hidden: Any, *rest: Any, **_: Any) -> int:
    return 2 * product_operations(x, *rest)
