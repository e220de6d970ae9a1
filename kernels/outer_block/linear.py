# mypy: disable-error-code="no-untyped-def, assignment"
"""Linear layers on whole rows: LayerNorm before the product, the residual behind it, and the same backwards."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import product
from titn.kernels.common.wide_rows import (
    columns,
    layer_norm_gradient,
    layer_normed,
    load_tile,
    matrix,
    statistics,
    store_tile,
    vector,
    zero_rows,
)


@triton.jit
def forward_kernel(
    x, residual, out, mean, rstd, ln_weight, ln_bias, weight, bias, n_rows, eps,
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
    if NORM:
        row_mean, row_rstd = statistics(x + start * D, left, M, D, CB, NC, eps)
        tl.store(mean + start + row, row_mean, mask=row < left)
        tl.store(rstd + start + row, row_rstd, mask=row < left)
        inputs = layer_normed(x + start * D, left, row_mean, row_rstd, ln_weight, ln_bias, D, CB, NC, kind)
    else:
        inputs = ()
        for j in tl.static_range(NC):
            inputs = inputs + (load_tile(x + start * D, left, columns(j, CB), M, D).to(kind),)
    for first in range(0, N, FB):
        n = first + tl.arange(0, FB)
        value = tl.zeros((M, FB), tl.float32)
        for j in tl.static_range(NC):
            value = product(inputs[j], tl.trans(matrix(weight, n, columns(j, CB), N, D)), value)
        value += vector(bias, n, N, 0.0)[None, :]
        if residual is not None:
            value += load_tile(residual + start * N, left, n, M, N).to(tl.float32)
        store_tile(out + start * N, left, n, value, N)


@triton.jit
def backward_kernel(
    dout, x, dresidual, mean, rstd, ln_weight, ln_bias, weight, dx, normed_out, partial, n_rows,
    D: tl.constexpr, N: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    NORM: tl.constexpr,
):  # fmt: skip
    """dx [n_rows, D] from dout [n_rows, N]; one program for M rows.

    NORM: through LayerNorm of x, plus dresidual [n_rows, D] or None; normed_out [n_rows, D] gets LayerNorm's output,
    the operand of the weight's gradient, and partial [programs, 2 D + N] float32 each tile's dgamma, dbeta and dbias.
    Otherwise partial [programs, N] gets dbias alone.
    """
    kind: tl.constexpr = weight.dtype.element_ty
    start = tl.program_id(0).to(tl.int64) * M
    left = tl.minimum(n_rows - start, M).to(tl.int32)
    row = tl.arange(0, M)
    vectors: tl.constexpr = 2 * D if NORM else 0
    partial += tl.program_id(0).to(tl.int64) * (vectors + N)
    din = zero_rows(M, CB, NC)
    for first in range(0, N, FB):
        n = first + tl.arange(0, FB)
        gradient = load_tile(dout + start * N, left, n, M, N)
        tl.store(partial + vectors + n, tl.sum(gradient.to(tl.float32), 0), mask=n < N)
        gradient = gradient.to(kind)
        for j in tl.static_range(NC):
            din = din[:j] + (product(gradient, matrix(weight, n, columns(j, CB), N, D), din[j]),) + din[j + 1 :]
    if NORM:
        row_mean = tl.load(mean + start + row, mask=row < left, other=0.0)
        row_rstd = tl.load(rstd + start + row, mask=row < left, other=0.0)
        layer_norm_gradient(
            din, x + start * D, dresidual, start * D, row_mean, row_rstd, ln_weight, ln_bias, left, dx + start * D,
            normed_out + start * D, partial, D, CB, NC,
        )  # fmt: skip
    else:
        for j in tl.static_range(NC):
            store_tile(dx + start * D, left, columns(j, CB), din[j], D)
