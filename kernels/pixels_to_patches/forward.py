# mypy: disable-error-code="no-untyped-def"
"""Pixels to patches in Triton, forward: one kernel.

Legend: M rows of a tile; LB pixels of CP padded channels in a chunk; D0 + D1 of the D columns of a patch in a tile (two
powers of two: 192 = 128 + 64), TILES of them. The normalised pixels [M, LB, CP] are the operand [M, LB CP] as they are.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import product


@triton.jit
def normalised_tile(
    pixels, row, present, first, eps, L: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, LB: tl.constexpr
):
    """Pixels first .. first + LB of the rows, normalised over channels (float32), and 1 / deviation, offsets, mask."""
    i_l = first + tl.arange(0, LB)
    i_c = tl.arange(0, CP)
    offsets = row[:, None, None] * (L * C) + (i_l[:, None] * C + i_c[None, :])[None, :, :]
    mask = present[:, None, None] & ((i_l < L)[:, None] & (i_c < C)[None, :])[None, :, :]
    x = tl.load(pixels + offsets, mask=mask, other=0.0).to(tl.float32)
    # Masked as loaded: 6 registers fewer than tiles.normalised, enough for two forward programs on a multiprocessor.
    centred = tl.where(mask, x - tl.sum(x, 2)[:, :, None] * (1.0 / C), 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 2) * (1.0 / C) + eps)
    return centred * scale[:, :, None], scale, offsets, mask


@triton.jit
def weight_tile(
    weight, first, d, L: tl.constexpr, C: tl.constexpr, CP: tl.constexpr, LB: tl.constexpr, D: tl.constexpr
):
    """Columns of the chunk of `weight` [D, L C], padded with zeros: [len(d), LB CP], float32."""
    k = tl.arange(0, LB * CP)
    pixel, c = first + k // CP, k % CP
    mask = (d < D)[:, None] & ((pixel < L) & (c < C))[None, :]
    return tl.load(weight + d[:, None] * (L * C) + (pixel * C + c)[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _add_rows(patches, out, row, present, inside, total, bias, d, D: tl.constexpr, HAS_BIAS: tl.constexpr):
    """out = patches + (total + bias in the rows that have pixels)."""
    if HAS_BIAS:
        total += tl.load(bias + d, mask=d < D, other=0.0).to(tl.float32)[None, :]
    offsets = row[:, None] * D + d[None, :]
    mask = inside[:, None] & (d < D)[None, :]
    old = tl.load(patches + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + offsets, (old + tl.where(present[:, None], total, 0.0)).to(out.dtype.element_ty), mask=mask)


@triton.jit
def first_column(width: tl.constexpr, TILES: tl.constexpr):
    """First of the columns of this program's tile; a constant where there is one tile (which saves 8 registers)."""
    return tl.program_id(1) * width if TILES > 1 else 0


@triton.jit
def forward_kernel(
    pixels, patches, gamma, beta, weight, bias, out, rows, eps,
    N: tl.constexpr, T: tl.constexpr, L: tl.constexpr, C: tl.constexpr, D: tl.constexpr, HAS_BIAS: tl.constexpr,
    M: tl.constexpr, LB: tl.constexpr, CP: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """patches [rows = B T, D] + projected pixels [B N, L C]: M patch rows and D0 + D1 columns a program."""
    i = tl.program_id(0) * M + tl.arange(0, M)
    inside = i < rows
    present = inside & (i % T >= 1) & (i % T <= N)
    row = (i // T).to(tl.int64) * N + i % T - 1
    i_c = tl.arange(0, CP)
    b_gamma = tl.load(gamma + i_c, mask=i_c < C, other=0.0).to(tl.float32)[None, None, :]
    b_beta = tl.load(beta + i_c, mask=i_c < C, other=0.0).to(tl.float32)[None, None, :]
    d0 = first_column(D0 + D1, TILES) + tl.arange(0, D0)
    total0 = tl.zeros((M, D0), tl.float32)
    if D1 > 0:
        d1 = first_column(D0 + D1, TILES) + D0 + tl.arange(0, D1)
        total1 = tl.zeros((M, D1), tl.float32)
    for first in range(0, L, LB):
        normed, _, _, _ = normalised_tile(pixels, row, present, first, eps, L, C, CP, LB)
        h = tl.reshape((normed * b_gamma + b_beta).to(pixels.dtype.element_ty), (M, LB * CP))
        w = weight_tile(weight, first, d0, L, C, CP, LB, D).to(h.dtype)
        total0 = product(h, tl.trans(w), total0)
        if D1 > 0:
            w = weight_tile(weight, first, d1, L, C, CP, LB, D).to(h.dtype)
            total1 = product(h, tl.trans(w), total1)
    place = i.to(tl.int64)
    _add_rows(patches, out, place, present, inside, total0, bias, d0, D, HAS_BIAS)
    if D1 > 0:
        _add_rows(patches, out, place, present, inside, total1, bias, d1, D, HAS_BIAS)
