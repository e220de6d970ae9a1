"""The patch-level block against its float64 reference: both halves, every gradient, lengths, layouts, extremes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from util import (
    ATTENTION,
    BLOCK_BIASES,
    BLOCK_NAMES,
    DEVICE,
    Function,
    assert_at_most_twice_plain,
    assert_below_twice_plain,
    assert_close,
    assert_matches_float64,
    assert_repeats,
    assert_takes_no_rows,
    block_inputs,
    drawn,
    encoder_layer,
    expanded_gradient,
    present,
    randn,
    transposed_layout,
    weights,
)

from titn.kernels import BackendUnavailable, outer_attention, outer_block
from titn.kernels.common import partial_sums
from titn.kernels.common.wide import wide
from titn.kernels.layernorm_mlp import backward as mlp_backward
from titn.kernels.layernorm_mlp import forward as mlp_forward
from titn.kernels.outer_block import backward as linear_backward
from titn.kernels.outer_block import forward as linear_forward
from titn.kernels.outer_block.op import LayerNormLinear
from titn.kernels.short_attention import backward as attention_backward
from titn.kernels.short_attention import forward as attention_forward

NORMS = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")
DTYPES = [torch.float32, torch.float16]

make_inputs = partial(block_inputs, matrix_scale=None)  # every product keeps the size of its input


def run(backend: str, heads: int, function: Function = outer_block, **options: bool) -> Function:
    return lambda x, *w: function(x, *weights(w), num_heads=heads, backend=backend, **options)


def check(
    inputs: list[Tensor | None],
    heads: int,
    gradient: Tensor | None = None,
    *,
    function: Function = outer_block,
    **options: bool,
) -> None:
    fused, plain = (run(backend, heads, function, **options) for backend in ("triton", "torch"))
    assert_matches_float64(fused, plain, inputs, BLOCK_NAMES[: len(inputs)], gradient)


@pytest.mark.parametrize("length", [3, 73])
def test_reference_gradcheck(length: int) -> None:
    absent = () if length == 3 else (*BLOCK_BIASES, *NORMS)
    inputs = make_inputs(1, length, 4, hidden=3, absent=absent, dtype=torch.float64)
    prepared = [None if t is None else t.requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(run("torch", 2), prepared, fast_mode=length > 3)


@pytest.mark.parametrize("length", [18, 80])
def test_reference_equals_torch_modules(length: int) -> None:
    """The same weights in PyTorch's own pre-norm layer; 80 tokens attend by scaled_dot_product_attention."""
    inputs = make_inputs(3, length, 12, dtype=torch.float64)
    found = run("torch", 4)(*inputs)
    torch.testing.assert_close(found, encoder_layer(inputs, 4)(inputs[0]), rtol=1e-12, atol=1e-12)


def test_shipped_width_and_tiles() -> None:
    """TITN's patches: 18 tokens of 192 channels."""
    check(make_inputs(1, 18, 192, dtype=torch.float16), 3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (640, 10)])
@pytest.mark.usefixtures("large_tiles")
def test_shipped_widths(width: int, heads: int, dtype: torch.dtype) -> None:
    check(make_inputs(2, 3, width, dtype=dtype), heads)


@pytest.mark.parametrize("width", [384, 640])
def test_shipped_tiles(width: int) -> None:
    inputs = make_inputs(1, 3, width, dtype=torch.float16)[: ATTENTION + 1]
    check(inputs, width // 64, function=outer_attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "width", "heads"), [(1, 3, 1), (7, 12, 4), (5, 48, 3), (4, 100, 5), (2, 200, 8)])
def test_generic_widths(length: int, width: int, heads: int, dtype: torch.dtype) -> None:
    check(make_inputs(3, length, width, hidden=width + 5, dtype=dtype), heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_row_counts_around_one_tile(difference: int, dtype: torch.dtype) -> None:
    kernels = ("outer_block.forward", "outer_block.backward")
    for rows in {wide(kernel, 12, dtype, 0).rows for kernel in kernels}:
        check(make_inputs(rows + difference, 1, 12, dtype=dtype)[: ATTENTION + 1], 2, function=outer_attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [72, 73])
def test_long_sequences(length: int, dtype: torch.dtype) -> None:
    """72 tokens are the last that `short_attention` takes."""
    inputs = make_inputs(2, length, 12, hidden=20, dtype=dtype)
    check(inputs[: ATTENTION + 1], 2, function=outer_attention)
    if dtype == torch.float16:
        check(inputs, 2)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (0, 80), (1, 1)])
def test_no_rows_and_one_row(batch: int, length: int) -> None:
    inputs = make_inputs(batch, length, 12, hidden=20)
    if batch:
        check(inputs, 2)
    else:
        assert_takes_no_rows(run("triton", 2), inputs)


@pytest.mark.parametrize(
    "absent", [BLOCK_BIASES, NORMS, ("qkv_bias",), ("norm1_bias", "norm2_weight"), (*BLOCK_BIASES, *NORMS)]
)
def test_absent_parameters(absent: tuple[str, ...]) -> None:
    check(make_inputs(2, 5, 12, hidden=20, absent=absent), 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_residual(dtype: torch.dtype) -> None:
    check(make_inputs(2, 5, 12, dtype=dtype)[: ATTENTION + 1], 2, function=outer_attention, residual=False)


def test_parameters_wider_than_the_tokens() -> None:
    check(make_inputs(2, 5, 12, dtype=torch.float16, parameter_dtype=torch.float32), 2)


def test_layouts() -> None:
    inputs = make_inputs(3, 4, 12, hidden=20)
    dy = randn(3, 4, 12, seed=3)
    check(inputs, 2, transposed_layout(dy))
    check(inputs, 2, expanded_gradient((3, 4, 12), torch.float32))
    check([None if t is None else transposed_layout(t) for t in inputs], 2, dy)
    check([randn(3, 1, 12, seed=4).expand(3, 4, 12), *inputs[1:]], 2, dy)
    for residual in (True, False):
        attention = [randn(3, 4, 24, seed=5)[..., ::2], *inputs[1 : ATTENTION + 1]]
        check(attention, 2, transposed_layout(dy), function=outer_attention, residual=residual)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 10.0), (100.0, 1.0)])
