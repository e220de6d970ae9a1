"""The patch-level block against its float64 reference: both halves, every gradient, lengths, layouts, extremes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from util import (
    DEVICE,
    TOLERANCE,
    assert_close,
    expanded_gradient,
    nan_filled_memory,
    output_and_gradients,
    randn,
    relative_error,
    transposed_layout,
)

from titn.kernels import outer_attention, outer_block
from titn.kernels.common import configurations
from titn.kernels.common.wide import wide

NAMES = [
    "x", "ln1_weight", "ln1_bias", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias",
    "ln2_weight", "ln2_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias",
]  # fmt: skip
BIASES = ("ln1_bias", "qkv_bias", "proj_bias", "ln2_bias", "fc1_bias", "fc2_bias")
NORMS = ("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias")
ATTENTION = 7  # x and the six parameters of the attention half
DTYPES = [torch.float32, torch.float16]


def make_inputs(
    batch: int,
    length: int,
    width: int,
    *,
    hidden: int | None = None,
    absent: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype | None = None,
) -> list[Tensor | None]:
    """x and the twelve parameters in `outer_block`'s order; every product keeps the size of its input."""
    d, f = width, 4 * width if hidden is None else hidden
    shapes = ((d,), (d,), (3 * d, d), (3 * d,), (d, d), (d,), (d,), (d,), (f, d), (f,), (d, f), (d,))
    inputs: list[Tensor | None] = [randn(batch, length, d, seed=0, dtype=dtype)]
    for seed, (name, shape) in enumerate(zip(NAMES[1:], shapes, strict=True), start=1):
        scale = 0.3 if len(shape) == 1 else shape[1] ** -0.5
        value = randn(*shape, seed=seed, scale=scale) + (1.0 if name in ("ln1_weight", "ln2_weight") else 0.0)
        inputs.append(None if name in absent else value.to(parameter_dtype or dtype))
    return inputs


def check(
    inputs: list[Tensor | None],
    heads: int,
    gradient: Tensor | None = None,
    *,
    function: Callable[..., Tensor] = outer_block,
    **options: bool,
) -> None:
    """Output and all gradients of the kernels, on NaN-filled memory, within the dtype's tolerance of float64."""
    x = inputs[0]
    assert x is not None
    dy = randn(*x.shape, seed=99, dtype=x.dtype) if gradient is None else gradient
    truth, true_gradients = output_and_gradients(
        lambda *t: function(*t, num_heads=heads, backend="torch", **options), inputs, dy, torch.float64
    )
    with nan_filled_memory():
        found, gradients = output_and_gradients(
            lambda *t: function(*t, num_heads=heads, backend="triton", **options), inputs, dy
        )
    limit = TOLERANCE[x.dtype]
    assert found.dtype == x.dtype
    assert_close(found, truth, limit, "y")
    for name, tensor, actual, expected in zip(NAMES, inputs, gradients, true_gradients, strict=False):
        if tensor is None:
            assert actual is None
            continue
        assert actual is not None
        assert expected is not None
        assert actual.dtype == tensor.dtype
        assert_close(actual, expected, limit, f"gradient of {name}")


