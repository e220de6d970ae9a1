"""Launches the attention kernels: which kernel and tile a shape takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from titn.kernels.common.device import interpreting, programs
from titn.kernels.short_attention.backward import (
    merged_backward,
    split_backward,
    split_backward_keys,
    split_backward_queries,
)
from titn.kernels.short_attention.forward import merged_forward, split_forward

PROGRAMS_PER_MULTIPROCESSOR = 8


@dataclass(frozen=True)
class Tile:
    """Shape of a tile for one operand shape.

    Attributes:
        merged: whether all heads of a token are one row or each is its own unit (forward.py).
        rows: padded tokens of a batch (T).
        query_rows: queries taken at once (TQ).
        columns: padded channels of a row (DP, or CP where merged).
        batches: batches of a tile (G).
        packed: units one after the other in a batch (PACK).
        warps: warps of a program: one a batch on the tensor cores, more for float32.
    """

    merged: bool
    rows: int
    query_rows: int
    columns: int
    batches: int
    packed: int
    warps: int


def _power_of_two(x: int, least: int = 1) -> int:
    return max(least, triton.next_power_of_2(x))


def choose_tile(length: int, heads: int, width: int, dtype: torch.dtype, mergeable: bool) -> Tile:
    """The tile for `heads` heads of `width` over `length` tokens; `mergeable`: the heads of a token are contiguous.

    Merged where it takes fewer instructions: several heads whose values and sums fit 16 columns. Float32 products run
    on the ordinary cores, where taking heads apart by products would cost more than it saves. Two batches of 128 x 64
    would take 104 KB of shared memory, more than the smallest GPUs have.
    """
    sums_fit = heads * _power_of_two(width + 1) <= 16
    merged = mergeable and heads > 1 and sums_fit and length <= 16 and dtype != torch.float32
    rows, columns = _power_of_two(length, 16), 16 if merged else _power_of_two(width, 16)
    batches = 1 if dtype == torch.float32 or rows * columns > 64 * 64 else 4 if rows <= 32 else 2
    packed = max(1, 16 // _power_of_two(length))
    if not merged:  # units of a tile must divide the heads or be a multiple of them
        while batches * packed % heads and heads % (batches * packed):
            packed, batches = (packed // 2, batches) if packed > 1 else (1, batches // 2)
    warps = batches if dtype != torch.float32 else 1 if rows <= 16 else 8
    return Tile(merged, rows, rows if rows <= 32 else 16, columns, batches, packed, warps)


def kernel_constants(tile: Tile, shape: torch.Size | tuple[int, ...], strides: tuple[int, ...]) -> dict[str, Any]:
    """Values of the kernels' constants for operands `[S, L, H, d]` of these strides; a kernel takes those it names."""
    _, length, heads, width = shape
    return {
        "L": length, "H": heads, "D": width, "SS": strides[0], "SL": strides[1], "SH": strides[2],
        "G": tile.batches, "PACK": tile.packed, "T": tile.rows, "TQ": tile.query_rows,
        "CP": tile.columns, "DP": _power_of_two(width + 1) if tile.merged else tile.columns,
        "FAST": not interpreting(),
    }  # fmt: skip


def launch_options(kernel: Any, tile: Tile) -> dict[str, int]:
    options = {"num_warps": tile.warps, "num_stages": 1}
    if kernel is split_backward_queries:
        options["maxnreg"] = 255  # left to itself the assembler aims at 168 registers here and spills a few
    return options


def _launch(kernel: Any, tile: Tile, constants: dict[str, Any], units: int, *arguments: Any, blocks: int = 1) -> None:
    """A grid on x whose programs loop over the tiles; `blocks`: pieces of a tile that are work of their own."""
    work = triton.cdiv(units, tile.batches * tile.packed) * blocks
    named = {name: constants[name] for name in kernel.arg_names if name in constants}
    grid = (programs(arguments[0], work, PROGRAMS_PER_MULTIPROCESSOR),)
    with torch.cuda.device_of(arguments[0]):
        kernel[grid](*arguments, **named, **launch_options(kernel, tile), enable_fp_fusion=True)


def _common_layout(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The `[S, L, H, d]` tensors with one set of strides and contiguous head dimensions; copies where they differ."""
    first = tensors[0].stride()
    if first[3] == 1 and all(t.stride() == first for t in tensors):
        return tensors
    return tuple(t.contiguous() for t in tensors)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The operator `short_attention`: of q, k, v `[S, L, H, d]`, any strides; the result is contiguous."""
    q, k, v = _common_layout(q, k, v)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if out.numel() == 0:
        return out
    tile, constants, units = _tiling(q)
    kernel = merged_forward if tile.merged else split_forward
    _launch(kernel, tile, constants, units, q, k, v, out, units, scale * math.log2(math.e))
    return out


def backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """The operator `short_attention_backward`: contiguous dq, dk, dv."""
    dq, dk, dv = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    _fill(grad, q, k, v, scale, dq, dk, dv)
    return dq, dk, dv


def packed_forward(qkv: Tensor, scale: float) -> Tensor:
    """The operator `short_attention_packed`, of qkv `[S, L, 3, H, d]`."""
    q, k, v = qkv.unbind(2)
    return forward(q, k, v, scale)


def packed_backward(grad: Tensor, qkv: Tensor, scale: float) -> Tensor:
    """The operator `short_attention_packed_backward`: one gradient `[S, L, 3, H, d]`."""
    gradient = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    (q, k, v), (dq, dk, dv) = qkv.unbind(2), gradient.unbind(2)
    _fill(grad, q, k, v, scale, dq, dk, dv)
    return gradient


def _tiling(q: Tensor) -> tuple[Tile, dict[str, Any], int]:
    """Tile, constants and number of units for operands laid out as q."""
    sequences, length, heads, width = q.shape
    tile = choose_tile(length, heads, width, q.dtype, mergeable=q.stride(2) == width)
    return tile, kernel_constants(tile, q.shape, q.stride()), sequences if tile.merged else sequences * heads


def _fill(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float, dq: Tensor, dk: Tensor, dv: Tensor) -> None:
    """Writes dq, dk, dv `[S, L, H, d]`, which have common strides and contiguous rows; the others have any strides."""
    if dq.numel() == 0:
        return
    grad = grad.contiguous()
    q, k, v = _common_layout(q, k, v)
    tile, constants, units = _tiling(q)
    constants |= {"RS": dq.stride(0), "RL": dq.stride(1)}
    scales = (units, scale * math.log2(math.e), scale)
    if tile.rows == tile.query_rows:
        kernel = merged_backward if tile.merged else split_backward
        _launch(kernel, tile, constants, units, grad, q, k, v, dq, dk, dv, *scales)
        return
    length = q.shape[1]
    stats = torch.empty((units, 2, length), dtype=torch.float32, device=q.device)
    _launch(split_backward_queries, tile, constants, units, grad, q, k, v, dq, stats, *scales)
    blocks = triton.cdiv(length, tile.query_rows)
    _launch(split_backward_keys, tile, constants, units, grad, q, k, v, dk, dv, stats, *scales, blocks=blocks)
