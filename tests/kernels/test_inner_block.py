"""The inner block against its float64 reference: forward and every gradient, shapes, counts, layouts and extremes."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from util import (
    BLOCK_BIASES,
    BLOCK_NAMES,
    CPU_ONLY,
    DEVICE,
    NEEDS_NATIVE,
    Function,
    assert_at_most_twice_plain,
    assert_close,
    assert_matches_float64,
    assert_repeats,
    assert_takes_no_rows,
    block_inputs,
    drawn,
    encoder_layer,
    expanded_gradient,
    output_and_gradients,
    present,
    randn,
    relative_error,
    results,
    together,
    transposed_layout,
    weights,
)

from titn.kernels import BackendUnavailable, inner_block
from titn.kernels.common import configurations
from titn.kernels.inner_block import op
from titn.kernels.inner_block.reference import inner_block_innermost, inner_block_reference

make_inputs = partial(block_inputs, matrix_scale=0.3)


@pytest.fixture(params=["triton", pytest.param("native", marks=NEEDS_NATIVE)])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def fused(heads: int, backend: str = "triton") -> Function:
    return lambda x, *w: inner_block(x, *weights(w), num_heads=heads, backend=backend)


def plain(heads: int) -> Function:
    return lambda x, *w: inner_block_reference(x, *weights(w), num_heads=heads)


def check(inputs: list[Tensor | None], heads: int, backend: str = "triton", gradient: Tensor | None = None) -> None:
    assert_matches_float64(fused(heads, backend), plain(heads), inputs, BLOCK_NAMES, gradient, contiguous=True)


def test_reference_gradcheck() -> None:
    inputs = make_inputs(2, 3, 4, hidden=8, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    assert torch.autograd.gradcheck(plain(2), leaves)


def test_reference_equals_torch_modules() -> None:
    """The same weights in PyTorch's own multi-head attention and LayerNorm give the same block."""
    inputs = make_inputs(3, 16, 12, dtype=torch.float64)
    found = plain(4)(*inputs)
    torch.testing.assert_close(found, encoder_layer(inputs, 4)(inputs[0]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "channels", "heads"),
    [(16, 12, 4), (16, 12, 2), (4, 12, 4), (16, 24, 4), (16, 31, 1), (9, 12, 2), (33, 6, 1), (16, 16, 4)],
)
def test_float32(length: int, channels: int, heads: int, backend: str) -> None:
    check(make_inputs(5, length, channels), heads, backend)


@pytest.mark.parametrize(
    ("length", "channels", "heads"), [(16, 12, 4), (4, 12, 2), (16, 24, 4), (16, 40, 4), (16, 40, 8)]
)
def test_float16(length: int, channels: int, heads: int) -> None:
    check(make_inputs(6, length, channels, dtype=torch.float16), heads)


@pytest.mark.parametrize("sequences", [1, 3, 4])
def test_sequence_counts_around_one_tile(sequences: int, backend: str) -> None:
    """Four tiles of one sequence each make a pass: one less, exactly, and (in `test_float32`) one more than a pass."""
    check(make_inputs(sequences, 16, 12), 4, backend)


@pytest.mark.parametrize("sequences", [15, 16, 17])
def test_sequence_counts_around_one_packed_tile(sequences: int, backend: str) -> None:
    """Sequences of 4 tokens share a tile by fours."""
    check(make_inputs(sequences, 4, 6, hidden=16), 2, backend)


