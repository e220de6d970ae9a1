# mypy: disable-error-code="no-untyped-def"
"""The backward kernels (merged and split: forward.py)."""

import triton
import triton.language as tl

from titn.kernels.common.tiles import identity, product, product0, reciprocal, swap, transposed
from titn.kernels.short_attention.forward import row_offset, scores, selected, selection, tile_start, unit_and_token


@triton.jit(do_not_specialize=["n"])
def merged_backward(
    grad, q, k, v, dq, dk, dv, n, scale_log2e, scale,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr,
    RS: tl.constexpr, RL: tl.constexpr, G: tl.constexpr, PACK: tl.constexpr, CP: tl.constexpr, FAST: tl.constexpr,
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
            keep = selection((c[:, None] == c[None, :]) & (c // D == h)[:, None], queries.dtype, G)
            s = scores(selected(queries, keep), swap(keys), L, PACK)
            e = tl.exp2(s * scale_log2e - (tl.max(s, 2) * scale_log2e)[:, :, None])
            p = e * reciprocal(tl.sum(e, 2), FAST)[:, :, None]
            dp = product0(selected(g, keep), swap(values))
            delta = tl.sum(p * dp, 2) * scale
            ds = (p * (dp * scale - delta[:, :, None])).to(queries.dtype)
            p = p.to(queries.dtype)
            query_gradient = product(ds, swap(selected(keep, swap(keys))), query_gradient)
            key_gradient = product(transposed(ds, eye), swap(selected(keep, swap(queries))), key_gradient)
            value_gradient = product(transposed(p, eye), swap(selected(keep, swap(g))), value_gradient)
        end = tile_start(tile, 1, U, RS, 0)
        tl.store(dq + end + to, query_gradient.to(dq.dtype.element_ty), mask=ok)
        tl.store(dk + end + to, key_gradient.to(dk.dtype.element_ty), mask=ok)
        tl.store(dv + end + to, value_gradient.to(dv.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["n"])
def split_backward(
    grad, q, k, v, dq, dk, dv, n, scale_log2e, scale,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr, SH: tl.constexpr,
    RS: tl.constexpr, RL: tl.constexpr, G: tl.constexpr, PACK: tl.constexpr, T: tl.constexpr, DP: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """Gradients dq, dk, dv (strides RS, RL, D, 1) for grad `[S, L, H, D]` contiguous; at most 32 tokens."""
    C: tl.constexpr = H * D
    U: tl.constexpr = G * PACK
    d = tl.arange(0, DP)[None, None, :]
    unit, token = unit_and_token(L, T, G, PACK)
    at = row_offset(unit, token, H, U, SS, SL, SH)[:, :, None] + d
    at_grad = row_offset(unit, token, H, U, L * C, C, D)[:, :, None] + d
    to = row_offset(unit, token, H, U, RS, RL, D)[:, :, None] + d
    eye = identity(T, G, q.dtype.element_ty)
    for tile in range(tl.program_id(0), tl.cdiv(n, U), tl.num_programs(0)):
        start = tile_start(tile, H, U, SS, SH)
        ok = ((token < L) & (unit < n - tile * U))[:, :, None] & (d < D)
        queries = tl.load(q + start + at, mask=ok, other=0.0)
        keys = tl.load(k + start + at, mask=ok, other=0.0)
        values = tl.load(v + start + at, mask=ok, other=0.0)
        g = tl.load(grad + tile_start(tile, H, U, L * C, D) + at_grad, mask=ok, other=0.0)
        s = scores(queries, swap(keys), L, PACK)
        e = tl.exp2(s * scale_log2e - (tl.max(s, 2) * scale_log2e)[:, :, None])
        p = e * reciprocal(tl.sum(e, 2), FAST)[:, :, None]
        end = tile_start(tile, H, U, RS, D)
        tl.store(dv + end + to, product0(transposed(p.to(g.dtype), eye), g).to(dv.dtype.element_ty), mask=ok)
        dp = product0(g, swap(values))
        delta = tl.sum(p * dp, 2) * scale
        ds = (p * (dp * scale - delta[:, :, None])).to(keys.dtype)
        tl.store(dq + end + to, product0(ds, keys).to(dq.dtype.element_ty), mask=ok)
        tl.store(dk + end + to, product0(transposed(ds, eye), queries).to(dk.dtype.element_ty), mask=ok)


@triton.jit(do_not_specialize=["n"])
def split_backward_queries(
    grad, q, k, v, dq, stats, n, scale_log2e, scale,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr, SH: tl.constexpr,
    RS: tl.constexpr, RL: tl.constexpr, G: tl.constexpr, T: tl.constexpr, TQ: tl.constexpr, DP: tl.constexpr,
    FAST: tl.constexpr,
):  # fmt: skip
    """dq above 32 tokens, and for `split_backward_keys` stats float32 `[n, 2, L]`.

    Those are log2 of the softmax's sum, and delta.
    """
    C: tl.constexpr = H * D
    d = tl.arange(0, DP)[None, None, :]
    unit, token = unit_and_token(L, T, G, 1)
    query_unit, query_token = unit_and_token(L, TQ, G, 1)
    at = row_offset(unit, token, H, G, SS, SL, SH)[:, :, None] + d
    at_query = row_offset(query_unit, query_token, H, G, SS, SL, SH)[:, :, None] + d
    at_grad = row_offset(query_unit, query_token, H, G, L * C, C, D)[:, :, None] + d
    to = row_offset(query_unit, query_token, H, G, RS, RL, D)[:, :, None] + d
    to_stats = query_unit * (2 * L) + query_token
    for tile in range(tl.program_id(0), tl.cdiv(n, G), tl.num_programs(0)):
        start = tile_start(tile, H, G, SS, SH)
        ok = ((token < L) & (unit < n - tile * G))[:, :, None] & (d < D)
        keys = tl.load(k + start + at, mask=ok, other=0.0)
        values = swap(tl.load(v + start + at, mask=ok, other=0.0))
        for first in range(0, L, TQ):
            valid = (query_token < L - first) & (query_unit < n - tile * G)
            query_ok = valid[:, :, None] & (d < D)
            queries = tl.load(q + (start + first * SL) + at_query, mask=query_ok, other=0.0)
            start_grad = tile_start(tile, H, G, L * C, D) + first * C
            g = tl.load(grad + start_grad + at_grad, mask=query_ok, other=0.0)
            s = scores(queries, swap(keys), L, 1)
            top = tl.max(s, 2) * scale_log2e
            e = tl.exp2(s * scale_log2e - top[:, :, None])
            total = tl.sum(e, 2)
            p = e * reciprocal(total, FAST)[:, :, None]
            dp = product0(g, values)
            delta = tl.sum(p * dp, 2) * scale
            ds = p * (dp * scale - delta[:, :, None])
            if L < T:  # it is zero there, but the compiler drops padded columns only when told so
                ds = tl.where((tl.arange(0, T) < L)[None, None, :], ds, 0.0)
            x = product0(ds.to(keys.dtype), keys).to(dq.dtype.element_ty)
            tl.store(dq + (tile_start(tile, H, G, RS, D) + first * RL) + to, x, mask=query_ok)
            row = stats + (tile_start(tile, 1, 1, G * 2 * L, 0) + first)
            tl.store(row + to_stats, top + tl.log2(total), mask=valid)
            tl.store(row + L + to_stats, delta, mask=valid)


@triton.jit(do_not_specialize=["n"])
def split_backward_keys(
    grad, q, k, v, dk, dv, stats, n, scale_log2e, scale,
    L: tl.constexpr, H: tl.constexpr, D: tl.constexpr, SS: tl.constexpr, SL: tl.constexpr, SH: tl.constexpr,
    RS: tl.constexpr, RL: tl.constexpr, G: tl.constexpr, TQ: tl.constexpr, DP: tl.constexpr,
):  # fmt: skip
    """dk and dv above 32 tokens, from the statistics of `split_backward_queries`; scores are `[keys, queries]` here."""
    C: tl.constexpr = H * D
    BLOCKS: tl.constexpr = (L + TQ - 1) // TQ
    d = tl.arange(0, DP)[None, None, :]
    unit, token = unit_and_token(L, TQ, G, 1)
    at = row_offset(unit, token, H, G, SS, SL, SH)[:, :, None] + d
    at_grad = row_offset(unit, token, H, G, L * C, C, D)[:, :, None] + d
    to = row_offset(unit, token, H, G, RS, RL, D)[:, :, None] + d
    at_stats = unit * (2 * L) + token
    for work in range(tl.program_id(0), tl.cdiv(n, G) * BLOCKS, tl.num_programs(0)):
        tile, first_key = work // BLOCKS, work % BLOCKS * TQ
        start = tile_start(tile, H, G, SS, SH)
        key_ok = ((token < L - first_key) & (unit < n - tile * G))[:, :, None] & (d < D)
        keys = tl.load(k + (start + first_key * SL) + at, mask=key_ok, other=0.0)
        values = tl.load(v + (start + first_key * SL) + at, mask=key_ok, other=0.0)
        key_gradient = tl.zeros((G, TQ, DP), tl.float32)
        value_gradient = tl.zeros((G, TQ, DP), tl.float32)
        for first in range(0, L, TQ):
            valid = (token < L - first) & (unit < n - tile * G)
            ok = valid[:, :, None] & (d < D)
            queries = tl.load(q + (start + first * SL) + at, mask=ok, other=0.0)
            g = tl.load(grad + (tile_start(tile, H, G, L * C, D) + first * C) + at_grad, mask=ok, other=0.0)
            row = stats + (tile_start(tile, 1, 1, G * 2 * L, 0) + first)
            log_total = tl.load(row + at_stats, mask=valid, other=0.0)
            delta = tl.load(row + L + at_stats, mask=valid, other=0.0)
            p = tl.exp2(product0(keys, swap(queries)) * scale_log2e - log_total[:, None, :])
            ds = p * (product0(values, swap(g)) * scale - delta[:, None, :])
            value_gradient = product(p.to(g.dtype), g, value_gradient)
            key_gradient = product(ds.to(g.dtype), queries, key_gradient)
        end = tile_start(tile, H, G, RS, D) + first_key * RL
        tl.store(dk + end + to, key_gradient.to(dk.dtype.element_ty), mask=key_ok)
        tl.store(dv + end + to, value_gradient.to(dv.dtype.element_ty), mask=key_ok)
