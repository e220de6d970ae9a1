# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward kernels of wide blocks, whose sums of weight gradients are too many for the registers.

The same mathematics as in backward.py, with three differences that leave no register to spill at 64 padded columns.
A program keeps its sums in memory, in its own row of `sums`, and adds the products of every tile to them: for each tile
it reads and writes 4 CP (2 FP + 16) bytes (MLP half) or 16 CP R bytes (attention half), which stay in the caches. The
loop over the hidden blocks or head slices is a loop of the machine, unrolled UNROLL times (a divisor of their number),
so that nothing of one pass is prepared in another. The tokens and the incoming gradient are read again where dx is
formed. There is no scratch memory, and no further launch.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import (
    gelu_and_slope,
    identity,
    keep,
    load_tile,
    normalised,
    product,
    product0,
    reciprocal,
    store_tile,
    swap,
    transposed,
)
from titn.kernels.inner_block.backward import input_gradient
from titn.kernels.inner_block.forward import (
    attention,
    head_mask,
    packed_tile,
    rows_of,
    widened,
    with_ones,
)


@triton.jit
def zero_in_memory(pointer, SIZE: tl.constexpr):
    """SIZE zeros from `pointer` on, seen by the whole program."""
    for start in range(0, SIZE, 1024):
        at = start + tl.arange(0, 1024)
        tl.store(pointer + at, tl.zeros((1024,), tl.float32), mask=at < SIZE)
    tl.debug_barrier()


@triton.jit
def add_in_memory(pointer, row, stride, a, b):
    """Adds a^T b to the sums from `row` on, whose column c begins at c * stride; a [G, TP, ROWS], b [G, TP, CP]."""
    rows: tl.constexpr = a.shape[0] * a.shape[1]
    at = tl.arange(0, b.shape[2])[None, :] * stride + (row + tl.arange(0, a.shape[2]))[:, None]
    left = tl.trans(tl.reshape(a, (rows, a.shape[2])))
    new = product0(left, tl.reshape(b, (rows, b.shape[2])))
    tl.store(pointer + at, tl.load(pointer + at) + new)


@triton.jit
def load_again(pointer, start, row, mask, C: tl.constexpr, CP: tl.constexpr):
    """`load_tile` past the first cache: the compiler must not take it for the first reading and keep that."""
    c = tl.arange(0, CP)[None, None, :]
    at = pointer + start * C + (row[:, :, None] * C + c)
    return tl.load(at, mask=mask[:, :, None] & (c < C), other=0.0, cache_modifier=".cg")


@triton.jit
def store_input_gradient(x, dy, dx, start, row, mask, dxn, eps, C: tl.constexpr, CP: tl.constexpr):
    """Stores dx of one tile from dxn [G, TP, CP], the gradient of the normalised tokens; x is normalised anew."""
    c = tl.arange(0, CP)
    xn, scale = normalised(widened(load_again(x, start, row, mask, C, CP)), C, eps)
    dy_tile = load_again(dy, start, row, mask, C, CP)
    store_tile(dx + start * C, row, mask, c, input_gradient(dy_tile, dxn, xn, scale, C), C)


