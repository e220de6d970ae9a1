# mypy: disable-error-code="no-untyped-def, assignment"
"""The forward kernel: a tile of rows through LayerNorm, both layers and the residual without leaving the chip."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import gelu, load_tile, product, store_tile, vector
from titn.kernels.common.wide_rows import columns, layer_normed, matrix, statistics, zero_rows


@triton.jit
def hidden_block(
    normed, fc1_weight, fc1_bias, f,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
):  # fmt: skip
    """Hidden columns f before GELU, float32 [M, len(f)], from the normalised rows."""
    h = tl.zeros((M, f.shape[0]), tl.float32)
    for j in tl.static_range(NC):
        h = product(normed[j], tl.trans(matrix(fc1_weight, f, columns(j, CB), F, D)), h)
    return h + vector(fc1_bias, f, f < F, 0.0)[None, :]


@triton.jit
def mlp_rows(
    x, y, mean, rstd, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, eps, row, present,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    RESIDUAL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """y, and the statistics of every row, from M rows; the pointers of x, y, mean and rstd begin at the first."""
    kind: tl.constexpr = fc1_weight.dtype.element_ty
    row_mean, row_rstd = statistics(x, row, present, D, CB, NC, eps)
    tl.store(mean + row, row_mean, mask=present)
    tl.store(rstd + row, row_rstd, mask=present)
    normed = layer_normed(x, row, present, row_mean, row_rstd, norm_weight, norm_bias, D, CB, NC, kind)
    out = zero_rows(M, CB, NC)
    for first in range(0, F, FB):
        f = first + tl.arange(0, FB)
        a = gelu(hidden_block(normed, fc1_weight, fc1_bias, f, D, F, M, CB, NC), FAST).to(kind)
        for j in tl.static_range(NC):
            w2 = matrix(fc2_weight, columns(j, CB), f, D, F)
            out = out[:j] + (product(a, tl.trans(w2), out[j]),) + out[j + 1 :]
    for j in tl.static_range(NC):
        c = columns(j, CB)
        value = out[j] + vector(fc2_bias, c, c < D, 0.0)[None, :]
        if RESIDUAL:
            value += load_tile(x, row, present, c, D).to(tl.float32)
        store_tile(y, row, present, c, value, D)


@triton.jit
def forward_kernel(
    x, y, mean, rstd, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, n_rows, eps,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    RESIDUAL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """y, and the statistics of every row, from x [n_rows, D]; one program for M rows.

    Products are in the dtype of the two weights; vectors may have any.
    """
    start = tl.program_id(0).to(tl.int64) * M
    row = tl.arange(0, M)
    mlp_rows(
        x + start * D, y + start * D, mean + start, rstd + start, norm_weight, norm_bias, fc1_weight, fc1_bias,
        fc2_weight, fc2_bias, eps, row, row < tl.minimum(n_rows - start, M).to(tl.int32),
        D, F, M, CB, NC, FB, RESIDUAL, FAST,
    )  # fmt: skip
