"""short_attention: the reference against PyTorch, the Triton kernels against the reference in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from util import (
    CPU_ONLY,
    DEVICE,
    TOLERANCE,
    assert_close,
    assert_repeats,
    expanded_gradient,
    nan_filled_memory,
    output_and_gradients,
    randn,
    transposed_layout,
)

from titn.kernels import BackendUnavailable
from titn.kernels.short_attention import launch, op, short_attention
from titn.kernels.short_attention.launch import choose_tile

# S, H, L, d: every kind of tile: merged, packed, one tile a unit, query blocks; heads that divide no tile
SHAPES = (
    (5, 4, 16, 3), (3, 2, 16, 6), (17, 4, 4, 3), (3, 4, 16, 6), (2, 4, 16, 10), (2, 8, 18, 24), (1, 8, 17, 24),
    (1, 2, 66, 24), (3, 8, 5, 24), (1, 3, 33, 7), (3, 3, 9, 3), (1, 1, 64, 64), (1, 1, 72, 64), (7, 1, 1, 1),
)  # fmt: skip


def triton_against_reference(
    shape: tuple[int, int, int, int], dtype: torch.dtype, gradient: Tensor | None = None, scale: float | None = None
) -> None:
    """Output and all three gradients, packed and not, with NaN in all memory the kernels allocate."""
    sequences, heads, length, width = shape
    qkv = randn(sequences, length, 3, heads, width, seed=1, dtype=dtype)
    gradient = randn(sequences, length, heads, width, seed=2, dtype=dtype) if gradient is None else gradient

    def run(backend: str) -> Callable[[Tensor], Tensor]:
        return lambda x: short_attention(x, scale=scale, backend=backend)

    expected, (expected_gradient,) = output_and_gradients(run("torch"), (qkv,), gradient, torch.float64)
    with nan_filled_memory():
        output, (found,) = output_and_gradients(run("triton"), (qkv,), gradient)
        separate = [part.transpose(1, 2).contiguous() for part in qkv.unbind(2)]
        output4, found4 = output_and_gradients(
            lambda q, k, v: short_attention(q, k, v, scale=scale, backend="triton"), separate, gradient.transpose(1, 2)
        )
    limit = TOLERANCE[dtype]
    assert_close(output, expected, limit, "output")
    assert_close(output4.transpose(1, 2), expected, limit, "output of separate q, k, v")
    for i, name in enumerate(("dq", "dk", "dv")):
        truth = expected_gradient[:, :, i]
        if length == 1 and name != "dv":  # softmax of one score is 1: no gradient, only rounding
            assert found[:, :, i].abs().max() < limit and found4[i].abs().max() < limit
            continue
        assert_close(found[:, :, i], truth, limit, name)
        assert_close(found4[i].transpose(1, 2), truth, limit, f"{name} of separate tensors")


@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_reference_is_scaled_dot_product_attention(shape: tuple[int, int, int, int]) -> None:
    q, k, v = (randn(*shape, seed=i, dtype=torch.float64) for i in range(3))
    assert_close(short_attention(q, k, v, backend="torch"), F.scaled_dot_product_attention(q, k, v), 1e-14)
    scaled = F.scaled_dot_product_attention(q, k, v, scale=0.3)
    for backend in ("torch", "sdpa"):
        assert_close(short_attention(q, k, v, scale=0.3, backend=backend), scaled, 1e-14)


def test_reference_gradcheck() -> None:
    q, k, v = (randn(2, 2, 5, 3, seed=i, dtype=torch.float64).requires_grad_() for i in range(3))
    assert torch.autograd.gradcheck(lambda *qkv: short_attention(*qkv, backend="torch"), (q, k, v))


@pytest.mark.parametrize("backend", ["torch", "sdpa", "triton"])
def test_packed_equals_separate(backend: str) -> None:
    qkv = randn(3, 16, 3, 4, 3, seed=0)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    packed = short_attention(qkv, backend=backend)
    assert packed.shape == (3, 16, 4, 3)
    assert_close(packed, short_attention(q, k, v, backend=backend).transpose(1, 2), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton(shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    triton_against_reference(shape, dtype)


@pytest.mark.parametrize("heads, length, width", [(4, 16, 3), (1, 18, 24), (2, 5, 3)])
def test_triton_sequences_around_a_tile(heads: int, length: int, width: int) -> None:
    tile = choose_tile(length, heads, width, torch.float16, mergeable=True)
    units = tile.batches * tile.packed
    for sequences in {1, max(1, units - 1), units, units + 1}:
        triton_against_reference((sequences, heads, length, width), torch.float16)


@pytest.mark.parametrize("mergeable", [True, False])
def test_triton_more_sequences_than_a_grid_axis_holds(mergeable: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sequences of one token, in tiles of 8192 units, for the interpreter's sake."""

    def wide(length: int, heads: int, width: int, dtype: torch.dtype, mergeable: bool) -> launch.Tile:
        return replace(choose_tile(length, heads, width, dtype, merge), batches=512)

    merge = mergeable
    monkeypatch.setattr(launch, "choose_tile", wide)
    qkv = randn(65537, 1, 3, 2, 3, seed=1, dtype=torch.float16)
    gradient = randn(65537, 1, 2, 3, seed=2, dtype=torch.float16)
    output, (found,) = output_and_gradients(lambda x: short_attention(x, backend="triton"), (qkv,), gradient)
    assert torch.equal(output, qkv[:, :, 2])  # the softmax of one score is 1
    assert torch.equal(found[:, :, 2], gradient)
    assert found[:, :, :2].abs().max() < 1e-6


