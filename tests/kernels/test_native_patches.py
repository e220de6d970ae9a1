"""Native code of the patch-level block and of the projection against float64: sizes around its tiles, layouts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_pixels_to_patches import NAMES as PIXEL_NAMES
from test_pixels_to_patches import inputs as pixel_inputs
from torch import Tensor
from util import (
    ATTENTION,
    BLOCK_BIASES,
    BLOCK_NAMES,
    NEEDS_NATIVE,
    Function,
    assert_below_twice_plain,
    assert_matches_float64,
    assert_takes_no_rows,
    block_inputs,
    drawn,
    expanded_gradient,
    present,
    randn,
    transposed_layout,
    weights,
)

from titn.kernels import BackendUnavailable, MlpWeights, layernorm_mlp, outer_attention, outer_block, pixels_to_patches

pytestmark = NEEDS_NATIVE
NORMS = ("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")
make_inputs = partial(block_inputs, matrix_scale=None)


def block(backend: str, heads: int) -> Function:
    return lambda x, *w: outer_block(x, *weights(w), num_heads=heads, backend=backend)


def check(inputs: list[Tensor | None], heads: int, gradient: Tensor | None = None) -> None:
    assert_matches_float64(
        block("native", heads), block("torch", heads), inputs, BLOCK_NAMES, gradient, contiguous=True
    )


def check_pixels(inputs: list[Tensor | None], gradient: Tensor) -> None:
    run: Any = {each: partial(pixels_to_patches, backend=each) for each in ("native", "torch")}
    assert_matches_float64(run["native"], run["torch"], inputs, PIXEL_NAMES, gradient)


@pytest.mark.parametrize(
    ("batch", "length", "width", "heads", "hidden"),
    [
        (3, 18, 192, 8, 768),  # TITN
        (37, 18, 32, 2, 96),  # more than two passes of a weight's gradient, in whole panels
        (2, 66, 48, 2, 64),  # patch 4
        (5, 72, 32, 4, 48),  # the longest
        (50, 1, 16, 1, 1),
        (7, 5, 33, 3, 50),
        (1, 2, 100, 5, 33),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_sizes(batch: int, length: int, width: int, heads: int, hidden: int, dtype: torch.dtype) -> None:
    check(make_inputs(batch, length, width, hidden=hidden, dtype=dtype), heads)


@pytest.mark.parametrize("rows", [47, 48, 49, 287, 288, 289])
def test_row_counts_around_a_task_and_a_pass(rows: int) -> None:
    check(make_inputs(rows, 1, 32, hidden=32), 2)


@pytest.mark.parametrize("absent", [BLOCK_BIASES, NORMS, ("norm1_bias", "norm2_weight"), (*BLOCK_BIASES, *NORMS)])
def test_absent_parameters(absent: tuple[str, ...]) -> None:
    check(make_inputs(2, 5, 12, hidden=20, absent=absent), 2)


def test_no_rows() -> None:
    assert_takes_no_rows(block("native", 2), make_inputs(0, 5, 12, hidden=20))


@pytest.mark.parametrize("length", [4, 6])
def test_layouts(length: int) -> None:
    """Twelve rows and not: those that serve as they lie, and those that are copied."""
    inputs, dy = make_inputs(3, length, 32, hidden=32), randn(3, length, 32, seed=3)
    check(inputs, 2, transposed_layout(dy))
    check(inputs, 2, expanded_gradient((3, length, 32), torch.float32))
    check([None if t is None else transposed_layout(t) for t in inputs], 2, dy)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 10.0), (100.0, 1.0)])
def test_large_values(offset: float, scale: float) -> None:
    """Saturated softmax and GELU, and row means far from 0: no worse than twice plain PyTorch in float32."""
    inputs = make_inputs(2, 5, 24)
    x, qkv, fc1 = present([inputs[0], inputs[3], inputs[9]])
    inputs[0], inputs[3], inputs[9] = x + offset, qkv * scale, fc1 * scale
    dy = randn(2, 5, 24, seed=99)
    assert_below_twice_plain(block("native", 2), block("torch", 2), inputs, BLOCK_NAMES, dy, slack=1e-6)


def test_autocast_keeps_the_residual_stream() -> None:
    """With both last layers zero the result is x itself, not x rounded to bfloat16."""
    inputs = present(make_inputs(2, 5, 12))
    for index in (5, 6, 11, 12):
        inputs[index] = inputs[index] * 0
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block("native", 2)(*inputs), inputs[0])


def test_prediction_is_the_forward_of_training() -> None:
    """Nothing is kept for a backward, and every bit is the same."""
    inputs = present(make_inputs(5, 7, 32, hidden=48))
    leaves = [t.clone().requires_grad_() for t in inputs]
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            assert torch.equal(block("native", 2)(*leaves), block("native", 2)(*inputs))


def test_more_tokens_than_the_attention_takes() -> None:
    """By name refused; unasked PyTorch computes the attention half, native code the other."""
    x, *w = present(make_inputs(2, 73, 12))
    attention, mlp = weights(w)
    with pytest.raises(BackendUnavailable, match="no native kernel for 73 tokens, only for 1 to 72"):
        outer_block(x, attention, mlp, num_heads=2, backend="native")
    middle = outer_attention(x, attention, num_heads=2, backend="torch")
    expected = layernorm_mlp(middle, MlpWeights(*mlp), backend="native")
    assert torch.equal(outer_block(x, attention, mlp, num_heads=2), expected)


@pytest.mark.parametrize("operation", ["attention", "mlp"])
def test_wide_rows_are_left_to_pytorch_unasked(operation: str) -> None:
    x, *w = present(make_inputs(1, 2, 200, hidden=3))
    run: dict[str, Any] = {
        "attention": lambda backend: outer_attention(x, weights(w[:ATTENTION])[0], num_heads=2, backend=backend),
        "mlp": lambda backend: layernorm_mlp(x, MlpWeights(*w[ATTENTION:]), backend=backend),
    }
    assert torch.equal(run[operation]("auto"), run[operation]("torch"))
    assert not torch.equal(run[operation]("native"), run[operation]("torch"))


@drawn(8)
@given(
    batch=st.integers(1, 9),
    length=st.integers(1, 20),
    heads=st.integers(1, 4),
    head_width=st.integers(3, 20),
    hidden=st.integers(1, 70),
    absent=st.sets(st.sampled_from((*BLOCK_BIASES, *NORMS))),
)
def test_drawn_shapes(batch: int, length: int, heads: int, head_width: int, hidden: int, absent: set[str]) -> None:
    check(make_inputs(batch, length, heads * head_width, hidden=hidden, absent=tuple(absent)), heads)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 16, 18, 16, 12, 192),  # TITN
        (20, 16, 17, 4, 8, 32),  # TNT; more than a pass
        (2, 5, 7, 4, 12, 192),  # patch 4
        (2, 3, 4, 9, 10, 200),  # nothing a power of two
        (1, 1, 2, 1, 3, 1),
    ],
)
@pytest.mark.parametrize("kinds", [(torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32)])
def test_pixels_to_patches(shape: tuple[int, ...], kinds: tuple[torch.dtype, torch.dtype | None]) -> None:
    pixels, patches = kinds
    images, _, tokens, _, _, width = shape
    arguments = pixel_inputs(*shape, dtype=pixels, patches_dtype=patches)
    check_pixels(arguments, randn(images, tokens, width, seed=7, dtype=patches or pixels))


@pytest.mark.parametrize("images", [0, 1, 7])
def test_counts_of_images(images: int) -> None:
    check_pixels(pixel_inputs(images, 4, 6, 4, 12, 32, bias=images == 1), randn(images, 6, 32, seed=7))


def test_layouts_of_pixels() -> None:
    arguments = [None if t is None else transposed_layout(t) for t in pixel_inputs(3, 4, 6, 4, 12, 64)]
    check_pixels(arguments, transposed_layout(randn(3, 6, 64, seed=7)))
    check_pixels(arguments, expanded_gradient((3, 6, 64), torch.float32))