@pytest.fixture
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter, whose time is one of tile operations, blocks of 256 in place of 16 to 64."""
    if DEVICE == "cpu":
        for key, values in list(configurations.CONFIGURATIONS.items()):
            if key[0].startswith(("layernorm_mlp", "outer_block")):
                monkeypatch.setitem(configurations.CONFIGURATIONS, key, {**values, "block": 256, "columns": 128})


@pytest.mark.parametrize("length", [3, 73])
def test_reference_gradcheck(length: int) -> None:
    absent = () if length == 3 else (*BIASES, *NORMS)
    inputs = make_inputs(1, length, 4, hidden=3, absent=absent, dtype=torch.float64)
    prepared = [None if t is None else t.requires_grad_() for t in inputs]
    function = lambda *t: outer_block(*t, num_heads=2, backend="torch")  # noqa: E731
    assert torch.autograd.gradcheck(function, prepared, fast_mode=length > 3)


@pytest.mark.parametrize("length", [18, 80])
def test_reference_equals_torch_modules(length: int) -> None:
    """The same weights in PyTorch's own pre-norm layer; 80 tokens attend by scaled_dot_product_attention."""
    inputs = make_inputs(3, length, 12, dtype=torch.float64)
    x = inputs[0]
    assert x is not None
    layer = torch.nn.TransformerEncoderLayer(
        12, 4, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).to(DEVICE, torch.float64)
    names = (
        "norm1.weight", "norm1.bias", "self_attn.in_proj_weight", "self_attn.in_proj_bias",
        "self_attn.out_proj.weight", "self_attn.out_proj.bias", "norm2.weight", "norm2.bias",
        "linear1.weight", "linear1.bias", "linear2.weight", "linear2.bias",
    )  # fmt: skip
    layer.load_state_dict(dict(zip(names, inputs[1:], strict=True)))
    found = outer_block(*inputs, num_heads=4, backend="torch")  # type: ignore[arg-type]
    torch.testing.assert_close(found, layer(x), rtol=1e-12, atol=1e-12)


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
    inputs = make_inputs(1, 3, width, dtype=torch.float16)[:ATTENTION]
    check(inputs, width // 64, function=outer_attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("length", "width", "heads"), [(1, 3, 1), (7, 12, 4), (5, 48, 3), (4, 100, 5), (2, 200, 8)])
def test_generic_widths(length: int, width: int, heads: int, dtype: torch.dtype) -> None:
    check(make_inputs(3, length, width, hidden=width + 5, dtype=dtype), heads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("difference", [-1, 0, 1])
def test_row_counts_around_one_tile(difference: int, dtype: torch.dtype) -> None:
    kernels = ("outer_block.forward", "outer_block.backward")
    for rows in {wide(kernel, 12, randn(1, seed=0, dtype=dtype)).rows for kernel in kernels}:
        check(make_inputs(rows + difference, 1, 12, dtype=dtype)[:ATTENTION], 2, function=outer_attention)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("length", [72, 73])
def test_long_sequences(length: int, dtype: torch.dtype) -> None:
    """72 tokens are the last that `short_attention` takes."""
    inputs = make_inputs(2, length, 12, hidden=20, dtype=dtype)
    check(inputs[:ATTENTION], 2, function=outer_attention)
    if dtype == torch.float16:
        check(inputs, 2)


@pytest.mark.parametrize(("batch", "length"), [(0, 5), (0, 80), (1, 1)])
def test_no_rows_and_one_row(batch: int, length: int) -> None:
    inputs = make_inputs(batch, length, 12, hidden=20)
    if batch:
        check(inputs, 2)
        return
    with nan_filled_memory():
        y, gradients = output_and_gradients(
            lambda *t: outer_block(*t, num_heads=2, backend="triton"), inputs, randn(0, length, 12, seed=0)
        )
    assert y.shape == (0, length, 12)
    for tensor, gradient in zip(inputs, gradients, strict=True):
        assert tensor is not None
        assert gradient is not None
        assert gradient.shape == tensor.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("absent", [BIASES, NORMS, ("qkv_bias",), ("ln1_bias", "ln2_weight"), (*BIASES, *NORMS)])
def test_absent_parameters(absent: tuple[str, ...]) -> None:
    check(make_inputs(2, 5, 12, hidden=20, absent=absent), 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_residual(dtype: torch.dtype) -> None:
    check(make_inputs(2, 5, 12, dtype=dtype)[:ATTENTION], 2, function=outer_attention, residual=False)


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
        attention = [randn(3, 4, 24, seed=5)[..., ::2], *inputs[1:ATTENTION]]
        check(attention, 2, transposed_layout(dy), function=outer_attention, residual=residual)


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 10.0), (100.0, 1.0)])
def test_large_values(offset: float, scale: float) -> None:
    """Saturated softmax and GELU, and row means far from 0: no worse than twice plain PyTorch in float32."""
    inputs = make_inputs(2, 5, 24)
    x, qkv, fc1 = inputs[0], inputs[3], inputs[9]
    assert x is not None
    assert qkv is not None
    assert fc1 is not None
    inputs[0], inputs[3], inputs[9] = x + offset, qkv * scale, fc1 * scale
    dy = randn(2, 5, 24, seed=99)

    def plain(*t: Tensor) -> Tensor:
        return outer_block(*t, num_heads=2, backend="torch")

    truth = output_and_gradients(plain, inputs, dy, torch.float64)
    eager = output_and_gradients(plain, inputs, dy)
    found = output_and_gradients(lambda *t: outer_block(*t, num_heads=2, backend="triton"), inputs, dy)
    for name, actual, other, expected in zip(
        ["y", *NAMES], [found[0], *found[1]], [eager[0], *eager[1]], [truth[0], *truth[1]], strict=True
    ):
        assert actual is not None
        assert other is not None
        assert expected is not None
        assert_close(actual, expected, 2 * relative_error(other, expected) + 1e-6, name)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes in the interpreter
    suppress_health_check=list(HealthCheck),
)
@given(
    batch=st.integers(1, 5),
    length=st.integers(1, 20),
    heads=st.integers(1, 4),
    head_width=st.integers(3, 20),
    hidden=st.integers(1, 70),
    absent=st.sets(st.sampled_from((*BIASES, *NORMS))),
)
def test_drawn_shapes(batch: int, length: int, heads: int, head_width: int, hidden: int, absent: set[str]) -> None:
    check(make_inputs(batch, length, heads * head_width, hidden=hidden, absent=tuple(absent)), heads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: bfloat16 kernels did not run")
@pytest.mark.parametrize(("length", "width", "heads"), [(18, 192, 3), (197, 384, 6), (18, 640, 10), (66, 192, 8)])
def test_bfloat16_on_gpu(length: int, width: int, heads: int) -> None:
    """Error at most twice that of plain PyTorch in bfloat16; two runs equal bit for bit."""
    inputs = make_inputs(37, length, width, dtype=torch.bfloat16)
    dy = randn(37, length, width, seed=99, dtype=torch.bfloat16)

    def run(backend: str, dtype: torch.dtype | None = None) -> list[Tensor | None]:
        function = lambda *t: outer_block(*t, num_heads=heads, backend=backend)  # noqa: E731
        y, gradients = output_and_gradients(function, inputs, dy, dtype)
        return [y, *gradients]

    results = zip(run("triton"), run("triton"), run("torch"), run("torch", torch.float64), strict=True)
    for actual, repeated, eager, truth in results:
        assert actual is not None
        assert repeated is not None
        assert eager is not None
        assert truth is not None
        if length <= 72:  # beyond, PyTorch's own attention may sum in any order
            assert torch.equal(actual, repeated)
        assert relative_error(actual, truth) <= 2 * relative_error(eager, truth)
