# mypy: disable-error-code="no-untyped-def, assignment"
"""The backward kernel of both heads: through product, LayerNorm and pooling to every token of a tile of images."""

import triton
import triton.language as tl

from titn.kernels.common.tiles import load_tile, store_tile
from titn.kernels.common.wide_rows import layer_norm_gradient
from titn.kernels.outer_block.backward import linear_gradient_rows


@triton.jit
def _head(
    dout, features, mean, rstd, norm_weight, norm_bias, weight, dfeatures, normed_out, dx, partial,
    first, count, last, row, present,
    T: tl.constexpr, D: tl.constexpr, K: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
    FB: tl.constexpr,
):  # fmt: skip
    """Gradient of tokens first .. last of M images, the first `count` of which were pooled; see `backward_kernel`."""
    din = linear_gradient_rows(
        dout, weight, None, partial + 2 * D, row, present, weight.dtype.element_ty, D, K, M, CB, NC, FB
    )
    row_mean = tl.load(mean + row, mask=present, other=0.0)
    row_rstd = tl.load(rstd + row, mask=present, other=0.0)
    layer_norm_gradient(
        din, features, None, 0, row_mean, row_rstd, norm_weight, norm_bias, row, present, dfeatures, normed_out,
        partial, D, CB, NC,
    )  # fmt: skip
    tl.debug_barrier()  # dfeatures pass between the program's own threads
    for j in range(NC):
        c = j * CB + tl.arange(0, CB)
        share = load_tile(dfeatures, row, present, c, D) * (1.0 / count)
        for t in range(first, last):
            store_tile(dx + t * D, row * T, present, c, tl.where(t < first + count, share, 0.0), D)


@triton.jit
def backward_kernel(
    dout, other_dout, features, statistics, norm_weight, norm_bias, weight, other_norm_weight, other_norm_bias,
    other_weight, dx, dfeatures, normed_out, partial, images, pooled,
    T: tl.constexpr, D: tl.constexpr, K: tl.constexpr, M: tl.constexpr, CB: tl.constexpr, NC: tl.constexpr,
    FB: tl.constexpr,
):  # fmt: skip
    """dx [images, T, D] from the gradients [images, K] of both logits; grid (tiles of M images, 2), a head each.

    dfeatures [2, images, D] float32 is room for the gradient of what LayerNorm sees. normed_out [2, images, D] gets
    LayerNorm's output, partial [2, tiles, 2 D + K] float32 each tile's dgamma, dbeta and dbias.
    """
    start = tl.program_id(0).to(tl.int64) * M
    row = tl.arange(0, M)
    present = row < tl.minimum(images - start, M).to(tl.int32)
    width: tl.constexpr = 2 * D + K
    partial += tl.program_id(0) * width
    behind = tl.program_id(1).to(tl.int64) * images * D
    dx += start * (T * D)
    features += start * D
    dfeatures += start * D
    normed_out += start * D
    statistics += start
    if tl.program_id(1) == 0:
        _head(
            dout + start * K, features, statistics, statistics + images, norm_weight, norm_bias, weight, dfeatures,
            normed_out, dx, partial, 0, pooled, T - 1, row, present, T, D, K, M, CB, NC, FB,
        )  # fmt: skip
    else:
        _head(
            other_dout + start * K, features + behind, statistics + 2 * images, statistics + 3 * images,
            other_norm_weight, other_norm_bias, other_weight, dfeatures + behind, normed_out + behind, dx,
            partial + tl.num_programs(0) * width, T - 1, 1, T, row, present, T, D, K, M, CB, NC, FB,
        )  # fmt: skip
