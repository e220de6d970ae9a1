"""The public `short_attention`: checks, the choice of backend, the operators and their gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import choose, installed, no_native_kernel, triton_reasons
from titn.kernels.common.device import FLOATS, autocast_dtype, interpreting, shared_memory
from titn.kernels.common.registration import register
from titn.kernels.short_attention import reference

MAX_TOKENS = 72
MAX_HEAD_DIMENSION = 64
LARGEST_FLOAT32 = 106_496
"""Bytes of shared memory of a program for float32, more than 64 tokens and heads wider than 32, as compiled: three
operands of 128 x 64 and two of 16 x 64. All other programs stay below 99 KB, the least of any GPU (test_limits.py)."""


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return torch.ops.titn.short_attention(q, k, v, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return (*torch.ops.titn.short_attention_backward(grad, *ctx.saved_tensors, ctx.scale), None)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(qkv)
        ctx.scale = scale
        return torch.ops.titn.short_attention_packed(qkv, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return torch.ops.titn.short_attention_packed_backward(grad, *ctx.saved_tensors, ctx.scale), None


def _triton_reasons(q: Tensor, length: int, scale: float, backend: str) -> list[str]:
    why = triton_reasons(q, backend)
    if scale <= 0:
        why.append(f"scale {scale}, the kernels take positive ones")
    return why or attention_limits(q, length, q.shape[-1], q.dtype)


def attention_limits(x: Tensor, length: int, width: int, dtype: torch.dtype) -> list[str]:
    """Why the kernels cannot attend among `length` tokens with heads of `width` channels in `dtype` on x's GPU."""
    why = []
    if not 1 <= length <= MAX_TOKENS:
        why.append(f"{length} tokens, the kernels take 1 to {MAX_TOKENS}")
    if not 1 <= width <= MAX_HEAD_DIMENSION:
        why.append(f"head dimension {width}, the kernels take 1 to {MAX_HEAD_DIMENSION}")
    if not why and not interpreting():
        why += _device_limits(dtype, length, width, shared_memory(x))
    return why


def _device_limits(dtype: torch.dtype, length: int, width: int, available: int) -> list[str]:
    """What the kernels could compute, as the interpreter does, but a GPU with `available` bytes cannot hold."""
    if dtype != torch.float32 or length <= 64 or width <= 32 or available >= LARGEST_FLOAT32:
        return []
    sizes = f"{length} tokens and head dimension {width} in float32"
    return [f"{sizes} take {LARGEST_FLOAT32} bytes of shared memory, the device has {available}: use 16-bit numbers"]


def _xformers_reasons(q: Tensor) -> list[str]:
    """Limits of memory-efficient attention: alignment of 16 bytes, and sequences on a grid axis of 65,535."""
    if not installed("xformers"):
        return ["the package xformers is not installed"]
    why = []
    if not q.is_cuda:
        why.append(f"the tensor is on {q.device.type}, memory-efficient attention needs a CUDA device")
    if q.dtype not in FLOATS:
        why.append(f"{q.dtype} is none of float32, float16, bfloat16")
    multiple = 16 // q.dtype.itemsize
    if q.shape[-1] % multiple:
        why.append(f"head dimension {q.shape[-1]} is no multiple of {multiple}")
    if q.shape[0] > 65535:
        why.append(f"{q.shape[0]} sequences, more than 65535")
    return why or _xformers_build_reasons()


@torch.compiler.assume_constant_result
def _xformers_build_reasons() -> list[str]:
    from xformers.ops.fmha import cutlass, flash

    if cutlass.FwOp.is_available() or flash.FwOp.is_available():
        return []
    return ["the installed xformers was built for another PyTorch, Python or CUDA"]


def _xformers(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q, k, v, scale=scale)


def _choose(q: Tensor, length: int, scale: float, backend: str) -> str:
    reasons: dict[str, Callable[[], list[str]]] = {
        "triton": lambda: _triton_reasons(q, length, scale, backend),
        "sdpa": list,
        "torch": list,
        "xformers": lambda: _xformers_reasons(q),
        "native": no_native_kernel,
    }
    order = tuple(reasons) if q.is_cuda else ("torch", "sdpa", "triton", "xformers", "native")
    return choose("short_attention", backend, {name: reasons[name] for name in order})


