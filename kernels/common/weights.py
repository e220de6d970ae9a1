"""The weights of a Transformer block's two halves. The norms and biases may be absent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

_casts: dict[int, tuple[Tensor, Tensor]] = {}
"""Weights and their casts from `cast_at_once`, by the weights' identity."""


class AttentionWeights(NamedTuple):
    """LayerNorm, q/k/v and projection of a stream of D channels.

    Attributes:
        norm_weight, norm_bias: [D] or None.
        qkv_weight, qkv_bias: [3 D, D] and [3 D] or None; rows q, k, v, each head by head.
        proj_weight, proj_bias: [D, D] and [D] or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    qkv_weight: Tensor
    qkv_bias: Tensor | None
    proj_weight: Tensor
    proj_bias: Tensor | None

    def check(self, operation: str, width: int, heads: int) -> None:
        """ValueError, in the name of `operation`, where a shape does not fit `width` channels in `heads` heads."""
        if heads < 1 or width % heads:
            raise ValueError(f"{operation}: {heads} heads do not divide {width} channels")
        d = width
        check_shapes(operation, self._fields, self, ((d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,)))


class MlpWeights(NamedTuple):
    """LayerNorm and the two linear layers of an MLP of F hidden columns on D channels.

    Attributes:
        norm_weight, norm_bias: [D] or None.
        fc1_weight, fc1_bias: [F, D] and [F] or None.
        fc2_weight, fc2_bias: [D, F] and [D] or None.
    """

    norm_weight: Tensor | None
    norm_bias: Tensor | None
    fc1_weight: Tensor
    fc1_bias: Tensor | None
    fc2_weight: Tensor
    fc2_bias: Tensor | None

    def check(self, operation: str, width: int) -> None:
        """ValueError, in the name of `operation`, where a shape does not fit `width` channels."""
        if self.fc1_weight.dim() != 2:
            raise ValueError(f"{operation}: fc1_weight must be [F, D], not {list(self.fc1_weight.shape)}")
        d, f = width, self.fc1_weight.shape[0]
        check_shapes(operation, self._fields, self, ((d,), (d,), (f, d), (f,), (d, f), (d,)))


def check_shapes(
    operation: str, names: Sequence[str], tensors: Sequence[Tensor | None], shapes: Sequence[tuple[int, ...]]
) -> None:
    """ValueError where a tensor that is present has another shape than its own of `shapes`."""
    for name, tensor, shape in zip(names, tensors, shapes, strict=True):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{operation}: {name} must have shape {list(shape)}, not {list(tensor.shape)}")


def contiguous(*tensors: Tensor | None) -> list[Any]:
    """The tensors made contiguous; absent ones stay None."""
    return [None if t is None else t.contiguous() for t in tensors]


def dtype_of(tensor: Tensor | None) -> torch.dtype | None:
    """None for an absent tensor."""
    return None if tensor is None else tensor.dtype


def cast(gradient: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    """A gradient in its parameter's dtype; None where the parameter is absent."""
    return None if dtype is None else gradient.to(dtype)


@contextmanager
def cast_at_once(weights: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Within, the operations find these weights cast to `dtype` already: all in one launch, not each in its own.

    For eager code and captures; what torch.compile traces casts for itself.
    """
    casts = [torch.empty_like(weight, dtype=dtype, requires_grad=False) for weight in weights]
    if casts:
        with torch.no_grad():
            torch._foreach_copy_(casts, list(weights))
    _casts.update((id(weight), (weight, cast)) for weight, cast in zip(weights, casts, strict=True))
    try:
        yield
    finally:
        _casts.clear()


def in_dtype(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight in the dtype of a product."""
    if _casts and id(weight) in _casts and _casts[id(weight)][1].dtype == dtype:
        return _casts[id(weight)][1]
    return weight.to(dtype)
