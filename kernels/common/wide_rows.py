# mypy: disable-error-code="no-untyped-def, assignment"
"""Device functions for rows of up to 640 channels: M rows as a tuple of NC tiles [M, CB] that cover D columns.

Every tile is the operand or the accumulator of one product, so that no product is padded to a power of two above D.
"""

# ruff: noqa: RUF005 (Triton has no unpacking of tuples)

import triton
import triton.language as tl


@triton.jit
def columns(j: tl.constexpr, CB: tl.constexpr):
    """Columns of tile j."""
    return j * CB + tl.arange(0, CB)


@triton.jit
def load_tile(pointer, left, c, M: tl.constexpr, D: tl.constexpr):
    """Columns c of M rows of a matrix [n, D] from `pointer` on, `left` of which exist; 0 elsewhere."""
    row = tl.arange(0, M)
    mask = (row < left)[:, None] & (c < D)[None, :]
    return tl.load(pointer + (row[:, None] * D + c[None, :]), mask=mask, other=0.0)


@triton.jit
def store_tile(pointer, left, c, value, D: tl.constexpr):
    """Stores columns c of rows as `load_tile` reads them."""
    row = tl.arange(0, value.shape[0])
    mask = (row < left)[:, None] & (c < D)[None, :]
    tl.store(pointer + (row[:, None] * D + c[None, :]), value.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def vector(pointer, c, D: tl.constexpr, default: tl.constexpr):
    """pointer[c] as float32, `default` from D on, and throughout where the parameter is absent."""
    if pointer is None:
        value = tl.full(c.shape, default, tl.float32)
    else:
        value = tl.load(pointer + c, mask=c < D, other=default).to(tl.float32)
    return value


@triton.jit
def matrix(pointer, n, k, N: tl.constexpr, K: tl.constexpr):
    """Elements (n, k) of a matrix [N, K], 0 beyond it."""
    return tl.load(pointer + n[:, None] * K + k[None, :], mask=(n < N)[:, None] & (k < K)[None, :], other=0.0)


@triton.jit
def statistics(x, left, M: tl.constexpr, D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, eps):
    """Mean and 1 / sqrt(variance + eps) of M rows, float32 [M]."""
    total = tl.zeros((M,), tl.float32)
    for j in range(NC):
        total += tl.sum(load_tile(x, left, j * CB + tl.arange(0, CB), M, D).to(tl.float32), 1)
    mean = total * (1.0 / D)
    square = tl.zeros((M,), tl.float32)
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        centred = tl.where((c < D)[None, :], load_tile(x, left, c, M, D).to(tl.float32) - mean[:, None], 0.0)
        square += tl.sum(centred * centred, 1)
    return mean, tl.rsqrt(square * (1.0 / D) + eps)


@triton.jit
def layer_normed(
    x, left, mean, rstd, weight, bias, D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr, dtype: tl.constexpr
):
    """LayerNorm of M rows from their statistics, rounded to `dtype`, as a tuple of tiles; 0 from column D."""
    found = ()
    for j in tl.static_range(NC):
        c = columns(j, CB)
        value = (load_tile(x, left, c, mean.shape[0], D).to(tl.float32) - mean[:, None]) * rstd[:, None]
        value = value * vector(weight, c, D, 1.0)[None, :] + vector(bias, c, D, 0.0)[None, :]
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
    dn, x, dresidual, offset, mean, rstd, ln_weight, ln_bias, left, dx, normed_out, partial,
    D: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
):  # fmt: skip
    """Stores dx = dresidual + LayerNorm's backward of dn, LayerNorm's output, and `partial` [2 D]: dgamma, dbeta.

    dn: tuple of tiles, the gradient of LayerNorm's output. With g = dn gamma and xh the normalised rows,
    dx = dresidual + rstd (g - mean(g) - xh mean(g xh)). dgamma and dbeta are the tile's sums over rows of dn xh and of
    dn, float32. x, dx and normed_out begin at the tile's first row, `left` rows before their ends; dresidual (or None)
    `offset` elements before it. dn waits in dx, rounded to its dtype: accumulators held while rows are read made the
    compiler spill 56 to 400 bytes a thread at M = 128, D = 192.
    """
    M: tl.constexpr = mean.shape[0]
    for j in tl.static_range(NC):
        store_tile(dx, left, columns(j, CB), dn[j], D)
    tl.debug_barrier()  # dx passes between the program's own threads
    along = tl.zeros_like(mean)
    across = tl.zeros_like(mean)
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        gamma = vector(ln_weight, c, D, 1.0)[None, :]
        xh = (load_tile(x, left, c, M, D).to(tl.float32) - mean[:, None]) * rstd[:, None]
        store_tile(normed_out, left, c, xh * gamma + vector(ln_bias, c, D, 0.0)[None, :], D)
        dn_tile = load_tile(dx, left, c, M, D).to(tl.float32)
        tl.store(partial + c, tl.sum(dn_tile * xh, 0), mask=c < D)
        tl.store(partial + D + c, tl.sum(dn_tile, 0), mask=c < D)
        g = dn_tile * gamma
        across += tl.sum(g, 1)
        along += tl.sum(g * xh, 1)
    across *= 1.0 / D
    along *= 1.0 / D
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        xh = (load_tile(x, left, c, M, D).to(tl.float32) - mean[:, None]) * rstd[:, None]
        g = load_tile(dx, left, c, M, D).to(tl.float32) * vector(ln_weight, c, D, 1.0)[None, :]
        value = rstd[:, None] * (g - across[:, None] - xh * along[:, None])
        if dresidual is not None:
            value += load_tile(dresidual + offset, left, c, M, D).to(tl.float32)
        store_tile(dx, left, c, value, D)
