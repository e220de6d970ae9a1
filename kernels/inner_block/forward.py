# mypy: disable-error-code="no-untyped-def, assignment"
"""The forward kernel: one pass over the sequences, from x to the middle residual and y.

Names of this operation: SW columns of a slice hold HS heads and a column of ones; R packed rows of all slices; xh the
normalised tokens with ones in column C. The packed weights: packing.py.
"""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import (
    exp2,
    gelu,
    identity,
    keep,
    load_tile,
    normalised,
    product,
    product0,
    reciprocal,
    stacked,
    store_tile,
    swap,
    vector,
)


@triton.jit
def packed_tile(packed, row, ROWS: tl.constexpr, CP: tl.constexpr, G: tl.constexpr):
    """ROWS rows of the packed weights, [G, ROWS, CP]."""
    at = (row + tl.arange(0, ROWS))[:, None] * CP + tl.arange(0, CP)[None, :]
    return stacked(tl.load(packed + at), G)


@triton.jit
def packed_tiles(
    packed, row, STRIDE: tl.constexpr, COUNT: tl.constexpr, ROWS: tl.constexpr, CP: tl.constexpr, G: tl.constexpr
):
    """COUNT tiles of the packed weights as a tuple, from `row` on and STRIDE rows apart."""
    tiles = ()
    for i in tl.static_range(COUNT):
        tiles = tiles + (packed_tile(packed, row + i * STRIDE, ROWS, CP, G),)
    return tiles


