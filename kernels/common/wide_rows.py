# mypy: disable-error-code="no-untyped-def, assignment"
"""Device functions for rows of up to 640 channels: M rows as a tuple of NC tiles [M, CB] that cover D columns.

Every tile is the operand or the accumulator of one product, so that no product is padded to a power of two above D.
"""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, store_tile, vector


@triton.jit
def columns(j: tl.constexpr, CB: tl.constexpr):
    """Columns of tile j."""
    return j * CB + tl.arange(0, CB)


@triton.jit
def matrix(pointer, n, k, N: tl.constexpr, K: tl.constexpr):
    """Elements (n, k) of a matrix [N, K], 0 beyond it."""
    return tl.load(pointer + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def statistics(x, row, present, D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, eps):
    """Mean and 1 / sqrt(variance + eps) of the rows, float32."""
    total = tl.zeros(row.shape, tl.float32)
    for j in range(NC):
        total += tl.sum(load_tile(x, row, present, j * CB + tl.arange(0, CB), D).to(tl.float32), 1)
    mean = total * (1.0 / D)
    square = tl.zeros(row.shape, tl.float32)
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        centred = tl.where((c < D)[None, :], load_tile(x, row, present, c, D).to(tl.float32) - mean[:, None], 0.0)
        square += tl.sum(centred * centred, 1)
    return mean, tl.rsqrt(square * (1.0 / D) + eps)


@triton.jit
def layer_normed(
    x, row, present, mean, rstd, weight, bias, D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, dtype: tl.constexpr
):
    """LayerNorm of the rows from their statistics, rounded to `dtype`, as a tuple of tiles; 0 from column D."""
    found = ()
    for j in tl.static_range(NC):
        c = columns(j, CB)
        value = (load_tile(x, row, present, c, D).to(tl.float32) - mean[:, None]) * rstd[:, None]
        value = value * vector(weight, c, c < D, 1.0)[None, :] + vector(bias, c, c < D, 0.0)[None, :]
        found = found + (tl.where((c < D)[None, :], value, 0.0).to(dtype),)
    return found


@triton.jit
def zero_rows(M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr):
    """Accumulators for M rows, float32."""
    found = ()
    for _ in tl.static_range(NC):
        found = found + (tl.zeros((M, CB), tl.float32),)
    return found


@triton.jit
def layer_norm_gradient(
    dn, x, dresidual, offset, mean, rstd, norm_weight, norm_bias, row, present, dx, normed_out, partial,
    D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
):  # fmt: skip
    """Stores dx = dresidual + LayerNorm's backward of dn, LayerNorm's output, and `partial` [2 D]: dgamma, dbeta.

    dn: tuple of tiles, the gradient of LayerNorm's output. With g = dn gamma and xh the normalised rows,
    dx = dresidual + rstd (g - mean(g) - xh mean(g xh)). dgamma and dbeta are the tile's sums over rows of dn xh and of
    dn, float32. x, dx and normed_out begin at the tile's first row; dresidual (or None) `offset` elements before it. dn
    waits in dx, rounded to its dtype: accumulators held while rows are read made the compiler spill 56 to 400 bytes a
    thread at M = 128, D = 192.
    """
    for j in tl.static_range(NC):
        store_tile(dx, row, present, columns(j, CB), dn[j], D)
    tl.debug_barrier()  # dx passes between the program's own threads
    along = tl.zeros_like(mean)
    across = tl.zeros_like(mean)
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        gamma = vector(norm_weight, c, c < D, 1.0)[None, :]
        xh = (load_tile(x, row, present, c, D).to(tl.float32) - mean[:, None]) * rstd[:, None]
        store_tile(normed_out, row, present, c, xh * gamma + vector(norm_bias, c, c < D, 0.0)[None, :], D)
        dn_tile = load_tile(dx, row, present, c, D).to(tl.float32)
        tl.store(partial + c, tl.sum(dn_tile * xh, 0), mask=c < D)
        tl.store(partial + D + c, tl.sum(dn_tile, 0), mask=c < D)
        g = dn_tile * gamma
        across += tl.sum(g, 1)
        along += tl.sum(g * xh, 1)
    across *= 1.0 / D
    along *= 1.0 / D
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        xh = (load_tile(x, row, present, c, D).to(tl.float32) - mean[:, None]) * rstd[:, None]
        g = load_tile(dx, row, present, c, D).to(tl.float32) * vector(norm_weight, c, c < D, 1.0)[None, :]
        value = rstd[:, None] * (g - across[:, None] - xh * along[:, None])
        if dresidual is not None:
            value += load_tile(dresidual + offset, row, present, c, D).to(tl.float32)
        store_tile(dx, row, present, c, value, D)
