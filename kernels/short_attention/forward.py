# mypy: disable-error-code="no-untyped-def"
"""The forward kernels, and what the attention kernels share: where rows lie, which belong together, the scores.

A unit is one sequence, or one head of one sequence. A tile holds U = G * PACK units: G batches (one a warp) of T rows,
PACK units of L tokens one after the other in each. U divides the number of heads or is a multiple of it, so that the
place of a row is a scalar of the tile plus a constant. SS, SL, SH are the strides of a sequence, a token and a head.

`merged`: all heads of a token in one row: narrow heads (4 x 3, 2 x 6), at most 16 tokens. A row of C = H * D channels
is loaded whole, so that loads are as wide as the row allows, and heads are taken apart by the tensor cores: a product
with a 0-1 matrix is exact, and its result already lies in the registers in which the next product wants its operand,
where a masked copy would go through shared memory. 16 tokens, 4 heads x 3, forward, instructions for a sequence on
sm_90: 534 with masked copies, 1160 with one unit a head, 326 so.

`split`: each head of a sequence is a unit of its own: any head dimension, up to 72 tokens. Up to 32 tokens the whole
unit is one tile. Above, queries come in blocks of TQ, and backward is two kernels: one over queries, which leaves the
softmax's statistics, and one over keys.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import product, product0, reciprocal, stacked, swap


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
def selection(mask, dtype: tl.constexpr, G: tl.constexpr):
    """The 0-1 matrix of `mask` `[CP, CP]`, once a batch."""
    return stacked(mask.to(dtype), G)


@triton.jit
def selected(a, b):
    """The product of a tile and a 0-1 matrix with at most one 1 in a line: exact in the tile's dtype."""
    return product0(a, b).to(a.dtype)


@triton.jit(do_not_specialize=["n"])
def merged_forward(
    q, k, v, out, n, scale_log2e,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr,
    G: tl.constexpr, PACK: tl.constexpr, CP: tl.constexpr, DP: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """out `[n, L, H * D]` contiguous; q, k, v have strides SS, SL, 1; H * DP <= CP and D < DP.

    Inside, the result takes DP columns a head: D of values, then zeros, then the sum of the rounded weights, which a
    column of ones in v gives.
    """
    C: tl.constexpr = H * D
    T: tl.constexpr = 16
    U: tl.constexpr = G * PACK
    c = tl.arange(0, CP)
    unit, token = unit_and_token(L, T, G, PACK)
    inside = (token < L)[:, :, None] & (c < C)[None, None, :]
    at = row_offset(unit, token, 1, U, SS, SL, 0)[:, :, None] + c[None, None, :]
    to = row_offset(unit, token, 1, U, L * C, C, 0)[:, :, None] + c[None, None, :]
    for tile in range(tl.program_id(0), tl.cdiv(n, U), tl.num_programs(0)):
        start = tile_start(tile, 1, U, SS, 0)
        ok = inside & (unit < n - tile * U)[:, :, None]
        queries = tl.load(q + start + at, mask=ok, other=0.0)
        keys = swap(tl.load(k + start + at, mask=ok, other=0.0))
        values = swap(tl.load(v + start + at, mask=ok, other=1.0))  # [G, CP, T], ones from row C on
        x = tl.zeros((G, T, CP), tl.float32)
        for h in tl.static_range(H):
            keep = selection((c[:, None] == c[None, :]) & (c // D == h)[:, None], queries.dtype, G)
            source = tl.where(c % DP < D, h * D + c % DP, tl.where(c % DP == DP - 1, C, CP))  # CP: none
            place = selection((c[None, :] == source[:, None]) & (c // DP == h)[:, None], queries.dtype, G)
            s = scores(selected(queries, keep), keys, L, PACK)
            e = tl.exp2(s * scale_log2e - (tl.max(s, 2) * scale_log2e)[:, :, None])
            x = product(e.to(queries.dtype), swap(selected(place, values)), x)
        x = tl.reshape(x, (G, T, CP // DP, DP))
        total = tl.sum(tl.where((tl.arange(0, DP) == DP - 1)[None, None, None, :], x, 0.0), 3)
        if H * DP < CP:  # the columns of no head
            total = tl.where((tl.arange(0, CP // DP) < H)[None, None, :], total, 1.0)
        x = tl.reshape(x * reciprocal(total, FAST)[:, :, :, None], (G, T, CP)).to(queries.dtype)
        back = selection((c < C)[None, :] & (c[:, None] == (c // D * DP + c % D)[None, :]), queries.dtype, G)
        tl.store(out + tile_start(tile, 1, U, L * C, 0) + to, selected(x, back), mask=ok)


@triton.jit(do_not_specialize=["n"])
def split_forward(
    q, k, v, out, n, scale_log2e,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr, SH: tl.constexpr,
    G: tl.constexpr, PACK: tl.constexpr, T: tl.constexpr, TQ: tl.constexpr, DP: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """out `[S, L, H, D]` contiguous = attention of q, k, v (common strides SS, SL, SH, 1); n = S * H units."""
    C: tl.constexpr = H * D
    U: tl.constexpr = G * PACK
    d = tl.arange(0, DP)[None, None, :]
    unit, token = unit_and_token(L, T, G, PACK)
    query_unit, query_token = unit_and_token(L, TQ, G, PACK)
    at = row_offset(unit, token, H, U, SS, SL, SH)[:, :, None] + d
    at_query = row_offset(query_unit, query_token, H, U, SS, SL, SH)[:, :, None] + d
    to = row_offset(query_unit, query_token, H, U, L * C, C, D)[:, :, None] + d
    for tile in range(tl.program_id(0), tl.cdiv(n, U), tl.num_programs(0)):
        start = tile_start(tile, H, U, SS, SH)
        ok = ((token < L) & (unit < n - tile * U))[:, :, None] & (d < D)
        keys = swap(tl.load(k + start + at, mask=ok, other=0.0))
        values = tl.load(v + start + at, mask=ok, other=1.0)  # ones from column D on
        for first in range(0, L, TQ):
            query_ok = ((query_token < L - first) & (query_unit < n - tile * U))[:, :, None] & (d < D)
            queries = tl.load(q + (start + first * SL) + at_query, mask=query_ok, other=0.0)
            s = scores(queries, keys, L, PACK)
            e = tl.exp2(s * scale_log2e - (tl.max(s, 2) * scale_log2e)[:, :, None])
            x = product0(e.to(values.dtype), values)
            # where there is a column of ones, column D holds the sums of the rounded weights
            total = tl.sum(tl.where(d == D, x, 0.0), 2) if D < DP else tl.sum(e, 2)
            x = (x * reciprocal(total, FAST)[:, :, None]).to(out.dtype.element_ty)
            tl.store(out + (tile_start(tile, H, U, L * C, D) + first * C) + to, x, mask=query_ok)