@triton.jit
def weight(
    held, j: tl.constexpr, RESIDENT: tl.constexpr, packed, row,
    STRIDE: tl.constexpr, ROWS: tl.constexpr, CP: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    """Tile j of `packed_tiles`: the one held in registers, or read here, next to its use, where it is not RESIDENT."""
    return held[j] if RESIDENT else packed_tile(packed, row + j * STRIDE, ROWS, CP, G)


@triton.jit
def rows_of(start, n_rows, L: tl.constexpr, TP: tl.constexpr, G: tl.constexpr):
    """Rows of a tile relative to `start`, [G, TP], and which of them exist: TP // L sequences of L rows per tile."""
    used: tl.constexpr = TP // L * L
    t = tl.arange(0, TP)[None, :]
    row = tl.arange(0, G)[:, None] * used + t
    left = tl.minimum(n_rows - start, G * used).to(tl.int32)
    return row, (t < used) & (row < left)


@triton.jit
def widened(x):
    """x as float32, in the layout of a product's result: by a product with the identity where that is one tile wide."""
    return product0(x, identity(16, x.shape[0], x.dtype)) if x.shape[2] == 16 else x.to(tl.float32)


@triton.jit
def with_ones(x, C: tl.constexpr, dtype: tl.constexpr):
    """x with 1 in column C, in the operands' dtype."""
    return (x + tl.where(tl.arange(0, x.shape[2]) == C, 1.0, 0.0)[None, None, :]).to(dtype)


@triton.jit
def head_mask(h: tl.constexpr, D: tl.constexpr, SW: tl.constexpr):
    """Columns of head h within its slice."""
    return tl.arange(0, SW) // D == h


@triton.jit
def attention(q, k, v_t, HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, KEPT: tl.constexpr, FAST: tl.constexpr):
    """Unnormalised attention of one slice of heads: o, total and the exponentials of every head in KEPT.

    q, k [G, TP, SW], of which q carries the scale and log2(e), and v_t [G, SW, TP]. o / total is the heads' output:
    total holds every head's sum of exponentials in its own columns; those of no head go with the first, so that the
    ones column of v stays one. The exponentials are 2^(score - largest score of the row), [G, TP, TP].
    """
    SW: tl.constexpr = q.shape[2]
    TP: tl.constexpr = q.shape[1]
    n = tl.arange(0, SW)
    t = tl.arange(0, TP)
    o = tl.zeros(q.shape, tl.float32)
    total = tl.zeros(q.shape, tl.float32)
    exponentials = ()
    for h in tl.static_range(HEADS):
        scores = product0(keep(q, head_mask(h, D, SW)[None, None, :], FAST), swap(k))
        if L != TP:
            scores = tl.where((t[:, None] // L == t[None, :] // L)[None, :, :], scores, float("-inf"))
        e = exp2(scores - tl.max(scores, 2)[:, :, None], FAST)
        exponentials = exponentials + (e.to(KEPT),)
        e = e.to(q.dtype)
        columns = head_mask(h, D, SW) | ((h == 0) & (n >= HEADS * D))
        o = product(e, swap(keep(v_t, columns[None, :, None], FAST)), o)
        total = product(e, tl.broadcast_to(tl.where(columns, 1.0, 0.0).to(q.dtype)[None, None, :], q.shape), total)
    return o, total, exponentials


@triton.jit
def inner_forward(
    x, mid, y, packed, fc2_bias, n_rows, eps,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr,
    FP: tl.constexpr, FB: tl.constexpr, L: tl.constexpr, TP: tl.constexpr, G: tl.constexpr,
    RESIDENT_SLICES: tl.constexpr, RESIDENT_BLOCKS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """y and mid from x [n_rows, C]. Grid: any number of programs, each takes every n-th tile.

    The weights of the first RESIDENT_SLICES head slices and RESIDENT_BLOCKS hidden blocks stay in registers, the others
    are read again for every tile.
    """
    dtype: tl.constexpr = x.dtype.element_ty
    NS: tl.constexpr = (H + HS - 1) // HS
    R: tl.constexpr = NS * SW
    NF: tl.constexpr = FP // FB
    ROWS: tl.constexpr = G * (TP // L * L)
    c = tl.arange(0, CP)
    slices = ()
    for s in tl.static_range(NS):
        if s < RESIDENT_SLICES:
            slices = slices + (packed_tiles(packed, s * SW, R, 4, SW, CP, G),)
    blocks = ()
    for i in tl.static_range(NF):
        if i < RESIDENT_BLOCKS:
            blocks = blocks + (packed_tiles(packed, 7 * R + i * FB, FP, 2, FB, CP, G),)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * ROWS
        row, mask = rows_of(start, n_rows, L, TP, G)
        residual = widened(load_tile(x + start * C, row, mask, c, C))
        xn, _ = normalised(residual, C, eps)
        xh = with_ones(xn, C, dtype)
        for s in tl.static_range(NS):
            held = slices[s] if s < RESIDENT_SLICES else ()
            q = product0(xh, swap(weight(held, 0, s < RESIDENT_SLICES, packed, s * SW, R, SW, CP, G))).to(dtype)
            k = product0(xh, swap(weight(held, 1, s < RESIDENT_SLICES, packed, s * SW, R, SW, CP, G))).to(dtype)
            v_t = product0(weight(held, 2, s < RESIDENT_SLICES, packed, s * SW, R, SW, CP, G), swap(xh)).to(dtype)
            o, total, _ = attention(q, k, v_t, HS if (s + 1) * HS <= H else H - s * HS, D, L, tl.float32, FAST)
            o = (o * reciprocal(total, FAST)).to(dtype)
            residual = product(o, weight(held, 3, s < RESIDENT_SLICES, packed, s * SW, R, SW, CP, G), residual)
        store_tile(mid + start * C, row, mask, c, residual, C)
        xn, _ = normalised(residual, C, eps)
        xh = with_ones(xn, C, dtype)
        if fc2_bias is not None:
            residual += vector(fc2_bias, c, c < C, 0.0)[None, None, :]
        for i in tl.static_range(NF):
            held = blocks[i] if i < RESIDENT_BLOCKS else ()
            first = 7 * R + i * FB
            in_weight = weight(held, 0, i < RESIDENT_BLOCKS, packed, first, FP, FB, CP, G)
            hidden = gelu(product0(xh, swap(in_weight)), FAST).to(dtype)
            residual = product(hidden, weight(held, 1, i < RESIDENT_BLOCKS, packed, first, FP, FB, CP, G), residual)
        store_tile(y + start * C, row, mask, c, residual, C)
