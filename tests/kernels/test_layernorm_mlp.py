"""LayerNorm and MLP against the float64 reference: forward and every gradient, widths, row counts, layouts."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from util import (
    DEVICE,
    TOLERANCE,
    assert_at_most_twice_plain,
    assert_below_twice_plain,
    assert_close,
    assert_matches_float64,
    assert_repeats,
    assert_takes_no_rows,
    draw_parameters,
    drawn,
    expanded_gradient,
    present,
    randn,
    results,
    together,
    transposed_layout,
)

from titn.kernels import BackendUnavailable, MlpWeights, layernorm_mlp
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.wide import wide, wide_reasons

NAMES = ("x", "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
VECTORS = ("norm_weight", "norm_bias", "fc1_bias", "fc2_bias")
DTYPES = [torch.float32, torch.float16]


def make_inputs(
    leading: int | Sequence[int],
    width: int,
    hidden: int,
    *,
    absent: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """x [leading..., width] and the six parameters in `layernorm_mlp`'s order."""
    leading = (leading,) if isinstance(leading, int) else leading
    x = randn(*leading, width, seed=0, dtype=dtype)
    shapes = ((width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    named = dict(zip(NAMES[1:], shapes, strict=True))
    return [x, *draw_parameters(named, parameter_dtype or dtype, absent=absent, matrix_scale=None)]


def fused(*inputs: Tensor | None, residual: bool = True) -> Tensor:
    return layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), residual=residual, backend="triton")  # type: ignore[arg-type]


def plain(*inputs: Tensor | None, residual: bool = True) -> Tensor:
    return layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), residual=residual, backend="torch")  # type: ignore[arg-type]


def check(inputs: list[Tensor | None], gradient: Tensor | None = None, *, residual: bool = True) -> None:
    assert_matches_float64(
        lambda *t: fused(*t, residual=residual), lambda *t: plain(*t, residual=residual), inputs, NAMES, gradient
    )


def test_reference_gradcheck() -> None:
    for absent in ((), VECTORS):
        inputs = make_inputs((2, 3), 5, 7, absent=absent, dtype=torch.float64)
        prepared = [None if t is None else t.requires_grad_() for t in inputs]
        assert torch.autograd.gradcheck(plain, prepared)


@pytest.mark.parametrize("residual", [True, False])
def test_reference_equals_torch_modules(residual: bool) -> None:
    inputs = make_inputs((2, 3), 12, 48, dtype=torch.float64)
    x, *parameters = present(inputs)
    modules = torch.nn.Sequential(
        torch.nn.LayerNorm(12), torch.nn.Linear(12, 48), torch.nn.GELU(), torch.nn.Linear(48, 12)
    ).to(DEVICE, torch.float64)
    names = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")
    modules.load_state_dict(dict(zip(names, parameters, strict=True)))
    expected = modules(x) + x if residual else modules(x)
    torch.testing.assert_close(plain(*inputs, residual=residual), expected, rtol=1e-13, atol=1e-13)


def test_shipped_width_and_tiles() -> None:
    """TITN's patches; 17 rows: more than one tile of float32, less than one of float16."""
    check(make_inputs(17, 192, 768, dtype=torch.float16))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [192, 384, 640])
@pytest.mark.usefixtures("large_tiles")
def test_shipped_widths(width: int, dtype: torch.dtype) -> None:
    check(make_inputs(3, width, 4 * width, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [384, 640])
def test_shipped_tiles(width: int, dtype: torch.dtype) -> None:
    """A hidden width of two blocks and a part."""
    check(make_inputs(3, width, 40 if dtype == torch.float32 else 70, dtype=dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("width", "hidden"), [(3, 1), (12, 48), (48, 100), (100, 33), (200, 17)])
def test_generic_widths(width: int, hidden: int, dtype: torch.dtype) -> None:
    check(make_inputs(5, width, hidden, dtype=dtype))


def test_one_channel() -> None:
    """LayerNorm of one channel is its bias, whatever x and its weight: their gradients through it are exactly 0."""
    inputs = make_inputs(5, 1, 4)
    dy = randn(5, 1, seed=99)

    def written_out(x: Tensor, gamma: Tensor, beta: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        normed = beta.expand_as(x) + 0 * gamma
        return x + torch.nn.functional.gelu(normed @ w1.T + b1) @ w2.T + b2

    found = results(fused, inputs, dy)
    for actual, expected in together(found, results(written_out, inputs, dy, torch.float64)):
        assert_close(actual, expected, TOLERANCE[torch.float32])
    assert torch.equal(present(found)[1], dy)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_row_counts_around_one_tile(difference: int, dtype: torch.dtype) -> None:
    tiles = {wide(f"layernorm_mlp.{kernel}", 12, dtype, 0).rows for kernel in ("forward", "backward")}
    for rows in tiles:
        check(make_inputs(rows + difference, 12, 20, dtype=dtype))


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3), (1, 2, 2, 2)])
def test_leading_shapes(leading: tuple[int, ...]) -> None:
    check(make_inputs(leading, 12, 20))


