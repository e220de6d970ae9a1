# mypy: disable-error-code="no-untyped-def"
"""Attention kernels that keep all heads of a token in one row: narrow heads (4 x 3, 2 x 6), at most 16 tokens.

A row of C = H * D channels is loaded whole, so that loads are as wide as the row allows, and heads are taken apart by
the tensor cores: a product with a 0-1 matrix is exact, and its result already lies in the registers in which the next
product wants its operand, where a masked copy would go through shared memory. 16 tokens, 4 heads x 3, forward,
instructions for a sequence on sm_90: 534 with masked copies, 1160 with one unit a head, 326 so.
"""

import triton
import triton.language as tl

from titn.kernels.common.tiles import identity, product, product0, stacked, swap, transposed
from titn.kernels.short_attention.rows import reciprocal, row_offset, scores, tile_start, unit_and_token


@triton.jit
def _selection(mask, dtype: tl.constexpr, G: tl.constexpr):
    """The 0-1 matrix of `mask` `[CP, CP]`, once a batch."""
    return stacked(mask.to(dtype), G)


@triton.jit
def _selected(a, b):
    """The product of a tile and a 0-1 matrix with at most one 1 in a line: exact in the tile's dtype."""
    return product0(a, b).to(a.dtype)


@triton.jit(do_not_specialize=["n"])
def forward(
    q, k, v, out, n, scale_log2e,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr,
    G: tl.constexpr, PACK: tl.constexpr, CP: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """out `[n, L, H * D]` contiguous; q, k, v have strides SS, SL, 1; H * DP <= CP and D < DP.

    Inside, the result takes DP columns a head: D of values, then zeros, then the sum of the rounded weights, which a
    column of ones in v gives.
    """
    C: tl.constexpr = H * D
    T: tl.constexpr = 16
    U: tl.constexpr = G * PACK
    c = tl.arange(0, CP)
    unit, token = unit_and_token(L, T, G, PACK)
    inside = (token < L)[:, :, None] & (c < C)[None, None, :]
    at = row_offset(unit, token, 1, U, SS, SL, 0)[:, :, None] + c[None, None, :]
    to = row_offset(unit, token, 1, U, L * C, C, 0)[:, :, None] + c[None, None, :]
    for tile in range(tl.program_id(0), tl.cdiv(n, U), tl.num_programs(0)):
        start = tile_start(tile, 1, U, SS, 0)
        ok = inside & (unit < n - tile * U)[:, :, None]
        queries = tl.load(q + start + at, mask=ok, other=0.0)
        keys = swap(tl.load(k + start + at, mask=ok, other=0.0))
        values = swap(tl.load(v + start + at, mask=ok, other=1.0))  # [G, CP, T], ones from row C on
        x = tl.zeros((G, T, CP), tl.float32)
        for h in tl.static_range(H):
            keep = _selection((c[:, None] == c[None, :]) & (c // D == h)[:, None], queries.dtype, G)
            source = tl.where(c % DP < D, h * D + c % DP, tl.where(c % DP == DP - 1, C, CP))  # CP: none
            place = _selection((c[None, :] == source[:, None]) & (c // DP == h)[:, None], queries.dtype, G)
            s = scores(_selected(queries, keep), keys, L, PACK)
            e = tl.exp2(s * scale_log2e - (tl.max(s, 2) * scale_log2e)[:, :, None])
            x = product(e.to(queries.dtype), swap(_selected(place, values)), x)
        x = tl.reshape(x, (G, T, CP // DP, DP))
        total = tl.sum(tl.where((tl.arange(0, DP) == DP - 1)[None, None, None, :], x, 0.0), 3)
        if H * DP < CP:  # the columns of no head
            total = tl.where((tl.arange(0, CP // DP) < H)[None, None, :], total, 1.0)
        x = tl.reshape(x * reciprocal(total)[:, :, :, None], (G, T, CP)).to(queries.dtype)
        back = _selection((c < C)[None, :] & (c[:, None] == (c // D * DP + c % D)[None, :]), queries.dtype, G)
        tl.store(out + tile_start(tile, 1, U, L * C, 0) + to, _selected(x, back), mask=ok)


@triton.jit(do_not_specialize=["n"])
def backward(
    grad, q, k, v, dq, dk, dv, n, scale_log2e, scale,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr,
    RS: tl.constexpr, RL: tl.constexpr, G: tl.constexpr, PACK: tl.constexpr, CP: tl.constexpr,
):  # fmt: skip
    """Gradients dq, dk, dv (strides RS, RL, 1) for grad `[n, L, H * D]` contiguous."""
    C: tl.constexpr = H * D
    T: tl.constexpr = 16
    U: tl.constexpr = G * PACK
    c = tl.arange(0, CP)
    unit, token = unit_and_token(L, T, G, PACK)
    inside = (token < L)[:, :, None] & (c < C)[None, None, :]
    at = row_offset(unit, token, 1, U, SS, SL, 0)[:, :, None] + c[None, None, :]
    at_grad = row_offset(unit, token, 1, U, L * C, C, 0)[:, :, None] + c[None, None, :]
    to = row_offset(unit, token, 1, U, RS, RL, 0)[:, :, None] + c[None, None, :]
    eye = identity(T, G, q.dtype.element_ty)
    for tile in range(tl.program_id(0), tl.cdiv(n, U), tl.num_programs(0)):
        start = tile_start(tile, 1, U, SS, 0)
        ok = inside & (unit < n - tile * U)[:, :, None]
        queries = tl.load(q + start + at, mask=ok, other=0.0)
        keys = tl.load(k + start + at, mask=ok, other=0.0)
        values = tl.load(v + start + at, mask=ok, other=0.0)
        g = tl.load(grad + tile_start(tile, 1, U, L * C, 0) + at_grad, mask=ok, other=0.0)
        query_gradient = tl.zeros((G, T, CP), tl.float32)
        key_gradient = tl.zeros((G, T, CP), tl.float32)
        value_gradient = tl.zeros((G, T, CP), tl.float32)
        for h in tl.static_range(H):
            keep = _selection((c[:, None] == c[None, :]) & (c // D == h)[:, None], queries.dtype, G)
            s = scores(_selected(queries, keep), swap(keys), L, PACK)
            e = tl.exp2(s * scale_log2e - (tl.max(s, 2) * scale_log2e)[:, :, None])
            p = e * reciprocal(tl.sum(e, 2))[:, :, None]
            dp = product0(_selected(g, keep), swap(values))
            delta = tl.sum(p * dp, 2) * scale
            ds = (p * (dp * scale - delta[:, :, None])).to(queries.dtype)
            p = p.to(queries.dtype)
            query_gradient = product(ds, swap(_selected(keep, swap(keys))), query_gradient)
            key_gradient = product(transposed(ds, eye), swap(_selected(keep, swap(queries))), key_gradient)
            value_gradient = product(transposed(p, eye), swap(_selected(keep, swap(g))), value_gradient)
        end = tile_start(tile, 1, U, RS, 0)
        tl.store(dq + end + to, query_gradient.to(dq.dtype.element_ty), mask=ok)
        tl.store(dk + end + to, key_gradient.to(dk.dtype.element_ty), mask=ok)
        tl.store(dv + end + to, value_gradient.to(dv.dtype.element_ty), mask=ok)