@triton.jit
def mlp_backward_wide(
    mid, dy, dmid, packed, sums, n_rows, eps,
    C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr, FP: tl.constexpr, FB: tl.constexpr,
    TP: tl.constexpr, G: tl.constexpr, UNROLL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dmid from mid and dy, all [n_rows, C], in tiles of TP rows; sums [programs, CP, 2 FP + 16]."""
    dtype: tl.constexpr = mid.dtype.element_ty
    ROWS: tl.constexpr = G * TP
    SUM_ROWS: tl.constexpr = 2 * FP + 16
    c = tl.arange(0, CP)
    out = sums + tl.program_id(0).to(tl.int64) * (CP * SUM_ROWS)
    zero_in_memory(out, CP * SUM_ROWS)
    ones = tl.full((G, TP, 16), 1.0, dtype)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * ROWS
        row, mask = rows_of(start, n_rows, TP, TP, G)
        dy_tile = load_tile(dy + start * C, row, mask, c, C)
        xn, _ = normalised(widened(load_tile(mid + start * C, row, mask, c, C)), C, eps)
        xh = with_ones(xn, C, dtype)
        add_in_memory(out, 2 * FP, SUM_ROWS, ones, dy_tile)
        dxn = tl.zeros((G, TP, CP), tl.float32)
        for block in range(0, FP // FB, UNROLL):
            for i in tl.static_range(UNROLL):
                f = (block + i) * FB
                first = 7 * R + f
                hidden, slope = gelu_and_slope(product0(xh, swap(packed_tile(packed, first, FB, CP, G))), FAST)
                dh = (product0(dy_tile, swap(packed_tile(packed, first + FP, FB, CP, G))) * slope).to(dtype)
                add_in_memory(out, f, SUM_ROWS, dh, xh)
                add_in_memory(out, FP + f, SUM_ROWS, hidden.to(dtype), dy_tile)
                dxn = product(dh, packed_tile(packed, first + 2 * FP, FB, CP, G), dxn)
        store_input_gradient(mid, dy, dmid, start, row, mask, dxn, eps, C, CP)
        tl.debug_barrier()  # the sums pass between the program's own threads


@triton.jit
def attention_backward_wide(
    x, dy, dx, packed, sums, n_rows, eps,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr,
    L: tl.constexpr, TP: tl.constexpr, G: tl.constexpr, UNROLL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dx from x and dy (the gradient of mid), all [n_rows, C]; sums [programs, CP, 4 R] for `unpack_gradients`."""
    dtype: tl.constexpr = x.dtype.element_ty
    NS: tl.constexpr = (H + HS - 1) // HS
    R: tl.constexpr = NS * SW
    ROWS: tl.constexpr = G * (TP // L * L)
    c = tl.arange(0, CP)
    out = sums + tl.program_id(0).to(tl.int64) * (CP * 4 * R)
    zero_in_memory(out, CP * 4 * R)
    for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
        start = tl.cast(tile, tl.int64) * ROWS
        row, mask = rows_of(start, n_rows, L, TP, G)
        dy_tile = load_tile(dy + start * C, row, mask, c, C)
        xn, _ = normalised(widened(load_tile(x + start * C, row, mask, c, C)), C, eps)
        xh = with_ones(xn, C, dtype)
        dxn = tl.zeros((G, TP, CP), tl.float32)
        for s in range(0, NS, UNROLL):
            for i in tl.static_range(UNROLL):
                dxn = slice_backward(xh, dy_tile, packed, out, (s + i) * SW, dxn, R, SW, HS, D, L, FAST)
        store_input_gradient(x, dy, dx, start, row, mask, dxn, eps, C, CP)
        tl.debug_barrier()  # the sums pass between the program's own threads


@triton.jit
def slice_backward(
    xh, dy_tile, packed, out, n, dxn,
    R: tl.constexpr, SW: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dxn with the share of the slice whose packed rows begin at n added; its weight gradients go to the sums.

    The last slice may hold fewer than HEADS heads: the rows of absent ones are zero in every packed matrix, all their
    gradients are zero, and the ones column, which then stands where an absent head would, still gives ones.
    """
    dtype: tl.constexpr = xh.dtype
    G: tl.constexpr = xh.shape[0]
    TP: tl.constexpr = xh.shape[1]
    CP: tl.constexpr = xh.shape[2]
    eye_t = identity(TP, G, dtype)
    eye_n = identity(SW, G, dtype)
    q = product0(xh, swap(packed_tile(packed, n, SW, CP, G))).to(dtype)
    k = product0(xh, swap(packed_tile(packed, R + n, SW, CP, G))).to(dtype)
    v = product0(xh, swap(packed_tile(packed, 2 * R + n, SW, CP, G))).to(dtype)
    o, total, exponentials = attention(q, k, transposed(v, eye_n), HEADS, D, L, dtype, FAST)
    inverse = reciprocal(total, FAST)
    o = o * inverse
    add_in_memory(out, 3 * R + n, 4 * R, o.to(dtype), dy_tile)
    do = product0(dy_tile, swap(packed_tile(packed, 3 * R + n, SW, CP, G))) * inverse
    minus_do_o = (o * -do).to(dtype)
    do = do.to(dtype)
    do_t = transposed(do, eye_n)
    k_t = transposed(k, eye_n)
    q_t = transposed(q, eye_n)
    dq = tl.zeros((G, TP, SW), tl.float32)
    dk = tl.zeros((G, TP, SW), tl.float32)
    dv = tl.zeros((G, TP, SW), tl.float32)
    for h in tl.static_range(HEADS):
        own = head_mask(h, D, SW)
        spread = tl.broadcast_to(tl.where(own, 1.0, 0.0).to(dtype)[None, :, None], (G, SW, TP))
        shifted = product(keep(do, own[None, None, :], FAST), swap(v), product0(minus_do_o, spread))
        ds = (shifted * exponentials[h].to(tl.float32)).to(dtype)
        dv = product(transposed(exponentials[h], eye_t), swap(keep(do_t, own[None, :, None], FAST)), dv)
        dq = product(ds, swap(keep(k_t, own[None, :, None], FAST)), dq)
        dk = product(transposed(ds, eye_t), swap(keep(q_t, own[None, :, None], FAST)), dk)
    dq, dk, dv = dq.to(dtype), dk.to(dtype), dv.to(dtype)
    add_in_memory(out, n, 4 * R, dq, xh)
    add_in_memory(out, R + n, 4 * R, dk, xh)
    add_in_memory(out, 2 * R + n, 4 * R, dv, xh)
    dxn = product(dq, packed_tile(packed, 4 * R + n, SW, CP, G), dxn)
    dxn = product(dk, packed_tile(packed, 5 * R + n, SW, CP, G), dxn)
    return product(dv, packed_tile(packed, 6 * R + n, SW, CP, G), dxn)
