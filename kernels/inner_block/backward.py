# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward kernels, one for each half; both recompute their half from its input.

Products that contract over tokens need their operands with tokens along the columns (names in _t). SHARED_SUMS = False
keeps the sums of weight gradients per tile, in registers of the tile's own warp; True keeps them per program, which
takes fewer registers and exchanges the operands through shared memory. PARTS > 1 goes over the program's tiles once for
each part of the head slices or hidden blocks (PARTS divides their number, and every slice is full), so that only that
part's sums occupy registers; the gradient of xh waits in `scratch` [n_rows, C] float32.
"""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

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
from titn.kernels.inner_block.forward import (
    attention,
    head_mask,
    packed_tiles,
    rows_of,
    weight,
    widened,
    with_ones,
)


@triton.jit
def zero_sums(COUNT: tl.constexpr, ROWS: tl.constexpr, CP: tl.constexpr, G: tl.constexpr, SHARED_SUMS: tl.constexpr):
    """COUNT sums of [ROWS, CP]: one, or one for each tile."""
    sums = ()
    for _ in tl.static_range(COUNT):
        if SHARED_SUMS:
            sums = sums + (tl.zeros((ROWS, CP), tl.float32),)
        else:
            sums = sums + (tl.zeros((G, ROWS, CP), tl.float32),)
    return sums


@triton.jit
def added(sums, i: tl.constexpr, a, b, eye, SHARED_SUMS: tl.constexpr):
    """`sums` with a^T b added to entry i: a [G, TP, ROWS]; b [G, TP, CP] where SHARED_SUMS, else its transpose."""
    if SHARED_SUMS:
        rows: tl.constexpr = a.shape[0] * a.shape[1]
        left = tl.trans(tl.reshape(a, (rows, a.shape[2])))
        new = product(left, tl.reshape(b, (rows, b.shape[2])), sums[i])
    else:
        new = product(transposed(a, eye), swap(b), sums[i])
    return sums[:i] + (new,) + sums[i + 1 :]


@triton.jit
def store_sums(pointer, sums, COUNT: tl.constexpr, row, stride, SHARED_SUMS: tl.constexpr):
    """Stores the sums one below the other from `row` on; column c of the whole begins at c * stride."""
    for i in tl.static_range(COUNT):
        value = sums[i] if SHARED_SUMS else tl.sum(sums[i], 0)
        at = row + i * value.shape[0] + tl.arange(0, value.shape[0])[:, None]
        tl.store(pointer + tl.arange(0, value.shape[1])[None, :] * stride + at, value)


@triton.jit
def input_gradient(dy, dxn, xh, scale, C: tl.constexpr):
    """dy + LayerNorm's backward of dxn, whose mean over the columns is already zero.

    Takes the rounded xh, whose ones meet a zero column of dxn: the float32 one would hold registers all through a tile.
    """
    xn = xh.to(tl.float32)
    along = tl.sum(dxn * xn, 2) * (1.0 / C)
    return widened(dy) + (dxn - xn * along[:, :, None]) * scale[:, :, None]


@triton.jit
def attention_gradients(
    xh, dy_tile, weights, HEADS: tl.constexpr, D: tl.constexpr, L: tl.constexpr, FAST: tl.constexpr
):
    """o and the gradients of q, k and v of one slice of heads, each [G, TP, SW], recomputed from xh and dy.

    With e = exp(score - maximum) and do' = do / total in place of normalised weights: ds = e (do' v^T - sum(do' o)),
    dv = e^T do'.
    """
    dtype: tl.constexpr = xh.dtype
    TP: tl.constexpr = xh.shape[1]
    G: tl.constexpr = xh.shape[0]
    SW: tl.constexpr = weights[0].shape[1]
    eye_t = identity(TP, G, dtype)
    q = product0(xh, swap(weights[0])).to(dtype)
    k = product0(xh, swap(weights[1])).to(dtype)
    v_t = product0(weights[2], swap(xh)).to(dtype)
    o, total, exponentials = attention(q, k, v_t, HEADS, D, L, tl.float32 if xh.shape[2] == 16 else dtype, FAST)
    inverse = reciprocal(total, FAST)
    o = o * inverse
    do = product0(dy_tile, swap(weights[3])) * inverse
    minus_do_o = (o * -do).to(dtype)
    do = do.to(dtype)
    do_t = transposed(do, identity(SW, G, dtype))
    v = product0(xh, swap(weights[2])).to(dtype)
    q_t = product0(weights[0], swap(xh)).to(dtype)
    k_t = product0(weights[1], swap(xh)).to(dtype)
    dq = tl.zeros((G, TP, SW), tl.float32)
    dk = tl.zeros((G, TP, SW), tl.float32)
    dv = tl.zeros((G, TP, SW), tl.float32)
    for h in tl.static_range(HEADS):
        own = head_mask(h, D, SW)
        spread = tl.broadcast_to(tl.where(own, 1.0, 0.0).to(dtype)[None, :, None], (G, SW, TP))
        shifted = product(keep(do, own[None, None, :], FAST), swap(v), product0(minus_do_o, spread))
        ds = (shifted * exponentials[h].to(tl.float32)).to(dtype)
        dv = product(transposed(exponentials[h].to(dtype), eye_t), swap(keep(do_t, own[None, :, None], FAST)), dv)
        dq = product(ds, swap(keep(k_t, own[None, :, None], FAST)), dq)
        dk = product(transposed(ds, eye_t), swap(keep(q_t, own[None, :, None], FAST)), dk)
    return o.to(dtype), dq.to(dtype), dk.to(dtype), dv.to(dtype)


@triton.jit
def attention_backward(
    x, dy, dx, packed, sums, scratch, n_rows, eps,
    C: tl.constexpr, CP: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr,
    L: tl.constexpr, TP: tl.constexpr, G: tl.constexpr,
    PARTS: tl.constexpr, RESIDENT: tl.constexpr, SHARED_SUMS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dx from x and dy (the gradient of mid), all [n_rows, C]; sums [programs, CP, 4 R] for `unpack_gradients`."""
    dtype: tl.constexpr = x.dtype.element_ty
    NS: tl.constexpr = (H + HS - 1) // HS
    R: tl.constexpr = NS * SW
    ROWS: tl.constexpr = G * (TP // L * L)
    PER: tl.constexpr = NS // PARTS
    c = tl.arange(0, CP)
    eye_n = identity(SW, G, dtype)
    eye_c = identity(CP, G, dtype)
    out = sums + tl.program_id(0).to(tl.int64) * (CP * 4 * R)
    for part in range(PARTS):
        held = ()
        for s in tl.static_range(PER):
            if RESIDENT:
                held = held + (packed_tiles(packed, (part * PER + s) * SW, R, 7, SW, CP, G),)
        sum_q = zero_sums(PER, SW, CP, G, SHARED_SUMS)
        sum_k = zero_sums(PER, SW, CP, G, SHARED_SUMS)
        sum_v = zero_sums(PER, SW, CP, G, SHARED_SUMS)
        sum_o = zero_sums(PER, SW, CP, G, SHARED_SUMS)
        for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
            start = tl.cast(tile, tl.int64) * ROWS
            row, mask = rows_of(start, n_rows, L, TP, G)
            dy_tile = load_tile(dy + start * C, row, mask, c, C)
            xn, scale = normalised(widened(load_tile(x + start * C, row, mask, c, C)), C, eps)
            xh = with_ones(xn, C, dtype)
            if SHARED_SUMS:
                xh_right, dy_right = xh, dy_tile
            else:
                xh_right, dy_right = transposed(xh, eye_c), transposed(dy_tile, eye_c)
            dxn = load_tile(scratch + start * C, row, mask & (part > 0), c, C)
            for s in tl.static_range(PER):
                first = (part * PER + s) * SW
                weights = held[s] if RESIDENT else packed_tiles(packed, first, R, 7, SW, CP, G)
                o, dq, dk, dv = attention_gradients(
                    xh, dy_tile, weights, HS if (s + 1) * HS <= H else H - s * HS, D, L, FAST
                )
                dxn = product(dv, weights[6], product(dk, weights[5], product(dq, weights[4], dxn)))
                sum_q = added(sum_q, s, dq, xh_right, eye_n, SHARED_SUMS)
                sum_k = added(sum_k, s, dk, xh_right, eye_n, SHARED_SUMS)
                sum_v = added(sum_v, s, dv, xh_right, eye_n, SHARED_SUMS)
                sum_o = added(sum_o, s, o, dy_right, eye_n, SHARED_SUMS)
            if part < PARTS - 1:
                store_tile(scratch + start * C, row, mask, c, dxn, C)
            else:
                store_tile(dx + start * C, row, mask, c, input_gradient(dy_tile, dxn, xh, scale, C), C)
        store_sums(out, sum_q, PER, part * PER * SW, 4 * R, SHARED_SUMS)
        store_sums(out, sum_k, PER, R + part * PER * SW, 4 * R, SHARED_SUMS)
        store_sums(out, sum_v, PER, 2 * R + part * PER * SW, 4 * R, SHARED_SUMS)
        store_sums(out, sum_o, PER, 3 * R + part * PER * SW, 4 * R, SHARED_SUMS)
        if PARTS > 1:
            tl.debug_barrier()  # scratch passes between the program's own threads


@triton.jit
def mlp_backward(
    mid, dy, dmid, packed, sums, scratch, n_rows, eps,
    C: tl.constexpr, CP: tl.constexpr, R: tl.constexpr, FP: tl.constexpr, FB: tl.constexpr,
    TP: tl.constexpr, G: tl.constexpr,
    PARTS: tl.constexpr, RESIDENT: tl.constexpr, SHARED_SUMS: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dmid from mid and dy, all [n_rows, C], in tiles of TP rows; sums [programs, CP, 2 FP + 16]."""
    dtype: tl.constexpr = mid.dtype.element_ty
    ROWS: tl.constexpr = G * TP
    PER: tl.constexpr = FP // FB // PARTS
    SUM_ROWS: tl.constexpr = 2 * FP + 16
    c = tl.arange(0, CP)
    eye_c = identity(CP, G, dtype)
    eye_t = identity(TP, G, dtype)
    ones = tl.full((G, TP, 16), 1.0, dtype)
    out = sums + tl.program_id(0).to(tl.int64) * (CP * SUM_ROWS)
    for part in range(PARTS):
        held = ()
        for i in tl.static_range(PER):
            if RESIDENT:
                held = held + (packed_tiles(packed, 7 * R + (part * PER + i) * FB, FP, 3, FB, CP, G),)
        sum_1 = zero_sums(PER, FB, CP, G, SHARED_SUMS)
        sum_2 = zero_sums(PER, FB, CP, G, SHARED_SUMS)
        sum_dy = zero_sums(1, 16, CP, G, SHARED_SUMS)
        for tile in range(tl.program_id(0), tl.cdiv(n_rows, ROWS), tl.num_programs(0)):
            start = tl.cast(tile, tl.int64) * ROWS
            row, mask = rows_of(start, n_rows, TP, TP, G)
            dy_tile = load_tile(dy + start * C, row, mask, c, C)
            xn, scale = normalised(widened(load_tile(mid + start * C, row, mask, c, C)), C, eps)
            xh = with_ones(xn, C, dtype)
            if SHARED_SUMS:
                sum_dy = added(sum_dy, 0, ones, dy_tile, eye_t, True)
            else:
                xh_t, dy_t = transposed(xh, eye_c), transposed(dy_tile, eye_c)
                sum_dy = (product(swap(ones), swap(dy_t), sum_dy[0]),)
            dxn = load_tile(scratch + start * C, row, mask & (part > 0), c, C)
            for i in tl.static_range(PER):
                first = 7 * R + (part * PER + i) * FB
                tiles = held[i] if RESIDENT else ()
                in_weight = weight(tiles, 0, RESIDENT, packed, first, FP, FB, CP, G)
                if SHARED_SUMS:
                    hidden, slope = gelu_and_slope(product0(xh, swap(in_weight)), FAST)
                    dh = (product0(dy_tile, swap(weight(tiles, 1, RESIDENT, packed, first, FP, FB, CP, G))) * slope).to(
                        dtype
                    )
                    sum_1 = added(sum_1, i, dh, xh, eye_t, True)
                    sum_2 = added(sum_2, i, hidden.to(dtype), dy_tile, eye_t, True)
                else:
                    hidden, slope = gelu_and_slope(product0(in_weight, swap(xh)), FAST)
                    dh_t = (
                        product0(weight(tiles, 1, RESIDENT, packed, first, FP, FB, CP, G), swap(dy_tile)) * slope
                    ).to(dtype)
                    sum_1 = sum_1[:i] + (product(dh_t, swap(xh_t), sum_1[i]),) + sum_1[i + 1 :]
                    sum_2 = sum_2[:i] + (product(hidden.to(dtype), swap(dy_t), sum_2[i]),) + sum_2[i + 1 :]
                    dh = transposed(dh_t, eye_t)
                dxn = product(dh, weight(tiles, 2, RESIDENT, packed, first, FP, FB, CP, G), dxn)
            if part < PARTS - 1:
                store_tile(scratch + start * C, row, mask, c, dxn, C)
            else:
                store_tile(dmid + start * C, row, mask, c, input_gradient(dy_tile, dxn, xh, scale, C), C)
        store_sums(out, sum_1, PER, part * PER * FB, SUM_ROWS, SHARED_SUMS)
        store_sums(out, sum_2, PER, FP + part * PER * FB, SUM_ROWS, SHARED_SUMS)
        store_sums(out, sum_dy, 1, 2 * FP, SUM_ROWS, SHARED_SUMS)
        if PARTS > 1:
            tl.debug_barrier()  # scratch passes between the program's own threads
