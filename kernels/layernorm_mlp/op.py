"""The public `layernorm_mlp`, and the registration of its Triton backend with PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import autocast_dtype, choose, interpreting
from titn.kernels.common.wide import as_rows, contiguous, wide_reasons
from titn.kernels.layernorm_mlp.reference import layernorm_mlp_reference


def layernorm_mlp(
    x: Tensor,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    eps: float = 1e-5,
    residual: bool = True,
    backend: str = "auto",
) -> Tensor:
    """`x + fc2(gelu(fc1(LayerNorm(x))))`; the package states the mathematics.

    Args:
        x: [..., D], float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        ln_weight, ln_bias: [D] or None.
        fc1_weight, fc1_bias: [F, D] and [F] or None.
        fc2_weight, fc2_bias: [D, F] and [D] or None.
        eps: added to the variance.
        residual: whether x is added to the result.
        backend: "auto" (torch: the Triton kernels have not been timed yet), "triton", "torch" or "native".

    Returns:
        [..., D]. The Triton backend multiplies in autocast's dtype, else that of x, and returns x's dtype; without the
        residual, the dtype of the products. Gradients of the parameters come in the parameters' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    vectors = {"ln_weight": ln_weight, "ln_bias": ln_bias, "fc1_bias": fc1_bias, "fc2_bias": fc2_bias}
    _check(x, fc1_weight, fc2_weight, vectors)
    dtype = autocast_dtype(x.device.type) or x.dtype
    tensors = (x, fc1_weight, fc2_weight, *vectors.values())
    reasons = {
        "triton": lambda: wide_reasons(dtype, tensors, backend),
        "native": lambda: ["this version has no native kernel for it"],
        "torch": list,
    }
    if choose("layernorm_mlp", backend, reasons) == "torch":
        return layernorm_mlp_reference(
            x, ln_weight, ln_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps=eps, residual=residual
        )
    return _LayerNormMLP.apply(x, ln_weight, ln_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, residual, dtype)


def _check(x: Tensor, fc1_weight: Tensor, fc2_weight: Tensor, vectors: dict[str, Tensor | None]) -> None:
    if x.dim() < 1 or fc1_weight.dim() != 2:
        raise ValueError("layernorm_mlp: x must be [..., D] and fc1_weight [F, D]")
    width, hidden = x.shape[-1], fc1_weight.shape[0]
    expected: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "fc1_weight": (fc1_weight, (hidden, width)),
        "fc2_weight": (fc2_weight, (width, hidden)),
    }
    for vector, tensor in vectors.items():
        if tensor is not None:
            expected[vector] = (tensor, (hidden if vector == "fc1_bias" else width,))
    for parameter, (tensor, shape) in expected.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"layernorm_mlp: {parameter} must have shape {list(shape)}, not {list(tensor.shape)}")


class _LayerNormMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        ln_weight: Tensor | None,
        ln_bias: Tensor | None,
        fc1_weight: Tensor,
        fc1_bias: Tensor | None,
        fc2_weight: Tensor,
        fc2_bias: Tensor | None,
        eps: float,
        residual: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        w1, w2 = fc1_weight.to(dtype), fc2_weight.to(dtype)
        y, mean, rstd = torch.ops.titn.layernorm_mlp(x, ln_weight, ln_bias, w1, fc1_bias, w2, fc2_bias, eps, residual)
        ctx.save_for_backward(x, mean, rstd, ln_weight, ln_bias, w1, fc1_bias, w2)
        ctx.residual = residual
        vectors = (ln_weight, ln_bias, fc2_bias, fc1_bias)
        ctx.dtypes = (fc1_weight.dtype, fc2_weight.dtype, *(None if v is None else v.dtype for v in vectors))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        dx, dfc1, dfc2, vectors = torch.ops.titn.layernorm_mlp_backward(dy, *ctx.saved_tensors, ctx.residual)
        width = dfc2.shape[0]
        first, second, *dtypes = ctx.dtypes
        parts = vectors.split((width, width, width, dfc1.shape[0]))
        dgamma, dbeta, dbias2, dbias1 = (
            None if dtype is None else part.to(dtype) for part, dtype in zip(parts, dtypes, strict=True)
        )
        return dx, dgamma, dbeta, dfc1.to(first), dbias1, dfc2.to(second), dbias2, None, None, None


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from titn.kernels.layernorm_mlp import triton

    *parameters, eps, residual = rest
    arguments: Any = (*contiguous(*parameters), eps, residual)
    y, mean, rstd = triton.forward(as_rows(x), *arguments)
    return y.view(x.shape), mean, rstd


def _backward(dy: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from titn.kernels.layernorm_mlp import triton

    *parameters, residual = rest
    arguments: Any = (*contiguous(*parameters), residual)
    dx, dfc1, dfc2, vectors = triton.backward(as_rows(dy), as_rows(x), mean, rstd, *arguments)
    return dx.view(x.shape), dfc1, dfc2, vectors


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


_library = torch.library.Library("titn", "FRAGMENT")
_library.define(
    "layernorm_mlp(Tensor x, Tensor? ln_weight, Tensor? ln_bias, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, Tensor? fc2_bias, float eps, bool residual) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "layernorm_mlp_backward(Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor? ln_weight, Tensor? ln_bias, "
    "Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, bool residual) -> (Tensor, Tensor, Tensor, Tensor)"
)
for _key in ("CUDA", "CPU") if interpreting() else ("CUDA",):
    _library.impl("layernorm_mlp", _forward, _key)
    _library.impl("layernorm_mlp_backward", _backward, _key)
torch.library.register_fake("titn::layernorm_mlp", _forward_fake, lib=_library)
torch.library.register_fake("titn::layernorm_mlp_backward", _backward_fake, lib=_library)
