"""Launches the inner block's CUDA C++ kernels (csrc/inner_block.cu), one warp to a sequence, of one shape alone.

Packed weights and sums of gradients are those of the Triton backend, whose kernels make and take them (packing.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from titn.kernels.common import nvrtc
from titn.kernels.common.backend import triton_reasons
from titn.kernels.common.device import positive, programs, resident
from titn.kernels.common.weights import MlpWeights, contiguous

SOURCE = "inner_block.cu"
SHAPE = (16, 12, 4, 48)
"""Tokens, channels, heads, hidden columns."""
WARPS = 4
SUM_ROWS = {"mlp_backward": 112, "attention_backward": 64}
MOST_SEQUENCES = 2**32 // (16 * 12)
"""Elements are numbered in 32 bits."""


def reasons(
    x: Tensor, dtype: torch.dtype, weights: tuple[Tensor | None, ...], num_heads: int, requested: str
) -> list[str]:
    """Why these kernels cannot run, or are not taken unasked."""
    if requested == "auto":
        return ["it has never been timed on a GPU: ask for it by name"]
    if not x.is_cuda:
        return [f"the tensor is on {x.device.type}, CUDA kernels need a CUDA device"]
    found = triton_reasons(x, requested, *weights, dtype=dtype) + nvrtc.nvrtc_reasons()
    if dtype != torch.bfloat16:
        found.append(f"it stores bfloat16 tokens, not {dtype}")
    fc1 = weights[8]
    assert fc1 is not None
    shape = (x.shape[1], x.shape[2], num_heads, fc1.shape[0])
    if shape != SHAPE:
        wanted, given = (f"{t} tokens of {c} channels in {h} heads with {f} hidden" for t, c, h, f in (SHAPE, shape))
        found.append(f"it is made for {wanted}, not {given}")
    if x.shape[0] > MOST_SEQUENCES:
        found.append(f"{x.shape[0]} sequences are more than {MOST_SEQUENCES}")
    return found


def forward(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `inner_block_cuda`: y, the middle residual and the packed weights from x [S, 16, 12].

    rest: the twelve weights; num_heads; eps.
    """
    from titn.kernels.inner_block import launch

    *given, num_heads, eps = rest
    x, weights = aligned(x), contiguous(*given)
    g = launch.geometry(x, MlpWeights(*weights[6:]), num_heads)
    mid, y = torch.empty_like(x), torch.empty_like(x)
    bias = None if weights[11] is None else weights[11].float()
    with torch.cuda.device_of(x):
        packed = launch.pack(x, weights, g)
        run("forward", x, (x, mid, y, packed, bias), positive(eps))
    return y, mid, packed


def backward(dy: Tensor, x: Tensor, mid: Tensor, packed: Tensor, *rest: Any) -> list[Tensor]:
    """The operator `inner_block_cuda_backward`: gradients of x and of every weight that is there, in their dtypes.

    rest: the twelve weights; num_heads; eps.
    """
    from titn.kernels.inner_block import launch

    *given, num_heads, eps = rest
    x, dy, weights, eps = aligned(x), aligned(dy), contiguous(*given), positive(eps)
    g = launch.geometry(x, MlpWeights(*weights[6:]), num_heads)
    dx, dmid = torch.empty_like(x), torch.empty_like(x)
    with torch.cuda.device_of(x):
        mlp_sums = run("mlp_backward", x, (mid, dy, dmid, packed), eps)
        attention_sums = run("attention_backward", x, (x, dmid, dx, packed), eps)
        return [dx, *launch.unpack(attention_sums, mlp_sums, weights, g)]


def aligned(tokens: Tensor) -> Tensor:
    """Contiguous, from an address on that is a multiple of 4 bytes: the kernels read two numbers at a time."""
    tokens = tokens.contiguous()
    return tokens.clone() if tokens.data_ptr() % 4 else tokens


def run(name: str, x: Tensor, tensors: tuple[Tensor | None, ...], eps: float) -> Tensor:
    """Launches a kernel for the sequences of x; the sums of a backward's programs, [programs, 16, rows] float32."""
    kernel = nvrtc.kernel(SOURCE, f"titn_inner_{name}", x.device)
    held = resident(kernel.registers, kernel.shared, WARPS, x.device)
    count = programs(x, -(-x.shape[0] // WARPS), held)
    sums = x.new_empty(count, 16, SUM_ROWS.get(name, 0), dtype=torch.float32)
    outputs = (sums,) if name in SUM_ROWS else ()
    nvrtc.launch(kernel, count, 32 * WARPS, *tensors, *outputs, x.shape[0], eps)
    return sums
