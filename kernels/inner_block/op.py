"""The public `inner_block`, its operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from titn.kernels.common.backend import choose, triton_reasons
from titn.kernels.common.device import autocast_dtype, interpreting, shared_memory
from titn.kernels.common.native import native_reasons
from titn.kernels.common.registration import register
from titn.kernels.common.weights import AttentionWeights, MlpWeights
from titn.kernels.inner_block import cuda, native
from titn.kernels.inner_block.reference import GROUP, inner_block_innermost, inner_block_reference

LARGEST_LENGTH = 64
LARGEST_CHANNELS = 63
LARGEST_HEAD = 31
SHORT = 16
NARROW = {torch.float32: 15, torch.float16: 31, torch.bfloat16: 31}
"""Channels up to which longer sequences than SHORT fit a GPU; in float32 the limit of both."""


def inner_block(
    x: Tensor,
    attention: AttentionWeights,
    mlp: MlpWeights,
    *,
    num_heads: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Pre-norm attention and MLP, each with its residual, on many short sequences (see the package's docstring).

    Args:
        x: [S, L, C], float32, float16 or bfloat16 (backend "native": float32 or bfloat16; "cuda": bfloat16; "torch":
            any floating dtype), any strides.
        attention, mlp: weights of C channels, and any hidden width.
        num_heads: divides C.
        eps: added to the variance in both LayerNorms; except in torch at least 2^-126, so that no row divides 0 by 0.
        backend: "auto" (the first that can run, "cuda" apart), "triton", "cuda", "native" or "torch".

    Returns:
        [S, L, C] in the dtype of x; under autocast the others than torch store tokens in and return autocast's dtype.
        Gradients of the weights come in the weights' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    if x.dim() != 3:
        raise ValueError(f"inner_block: x must be [S, L, C], not of {x.dim()} dimensions")
    attention.check("inner_block", x.shape[2], num_heads)
    mlp.check("inner_block", x.shape[2])
    dtype, weights = autocast_dtype(x.device.type) or x.dtype, (*attention, *mlp)
    reasons = {
        "triton": lambda: _triton_reasons(x, dtype, weights, num_heads, backend),
        "cuda": lambda: cuda.reasons(x, dtype, weights, num_heads, backend),
        "native": lambda: native_reasons(x, *weights, dtype=dtype) + native.limits(x.shape[1], x.shape[2], backend),
        "torch": list,
    }
    chosen = choose("inner_block", backend, reasons)
    if chosen == "torch":
        form = inner_block_innermost if _innermost_is_faster(x, dtype) else inner_block_reference
        return form(x, attention, mlp, num_heads=num_heads, eps=eps)
    x = x.to(dtype).contiguous()
    if chosen in ("triton", "cuda"):
        return _InnerBlock.apply(x, num_heads, eps, chosen == "cuda", *weights)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *weights)):
        return _NativeInnerBlock.apply(x, num_heads, eps, *weights)
    y, _ = torch.ops.titn.inner_block_native(x, *weights, num_heads, eps, False)
    return y


def _innermost_is_faster(x: Tensor, dtype: torch.dtype) -> bool:
    """In bfloat16 on a compiled CPU; an exported program keeps its number of sequences free."""
    if x.device.type != "cpu" or dtype != torch.bfloat16 or not torch.compiler.is_compiling():
        return False
    return not torch.compiler.is_exporting() and x.shape[0] % GROUP == 0


def _triton_reasons(
    x: Tensor, dtype: torch.dtype, weights: tuple[Tensor | None, ...], num_heads: int, requested: str
) -> list[str]:
    reasons = triton_reasons(x, requested, *weights, dtype=dtype)
    _, length, channels = x.shape
    if requested == "auto" and dtype == torch.float32:
        reasons.append("float32 products spill registers: use bfloat16 or float16, or ask for Triton by name")
    if not 1 <= length <= LARGEST_LENGTH:
        reasons.append(f"sequences of {length} are not within 1 to {LARGEST_LENGTH}")
    if channels > LARGEST_CHANNELS:
        reasons.append(f"{channels} channels are more than {LARGEST_CHANNELS}")
    if not interpreting():
        reasons += _device_limits(dtype, length, channels)
        if not reasons and channels > NARROW[dtype]:
            reasons += _memory_limits(channels, num_heads, shared_memory(x))
    if channels // num_heads > LARGEST_HEAD:
        reasons.append(f"heads of width {channels // num_heads} are wider than {LARGEST_HEAD}")
    return reasons


def _device_limits(dtype: torch.dtype, length: int, channels: int) -> list[str]:
    """What the kernels could compute, as the interpreter does, but no GPU could hold."""
    narrow = NARROW.get(dtype, 0)
    if dtype == torch.float32 and (length > SHORT or channels > narrow):
        return [f"in float32 no more than {SHORT} tokens of {narrow} channels fit a GPU: use bfloat16 or float16"]
    if length > SHORT and channels > narrow:
        return [f"sequences of more than {SHORT} tokens fit a GPU up to {narrow} channels, not {channels}"]
    return []


def _memory_limits(channels: int, num_heads: int, available: int) -> list[str]:
    """What a GPU with `available` bytes of shared memory cannot hold of blocks wider than NARROW.

    Their attention_backward_wide takes 68 KB and 8 KB for each of the heads that share a slice, as compiled. Heads of
    16 channels and more have a slice each and take 88 KB, which every GPU has.
    """
    width = channels // num_heads
    need = 69_632 + 8_192 * min(num_heads, (max(16, 1 << width.bit_length()) - 1) // width)
    if need <= available:
        return []
    sizes = f"{channels} channels in {num_heads} heads"
    return [f"{sizes} take {need} bytes of shared memory, the device has {available}: use fewer heads"]


class _InnerBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_heads: int, eps: float, cuda: bool, *weights: Tensor | None) -> Tensor:
        run = torch.ops.titn.inner_block_cuda if cuda else torch.ops.titn.inner_block_forward
        y, mid, packed = run(x, *weights, num_heads, eps)
        ctx.save_for_backward(x, mid, packed, *weights)
        ctx.num_heads, ctx.eps, ctx.cuda = num_heads, eps, cuda
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mid, packed, *weights = ctx.saved_tensors
        run = torch.ops.titn.inner_block_cuda_backward if ctx.cuda else torch.ops.titn.inner_block_backward
        dx, *found = run(dy, x, mid, packed, *weights, ctx.num_heads, ctx.eps)
        gradients = iter(found)
        return dx, None, None, None, *(None if w is None else next(gradients) for w in weights)


class _NativeInnerBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_heads: int, eps: float, *weights: Tensor | None) -> Tensor:
        y, mid = torch.ops.titn.inner_block_native(x, *weights, num_heads, eps, True)
        ctx.save_for_backward(x, mid, *weights)
        ctx.num_heads, ctx.eps = num_heads, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mid, *weights = ctx.saved_tensors
        dx, *found = torch.ops.titn.inner_block_native_backward(dy, x, mid, *weights, ctx.num_heads, ctx.eps)
        gradients = iter(found)
        return dx, None, None, *(None if w is None else next(gradients) for w in weights)


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from titn.kernels.inner_block import launch

    *weights, num_heads, _ = rest
    return _empty(x), _empty(x), x.new_empty(launch.geometry(x, MlpWeights(*weights[6:]), num_heads).packed_shape)


def _backward_fake(dy: Tensor, x: Tensor, mid: Tensor, packed: Tensor, *rest: Any) -> list[Tensor]:
    *weights, _, _ = rest
    return [_empty(x), *(_empty(w) for w in weights if w is not None)]


def _native_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return _empty(x), _empty(x) if rest[-1] else x.new_empty(0)


def _native_backward_fake(dy: Tensor, x: Tensor, mid: Tensor, *rest: Any) -> list[Tensor]:
    return _backward_fake(dy, x, mid, mid, *rest)


def _empty(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_WEIGHTS = (
    "Tensor? norm1_weight, Tensor? norm1_bias, Tensor qkv_weight, Tensor? qkv_bias, Tensor proj_weight, "
    "Tensor? proj_bias, Tensor? norm2_weight, Tensor? norm2_bias, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, Tensor? fc2_bias"
)
_FORWARD = f"(Tensor x, {_WEIGHTS}, int num_heads, float eps) -> (Tensor, Tensor, Tensor)"
_BACKWARD = f"(Tensor dy, Tensor x, Tensor mid, Tensor packed, {_WEIGHTS}, int num_heads, float eps) -> Tensor[]"
_LAUNCH, _CUDA = "titn.kernels.inner_block.launch", "titn.kernels.inner_block.cuda"
register(f"inner_block_forward{_FORWARD}", f"{_LAUNCH}:forward", _forward_fake)
register(f"inner_block_backward{_BACKWARD}", f"{_LAUNCH}:backward", _backward_fake)
register(f"inner_block_cuda{_FORWARD}", f"{_CUDA}:forward", _forward_fake)
register(f"inner_block_cuda_backward{_BACKWARD}", f"{_CUDA}:backward", _backward_fake)
_NATIVE = "titn.kernels.inner_block.native"
register(
    f"inner_block_native(Tensor x, {_WEIGHTS}, int num_heads, float eps, bool keep) -> (Tensor, Tensor)",
    f"{_NATIVE}:forward",
    _native_fake,
    native=True,
)
register(
    f"inner_block_native_backward(Tensor dy, Tensor x, Tensor mid, {_WEIGHTS}, int num_heads, float eps) -> Tensor[]",
    f"{_NATIVE}:backward",
    _native_backward_fake,
    native=True,
)


def product_operations(x: tuple[int, ...], *weights: tuple[int, ...] | None) -> int:
    """Operations of a forward's products on x [S, L, C], two a multiply-accumulate, from shapes alone."""
    fc1 = weights[8]
    assert fc1 is not None
    sequences, length, channels = x
    return 2 * sequences * length * channels * (4 * channels + 2 * fc1[0] + 2 * length)


@register_flop_formula(torch.ops.titn.inner_block_native)
def _forward_operations(x: Any, *rest: Any, **_: Any) -> int:
    return product_operations(x, *rest)


@register_flop_formula(torch.ops.titn.inner_block_native_backward)
def _backward_operations(dy: Any, x: Any, mid: Any, *rest: Any, **_: Any) -> int:
    return 2 * product_operations(x, *rest)