def test_large_values(offset: float, scale: float) -> None:
    """Saturated softmax and GELU, and row means far from 0: no worse than twice plain PyTorch in float32."""
    inputs = make_inputs(2, 5, 24)
    x, qkv, fc1 = present([inputs[0], inputs[3], inputs[9]])
    inputs[0], inputs[3], inputs[9] = x + offset, qkv * scale, fc1 * scale
    dy = randn(2, 5, 24, seed=99)
    assert_below_twice_plain(run("triton", 2), run("torch", 2), inputs, BLOCK_NAMES, dy, slack=1e-6)


@drawn(5)
@given(
    batch=st.integers(1, 5),
    length=st.integers(1, 20),
    heads=st.integers(1, 4),
    head_width=st.integers(3, 20),
    hidden=st.integers(1, 70),
    absent=st.sets(st.sampled_from((*BLOCK_BIASES, *NORMS))),
)
def test_drawn_shapes(batch: int, length: int, heads: int, head_width: int, hidden: int, absent: set[str]) -> None:
    check(make_inputs(batch, length, heads * head_width, hidden=hidden, absent=tuple(absent)), heads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the shipped sizes did not run")
@pytest.mark.parametrize(("length", "width", "heads"), [(18, 192, 3), (197, 384, 6), (18, 640, 10), (66, 192, 8)])
def test_bfloat16_on_gpu(length: int, width: int, heads: int) -> None:
    inputs = make_inputs(37, length, width, dtype=torch.bfloat16)
    dy = randn(37, length, width, seed=99, dtype=torch.bfloat16)
    fused, plain = run("triton", heads), run("torch", heads)
    assert_at_most_twice_plain(fused, plain, [inputs], BLOCK_NAMES, [dy], torch.bfloat16)
    if length <= 72:  # beyond, PyTorch's own attention may sum in any order
        assert_repeats(fused, inputs, dy)


def test_autocast_keeps_the_residual_stream() -> None:
    """With both last layers zero the result is x itself, not x rounded to float16."""
    inputs = present(make_inputs(2, 5, 12))
    for index in (5, 6, 11, 12):
        inputs[index] = inputs[index] * 0
    with torch.autocast(DEVICE, torch.float16):
        assert torch.equal(run("triton", 2)(*inputs), inputs[0])


def test_each_output_of_layernorm_linear_alone() -> None:
    """LN(x) W^T + b and the passed x: either may go unused."""
    x, gamma, beta, weight, bias = (t.requires_grad_() for t in present(make_inputs(2, 5, 12)[:5]))
    out, passed = LayerNormLinear.apply(x, gamma, beta, weight, bias, 1e-5, torch.float32)
    assert torch.equal(passed, x)
    (through,) = torch.autograd.grad(passed, x, torch.ones_like(x), retain_graph=True)
    assert torch.equal(through, torch.ones_like(x))
    dout = randn(*out.shape, seed=50)
    found = torch.autograd.grad(out, (x, gamma, beta, weight, bias), dout)
    reference = torch.nn.functional.linear(torch.nn.functional.layer_norm(x, (12,), gamma, beta), weight, bias)
    expected = torch.autograd.grad(reference, (x, gamma, beta, weight, bias), dout)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth, 1e-5)


@pytest.mark.parametrize(
    ("width", "reason"),
    [(642, "outer_attention: .* rows of 642 channels"), (130, "short_attention: .* head dimension 65")],
)
def test_triton_says_why_it_cannot_run(width: int, reason: str) -> None:
    with pytest.raises(BackendUnavailable, match=reason):
        run("triton", 2)(*make_inputs(1, 2, width, hidden=3))


def test_shapes_that_do_not_fit() -> None:
    inputs = make_inputs(2, 5, 12)
    with pytest.raises(ValueError, match=r"x must be \[B, T, D\], not of 2 dimensions"):
        run("torch", 2)(present(inputs)[0][0], *inputs[1:])
    for heads in (0, 5):
        with pytest.raises(ValueError, match=f"{heads} heads do not divide 12 channels"):
            run("torch", heads)(*inputs)


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
        "tail": linear_forward.tail_kernel,
        "tail backward": linear_backward.tail_backward_kernel,
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
    """Forward: 3 kernels. Backward: 3 kernels, one sum of partial rows, 4 library products for gradients of weights."""
    leaves = [t.requires_grad_() for t in present(make_inputs(2, 5, 12, hidden=20))]
    with counted_launches() as launches:
        y = outer_block(leaves[0], *weights(leaves[1:]), num_heads=2, backend="triton")
    assert launches == {"linear": 1, "attention": 1, "tail": 1}
    dy = torch.ones_like(y)
    with counted_launches() as launches:
        torch.autograd.grad(y, leaves, dy)
    assert launches == {"linear backward": 1, "attention backward": 1, "tail backward": 1, "sum": 1}

    assert operators(lambda: outer_block(leaves[0], *weights(leaves[1:]), num_heads=2, backend="triton")) == {
        "titn::outer_block": 1
    }
    y = outer_block(leaves[0], *weights(leaves[1:]), num_heads=2, backend="triton")
    assert operators(lambda: torch.autograd.grad(y, leaves, dy)) == {"titn::outer_block_backward": 1, "aten::mm": 4}
