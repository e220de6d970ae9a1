# mypy: disable-error-code="no-untyped-def"
"""Both kernels of the pixel embedding.

Legend: N patches of an image, GRID in a row of it; L pixels of a patch, SIDE in a row of it, padded to LP; squares of S
x S in C channels, K values padded to KP; E channels of the output padded to EP.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import product, vector


@triton.jit
def _squares(
    images, patch, pixel, present, kind: tl.constexpr,
    N: tl.constexpr, GRID: tl.constexpr, SIDE: tl.constexpr, S: tl.constexpr, K: tl.constexpr, KP: tl.constexpr,
):  # fmt: skip
    """The squares of pixels [R] of patches [R], counted through all images: [R, KP], 0 beyond K and where absent."""
    width: tl.constexpr = GRID * SIDE * S
    height: tl.constexpr = N // GRID * SIDE * S
    k = tl.arange(0, KP)
    image, n = (patch // N).to(tl.int64), patch % N
    top = (n // GRID * SIDE + pixel // SIDE) * S
    left = (n % GRID * SIDE + pixel % SIDE) * S
    corner = image * (K // (S * S) * height * width) + top * width + left
    inside = k // (S * S) * (height * width) + k // S % S * width + k % S
    mask = present[:, None] & (k < K)[None, :]
    return tl.load(images + corner[:, None] + inside[None, :], mask=mask, other=0.0).to(kind)


@triton.jit
def forward_kernel(
    images, weight, bias, position, out, patches,
    N: tl.constexpr, GRID: tl.constexpr, L: tl.constexpr, SIDE: tl.constexpr, S: tl.constexpr, K: tl.constexpr,
    KP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """out [patches L, E] of all images; one program for R pixels. The product is in the dtype of out."""
    kind: tl.constexpr = out.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * R + tl.arange(0, R)
    present = row < patches.to(tl.int64) * L
    pixel = (row % L).to(tl.int32)
    x = _squares(images, (row // L).to(tl.int32), pixel, present, kind, N, GRID, SIDE, S, K, KP)
    e, k = tl.arange(0, EP), tl.arange(0, KP)
    w = tl.load(weight + k[:, None] + e[None, :] * K, mask=(k < K)[:, None] & (e < E)[None, :], other=0.0).to(kind)
    value = product(x, w, tl.zeros((R, EP), tl.float32)) + vector(bias, e, e < E, 0.0)[None, :]
    mask = present[:, None] & (e < E)[None, :]
    value += tl.load(position + pixel[:, None] * E + e[None, :], mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row[:, None] * E + e[None, :], value.to(kind), mask=mask)


@triton.jit
def backward_kernel(
    dout, images, partial, patches,
    N: tl.constexpr, GRID: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, SIDE: tl.constexpr, S: tl.constexpr,
    K: tl.constexpr, KP: tl.constexpr, E: tl.constexpr, EP: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """partial [programs, E K + L E + E] float32: each program's share of dW, dposition and dbias.

    A program takes every so many tiles of R // LP patches.
    """
    kind: tl.constexpr = dout.dtype.element_ty
    place, pixel = tl.arange(0, R) // LP, tl.arange(0, R) % LP
    e, k, at_pixel = tl.arange(0, EP), tl.arange(0, KP), tl.arange(0, LP)
    by_weight = tl.zeros((EP, KP), tl.float32)
    by_position = tl.zeros((LP, EP), tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(patches, R // LP), tl.num_programs(0)):
        patch = tile * (R // LP) + place
        present = (patch < patches) & (pixel < L)
        x = _squares(images, patch, pixel, present, kind, N, GRID, SIDE, S, K, KP)
        at = (patch.to(tl.int64) * L + pixel)[:, None] * E + e[None, :]
        d = tl.load(dout + at, mask=present[:, None] & (e < E)[None, :], other=0.0)
        by_weight = product(tl.trans(d), x, by_weight)
        by_position += tl.sum(tl.reshape(d.to(tl.float32), (R // LP, LP, EP)), 0)
    partial += tl.program_id(0) * (E * K + L * E + E)
    tl.store(partial + e[:, None] * K + k[None, :], by_weight, mask=(e < E)[:, None] & (k < K)[None, :])
    partial += E * K
    mask = (at_pixel < L)[:, None] & (e < E)[None, :]
    tl.store(partial + at_pixel[:, None] * E + e[None, :], by_position, mask=mask)
    tl.store(partial + L * E + e, tl.sum(by_position, 0), mask=e < E)