@pytest.mark.parametrize(
    "shape", [s for s in SHAPES if choose_tile(s[2], s[1], s[3], torch.float16, True).merged], ids=str
)
def test_triton_merged_heads_in_float32(shape: tuple[int, int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The merged kernels' arithmetic to 1e-5; by itself the choice gives float32 to the others."""
    monkeypatch.setattr(
        launch,
        "choose_tile",
        lambda length, heads, width, dtype, mergeable: choose_tile(length, heads, width, torch.float16, mergeable),
    )
    triton_against_reference(shape, torch.float32)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    st.integers(1, 4), st.integers(1, 6), st.integers(1, 34), st.integers(1, 40),
    st.sampled_from([torch.float32, torch.float16]),
)  # fmt: skip
def test_triton_any_shape(sequences: int, heads: int, length: int, width: int, dtype: torch.dtype) -> None:
    triton_against_reference((sequences, heads, length, width), dtype)


@pytest.mark.parametrize("shape", [(5, 4, 16, 3), (2, 2, 18, 24), (1, 1, 40, 8)], ids=str)
def test_triton_gradients_of_any_layout(shape: tuple[int, int, int, int]) -> None:
    sequences, heads, length, width = shape
    like = (sequences, length, heads, width)
    triton_against_reference(shape, torch.float16, transposed_layout(randn(*like, seed=3, dtype=torch.float16)))
    qkv = randn(sequences, length, 3, heads, width, seed=1, dtype=torch.float16)
    gradient = expanded_gradient(like, torch.float16)
    run = {name: (lambda x, name=name: short_attention(x, backend=name)) for name in ("torch", "triton")}
    _, (expected,) = output_and_gradients(run["torch"], (qkv,), gradient, torch.float64)
    _, (found,) = output_and_gradients(run["triton"], (qkv,), gradient)
    assert_close(found[:, :, 2], expected[:, :, 2], TOLERANCE[torch.float16], "dv")
    assert (found[:, :, :2] - expected[:, :, :2]).abs().max() < 2e-3  # the terms cancel: dq and dk vanish in part


@pytest.mark.parametrize("shape", [(5, 4, 16, 3), (2, 2, 18, 8)], ids=str)
def test_triton_inputs_of_any_layout(shape: tuple[int, int, int, int]) -> None:
    """Last dimension not contiguous, and three different strides."""
    plain = [randn(*shape, seed=i, dtype=torch.float16) for i in range(3)]
    sequences, heads, length, width = shape
    odd = [
        transposed_layout(plain[0]),
        plain[1].transpose(1, 2).contiguous().transpose(1, 2),
        randn(sequences, heads, length, 2 * width, seed=4, dtype=torch.float16)[..., :width].copy_(plain[2]),
    ]
    gradient = randn(*shape, seed=5, dtype=torch.float16)
    reference = lambda q, k, v: short_attention(q, k, v, backend="torch")  # noqa: E731
    kernel = lambda q, k, v: short_attention(q, k, v, backend="triton")  # noqa: E731
    expected, expected_gradients = output_and_gradients(reference, plain, gradient, torch.float64)
    found, gradients = output_and_gradients(kernel, odd, gradient)
    assert_close(found, expected, TOLERANCE[torch.float16])
    for actual, truth in zip(gradients, expected_gradients, strict=True):
        assert_close(actual, truth, TOLERANCE[torch.float16])


@pytest.mark.parametrize("heads, length, width", [(4, 16, 3), (2, 18, 24), (1, 40, 8)])
def test_triton_scores_beyond_the_range_of_exp(heads: int, length: int, width: int) -> None:
    """Scores of a thousand and more: the largest of each row must be taken off first."""
    qkv = randn(2, length, 3, heads, width, seed=0, scale=30.0)
    expected = short_attention(qkv.double(), backend="torch")
    for dtype in (torch.float32, torch.float16):
        rounded = qkv.to(dtype)
        expected = short_attention(rounded.double(), backend="torch")
        assert_close(short_attention(rounded, backend="triton"), expected, 10 * TOLERANCE[dtype])


def test_triton_is_deterministic_and_leaves_its_inputs() -> None:
    qkv = randn(5, 16, 3, 4, 3, seed=0, dtype=torch.float16)
    before = qkv.clone()
    gradient = randn(5, 16, 4, 3, seed=1, dtype=torch.float16)
    assert_repeats(lambda x: short_attention(x, backend="triton"), (qkv,), gradient)
    assert torch.equal(qkv, before)


def test_no_sequences() -> None:
    qkv = torch.zeros(0, 16, 3, 4, 3, device=DEVICE, requires_grad=True)
    result = short_attention(qkv, backend="triton")
    assert result.shape == (0, 16, 4, 3)
    result.sum().backward()
    assert qkv.grad is not None and qkv.grad.shape == qkv.shape


def test_one_tensor_as_query_key_and_value_compiles() -> None:
    x = randn(2, 2, 5, 3, seed=0).requires_grad_()
    function = lambda t: short_attention(t, t, t, backend="triton")  # noqa: E731
    (expected,) = torch.autograd.grad(short_attention(x, x, x, backend="torch").square().sum(), x)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x).square().sum(), x)
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("backend", ["torch", "sdpa", "triton"])
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_inputs(backend: str) -> None:
    qkv = randn(3, 16, 3, 4, 3, seed=0).requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.float16):
        result = short_attention(qkv, backend=backend)
    assert result.dtype == torch.float16
    (gradient,) = torch.autograd.grad(result.float().square().sum(), qkv)
    assert gradient.dtype == torch.float32
    (expected,) = torch.autograd.grad(short_attention(qkv, backend="torch").square().sum(), qkv)
    assert_close(gradient, expected, 4e-3)


