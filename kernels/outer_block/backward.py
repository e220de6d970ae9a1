# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward kernels on whole rows: of a linear layer, through LayerNorm or not, and of the tail."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, product, store_tile
from titn.kernels.common.wide_rows import columns, layer_norm_gradient, matrix, zero_rows
from titn.kernels.layernorm_mlp.backward import mlp_gradient_rows


@triton.jit
def linear_gradient_rows(
    dout, weight, dout_copy, partial, row, present, kind: tl.constexpr,
    D: tl.constexpr, N: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
):  # fmt: skip
    """dout weight of M rows as a tuple of tiles, float32; partial [N] gets the sums over rows of dout.

    dout and dout_copy (or None: not wanted), which gets dout in the dtype of the products, begin at the first row.
    """
    din = zero_rows(M, CB, NC)
    for first in range(0, N, FB):
        n = first + tl.arange(0, FB)
        gradient = load_tile(dout, row, present, n, N)
        tl.store(partial + n, tl.sum(gradient.to(tl.float32), 0), mask=n < N)
        gradient = gradient.to(kind)
        if dout_copy is not None:
            store_tile(dout_copy, row, present, n, gradient, N)
        for j in tl.static_range(NC):
            din = din[:j] + (product(gradient, matrix(weight, n, columns(j, CB), N, D), din[j]),) + din[j + 1 :]
    return din


@triton.jit
def backward_kernel(
    dout, x, dresidual, mean, rstd, norm_weight, norm_bias, weight, dx, normed_out, dout_copy, partial, n_rows,
    D: tl.constexpr, N: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """dx [n_rows, D] from dout [n_rows, N]; one program for M rows.

    NORM: through LayerNorm of x, plus dresidual [n_rows, D] or None; normed_out [n_rows, D] gets LayerNorm's output,
    the operand of the weight's gradient, and partial [programs, 2 D + N] float32 each tile's dgamma, dbeta and dbias.
    Otherwise partial [programs, N] gets dbias alone. dout_copy [n_rows, N] gets dout in the dtype of weight, or is
    None.
    """
    start = tl.program_id(0).to(tl.int64) * M
    left = tl.minimum(n_rows - start, M).to(tl.int32)
    row = tl.arange(0, M)
    present = row < left
    vectors: tl.constexpr = 2 * D if NORM else 0
    partial += tl.program_id(0).to(tl.int64) * (vectors + N)
    copy = None if dout_copy is None else dout_copy + start * N
    din = linear_gradient_rows(
        dout + start * N, weight, copy, partial + vectors, row, present, weight.dtype.element_ty,
        D, N, M, CB, NC, FB,
    )  # fmt: skip
    if NORM:
        row_mean = tl.load(mean + start + row, mask=present, other=0.0)
        row_rstd = tl.load(rstd + start + row, mask=present, other=0.0)
        layer_norm_gradient(
            din, x + start * D, dresidual, start * D, row_mean, row_rstd, norm_weight, norm_bias,
            row, present, dx + start * D, normed_out + start * D, partial, D, CB, NC,
        )  # fmt: skip
    else:
        for j in tl.static_range(NC):
            store_tile(dx + start * D, row, present, columns(j, CB), din[j], D)


@triton.jit
def tail_backward_kernel(
    middle, dy, mean, rstd, proj_weight, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
    dmiddle, dheads, normed_out, activation, dhidden, dy_copy, dmiddle_copy, partial, n_rows,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """dmiddle and dheads [n_rows, D], and the operands of the weight gradients, from dy; one program for M rows.

    partial [programs, 4 D + F] float32: as in layernorm_mlp's backward_kernel, then the projection's dbias.
    dmiddle_copy [n_rows, D] gets dmiddle in the dtype of the products, or is None; the others as there.
    """
    start = tl.program_id(0).to(tl.int64) * M
    row = tl.arange(0, M)
    present = row < tl.minimum(n_rows - start, M).to(tl.int32)
    partial += tl.program_id(0).to(tl.int64) * (4 * D + F)
    mlp_gradient_rows(
        middle + start * D, dy + start * D, mean + start, rstd + start, norm_weight, norm_bias, fc1_weight, fc1_bias,
        fc2_weight, dmiddle + start * D, normed_out + start * D, activation + start * F, dhidden + start * F,
        None if dy_copy is None else dy_copy + start * D, partial, row, present, D, F, M, CB, NC, FB, True, FAST,
    )  # fmt: skip
    tl.debug_barrier()  # dmiddle passes between the program's own threads
    copy = None if dmiddle_copy is None else dmiddle_copy + start * D
    din = linear_gradient_rows(
        dmiddle + start * D, proj_weight, copy, partial + 3 * D + F, row, present, proj_weight.dtype.element_ty,
        D, D, M, CB, NC, FB,
    )  # fmt: skip
    for j in tl.static_range(NC):
        store_tile(dheads + start * D, row, present, columns(j, CB), din[j], D)
