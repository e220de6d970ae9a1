"""Shared device functions: the error of the fitted GELU and the fixed order of sums."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from util import DEVICE, nan_filled_memory, randn

from titn.kernels.common.backend import interpreting
from titn.kernels.common.tiles import gelu, gelu_and_slope, sum_of_rows


@triton.jit
def _gelu_kernel(x, value, same, slope, n, BLOCK: tl.constexpr, FAST: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    h = tl.load(x + i, mask=i < n, other=0.0)
    both = gelu_and_slope(h, FAST)
    tl.store(value + i, gelu(h, FAST), mask=i < n)
    tl.store(same + i, both[0], mask=i < n)
    tl.store(slope + i, both[1], mask=i < n)


@triton.jit
def _sum_kernel(partial, out, n, columns: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    c = tl.arange(0, WIDTH)
    tl.store(out + c, sum_of_rows(partial, c, c < columns, n, columns, BLOCK), mask=c < columns)


def test_gelu_and_slope() -> None:
    """Over [-12, 12] and beyond: errors below 1e-6 against float64 (plus the rounding of large values)."""
    x = torch.cat([torch.linspace(-12, 12, 200_001), torch.tensor([-1e4, -100.0, 100.0, 1e4])]).to(DEVICE)
    with nan_filled_memory():
        value, same, slope = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    _gelu_kernel[(triton.cdiv(x.numel(), 65_536),)](x, value, same, slope, x.numel(), 65_536, not interpreting())
    wide = x.double().requires_grad_()
    exact = torch.nn.functional.gelu(wide)
    (exact_slope,) = torch.autograd.grad(exact.sum(), wide)
    limit = 1e-6 + 1e-7 * x.abs().double()
    assert torch.equal(value, same)
    assert ((value - exact).abs() <= limit).all()
    assert ((slope - exact_slope).abs() <= limit).all()


def test_sum_of_rows() -> None:
    for n in (1, 31, 32, 77):
        partial = randn(n, 13, seed=n)
        with nan_filled_memory():
            out = torch.empty(13, device=DEVICE)
        _sum_kernel[(1,)](partial, out, n, 13, 16, 32)
        torch.testing.assert_close(out, partial.double().sum(0).float(), rtol=1e-6, atol=1e-5)