def test_autocast_leaves_float64() -> None:
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        result = short_attention(randn(1, 4, 3, 2, 3, seed=0, dtype=torch.float64), backend="torch")
    assert result.dtype == torch.float64


@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "reason"),
    [
        ((2, 73, 3, 1, 8), torch.float32, None, "73 tokens"),
        ((2, 4, 3, 1, 65), torch.float32, None, "head dimension 65"),
        ((2, 4, 3, 1, 8), torch.float32, -1.0, "scale -1.0"),
    ],
)
def test_triton_says_why_not(shape: tuple[int, ...], dtype: torch.dtype, scale: float | None, reason: str) -> None:
    with pytest.raises(BackendUnavailable, match=reason):
        short_attention(randn(*shape, seed=0, dtype=dtype), scale=scale, backend="triton")


def test_what_a_device_cannot_hold() -> None:
    """Which sizes compile is in test_limits.py; the interpreter has no limit."""
    small, large = 99 * 1024, 163 * 1024
    (reason,) = op._device_limits(torch.float32, 65, 33, small)
    assert "106496 bytes" in reason and "has 101376" in reason
    accepted = ((torch.float32, 64, 64), (torch.float32, 72, 32), (torch.float16, 72, 64))
    assert not any(op._device_limits(*sizes, small) for sizes in accepted)
    assert op._device_limits(torch.float32, 72, 64, large) == []


@pytest.mark.parametrize(
    ("width", "dtype", "sequences", "reason"),
    [
        (8, torch.float32, 2, "needs a CUDA device"),
        (6, torch.float32, 2, "no multiple of 4"),
        (12, torch.float16, 2, "no multiple of 8"),
        (8, torch.float16, 65536, "65536 sequences"),
        (8, torch.float64, 2, "float64"),
    ],
)
@CPU_ONLY
def test_xformers_says_why_not(
    width: int, dtype: torch.dtype, sequences: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "installed", lambda package: True)
    with pytest.raises(BackendUnavailable, match=reason):
        short_attention(torch.zeros(sequences, 1, 3, 1, width, dtype=dtype), backend="xformers")


def test_xformers_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op, "installed", lambda package: False)
    with pytest.raises(BackendUnavailable, match="xformers is not installed"):
        short_attention(randn(1, 4, 3, 1, 8, seed=0), backend="xformers")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ((torch.zeros(2, 4, 2, 1, 3),), "packed qkv must be"),
        ((torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 4, 3)), "give q, k and v"),
        ((torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 5, 3), torch.zeros(2, 1, 5, 3)), "one shape"),
        ((torch.zeros(2, 1, 4, 3), torch.zeros(2, 1, 4, 3).half(), torch.zeros(2, 1, 4, 3)), "one dtype"),
        ((torch.zeros(2, 4, 3, 1, 3, dtype=torch.int64),), "floating-point"),
    ],
)
def test_wrong_arguments(tensors: tuple[torch.Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        short_attention(*tensors)