@pytest.mark.parametrize("leading", [(0,), (2, 0)])
def test_no_rows(leading: tuple[int, ...]) -> None:
    assert_takes_no_rows(fused, make_inputs(leading, 12, 20))


@pytest.mark.parametrize("absent", [("fc1_bias", "fc2_bias"), ("norm_weight", "norm_bias"), ("norm_bias",), VECTORS])
def test_absent_parameters(absent: tuple[str, ...]) -> None:
    check(make_inputs(5, 20, 36, absent=absent))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_residual(dtype: torch.dtype) -> None:
    check(make_inputs(5, 20, 36, dtype=dtype), residual=False)


def test_parameters_wider_than_the_tokens() -> None:
    check(make_inputs(5, 20, 36, dtype=torch.float16, parameter_dtype=torch.float32))


def test_parameters_narrower_than_the_tokens() -> None:
    """Products of float32 tokens stay float32; the rounding of each parameter's gradient to float16 is all there is."""
    inputs = make_inputs(5, 20, 36, parameter_dtype=torch.float16)
    dy = randn(5, 20, seed=99)
    pairs = list(together(results(fused, inputs, dy), results(plain, inputs, dy, torch.float64)))
    for actual, expected in pairs[:2]:  # the output and the gradient of x
        assert_close(actual, expected, TOLERANCE[torch.float32])
    for actual, expected in pairs[2:]:
        assert actual.dtype == torch.float16
        assert_close(actual, expected, 2**-11)


def test_layouts() -> None:
    inputs = make_inputs((3, 4), 12, 20)
    dy = randn(3, 4, 12, seed=3)
    check(inputs, transposed_layout(dy))
    check(inputs, expanded_gradient((3, 4, 12), torch.float32))
    check([None if t is None else transposed_layout(t) for t in inputs], dy)
    x = randn(3, 1, 12, seed=4).expand(3, 4, 12)
    check([x, *inputs[1:]], dy)
    check([randn(3, 4, 24, seed=5)[..., 1::2], *inputs[1:]], dy)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 60.0), (100.0, 1.0), (-1000.0, 10.0)])
def test_large_values(offset: float, scale: float) -> None:
    """Saturated GELU, and row means far from 0: no worse than twice plain PyTorch in float32."""
    inputs = make_inputs(7, 48, 96)
    x, w1 = present([inputs[0], inputs[3]])
    inputs[0], inputs[3] = x + offset, w1 * scale
    assert_below_twice_plain(fused, plain, inputs, NAMES, randn(7, 48, seed=99), slack=1e-6)


def test_constant_rows() -> None:
    """Variance 0: rows of one value give LayerNorm's bias, and finite gradients."""
    inputs = make_inputs(3, 12, 20)
    inputs[0] = torch.full((3, 12), 0.5, device=DEVICE)
    check(inputs)


@drawn(6)
@given(
    rows=st.integers(1, 40),
    width=st.integers(3, 130),  # LayerNorm over 2 channels is ill-conditioned
    hidden=st.integers(1, 70),
    absent=st.sets(st.sampled_from(VECTORS)),
    residual=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_drawn_shapes(rows: int, width: int, hidden: int, absent: set[str], residual: bool, dtype: torch.dtype) -> None:
    check(make_inputs(rows, width, hidden, absent=tuple(absent), dtype=dtype), residual=residual)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: the shipped sizes did not run")
@pytest.mark.parametrize(("width", "hidden"), [(192, 768), (384, 1536), (640, 2560), (100, 72), (12, 48)])
def test_bfloat16_on_gpu(width: int, hidden: int) -> None:
    inputs = make_inputs(1801, width, hidden, dtype=torch.bfloat16)
    dy = randn(1801, width, seed=99, dtype=torch.bfloat16)
    assert_at_most_twice_plain(fused, plain, [inputs], NAMES, [dy], torch.bfloat16)
    assert_repeats(fused, inputs, dy)


def test_statistics() -> None:
    """What the forward keeps: mean and 1 / deviation of every row, in float32."""
    x, *parameters = present(make_inputs((2, 3), 12, 20))
    _, mean, rstd = torch.ops.titn.layernorm_mlp(x, *parameters, 1e-5, True)
    rows = x.double().reshape(-1, 12)
    assert_close(mean, rows.mean(1), 1e-6)
    assert_close(rstd, (rows.var(1, correction=0) + 1e-5).rsqrt(), 1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-6, 0.5])
