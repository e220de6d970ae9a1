"""pixels_to_patches: the reference against its definition and gradcheck, Triton against the reference in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from util import (
    DEVICE,
    assert_close,
    assert_matches_float64,
    drawn,
    expanded_gradient,
    output_and_gradients,
    present,
    randn,
    transposed_layout,
)

from titn.kernels import BackendUnavailable, pixels_to_patches
from titn.kernels.common.configurations import CONFIGURATIONS

NAMES = ("pixels", "patches", "norm_weight", "norm_bias", "weight", "bias")


def inputs(
    images: int,
    n: int,
    t: int,
    length: int,
    channels: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    patches_dtype: torch.dtype | None = None,
    bias: bool = True,
) -> list[Tensor | None]:
    """Pixels, patches and the parameters (float32, as under autocast) for B = images, N = n, T = t, L, C, D."""
    return [
        randn(images, n, length, channels, seed=1, dtype=dtype),
        randn(images, t, width, seed=2, dtype=patches_dtype or dtype),
        1 + randn(channels, seed=3, scale=0.2),
        randn(channels, seed=4, scale=0.2),
        randn(width, length * channels, seed=5, scale=(length * channels) ** -0.5),
        randn(width, seed=6, scale=0.2) if bias else None,
    ]


def run_triton(*arguments: Tensor | None) -> Tensor:
    return pixels_to_patches(*arguments, backend="triton")  # type: ignore[arg-type]


def run_torch(*arguments: Tensor | None) -> Tensor:
    return pixels_to_patches(*arguments, backend="torch")  # type: ignore[arg-type]


def check(arguments: list[Tensor | None], gradient: Tensor) -> None:
    assert_matches_float64(run_triton, run_torch, arguments, NAMES, gradient)


def test_reference_is_its_definition() -> None:
    """One patch at a time, written out."""
    images, n, t, length, channels, width = 2, 3, 6, 4, 5, 7
    pixels, patches, gamma, beta, weight, bias = present(inputs(images, n, t, length, channels, width))
    expected = patches.clone()
    for b in range(images):
        for i in range(n):
            rows = pixels[b, i]
            centred = rows - rows.mean(1, keepdim=True)
            normed = centred / (rows.var(1, correction=0, keepdim=True) + 1e-5).sqrt() * gamma + beta
            expected[b, 1 + i] += weight @ normed.reshape(-1) + bias
    assert_close(run_torch(pixels, patches, gamma, beta, weight, bias), expected, 1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_gradcheck_of_the_reference(bias: bool) -> None:
    arguments = inputs(2, 3, 5, 2, 4, 3, torch.float64, bias=bias)
    prepared = [None if t is None else t.double().requires_grad_() for t in arguments]
    assert torch.autograd.gradcheck(run_torch, prepared)


@pytest.mark.parametrize(
    "shape",
    [
        (3, 16, 18, 16, 12, 192),  # TITN
        (3, 16, 17, 16, 12, 192),  # TNT: no distillation row behind
        (2, 5, 7, 4, 12, 192),  # patch 4
        (1, 3, 4, 16, 24, 384),
        (1, 2, 3, 2, 40, 640),  # the widest patches
        (1, 2, 3, 25, 40, 48),  # the most columns
        (2, 3, 4, 9, 10, 200),  # nothing a power of two
        (1, 1, 2, 1, 3, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_matches_float64(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    arguments = inputs(*shape, dtype=dtype)
    images, _, t, _, _, width = shape
    check(arguments, randn(images, t, width, seed=7, dtype=dtype))


@pytest.mark.parametrize("images", [0, 1, 7, 8, 9, 33])
def test_odd_counts(images: int) -> None:
    """7 to 9 images of 4 patches end before, at and behind a tile of 32 rows."""
    check(inputs(images, 4, 6, 4, 12, 32), randn(images, 6, 32, seed=7))


def test_more_rows_than_a_grid_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    """65,565 patches of one pixel."""
    if DEVICE == "cpu":  # large tiles: the interpreter's time is one of passes, not of elements
        for kernel in ("forward", "backward"):
            key = (f"pixels_to_patches.{kernel}", "16", 0)
            monkeypatch.setitem(CONFIGURATIONS, key, {**CONFIGURATIONS[key], "rows": 4096})
    arguments = inputs(2115, 31, 32, 1, 3, 16, torch.float16)
    check(arguments, randn(2115, 32, 16, seed=7, dtype=torch.float16))


def test_half_pixels_and_float32_patches() -> None:
    """As under autocast: the residual stream stays float32."""
    arguments = inputs(3, 4, 6, 4, 12, 64, torch.float16, torch.float32)
    check(arguments, randn(3, 6, 64, seed=7))
    assert run_triton(*arguments).dtype == torch.float32


def test_without_bias() -> None:
    check(inputs(3, 4, 6, 4, 12, 64, bias=False), randn(3, 6, 64, seed=7))


def test_unusual_layouts() -> None:
    arguments = [None if t is None else transposed_layout(t) for t in inputs(3, 4, 6, 4, 12, 64)]
    check(arguments, transposed_layout(randn(3, 6, 64, seed=7)))
    check(arguments, expanded_gradient((3, 6, 64), torch.float32))


def test_deep_offset_of_the_pixels() -> None:
    """A mean 100 times the deviation costs no accuracy: the variance is taken from centred values."""
    arguments = inputs(2, 4, 6, 4, 12, 64)
    arguments[0] = (present(arguments)[0].double() + 100.0).float()
    output = run_triton(*arguments)
    assert_close(output, run_torch(*(None if t is None else t.double() for t in arguments)), 1e-5)


@drawn(15)
@given(
    images=st.integers(1, 5),
    n=st.integers(1, 6),
    behind=st.integers(0, 3),
    length=st.integers(1, 10),
    channels=st.integers(3, 40),  # the norm of 1 or 2 channels has no gradient but rounding
    width=st.integers(1, 200),
    bias=st.booleans(),
)
def test_any_shape(images: int, n: int, behind: int, length: int, channels: int, width: int, bias: bool) -> None:
    t = n + 1 + behind
    arguments = inputs(images, n, t, length, channels, width, bias=bias)
    check(arguments, randn(images, t, width, seed=7))


def test_output_is_a_new_tensor() -> None:
    """Rows without pixels are copies: the patches stay as they were."""
    arguments = inputs(2, 3, 6, 4, 12, 64)
    patches = present(arguments)[1]
    before = patches.clone()
    for run in (run_triton, run_torch):
        output = run(*arguments)
        assert torch.equal(output[:, 0], before[:, 0]) and torch.equal(output[:, 4:], before[:, 4:])
        output.zero_()
        assert torch.equal(patches, before)


def test_gradient_of_patches_alone() -> None:
    arguments = inputs(2, 3, 6, 4, 12, 64)
    patches = present(arguments)[1]
    patches.requires_grad_()
    gradient = randn(2, 6, 64, seed=7)
    (found,) = torch.autograd.grad(run_triton(*arguments), patches, gradient)
    assert torch.equal(found, gradient)


def test_half_parameters_get_half_gradients() -> None:
    arguments = [None if t is None else t.half() for t in inputs(2, 3, 5, 4, 12, 32)]
    gradient = randn(2, 5, 32, seed=7, dtype=torch.float16)
    _, gradients = output_and_gradients(run_triton, arguments, gradient)
    assert all(g is not None and g.dtype == torch.float16 for g in gradients)
    check(arguments, gradient)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (2, 3, 12)}, r"must be \[B, N, L, C\]"),
        ({1: (3, 5, 32)}, r"must be \[B, N, L, C\]"),
        ({1: (2, 3, 32)}, "need at least 4 rows"),
    ],
)
def test_shapes_that_do_not_fit(change: dict[int, tuple[int, ...]], message: str) -> None:
    arguments = inputs(2, 3, 5, 4, 12, 32)
    for index, shape in change.items():
        arguments[index] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        run_torch(*arguments)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 1, 2, 1, 64, 8), torch.float32, "at most 63 channels"),
        ((1, 1, 2, 86, 12, 8), torch.float32, "1024 columns"),
        ((1, 1, 2, 1, 3, 641), torch.float32, "640 wide"),
    ],
)
def test_reasons(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    arguments = inputs(*shape, dtype=dtype)
    with pytest.raises(BackendUnavailable, match=message):
        run_triton(*arguments)


def test_eps_of_0() -> None:
    """Columns and rows that pad a tile have no variance, and add nothing."""
    arguments = inputs(3, 4, 6, 5, 12, 64)
    run = {b: (lambda *t, b=b: pixels_to_patches(*t, eps=0.0, backend=b)) for b in ("triton", "torch")}
    assert_matches_float64(run["triton"], run["torch"], arguments, NAMES, randn(3, 6, 64, seed=7))
