# mypy: disable-error-code="no-untyped-def, assignment"
"""The forward kernels on whole rows: a linear layer with LayerNorm before it or the residual behind, and the tail."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, product, store_tile, vector
from titn.kernels.common.wide_rows import columns, layer_normed, matrix, statistics
from titn.kernels.layernorm_mlp.forward import mlp_rows


@triton.jit
def loaded(x, row, present, D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, dtype: tl.constexpr):
    """The rows as a tuple of tiles, rounded to `dtype`."""
    found = ()
    for j in tl.static_range(NC):
        found = found + (load_tile(x, row, present, columns(j, CB), D).to(dtype),)
    return found


@triton.jit
def linear_rows(
    inputs, residual, out, weight, bias, row, present,
    D: tl.constexpr, N: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
):  # fmt: skip
    """Stores inputs weight^T + bias + residual of M rows; out and residual (or None) begin at the first."""
    for first in range(0, N, FB):
        n = first + tl.arange(0, FB)
        value = tl.zeros((M, FB), tl.float32)
        for j in tl.static_range(NC):
            value = product(inputs[j], tl.trans(matrix(weight, n, columns(j, CB), N, D)), value)
        value += vector(bias, n, n < N, 0.0)[None, :]
        if residual is not None:
            value += load_tile(residual, row, present, n, N).to(tl.float32)
        store_tile(out, row, present, n, value, N)


@triton.jit
def forward_kernel(
    x, residual, out, mean, rstd, norm_weight, norm_bias, weight, bias, n_rows, eps,
    D: tl.constexpr, N: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """out [n_rows, N] = LN(x) weight^T + bias or x weight^T + bias + residual of x [n_rows, D]; a program for M rows.

    NORM: LayerNorm comes first, whose statistics go to mean and rstd [n_rows]. residual [n_rows, N] or None. The
    product is in the dtype of weight [N, D].
    """
    kind: tl.constexpr = weight.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * M
    left = tl.minimum(n_rows - start, M).to(tl.int32)
    row = tl.arange(0, M)
    present = row < left
    if NORM:
        row_mean, row_rstd = statistics(x + start * D, row, present, D, CB, NC, eps)
        tl.store(mean + start + row, row_mean, mask=present)
        tl.store(rstd + start + row, row_rstd, mask=present)
        inputs = layer_normed(x + start * D, row, present, row_mean, row_rstd, norm_weight, norm_bias, D, CB, NC, kind)
    else:
        inputs = loaded(x + start * D, row, present, D, CB, NC, kind)
    added = None if residual is None else residual + start * N
    linear_rows(inputs, added, out + start * N, weight, bias, row, present, D, N, M, CB, NC, FB)


@triton.jit
def tail_kernel(
    heads, residual, middle, y, mean, rstd, proj_weight, proj_bias,
    norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, n_rows, eps,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """middle = residual + projection of heads and y = middle + MLP of it, [n_rows, D]; one program for M rows.

    mean and rstd [n_rows] get the statistics of middle. Products are in the dtype of the three matrices.
    """
    start = tl.program_id(0).to(tl.int64) * M
    row = tl.arange(0, M)
    present = row < tl.minimum(n_rows - start, M).to(tl.int32)
    inputs = loaded(heads + start * D, row, present, D, CB, NC, proj_weight.dtype.element_ty)
    linear_rows(
        inputs, residual + start * D, middle + start * D, proj_weight, proj_bias, row, present, D, D, M, CB, NC, FB
    )
    tl.debug_barrier()  # middle passes between the program's own threads
    mlp_rows(
        middle + start * D, y + start * D, mean + start, rstd + start, norm_weight, norm_bias, fc1_weight, fc1_bias,
        fc2_weight, fc2_bias, eps, row, present, D, F, M, CB, NC, FB, True, FAST,
    )  # fmt: skip