def test_eps(eps: float) -> None:
    """With 0 the rows that pad a tile have no deviation to divide by: all gradients are still right."""
    inputs = present(make_inputs((2, 3), 12, 20))
    run = {b: (lambda x, *w, b=b: layernorm_mlp(x, MlpWeights(*w), eps=eps, backend=b)) for b in ("triton", "torch")}
    dy = randn(2, 3, 12, seed=99)
    for actual, expected in together(
        results(run["triton"], inputs, dy), results(run["torch"], inputs, dy, torch.float64)
    ):
        assert_close(actual, expected, 1e-5)


def test_autocast_keeps_the_residual_stream() -> None:
    """With fc2 zero the result is x itself, not x rounded to float16."""
    x, norm_weight, norm_bias, w1, b1, w2, b2 = present(make_inputs((2, 3), 12, 20))
    with torch.autocast(DEVICE, torch.float16):
        assert torch.equal(fused(x, norm_weight, norm_bias, w1, b1, w2 * 0, b2 * 0), x)


def kept_bytes(inputs: list[Tensor], backend: str) -> int:
    """Bytes of what the forward keeps for the backward, each storage once, parameters left out; x itself is in it."""
    leaves = [t.detach().requires_grad_() for t in inputs]
    storages: dict[int, int] = {t.untyped_storage().data_ptr(): 0 for t in leaves[1:]}

    def pack(tensor: Tensor) -> Tensor:
        storages.setdefault(tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = layernorm_mlp(leaves[0], MlpWeights(*leaves[1:]), backend=backend)
    assert y.requires_grad
    assert leaves[0].untyped_storage().data_ptr() in storages, "a copy of x is kept"
    return sum(storages.values())


def test_memory_kept_for_the_backward() -> None:
    """x and two float32 statistics a row, nothing of hidden width; PyTorch keeps x, LN(x) and the hidden columns twice.

    At 18,432 x 192 in 16 bits: 7.2 MB against 71 MB.
    """
    width, hidden, rows = 192, 768, 6
    inputs = present(make_inputs(rows, width, hidden, dtype=torch.float16))
    kept, reference = kept_bytes(inputs, "triton"), kept_bytes(inputs, "torch")
    assert kept == rows * (2 * width + 8)
    assert f"{kept / rows * 18_432 / 1e6:.1f}" == "7.2"
    statistics = reference - rows * 2 * (2 * width + 2 * hidden)
    assert statistics in (rows * 4, rows * 8)  # LayerNorm's own, in the dtype the device keeps them in
    assert f"{reference / rows * 18_432 / 1e6:.0f}" == "71"


@pytest.mark.parametrize("programs", [0, 1, 64, 65, 200])
def test_sum_of_partial_rows(programs: int) -> None:
    """One step of the sum takes 64 rows of 32 columns."""
    partial = randn(programs, 40, seed=0)
    assert_close(summed(partial), partial.double().sum(0), 1e-6)


def test_only_a_parameter_needs_a_gradient() -> None:
    inputs = present(make_inputs((2, 3), 12, 20))
    dy = randn(2, 3, 12, seed=50)
    weight = inputs[5].requires_grad_()
    (found,) = torch.autograd.grad(fused(*inputs), weight, dy)
    (expected,) = torch.autograd.grad(plain(*inputs), weight, dy)
    assert_close(found, expected, 1e-5)


def test_auto_is_not_triton_until_a_benchmark_says_otherwise() -> None:
    inputs = present(make_inputs((2, 3), 12, 20))
    if DEVICE != "cpu":  # there native code is the first choice (test_all_operations.py)
        assert torch.equal(layernorm_mlp(inputs[0], MlpWeights(*inputs[1:])), plain(*inputs))
    assert "not yet shown to beat torch.compile: ask for it by name" in wide_reasons(
        inputs[0], "auto", dtype=torch.float32
    )
    assert wide_reasons(inputs[0], "triton", *inputs[1:], dtype=torch.float32) == []


@pytest.mark.parametrize("width", [0, 641])
def test_triton_says_why_it_cannot_run(width: int) -> None:
    with pytest.raises(BackendUnavailable, match=f"rows of {width} channels, kernels exist for 1 to 640"):
        shapes = ((3, width), (width,), (width,), (4, width), (4,), (width, 4), (width,))
        fused(*(torch.zeros(shape, device=DEVICE) for shape in shapes))


def test_shapes_that_do_not_fit() -> None:
    x, *w = present(make_inputs(3, 12, 20))
    with pytest.raises(ValueError, match=r"x must be \[..., D\]"):
        plain(torch.zeros(()), *w)
    with pytest.raises(ValueError, match=r"fc1_weight must be \[F, D\]"):
        plain(x, *w[:2], torch.zeros(20), *w[3:])
