# mypy: disable-error-code="no-untyped-def, assignment"
"""The forward kernel: a linear layer on whole rows, with LayerNorm before the product or the residual behind it."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, product, store_tile, vector
from titn.kernels.common.wide_rows import columns, layer_normed, matrix, statistics


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
        inputs = ()
        for j in tl.static_range(NC):
            inputs = inputs + (load_tile(x + start * D, row, present, columns(j, CB), D).to(kind),)
    for first in range(0, N, FB):
        n = first + tl.arange(0, FB)
        value = tl.zeros((M, FB), tl.float32)
        for j in tl.static_range(NC):
            value = product(inputs[j], tl.trans(matrix(weight, n, columns(j, CB), N, D)), value)
        value += vector(bias, n, n < N, 0.0)[None, :]
        if residual is not None:
            value += load_tile(residual + start * N, row, present, n, N).to(tl.float32)
        store_tile(out + start * N, row, present, n, value, N)