def _check(q: Tensor, k: Tensor | None, v: Tensor | None) -> None:
    if k is None and v is None:
        if q.dim() != 5 or q.shape[2] != 3:
            raise ValueError(f"short_attention: packed qkv must be [S, L, 3, H, d], not {list(q.shape)}")
    elif k is None or v is None:
        raise ValueError("short_attention: give q, k and v, or one packed tensor")
    elif q.dim() != 4 or k.shape != q.shape or v.shape != q.shape:
        shapes = f"{list(q.shape)}, {list(k.shape)}, {list(v.shape)}"
        raise ValueError(f"short_attention: q, k and v must have one shape [S, H, L, d], not {shapes}")
    elif k.dtype != q.dtype or v.dtype != q.dtype or k.device != q.device or v.device != q.device:
        raise ValueError("short_attention: q, k and v must have one dtype and device")
    if not q.is_floating_point():
        raise ValueError(f"short_attention: floating-point tensors are needed, not {q.dtype}")


def short_attention(
    q: Tensor, k: Tensor | None = None, v: Tensor | None = None, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Softmax attention within each of S short sequences, `softmax(scale q k^T) v`; the package states the mathematics.

    Args:
        q, k, v: `[S, H, L, d]`: S sequences, H heads, L tokens, head dimension d; one dtype, any strides.
            Or q alone: packed `[S, L, 3, H, d]`, what Linear(C, 3C) gives, viewed; backward then writes one gradient.
        scale: default `d ** -0.5`.
        backend: "auto", "torch", "sdpa", "xformers", "triton" or "native". "auto" takes the first that can run of
            triton, sdpa, torch on CUDA, and torch elsewhere: on two CPU cores, compiled, float32, forward and backward
            of 4096 x 16 x 3 x 4 heads take 18 ms against 31 ms with sdpa, of 256 x 18 x 24 x 8 heads 7 against 18 ms.

    Returns:
        `[S, H, L, d]`, or `[S, L, H, d]` for packed input; the dtype of q, or autocast's.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together, or the backend has no such name.
        BackendUnavailable: the backend cannot run on these tensors; the message says why.
    """
    _check(q, k, v)
    packed = k is None
    dtype = autocast_dtype(q.device.type)
    if dtype is not None and q.dtype != torch.float64:
        q, k, v = q.to(dtype), None if k is None else k.to(dtype), None if v is None else v.to(dtype)
    length = q.shape[1] if packed else q.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    chosen = _choose(q, length, scale, backend)
    if packed and chosen == "triton":
        return _PackedAttention.apply(q, scale)
    if k is None or v is None:
        query, key, value = q.unbind(2)
    else:
        query, key, value = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    if chosen == "triton":
        result = _Attention.apply(query, key, value, scale)
    elif chosen == "xformers":
        result = _xformers(query, key, value, scale)
    else:
        attention = reference.attention if chosen == "torch" else _sdpa
        result = attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), scale).transpose(1, 2)
    return result if packed else result.transpose(1, 2)


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, scale=scale)


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


_LAUNCH = "titn.kernels.short_attention.launch"
register(
    "short_attention(Tensor q, Tensor k, Tensor v, float scale) -> Tensor",
    f"{_LAUNCH}:forward",
    lambda q, k, v, scale: _like(q),
)
register(
    "short_attention_backward(Tensor grad, Tensor q, Tensor k, Tensor v, float scale) -> (Tensor, Tensor, Tensor)",
    f"{_LAUNCH}:backward",
    lambda grad, q, k, v, scale: (_like(q), _like(k), _like(v)),
)
register(
    "short_attention_packed(Tensor qkv, float scale) -> Tensor",
    f"{_LAUNCH}:packed_forward",
    lambda qkv, scale: _like(qkv.select(2, 0)),
)
register(
    "short_attention_packed_backward(Tensor grad, Tensor qkv, float scale) -> Tensor",
    f"{_LAUNCH}:packed_backward",
    lambda grad, qkv, scale: _like(qkv),
)
