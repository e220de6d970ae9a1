"""The public `inner_block`, and the registration of its Triton backend with PyTorch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from titn.kernels.common.backend import autocast_dtype, choose, interpreting, triton_reasons
from titn.kernels.inner_block.innermost import GROUP, inner_block_innermost, innermost_group
from titn.kernels.inner_block.reference import inner_block_reference

LIBRARY = torch.library.Library("titn", "FRAGMENT")
PARAMETERS = (
    "Tensor? ln1_weight, Tensor? ln1_bias, Tensor qkv_weight, Tensor? qkv_bias, Tensor proj_weight, Tensor? proj_bias, "
    "Tensor? ln2_weight, Tensor? ln2_bias, Tensor fc1_weight, Tensor? fc1_bias, Tensor fc2_weight, Tensor? fc2_bias"
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LARGEST_LENGTH = 64
LARGEST_CHANNELS = 63
LARGEST_HEAD = 31


def inner_block(
    x: Tensor,
    ln1_weight: Tensor | None,
    ln1_bias: Tensor | None,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    proj_weight: Tensor,
    proj_bias: Tensor | None,
    ln2_weight: Tensor | None,
    ln2_bias: Tensor | None,
    fc1_weight: Tensor,
    fc1_bias: Tensor | None,
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    *,
    num_heads: int,
    eps: float = 1e-5,
    backend: str = "auto",
) -> Tensor:
    """Pre-norm attention and MLP, each with its residual, on many short sequences (see the package's docstring).

    Args:
        x: [S, L, C], float32, float16 or bfloat16 (backend "torch": any floating dtype), any strides.
        ln1_weight, ln1_bias, ln2_weight, ln2_bias: [C] or None.
        qkv_weight, qkv_bias: [3 C, C] and [3 C] or None; rows q, k, v, each head by head.
        proj_weight, proj_bias: [C, C] and [C] or None.
        fc1_weight, fc1_bias: [F, C] and [F] or None.
        fc2_weight, fc2_bias: [C, F] and [C] or None.
        num_heads: divides C.
        eps: added to the variance in both LayerNorms.
        backend: "auto" (the first that can run), "triton", "torch" or "native".

    Returns:
        [S, L, C] in the dtype of x; under autocast the Triton backend computes in and returns autocast's dtype.
        Gradients of the parameters come in the parameters' dtypes.

    Raises:
        ValueError: shapes that do not fit, or an unknown backend.
        BackendUnavailable: the backend asked for cannot run on these inputs; the message says why.
    """
    parameters = (
        ln1_weight, ln1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
        ln2_weight, ln2_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
    )  # fmt: skip
    _check_shapes(x, parameters, num_heads)
    device = x.device.type
    dtype = autocast_dtype(device) or x.dtype
    reasons = {
        "triton": lambda: _triton_reasons(x, dtype, parameters, num_heads, backend),
        "native": lambda: ["the native library is not built"],
        "torch": list,
    }
    if choose("inner_block", backend, reasons) == "torch":
        compiled = device == "cpu" and dtype == torch.bfloat16 and torch.compiler.is_compiling()
        form = inner_block_innermost if compiled and innermost_group(x.shape[0]) == GROUP else inner_block_reference
        return form(x, *parameters, num_heads=num_heads, eps=eps)
    return _InnerBlock.apply(x.to(dtype).contiguous(), num_heads, eps, *parameters)


def _check_shapes(x: Tensor, parameters: tuple[Tensor | None, ...], num_heads: int) -> None:
    if x.dim() != 3:
        raise ValueError(f"inner_block: x must be [S, L, C], not of {x.dim()} dimensions")
    c = x.shape[2]
    if num_heads < 1 or c % num_heads:
        raise ValueError(f"inner_block: {num_heads} heads do not divide {c} channels")
    fc1_weight = parameters[8]
    f = fc1_weight.shape[0] if fc1_weight is not None else 0
    shapes = ((c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (f, c), (f,), (c, f), (c,))
    for name, parameter, shape in zip(_NAMES, parameters, shapes, strict=True):
        if parameter is not None and tuple(parameter.shape) != shape:
            raise ValueError(f"inner_block: {name} must have shape {list(shape)}, not {list(parameter.shape)}")


_NAMES = [argument.split()[-1] for argument in PARAMETERS.split(", ")]


def _triton_reasons(
    x: Tensor, dtype: torch.dtype, parameters: tuple[Tensor | None, ...], num_heads: int, requested: str
) -> list[str]:
    reasons = triton_reasons(x, requested)
    if interpreting() and requested == "triton" and dtype == torch.bfloat16 != x.dtype:
        reasons.append("the interpreter computes wrong bfloat16 results")
    _, length, channels = x.shape
    if requested == "auto" and dtype == torch.float32:
        reasons.append("float32 products spill registers: use bfloat16 or float16, or ask for Triton by name")
    if dtype not in DTYPES:
        reasons.append(f"{dtype} is none of float32, float16, bfloat16")
    if not 1 <= length <= LARGEST_LENGTH:
        reasons.append(f"sequences of {length} are not within 1 to {LARGEST_LENGTH}")
    if channels > LARGEST_CHANNELS:
        reasons.append(f"{channels} channels are more than {LARGEST_CHANNELS}")
    if channels // num_heads > LARGEST_HEAD:
        reasons.append(f"heads of width {channels // num_heads} are wider than {LARGEST_HEAD}")
    present = [p for p in parameters if p is not None]
    if any(p.dtype not in DTYPES for p in present):
        reasons.append("a parameter is none of float32, float16, bfloat16")
    if any(p.device != x.device for p in present):
        reasons.append("x and the parameters are on different devices")
    return reasons


class _InnerBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, num_heads: int, eps: float, *parameters: Tensor | None) -> Tensor:
        y, mid, packed = torch.ops.titn.inner_block_forward(x, *parameters, num_heads, eps)
        ctx.save_for_backward(x, mid, packed, *parameters)
        ctx.num_heads, ctx.eps = num_heads, eps
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mid, packed, *parameters = ctx.saved_tensors
        dx, *found = torch.ops.titn.inner_block_backward(dy, x, mid, packed, *parameters, ctx.num_heads, ctx.eps)
        gradients = iter(found)
        return dx, None, None, *(None if p is None else next(gradients) for p in parameters)


def _forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from titn.kernels.inner_block import triton

    *parameters, num_heads, eps = rest
    return triton.forward(x.contiguous(), _contiguous(parameters), num_heads, eps)


def _backward(dy: Tensor, x: Tensor, mid: Tensor, packed: Tensor, *rest: Any) -> list[Tensor]:
    from titn.kernels.inner_block import triton

    *parameters, num_heads, eps = rest
    dx, gradients = triton.backward(dy, x.contiguous(), mid, packed, _contiguous(parameters), num_heads, eps)
    return [dx, *(g for g in gradients if g is not None)]


def _forward_fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    from titn.kernels.inner_block import triton

    *parameters, num_heads, _ = rest
    rows, columns = triton.geometry(x, parameters[8], num_heads).packed_shape
    return _empty_like(x), _empty_like(x), x.new_empty(rows, columns)


def _backward_fake(dy: Tensor, x: Tensor, mid: Tensor, packed: Tensor, *rest: Any) -> list[Tensor]:
    *parameters, _, _ = rest
    return [_empty_like(x), *(_empty_like(p) for p in parameters if p is not None)]


def _empty_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _contiguous(parameters: list[Tensor | None]) -> list[Tensor | None]:
    return [None if p is None else p.contiguous() for p in parameters]


def _register() -> None:
    LIBRARY.define(f"inner_block_forward(Tensor x, {PARAMETERS}, int num_heads, float eps) -> (Tensor, Tensor, Tensor)")
    LIBRARY.define(
        "inner_block_backward(Tensor dy, Tensor x, Tensor mid, Tensor packed, "
        f"{PARAMETERS}, int num_heads, float eps) -> Tensor[]"
    )
    devices = ["CUDA", "CPU"] if interpreting() else ["CUDA"]
    for name, function, fake in (
        ("inner_block_forward", _forward, _forward_fake),
        ("inner_block_backward", _backward, _backward_fake),
    ):
        for device in devices:
            LIBRARY.impl(name, function, device)
        torch.library.register_fake(f"titn::{name}", fake, lib=LIBRARY)


_register()
