# mypy: disable-error-code="no-untyped-def"
"""Pixels to patches in Triton, backward: one kernel for all gradients, then one reduction (legend: forward.py)."""

import triton
import triton.language as tl

from titn.kernels.common.tiles import product, sum_of_rows
from titn.kernels.pixels_to_patches.forward import first_column, normalised_tile, weight_tile


@triton.jit
def _store_weight_partial(
    total, weight, gamma, beta, part_weight, part_bias, split, first, d,
    L: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, LB: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Writes one split's dW and db; returns the chunk's sums over d of W dR^T h and of W db, each [LB CP].

    Column (l, C) of `total` = dR^T h holds db, since h is 1 there.
    """
    k = tl.arange(0, LB * CP)
    pixel, c = first + k // CP, k % CP
    b_gamma = tl.load(gamma + c, mask=c < C, other=0.0).to(tl.float32)
    b_beta = tl.load(beta + c, mask=c < C, other=0.0).to(tl.float32)
    db = tl.sum(tl.where((k == C)[None, :], total, 0.0), 1)
    if first == 0:
        tl.store(part_bias + split * D + d, db, mask=d < D)
    gradient = total * b_gamma[None, :] + db[:, None] * b_beta[None, :]
    mask = (d < D)[:, None] & ((pixel < L) & (c < C))[None, :]
    offsets = (split * D + d[:, None]) * (L * C) + (pixel * C + c)[None, :]
    tl.store(part_weight + offsets, gradient, mask=mask)
    w = weight_tile(weight, first, d, L, C, CP, LB, D)
    return tl.sum(w * total, 0), tl.sum(w * db[:, None], 0)


@triton.jit
def _gradient_rows(dout, place, present, d, kind: tl.constexpr, D: tl.constexpr):
    """Columns d of the incoming gradient of the rows: [M, len(d)]."""
    mask = present[:, None] & (d < D)[None, :]
    return tl.load(dout + place[:, None] + d[None, :], mask=mask, other=0.0).to(kind)


@triton.jit
def backward_kernel(
    dout, pixels, dpassed, gamma, beta, weight, dpixels, part_weight, part_bias, part_norm, rows, eps,
    N: tl.constexpr, T: tl.constexpr, L: tl.constexpr, C: tl.constexpr, D: tl.constexpr,
    M: tl.constexpr, LB: tl.constexpr, CP: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Gradients from every S-th tile of M of the rows = B N, for one chunk of pixels; grid (chunks, TILES, splits S).

    A program sums dR^T h for its own tile of columns over its row tiles. dpixels needs all D columns: the programs of
    the TILES tiles take turns at it, row tile by row tile. dpassed, as dpixels or None, is added to it.
    """
    first = tl.program_id(0) * LB
    own = tl.program_id(1)
    split = tl.program_id(2).to(tl.int64)
    kind: tl.constexpr = pixels.dtype.element_ty
    i_c = tl.arange(0, CP)
    k_c = tl.arange(0, LB * CP) % CP
    k_gamma = tl.load(gamma + k_c, mask=k_c < C, other=0.0).to(tl.float32)[None, :]
    d0 = first_column(D0 + D1, TILES) + tl.arange(0, D0)
    total0 = tl.zeros((D0, LB * CP), tl.float32)
    if TILES == 1:
        w0 = (weight_tile(weight, first, d0, L, C, CP, LB, D) * k_gamma).to(kind)
    if D1 > 0:
        d1 = first_column(D0 + D1, TILES) + D0 + tl.arange(0, D1)
        total1 = tl.zeros((D1, LB * CP), tl.float32)
        if TILES == 1:
            w1 = (weight_tile(weight, first, d1, L, C, CP, LB, D) * k_gamma).to(kind)
    for tile in range(tl.program_id(2), tl.cdiv(rows, M), tl.num_programs(2)):
        i = tile * M + tl.arange(0, M)
        present = i < rows
        place = ((i // N).to(tl.int64) * T + i % N + 1) * D
        g = tl.zeros((M, LB * CP), tl.float32)
        dy0 = _gradient_rows(dout, place, present, d0, kind, D)
        if TILES == 1:
            g = product(dy0, w0, g)
        if D1 > 0:
            dy1 = _gradient_rows(dout, place, present, d1, kind, D)
            if TILES == 1:
                g = product(dy1, w1, g)
        h, scale, offsets, mask = normalised_tile(pixels, i.to(tl.int64), present, first, eps, L, C, CP, LB)
        columns = tl.reshape(tl.where((i_c == C)[None, None, :], 1.0, h).to(kind), (M, LB * CP))
        total0 = product(tl.trans(dy0), columns, total0)
        if D1 > 0:
            total1 = product(tl.trans(dy1), columns, total1)
        if TILES > 1:
            turn = tile // tl.num_programs(2) % TILES
            mask = mask & (tl.zeros((M, 1, 1), tl.int32) + turn == own)
            if turn == own:
                for start in range(0, D, D0):
                    d = start + tl.arange(0, D0)
                    w = (weight_tile(weight, first, d, L, C, CP, LB, D) * k_gamma).to(kind)
                    g = product(_gradient_rows(dout, place, present, d, kind, D), w, g)
        g = tl.reshape(g, (M, LB, CP))
        both = h * tl.sum(g * h, 2)[:, :, None] + tl.sum(g, 2)[:, :, None]
        dx = (g - both * (1.0 / C)) * scale[:, :, None]
        if dpassed is not None:
            dx += tl.load(dpassed + offsets, mask=mask, other=0.0).to(tl.float32)
        tl.store(dpixels + offsets, dx.to(dpixels.dtype.element_ty), mask=mask)
    dgamma, dbeta = _store_weight_partial(
        total0, weight, gamma, beta, part_weight, part_bias, split, first, d0, L, C, CP, LB, D
    )
    if D1 > 0:
        more = _store_weight_partial(
            total1, weight, gamma, beta, part_weight, part_bias, split, first, d1, L, C, CP, LB, D
        )
        dgamma += more[0]
        dbeta += more[1]
    part = ((split * TILES + own) * tl.num_programs(0) + tl.program_id(0)) * (2 * C)
    tl.store(part_norm + part + i_c, tl.sum(tl.reshape(dgamma, (LB, CP)), 0), mask=i_c < C)
    tl.store(part_norm + part + C + i_c, tl.sum(tl.reshape(dbeta, (LB, CP)), 0), mask=i_c < C)


@triton.jit
def reduce_kernel(
    part_weight, part_bias, part_norm, dweight, dbias, dgamma, dbeta, splits, norm_rows,
    C: tl.constexpr, D: tl.constexpr, K: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds up the partial gradients: blocks of dweight [D, K = L C], then of dbias [D], last dgamma and dbeta [C]."""
    weight_blocks: tl.constexpr = (D * K + BLOCK - 1) // BLOCK
    bias_blocks: tl.constexpr = (D + BLOCK - 1) // BLOCK
    block = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    if block < weight_blocks:
        j = block * BLOCK + lane
        tl.store(dweight + j, sum_of_rows(part_weight, j, j < D * K, splits, D * K, ROWS), mask=j < D * K)
    elif block < weight_blocks + bias_blocks:
        j = (block - weight_blocks) * BLOCK + lane
        tl.store(dbias + j, sum_of_rows(part_bias, j, j < D, splits, D, ROWS), mask=j < D)
    else:
        total = sum_of_rows(part_norm, lane, lane < 2 * C, norm_rows, 2 * C, ROWS)
        tl.store(dgamma + lane, total, mask=lane < C)
        tl.store(dbeta + lane - C, total, mask=(lane >= C) & (lane < 2 * C))
