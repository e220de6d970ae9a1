"""The public `class_heads`, its operators and their gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.class_heads.reference import class_heads_reference
from titn.kernels.common.backend import choose, no_native_kernel
from titn.kernels.common.device import autocast_dtype
from titn.kernels.common.registration import register
from titn.kernels.common.weights import cast, check_shapes, dtype_of, in_dtype
from titn.kernels.common.wide import wide_reasons


class HeadWeights(NamedTuple):
    """LayerNorm and linear layer of a head of K classes on D channels.

    Attributes:
        norm_weight, norm_bias: [D] or None.
        weight, bias: [K, D] and [K] or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    weight: Tensor
    bias: Tensor | None


def class_heads(
    x: Tensor,
    heads: tuple[HeadWeights, HeadWeights],
    *,
    pooled: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Logits of the class head and of the distillation head; the package states the mathematics.

    Args:
        x: [B, T, D], T at least 2, float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        heads: weights of the class head and of the distillation head, for as many classes.
        pooled: P, how many tokens the class head averages, 1 to T - 1.
        eps: added to the variance; in Triton at least 2^-126, so that rows without variance stay numbers.
        backend: "auto" (torch: the Triton kernels have not been timed yet), "triton", "torch" or "native".

    Returns:
        Two [B, K] in the dtype of the products: autocast's, else that of x. Gradients of the weights come in the
        weights' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    if x.dim() != 3 or x.shape[1] < 2:
        raise ValueError(f"class_heads: x must be [B, T, D] with T at least 2, not {list(x.shape)}")
    if not 1 <= pooled < x.shape[1]:
        raise ValueError(f"class_heads: {pooled} pooled tokens are not within 1 to {x.shape[1] - 1}")
    classes, width = heads[0].weight.shape[0], x.shape[2]
    for name, head in zip(("class", "distillation"), heads, strict=True):
        shapes = ((width,), (width,), (classes, width), (classes,))
        check_shapes(f"class_heads, {name} head", head._fields, head, shapes)
    dtype = autocast_dtype(x.device.type) or x.dtype
    reasons = {
        "triton": lambda: wide_reasons(x, backend, *heads[0], *heads[1], dtype=dtype),
        "native": no_native_kernel,
        "torch": list,
    }
    if choose("class_heads", backend, reasons) == "torch":
        return class_heads_reference(x, heads, pooled=pooled, eps=eps)
    first, second = _ClassHeads.apply(x, pooled, eps, dtype, *heads[0], *heads[1])
    return first, second


class _ClassHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, pooled: int, eps: float, dtype: torch.dtype, *weights: Any
    ) -> tuple[Tensor, Tensor]:
        w = [in_dtype(each, dtype) if i in (2, 6) else each for i, each in enumerate(weights)]
        out, other, features, statistics = torch.ops.titn.class_heads(x, *w, pooled, eps)
        ctx.save_for_backward(x, features, statistics, *w[:3], *w[4:7])
        ctx.pooled = pooled
        ctx.dtypes = [dtype_of(each) for each in weights]
        return out, other

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor, other_dout: Tensor) -> tuple[Tensor | None, ...]:
        dx, dweight, other_dweight, vectors = torch.ops.titn.class_heads_backward(
            dout, other_dout, *ctx.saved_tensors, ctx.pooled
        )
        classes, width = dweight.shape
        gradients: list[Tensor] = []
        for matrix, row in zip((dweight, other_dweight), vectors.unbind(), strict=True):
            gamma, beta, bias = row.split((width, width, classes))
            gradients += [gamma, beta, matrix, bias]
        return dx, None, None, None, *(cast(g, dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    images, _, width = x.shape
    weight = rest[2]
    out, other = (x.new_empty(images, weight.shape[0], dtype=weight.dtype) for _ in range(2))
    wide = torch.float32
    return out, other, x.new_empty(2, images, width, dtype=wide), x.new_empty(4, images, dtype=wide)


def _backward_fake(dout: Tensor, other_dout: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    weight, width = rest[4], x.shape[2]
    first, second = (x.new_empty(weight.shape, dtype=torch.float32) for _ in range(2))
    vectors = x.new_empty(2, 2 * width + weight.shape[0], dtype=torch.float32)
    return x.new_empty(x.shape), first, second, vectors


_LAUNCH = "titn.kernels.class_heads.launch"
register(
    "class_heads(Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? bias, "
    "Tensor? other_norm_weight, Tensor? other_norm_bias, Tensor other_weight, Tensor? other_bias, int pooled, "
    "float eps) -> (Tensor, Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:forward",
    _forward_fake,
)
register(
    "class_heads_backward(Tensor dout, Tensor other_dout, Tensor x, Tensor features, Tensor statistics, "
    "Tensor? norm_weight, Tensor? norm_bias, Tensor weight, Tensor? other_norm_weight, Tensor? other_norm_bias, "
    "Tensor other_weight, int pooled) -> (Tensor, Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:backward",
    _backward_fake,
)
