"""Launches of the patch-level block: kernels of the package, and the library's products behind them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from util import randn, weights

from titn.kernels import outer_block
from titn.kernels.common import partial_sums
from titn.kernels.layernorm_mlp import backward as mlp_backward
from titn.kernels.layernorm_mlp import forward as mlp_forward
from titn.kernels.outer_block import backward as linear_backward
from titn.kernels.outer_block import forward as linear_forward
from titn.kernels.short_attention import backward as attention_backward
from titn.kernels.short_attention import forward as attention_forward


def operators(function: Callable[[], Any]) -> dict[str, int]:
    """Calls of the package's operators and of matrix products by PyTorch's profiler, nested ones included."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    products = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm")
    return {e.key: e.count for e in profile.key_averages() if e.key.startswith("titn::") or e.key in products}


@contextmanager
def counted_launches() -> Iterator[Counter[str]]:
    """Launches of every Triton kernel of the block, by Triton's own hooks."""
    kernels = {
        "layernorm_mlp": mlp_forward.forward_kernel,
        "layernorm_mlp backward": mlp_backward.backward_kernel,
        "linear": linear_forward.forward_kernel,
        "linear backward": linear_backward.backward_kernel,
        "sum": partial_sums.sum_kernel,
        "attention": attention_forward.split_forward,
        "attention backward": attention_backward.split_backward,
        "merged attention": attention_forward.merged_forward,
        "merged attention backward": attention_backward.merged_backward,
    }
    seen: Counter[str] = Counter()
    for name, kernel in kernels.items():
        kernel.add_pre_run_hook(lambda *_, name=name, **__: seen.update([name]))
    try:
        yield seen
    finally:
        for kernel in kernels.values():
            kernel.pre_run_hooks.pop()


def test_launches() -> None:
    """Forward: 4 kernels. Backward: 4 kernels, 3 sums of partial rows, 4 library products for gradients of weights."""
    d, f = 12, 20
    shapes = ((2, 5, d), (d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (f, d), (f,), (d, f), (d,))
    leaves = [randn(*shape, seed=seed).requires_grad_() for seed, shape in enumerate(shapes)]
    with counted_launches() as launches:
        y = outer_block(leaves[0], *weights(leaves[1:]), num_heads=2, backend="triton")
    assert launches == {"linear": 2, "attention": 1, "layernorm_mlp": 1}
    dy = torch.ones_like(y)
    with counted_launches() as launches:
        torch.autograd.grad(y, leaves, dy)
    assert launches == {"linear backward": 2, "attention backward": 1, "layernorm_mlp backward": 1, "sum": 3}

    assert operators(lambda: outer_block(leaves[0], *weights(leaves[1:]), num_heads=2, backend="triton")) == {
        "titn::layernorm_linear": 1, "titn::short_attention_packed": 1, "titn::linear_residual": 1,
        "titn::layernorm_mlp": 1,
    }  # fmt: skip
    y = outer_block(leaves[0], *weights(leaves[1:]), num_heads=2, backend="triton")
    assert operators(lambda: torch.autograd.grad(y, leaves, dy)) == {
        "titn::layernorm_linear_backward": 1, "titn::short_attention_packed_backward": 1,
        "titn::linear_residual_backward": 1, "titn::layernorm_mlp_backward": 1, "aten::mm": 4,
    }  # fmt: skip
