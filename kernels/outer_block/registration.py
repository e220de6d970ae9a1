"""The two linear layers of the attention half as PyTorch operations with gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import interpreting
from titn.kernels.common.wide import as_rows, contiguous, weight_gradient

_library = torch.library.Library("titn", "FRAGMENT")
_library.define(
    "layernorm_linear(Tensor x, Tensor? ln_weight, Tensor? ln_bias, Tensor weight, Tensor? bias, float eps) "
    "-> (Tensor, Tensor, Tensor)"
)
_library.define(
    "layernorm_linear_backward(Tensor dout, Tensor? dresidual, Tensor x, Tensor mean, Tensor rstd, Tensor? ln_weight, "
    "Tensor? ln_bias, Tensor weight) -> (Tensor, Tensor, Tensor)"
)
_library.define("linear_residual(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor")
_library.define("linear_residual_backward(Tensor dout, Tensor weight) -> (Tensor, Tensor)")


class LayerNormLinear(torch.autograd.Function):
    """x [B, T, D] to LN(x) weight^T + bias, and x: the gradient of the latter is added in the backward kernel."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ln_weight: Tensor | None,
        ln_bias: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        cast = weight.to(dtype)
        out, mean, rstd = torch.ops.titn.layernorm_linear(x, ln_weight, ln_bias, cast, bias, eps)
        ctx.save_for_backward(x, mean, rstd, ln_weight, ln_bias, cast)
        ctx.set_materialize_grads(False)
        ctx.dtype = weight.dtype
        ctx.dtypes = [None if vector is None else vector.dtype for vector in (ln_weight, ln_bias, bias)]
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
        dgamma, dbeta, dbias = (
            None if dtype is None else part.to(dtype) for part, dtype in zip(parts, ctx.dtypes, strict=True)
        )
        return dx, dgamma, dbeta, dweight, dbias, None, None


class LinearResidual(torch.autograd.Function):
    """x [B, T, D] to x weight^T + bias + residual, residual [B, T, N] or None."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        ctx.dtype, ctx.bias_dtype = weight.dtype, None if bias is None else bias.dtype
        ctx.has_residual = residual is not None
        return torch.ops.titn.linear_residual(x, cast, bias, residual)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, cast = ctx.saved_tensors
        dx, dbias = torch.ops.titn.linear_residual_backward(dout, cast)
        dweight = weight_gradient(as_rows(dout).to(cast.dtype), as_rows(x)).to(ctx.dtype)
        return (
            dx,
            dweight,
            None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype),
            dout if ctx.has_residual else None,
        )


def _layernorm_linear(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from titn.kernels.outer_block import triton

    *parameters, eps = rest
    arguments: Any = (*contiguous(*parameters), eps)
    out, mean, rstd = triton.layernorm_linear(as_rows(x), *arguments)
    return out.view(*x.shape[:-1], out.shape[-1]), mean, rstd


def _layernorm_linear_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    weight, rows = rest[2], x.numel() // x.shape[-1]
    out = x.new_empty(*x.shape[:-1], weight.shape[0], dtype=weight.dtype)
    return out, x.new_empty(rows, dtype=torch.float32), x.new_empty(rows, dtype=torch.float32)


def _layernorm_linear_backward(
    dout: Tensor, dresidual: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor, *parameters: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    from titn.kernels.outer_block import triton

    incoming = None if dresidual is None else as_rows(dresidual)
    dx, normed, vectors = triton.layernorm_linear_backward(
        as_rows(dout), incoming, as_rows(x), mean, rstd, *contiguous(*parameters)
    )
    return dx.view(x.shape), normed, vectors


def _layernorm_linear_backward_fake(
    dout: Tensor, dresidual: Tensor | None, x: Tensor, mean: Tensor, rstd: Tensor, *parameters: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    weight = parameters[-1]
    assert weight is not None
    normed = x.new_empty(x.numel() // x.shape[-1], x.shape[-1], dtype=weight.dtype)
    vectors = x.new_empty(2 * x.shape[-1] + weight.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), normed, vectors


def _linear_residual(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    from titn.kernels.outer_block import triton

    added = None if residual is None else as_rows(residual)
    out = triton.linear_residual(as_rows(x), weight.contiguous(), None if bias is None else bias.contiguous(), added)
    return out.view(*x.shape[:-1], weight.shape[0])


def _linear_residual_fake(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    dtype = weight.dtype if residual is None else residual.dtype
    return x.new_empty(*x.shape[:-1], weight.shape[0], dtype=dtype)


def _linear_residual_backward(dout: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    from titn.kernels.outer_block import triton

    dx, dbias = triton.linear_residual_backward(as_rows(dout), weight.contiguous())
    return dx.view(*dout.shape[:-1], weight.shape[1]), dbias


def _linear_residual_backward_fake(dout: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    dx = dout.new_empty(*dout.shape[:-1], weight.shape[1], dtype=weight.dtype)
    return dx, dout.new_empty(weight.shape[0], dtype=torch.float32)


for _name, _function, _fake in (
    ("layernorm_linear", _layernorm_linear, _layernorm_linear_fake),
    ("layernorm_linear_backward", _layernorm_linear_backward, _layernorm_linear_backward_fake),
    ("linear_residual", _linear_residual, _linear_residual_fake),
    ("linear_residual_backward", _linear_residual_backward, _linear_residual_backward_fake),
):
    for _key in ("CUDA", "CPU") if interpreting() else ("CUDA",):
        _library.impl(_name, _function, _key)
    torch.library.register_fake(f"titn::{_name}", _fake, lib=_library)
