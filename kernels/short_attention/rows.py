# mypy: disable-error-code="no-untyped-def"
"""What the attention kernels share: where the rows of a tile lie, which belong together, and the scores.

A unit is one sequence, or one head of one sequence. A tile holds U = G * PACK units: G batches (one a warp) of T rows,
PACK units of L tokens one after the other in each. U divides the number of heads or is a multiple of it, so that the
place of a row is a scalar of the tile plus a constant.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import product0


@triton.jit
def unit_and_token(L: tl.constexpr, T: tl.constexpr, G: tl.constexpr, PACK: tl.constexpr):
    """Unit within the tile and token of every row, `[G, T]` each; the token is L or more in rows that hold none."""
    row = tl.arange(0, T)[None, :] + tl.zeros((G, 1), tl.int32)
    batch = tl.arange(0, G)[:, None] * PACK + tl.zeros((1, T), tl.int32)
    if PACK == 1:
        return batch, row
    return batch + tl.minimum(row // L, PACK - 1), tl.where(row < PACK * L, row % L, L)


@triton.jit
def tile_start(tile, H: tl.constexpr, U: tl.constexpr, SS: tl.constexpr, SH: tl.constexpr):
    """Offset of the first unit of `tile` (64 bits) for strides SS of a sequence and SH of a head."""
    wide = tl.full((), 0, tl.int64) + tile
    if U % H == 0:
        return wide * (U // H * SS)
    return wide // (H // U) * SS + wide % (H // U) * (U * SH)


@triton.jit
def row_offset(
    unit, token, H: tl.constexpr, U: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr, SH: tl.constexpr
):  # fmt: skip
    """Offset of rows from the start of their tile, 32 bits."""
    if U % H == 0:
        return unit // H * SS + unit % H * SH + token * SL
    return unit * SH + token * SL


@triton.jit
def scores(queries, keys, L: tl.constexpr, PACK: tl.constexpr):
    """Products `[G, TQ, T]` of queries `[G, TQ, DP]` and keys `[G, DP, T]`; -inf where the units differ."""
    s = product0(queries, keys)
    T: tl.constexpr = s.shape[2]
    if PACK > 1:
        row, column = tl.arange(0, s.shape[1]) // L, tl.arange(0, T) // L
        s = tl.where((row[:, None] == column[None, :])[None], s, float("-inf"))
    elif L < T:
        s = tl.where((tl.arange(0, T) < L)[None, None, :], s, float("-inf"))
    return s


@triton.jit
def reciprocal(x):
    """1 / x of x in [1, 2^100] as the square of a reciprocal root: two instructions where a division takes five."""
    r = tl.rsqrt(x)
    return r * r
