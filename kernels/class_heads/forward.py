# mypy: disable-error-code="no-untyped-def, assignment"
"""The forward kernel of both heads: pooling, LayerNorm and product of a tile of images without leaving the chip."""

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, store_tile
from titn.kernels.common.wide_rows import layer_normed, statistics
from titn.kernels.outer_block.forward import linear_rows


@triton.jit
def _head(
    x, features, out, mean, rstd, norm_weight, norm_bias, weight, bias, first, count, row, present, eps,
    T: tl.constexpr, D: tl.constexpr, K: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
    FB: tl.constexpr,
):  # fmt: skip
    """Tokens first .. first + count of M images to logits; all pointers but the parameters' begin at the first one."""
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        total = tl.zeros((M, CB), tl.float32)
        for t in range(first, first + count):
            total += load_tile(x + t * D, row * T, present, c, D).to(tl.float32)
        store_tile(features, row, present, c, total * (1.0 / count), D)
    tl.debug_barrier()  # features pass between the program's own threads
    row_mean, row_rstd = statistics(features, row, present, D, CB, NC, eps)
    tl.store(mean + row, row_mean, mask=present)
    tl.store(rstd + row, row_rstd, mask=present)
    inputs = layer_normed(
        features, row, present, row_mean, row_rstd, norm_weight, norm_bias, D, CB, NC, weight.dtype.element_ty
    )
    linear_rows(inputs, None, out, weight, bias, row, present, D, K, M, CB, NC, FB)


@triton.jit
def forward_kernel(
    x, features, out, other_out, statistics, norm_weight, norm_bias, weight, bias,
    other_norm_weight, other_norm_bias, other_weight, other_bias, images, pooled, eps,
    T: tl.constexpr, D: tl.constexpr, K: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
    FB: tl.constexpr,
):  # fmt: skip
    """Logits [images, K] of both heads from x [images, T, D]; grid (tiles of M images, 2), a head each.

    features [2, images, D] float32 gets what LayerNorm sees, statistics [4, images] its mean and 1 / deviation: two
    rows for a head.
    """
    start = tl.program_id(0).to(tl.int64) * M
    row = tl.arange(0, M)
    present = row < tl.minimum(images - start, M).to(tl.int32)
    x += start * (T * D)
    features += start * D
    statistics += start
    if tl.program_id(1) == 0:
        _head(
            x, features, out + start * K, statistics, statistics + images, norm_weight, norm_bias, weight, bias,
            0, pooled, row, present, eps, T, D, K, M, CB, NC, FB,
        )  # fmt: skip
    else:
        _head(
            x, features + tl.program_id(1).to(tl.int64) * images * D, other_out + start * K, statistics + 2 * images,
            statistics + 3 * images, other_norm_weight, other_norm_bias, other_weight, other_bias, T - 1, 1, row,
            present, eps, T, D, K, M, CB, NC, FB,
        )  # fmt: skip