def test_more_sequences_than_a_grid_dimension_holds(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if DEVICE == "cpu":  # large tiles: the interpreter's time is one of passes, not of elements
        for (kernel, widths, arch), values in list(configurations.CONFIGURATIONS.items()):
            if kernel.startswith("inner_block") and widths == "16":
                monkeypatch.setitem(
                    configurations.CONFIGURATIONS, (kernel, widths, arch), {**values, "num_warps": 2048}
                )
    check(make_inputs(65_537, 2, 4, hidden=16), 2, backend)


@pytest.mark.parametrize("sequences", [8, 17])
def test_wide_sums_in_memory(sequences: int) -> None:
    """Eight sequences make a pass: one program, and two of which one adds a second tile to its sums in memory."""
    check(make_inputs(sequences, 16, 32, hidden=64, dtype=torch.float16), 4)


@pytest.mark.parametrize("channels", [12, 40])
def test_no_sequences(channels: int, backend: str) -> None:
    assert_takes_no_rows(fused(4, backend), make_inputs(0, 16, channels))


def test_absent_parameters(backend: str) -> None:
    check(make_inputs(5, 16, 12, absent=BLOCK_BIASES), 4, backend)
    check(make_inputs(5, 16, 12, absent=("norm1_weight", "norm1_bias", "norm2_weight", "norm2_bias")), 4, backend)


def test_parameters_wider_than_the_tokens() -> None:
    check(make_inputs(5, 16, 12, dtype=torch.float16, parameter_dtype=torch.float32), 4)


def test_layouts(backend: str) -> None:
    inputs = make_inputs(5, 16, 12)
    dy = randn(5, 16, 12, seed=3)
    check(inputs, 4, backend, transposed_layout(dy))
    check(inputs, 4, backend, expanded_gradient((5, 16, 12), torch.float32))
    check([transposed_layout(present(inputs)[0]), *inputs[1:]], 4, backend, dy)


@pytest.mark.parametrize("factor", [10.0, 200.0])
def test_large_scores(factor: float, backend: str) -> None:
    """Saturated softmax: no worse than twice plain PyTorch in the same precision, and finite where it is one-hot."""
    inputs = make_inputs(4, 16, 12)
    qkv = BLOCK_NAMES.index("qkv_weight")
    inputs[qkv] = present(inputs)[qkv] * factor
    dy = randn(4, 16, 12, seed=5)
    truth, true_gradients = output_and_gradients(plain(4), inputs, dy, torch.float64)
    eager, eager_gradients = output_and_gradients(plain(4), inputs, dy)
    found, gradients = output_and_gradients(fused(4, backend), inputs, dy)
    assert relative_error(found, truth) < 2 * relative_error(eager, truth)
    for actual, other, expected in together(gradients, eager_gradients, true_gradients):
        assert actual.isfinite().all()
        if factor < 100:
            assert relative_error(actual, expected) < 2 * relative_error(other, expected) + 1e-6


@pytest.mark.parametrize("backend", ["triton", pytest.param("native", marks=NEEDS_NATIVE)])
@drawn(5)
@given(
    sequences=st.integers(1, 9),
    length=st.integers(1, 16),
    heads=st.integers(1, 4),
    width=st.integers(3, 5),  # LayerNorm over 2 channels is ill-conditioned: plain float32 is off by 2e-5 as well
    hidden=st.integers(1, 40),
    absent=st.sets(st.sampled_from(BLOCK_BIASES)),
)
def test_drawn_shapes(
    sequences: int, length: int, heads: int, width: int, hidden: int, absent: set[str], backend: str
) -> None:
    check(make_inputs(sequences, length, heads * width, hidden=hidden, absent=tuple(absent)), heads, backend)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequences", [1, 24, 64])
def test_innermost_form_equals_the_reference(sequences: int, bias: bool) -> None:
    inputs = make_inputs(sequences, 16, 12, absent=() if bias else BLOCK_BIASES, dtype=torch.float64)
    dy = randn(sequences, 16, 12, seed=99, dtype=torch.float64)

    def innermost(x: Tensor, *w: Tensor | None) -> Tensor:
        return inner_block_innermost(x, *weights(w), num_heads=4, group=math.gcd(sequences, 64))

    for actual, expected in zip(results(innermost, inputs, dy), results(plain(4), inputs, dy), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@CPU_ONLY
def test_compiled_cpus_under_bfloat16_get_the_innermost_form(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def record(x: Tensor, *halves: object, **options: object) -> Tensor:
        used.append(x.shape[0])
        return x.clone()

    monkeypatch.setattr(op, "inner_block_innermost", record)
    torch._dynamo.reset()
    for sequences in (64, 63):
        x, *w = make_inputs(sequences, 16, 12)

        def run(x: Tensor | None = x, w: list[Tensor | None] = w) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return inner_block(present([x])[0], *weights(w), num_heads=4, backend="torch")

        run()
        assert not used or used == [64]
        torch.compile(run, backend="eager")()
    assert used == [64]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_eps_of_0(dtype: torch.dtype, backend: str) -> None:
    """Rows that pad a tile have no variance: they add nothing, and nothing is not a number."""
    run = {
        b: (lambda x, *w, b=b: inner_block(x, *weights(w), num_heads=4, eps=0.0, backend=b)) for b in (backend, "torch")
    }
    for sequences, length, channels in ((1, 16, 12), (5, 3, 12), (9, 16, 40 if dtype == torch.bfloat16 else 24)):
        inputs = make_inputs(sequences, length, channels, dtype=dtype)
        dy = randn(sequences, length, channels, seed=99, dtype=dtype)
        exact = results(run["torch"], inputs, dy, torch.float64)
        for actual, expected in together(results(run[backend], inputs, dy), exact):
            assert_close(actual, expected, 1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize(
    ("sizes", "dtype", "reason"),
    [
        ((16, 12, 4), torch.float64, "none of float32, float16, bfloat16"),
        ((65, 12, 4), torch.float32, "sequences of 65"),
        ((16, 64, 4), torch.float16, "64 channels"),
        ((16, 32, 1), torch.float16, "heads of width 32"),
    ],
)
def test_triton_says_why_it_cannot_run(sizes: tuple[int, int, int], dtype: torch.dtype, reason: str) -> None:
    length, channels, heads = sizes
    with pytest.raises(BackendUnavailable, match=reason):
        fused(heads)(*make_inputs(1, length, channels, dtype=dtype))


@NEEDS_NATIVE
def test_native_says_why_it_cannot_run_or_is_not_taken() -> None:
    with pytest.raises(BackendUnavailable, match="sequences of 65 are not within 1 to 64"):
        fused(4, "native")(*make_inputs(1, 65, 12))
    wide = make_inputs(2, 4, 64)
    check(wide, 4, "native")
    assert torch.equal(fused(4, "auto")(*wide), fused(4, "torch")(*wide))


def test_what_no_gpu_holds_is_refused_there() -> None:
    """Which sizes compile is in test_limits.py; the interpreter has no limit."""
    assert op._device_limits(torch.bfloat16, 16, 40) == op._device_limits(torch.float32, 16, 12) == []
    assert op._device_limits(torch.float16, 64, 31) == []
    (reason,) = op._device_limits(torch.float32, 16, 40)
    assert "use bfloat16 or float16" in reason
    assert op._device_limits(torch.float32, 17, 12) and op._device_limits(torch.bfloat16, 17, 40)


def test_what_a_device_cannot_hold_is_refused_there() -> None:
    small, middle, large = 99 * 1024, 163 * 1024, 227 * 1024
    for channels, heads in ((40, 8), (63, 7), (63, 3), (40, 4)):
        assert op._memory_limits(channels, heads, small) == []
    (reason,) = op._memory_limits(63, 21, small)
    assert "take 110592 bytes" in reason and "has 101376" in reason
    assert op._memory_limits(40, 20, middle) == op._memory_limits(63, 63, large) == []
    assert op._memory_limits(63, 63, middle)


def test_shapes_that_do_not_fit() -> None:
    inputs = make_inputs(3, 16, 12)
    with pytest.raises(ValueError, match="5 heads do not divide 12 channels"):
        fused(5)(*inputs)
    with pytest.raises(ValueError, match=r"x must be \[S, L, C\], not of 2 dimensions"):
        fused(4)(present(inputs)[0][0], *inputs[1:])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the shipped sizes did not run")
@pytest.mark.parametrize(("length", "channels", "heads"), [(16, 12, 4), (4, 12, 2), (16, 24, 4), (16, 40, 4)])
def test_bfloat16_on_gpu(length: int, channels: int, heads: int) -> None:
    inputs = make_inputs(301, length, channels, dtype=torch.bfloat16)
    dy = randn(301, length, channels, seed=99, dtype=torch.bfloat16)
    assert_at_most_twice_plain(fused(heads), plain(heads), [inputs], BLOCK_NAMES, [dy], torch.bfloat16)
    assert_repeats(fused(heads), inputs, dy)


@pytest.mark.parametrize(("sequences", "channels", "heads"), [(5, 24, 4), (9, 40, 4)])
def test_bfloat16_of_wide_blocks(sequences: int, channels: int, heads: int) -> None:
    """In parts, and with the sums in memory; the others are in test_all_operations.py."""
    draws = [make_inputs(sequences, 16, channels, dtype=torch.bfloat16)]
    dy = randn(sequences, 16, channels, seed=99, dtype=torch.bfloat16)
    assert_at_most_twice_plain(fused(heads), plain(heads), draws, BLOCK_NAMES, [dy], torch.bfloat16)
