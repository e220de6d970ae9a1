# mypy: disable-error-code="no-untyped-def"
"""The block's parameters as the kernels read them, and the way back for their gradients.

`pack_weights` folds LayerNorm's affine part, the biases and the softmax scale into padded matrices of the kernels'
dtype. With xh the normalised tokens and a column of ones at position C,

    q = (gamma xh + beta) Wq^T + bq = [xh, 1] [Wq gamma, Wq beta + bq]^T,

so the products need no separate bias, and A = dq^T [xh, 1], one product summed over all tokens, holds every gradient:

    dWq = A[:, :C] gamma + A[:, C] beta^T,                 dbq = A[:, C],
    dgamma = sum_n Wq[n] A[n, :C],                         dbeta = sum_n Wq[n] A[n, C].

`unpack_gradients` sums the A of all programs in a fixed order and applies this. The matrices that carry gradients back
to xh have their row means removed, which is the mean term of LayerNorm's backward.

Packed matrices have CP columns. R = slices x SW rows for the heads: slice s holds heads s HS .. (s + 1) HS, head by
head, and after them one row for the ones column. Row sections: 0 Q, R K, 2R V, 3R O, 4R dQ, 5R dK, 6R dV, then FP rows
each of W1, W2, dW1.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import sum_of_rows, vector

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _head_row(row, C: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr):
    """For packed rows of a head section: channel, whether there is one, whether it is the ones column's."""
    used = tl.minimum(HS * D, C - (row // SW) * (HS * D))
    n = row % SW
    return (row // SW) * (HS * D) + n, n < used, n == used


@triton.jit
def pack_weights(
    packed, norm1_weight, norm1_bias, qkv_weight, qkv_bias, proj_weight, proj_bias,
    norm2_weight, norm2_bias, fc1_weight, fc1_bias, fc2_weight, scale,
    C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr, R: tl.constexpr,
    F: tl.constexpr, FP: tl.constexpr,
):  # fmt: skip
    """Writes 16 rows of `packed` [7 R + 3 FP, CP]; `scale` is the softmax scale. Grid: one program for 16 rows."""
    row = tl.program_id(0) * 16 + tl.arange(0, 16)
    c = tl.arange(0, CP)
    inside = c < C
    ones = tl.where(c == C, 1.0, 0.0)[None, :]
    first = tl.program_id(0) * 16
    if first < 7 * R:
        section = first // R
        channel, valid, is_one = _head_row(row % R, C, D, SW, HS)
        mask = valid[:, None] & inside[None, :]
        if section == 3:
            tile = tl.load(proj_weight + c[None, :] * C + channel[:, None], mask=mask, other=0.0).to(tl.float32)
            shift = vector(proj_bias, c, inside, 0.0)
            tile = tl.where((is_one & (row % R < SW))[:, None], shift[None, :], tile)
        else:
            kind = section % 4
            source = kind * C + channel
            w = tl.load(qkv_weight + source[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
            tile = w * vector(norm1_weight, c, inside, 1.0)[None, :]
            if section < 3:
                bias = tl.sum(w * vector(norm1_bias, c, inside, 0.0)[None, :], 1) + vector(qkv_bias, source, valid, 0.0)
                bias = tl.where(is_one & (kind == 2), 1.0, bias)
                tile = (tile + bias[:, None] * ones) * tl.where(kind == 0, scale * LOG2E, 1.0)
            else:
                tile = tl.where(inside[None, :], tile - (tl.sum(tile, 1) / C)[:, None], 0.0)
                tile = tile * tl.where(kind == 0, scale, tl.where(kind == 1, LN2, 1.0))
    else:
        section = (first - 7 * R) // FP
        f = (row - 7 * R) % FP
        mask = (f < F)[:, None] & inside[None, :]
        if section == 1:
            tile = tl.load(fc2_weight + c[None, :] * F + f[:, None], mask=mask, other=0.0).to(tl.float32)
        else:
            w = tl.load(fc1_weight + f[:, None] * C + c[None, :], mask=mask, other=0.0).to(tl.float32)
            tile = w * vector(norm2_weight, c, inside, 1.0)[None, :]
            if section == 0:
                bias = tl.sum(w * vector(norm2_bias, c, inside, 0.0)[None, :], 1) + vector(fc1_bias, f, f < F, 0.0)
                tile += bias[:, None] * ones
            else:
                tile = tl.where(inside[None, :], tile - (tl.sum(tile, 1) / C)[:, None], 0.0)
    tl.store(packed + row[:, None] * CP + c[None, :], tile.to(packed.dtype.element_ty))


@triton.jit
def _store(pointer, index, value, mask):
    if pointer is not None:
        tl.store(pointer + index, value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def _attention_column(
    c, sums, programs, norm1_weight, norm1_bias, qkv_weight, scale,
    d_norm1_weight, d_norm1_bias, d_qkv_weight, d_qkv_bias, d_proj_weight, d_proj_bias,
    C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr, R: tl.constexpr,
    RP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Column c of the attention half's gradients; c = C: those of the q, k and v biases."""
    j = tl.arange(0, RP)
    kind = j // R
    channel, valid, is_one = _head_row(j % R, C, D, SW, HS)
    qkv = valid & (kind < 3)
    source = kind * C + channel
    unscale = tl.where(kind == 0, scale, tl.where(kind == 1, LN2, 1.0))
    over_ones = sum_of_rows(sums, C * (4 * R) + j, j < 3 * R, programs, CP * 4 * R, BLOCK) * unscale
    if c < C:
        total = sum_of_rows(sums, c * (4 * R) + j, j < 4 * R, programs, CP * 4 * R, BLOCK) * unscale
        gamma = vector(norm1_weight, c + 0 * j, qkv, 1.0)
        beta = vector(norm1_bias, c + 0 * j, qkv, 0.0)
        w = tl.load(qkv_weight + source * C + c, mask=qkv, other=0.0).to(tl.float32)
        _store(d_qkv_weight, source * C + c, gamma * total + beta * over_ones, qkv)
        _store(d_norm1_weight, c, tl.sum(w * total, 0), None)
        _store(d_norm1_bias, c, tl.sum(w * over_ones, 0), None)
        _store(d_proj_weight, c * C + channel, total, valid & (kind == 3))
        _store(d_proj_bias, c + 0 * j, total, is_one & (kind == 3) & (j % R < SW))
    else:
        _store(d_qkv_bias, source, over_ones, qkv)


@triton.jit
def _mlp_column(
    c, sums, programs, norm2_weight, norm2_bias, fc1_weight,
    d_norm2_weight, d_norm2_bias, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias,
    C: tl.constexpr, CP: tl.constexpr, F: tl.constexpr, FP: tl.constexpr, MP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Column c of the MLP half's gradients; c = C: those of the first bias."""
    rows: tl.constexpr = 2 * FP + 16
    j = tl.arange(0, MP)
    first = j < F
    over_ones = sum_of_rows(sums, C * rows + j, first, programs, CP * rows, BLOCK)
    if c < C:
        total = sum_of_rows(sums, c * rows + j, j < rows, programs, CP * rows, BLOCK)
        gamma = vector(norm2_weight, c + 0 * j, first, 1.0)
        beta = vector(norm2_bias, c + 0 * j, first, 0.0)
        w = tl.load(fc1_weight + j * C + c, mask=first, other=0.0).to(tl.float32)
        _store(d_fc1_weight, j * C + c, gamma * total + beta * over_ones, first)
        _store(d_norm2_weight, c, tl.sum(w * total, 0), None)
        _store(d_norm2_bias, c, tl.sum(w * over_ones, 0), None)
        _store(d_fc2_weight, c * F + j - FP, total, (j >= FP) & (j < FP + F))
        _store(d_fc2_bias, c + 0 * j, total, j == 2 * FP)
    else:
        _store(d_fc1_bias, j, over_ones, first)


@triton.jit
def unpack_gradients(
    attention_sums, mlp_sums, attention_programs, mlp_programs,
    norm1_weight, norm1_bias, qkv_weight, norm2_weight, norm2_bias, fc1_weight, scale,
    d_norm1_weight, d_norm1_bias, d_qkv_weight, d_qkv_bias, d_proj_weight, d_proj_bias,
    d_norm2_weight, d_norm2_bias, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias,
    C: tl.constexpr, CP: tl.constexpr, D: tl.constexpr, SW: tl.constexpr, HS: tl.constexpr, R: tl.constexpr,
    F: tl.constexpr, FP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Gradients of all parameters from the programs' sums. Grid: 2 (C + 1), one program per column and half.

    attention_sums [programs, CP, 4 R]: rows q, k, v (against [xh, 1]) and o (against dy) of every column.
    mlp_sums [programs, CP, 2 FP + 16]: rows dh (against [xh, 1]), gelu(h) (against dy), and the sum of dy 16 times.
    RP and MP are 4 R and 2 FP + 16 rounded up to powers of two.
    """
    if tl.program_id(0) <= C:
        _attention_column(
            tl.program_id(0), attention_sums, attention_programs, norm1_weight, norm1_bias, qkv_weight, scale,
            d_norm1_weight, d_norm1_bias, d_qkv_weight, d_qkv_bias, d_proj_weight, d_proj_bias,
            C, CP, D, SW, HS, R, RP, BLOCK,
        )  # fmt: skip
    else:
        _mlp_column(
            tl.program_id(0) - (C + 1), mlp_sums, mlp_programs, norm2_weight, norm2_bias, fc1_weight,
            d_norm2_weight, d_norm2_bias, d_fc1_weight, d_fc1_bias, d_fc2_weight, d_fc2_bias,
            C, CP, F, FP, MP, BLOCK,
        )  # fmt: skip
