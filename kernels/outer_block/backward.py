# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward kernel of a linear layer on whole rows, through LayerNorm or not."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, product, store_tile
from titn.kernels.common.wide_rows import columns, layer_norm_gradient, matrix, zero_rows


@triton.jit
def backward_kernel(
    dout, x, dresidual, mean, rstd, norm_weight, norm_bias, weight, dx, normed_out, partial, n_rows,
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
    present = row < left
    vectors: tl.constexpr = 2 * D if NORM else 0
    partial += tl.program_id(0).to(tl.int64) * (vectors + N)
    din = zero_rows(M, CB, NC)
    for first in range(0, N, FB):
        n = first + tl.arange(0, FB)
        gradient = load_tile(dout + start * N, row, present, n, N)
        tl.store(partial + vectors + n, tl.sum(gradient.to(tl.float32), 0), mask=n < N)
        gradient = gradient.to(kind)
        for j in tl.static_range(NC):
            din = din[:j] + (product(gradient, matrix(weight, n, columns(j, CB), N, D), din[j]),) + din[j + 1 :]
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
