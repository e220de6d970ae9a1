# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward kernel of layernorm_mlp."""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import gelu_and_slope, load_tile, product, store_tile
from titn.kernels.common.wide_rows import columns, layer_norm_gradient, layer_normed, matrix, zero_rows
from titn.kernels.layernorm_mlp.forward import hidden_block


@triton.jit
def mlp_gradient_rows(
    x, dy, mean, rstd, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
    dx, normed_out, activation, dhidden, dy_copy, partial, row, present,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    RESIDUAL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """What `backward_kernel` writes for M rows; all pointers but those of the weights begin at the first of them."""
    kind: tl.constexpr = fc1_weight.dtype.element_ty
    row_mean = tl.load(mean + row, mask=present, other=0.0)
    row_rstd = tl.load(rstd + row, mask=present, other=0.0)
    normed = layer_normed(x, row, present, row_mean, row_rstd, norm_weight, norm_bias, D, CB, NC, kind)
    incoming = ()
    for j in tl.static_range(NC):
        c = columns(j, CB)
        gradient = load_tile(dy, row, present, c, D)
        tl.store(partial + 2 * D + c, tl.sum(gradient.to(tl.float32), 0), mask=c < D)
        incoming = incoming + (gradient.to(kind),)
        if dy_copy is not None:
            store_tile(dy_copy, row, present, c, gradient, D)
    dn = zero_rows(M, CB, NC)
    for first in range(0, F, FB):
        f = first + tl.arange(0, FB)
        a, slope = gelu_and_slope(hidden_block(normed, fc1_weight, fc1_bias, f, D, F, M, CB, NC), FAST)
        store_tile(activation, row, present, f, a, F)
        da = tl.zeros((M, FB), tl.float32)
        for j in tl.static_range(NC):
            da = product(incoming[j], matrix(fc2_weight, columns(j, CB), f, D, F), da)
        dh = da * slope
        tl.store(partial + 3 * D + f, tl.sum(dh, 0), mask=f < F)
        dh = dh.to(kind)
        store_tile(dhidden, row, present, f, dh, F)
        for j in tl.static_range(NC):
            dn = dn[:j] + (product(dh, matrix(fc1_weight, f, columns(j, CB), F, D), dn[j]),) + dn[j + 1 :]
    layer_norm_gradient(
        dn, x, dy if RESIDUAL else None, 0, row_mean, row_rstd, norm_weight, norm_bias,
        row, present, dx, normed_out, partial, D, CB, NC,
    )  # fmt: skip


@triton.jit
def backward_kernel(
    x, dy, mean, rstd, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight,
    dx, normed_out, activation, dhidden, dy_copy, partial, n_rows,
    D: tl.constexpr, F: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, FB: tl.constexpr,
    RESIDUAL: tl.constexpr, FAST: tl.constexpr,
):  # fmt: skip
    """dx and the operands of the weight gradients from x and dy [n_rows, D]; one program for M rows.

    normed_out [n_rows, D], activation and dhidden [n_rows, F] in the dtype of the weights: fc1's input, gelu's output
    and the gradient of its input. dy_copy [n_rows, D] gets dy in that dtype, or is None. partial [programs, 3 D + F]
    float32: each tile's dgamma, dbeta, and the sums over its rows of dy and dhidden.
    """
    start = tl.program_id(0).to(tl.int64) * M
    row = tl.arange(0, M)
    mlp_gradient_rows(
        x + start * D, dy + start * D, mean + start, rstd + start, norm_weight, norm_bias, fc1_weight, fc1_bias,
        fc2_weight, dx + start * D, normed_out + start * D, activation + start * F, dhidden + start * F,
        None if dy_copy is None else dy_copy + start * D, partial + tl.program_id(0).to(tl.int64) * (3 * D + F),
        row, row < tl.minimum(n_rows - start, M).to(tl.int32), D, F, M, CB, NC, FB, RESIDUAL, FAST,
    )  # fmt: skip
