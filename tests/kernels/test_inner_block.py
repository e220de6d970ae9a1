"""The inner block against its float64 reference: forward and every gradient, shapes, counts, layouts and extremes."""

from __future__ import annotations

from collections.abc import Sequence

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

from titn.kernels import inner_block
from titn.kernels.common import configurations
from titn.kernels.inner_block.reference import inner_block_reference

NAMES = [
    "x", "ln1_weight", "ln1_bias", "qkv_weight", "qkv_bias", "proj_weight", "proj_bias",
    "ln2_weight", "ln2_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias",
]  # fmt: skip
BIASES = ("ln1_bias", "qkv_bias", "proj_bias", "ln2_bias", "fc1_bias", "fc2_bias")


def make_inputs(
    sequences: int,
    length: int,
    channels: int,
    *,
    hidden: int | None = None,
    absent: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype | None = None,
    weight_scale: float = 0.3,
) -> list[Tensor | None]:
    """x and the twelve parameters in `inner_block`'s order."""
    f = 4 * channels if hidden is None else hidden
    c = channels
    shapes = ((c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (f, c), (f,), (c, f), (c,))
    inputs: list[Tensor | None] = [randn(sequences, length, c, seed=0, dtype=dtype)]
    for seed, (name, shape) in enumerate(zip(NAMES[1:], shapes, strict=True), start=1):
        offset = 1.0 if name in ("ln1_weight", "ln2_weight") else 0.0
        value = randn(*shape, seed=seed, scale=weight_scale) + offset
        inputs.append(None if name in absent else value.to(parameter_dtype or dtype))
    return inputs


def check(inputs: list[Tensor | None], heads: int, gradient: Tensor | None = None, backend: str = "triton") -> None:
    """Output and all gradients of the backend, on NaN-filled memory, within the dtype's tolerance of float64."""
    x = inputs[0]
    assert x is not None
    dy = randn(*x.shape, seed=99, dtype=x.dtype) if gradient is None else gradient
    truth, true_gradients = output_and_gradients(
        lambda *t: inner_block_reference(*t, num_heads=heads), inputs, dy, torch.float64
    )
    with nan_filled_memory():
        found, gradients = output_and_gradients(
            lambda *t: inner_block(*t, num_heads=heads, backend=backend), inputs, dy
        )
    limit = TOLERANCE[x.dtype]
    assert found.dtype == x.dtype
    assert_close(found, truth, limit, "y")
    for name, tensor, actual, expected in zip(NAMES, inputs, gradients, true_gradients, strict=True):
        if tensor is None:
            assert actual is None
            continue
        assert actual is not None
        assert expected is not None
        assert actual.dtype == tensor.dtype
        assert actual.is_contiguous()
        assert_close(actual, expected, limit, f"gradient of {name}")


def test_reference_gradcheck() -> None:
    inputs = make_inputs(2, 3, 4, hidden=8, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in inputs if t is not None]
    assert torch.autograd.gradcheck(lambda *t: inner_block_reference(*t, num_heads=2), leaves)


def test_reference_equals_torch_modules() -> None:
    """The same weights in PyTorch's own multi-head attention and LayerNorm give the same block."""
    channels, heads = 12, 4
    inputs = make_inputs(3, 16, channels, dtype=torch.float64)
    x, ln1_w, ln1_b, qkv_w, qkv_b, proj_w, proj_b, *_ = inputs
    assert x is not None
    layer = torch.nn.TransformerEncoderLayer(
        channels, heads, 48, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).to(DEVICE, torch.float64)
    state = dict(zip(NAMES, inputs, strict=True))
    layer.load_state_dict(
        {
            "self_attn.in_proj_weight": qkv_w,
            "self_attn.in_proj_bias": qkv_b,
            "self_attn.out_proj.weight": proj_w,
            "self_attn.out_proj.bias": proj_b,
            "norm1.weight": ln1_w,
            "norm1.bias": ln1_b,
            "norm2.weight": state["ln2_weight"],
            "norm2.bias": state["ln2_bias"],
            "linear1.weight": state["fc1_weight"],
            "linear1.bias": state["fc1_bias"],
            "linear2.weight": state["fc2_weight"],
            "linear2.bias": state["fc2_bias"],
        }
    )
    torch.testing.assert_close(inner_block(*inputs, num_heads=heads, backend="torch"), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("length", "channels", "heads"),
    [(16, 12, 4), (16, 12, 2), (4, 12, 4), (16, 24, 4), (16, 40, 8), (9, 12, 2), (33, 6, 1), (16, 16, 4)],
)
def test_float32(length: int, channels: int, heads: int) -> None:
    check(make_inputs(5, length, channels), heads)


@pytest.mark.parametrize(
    ("length", "channels", "heads"), [(16, 12, 4), (4, 12, 2), (16, 24, 4), (16, 40, 4), (16, 40, 8)]
)
def test_float16(length: int, channels: int, heads: int) -> None:
    check(make_inputs(6, length, channels, dtype=torch.float16), heads)


@pytest.mark.parametrize("sequences", [1, 3, 4])
def test_sequence_counts_around_one_tile(sequences: int) -> None:
    """Four tiles of one sequence each make a pass: one less, exactly, and (in `test_float32`) one more than a pass."""
    check(make_inputs(sequences, 16, 12), 4)


@pytest.mark.parametrize("sequences", [15, 16, 17])
def test_sequence_counts_around_one_packed_tile(sequences: int) -> None:
    """Sequences of 4 tokens share a tile by fours."""
    check(make_inputs(sequences, 4, 6, hidden=16), 2)


def test_more_sequences_than_a_grid_dimension_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # large tiles: the interpreter's time is one of passes, not of elements
        for (kernel, widths, arch), values in list(configurations.CONFIGURATIONS.items()):
            if kernel.startswith("inner_block") and widths == "16":
                monkeypatch.setitem(
                    configurations.CONFIGURATIONS, (kernel, widths, arch), {**values, "num_warps": 2048}
                )
    check(make_inputs(65_537, 2, 4, hidden=16), 2)


@pytest.mark.parametrize("sequences", [8, 17])
def test_wide_sums_in_memory(sequences: int) -> None:
    """Eight sequences make a pass: one program, and two of which one adds a second tile to its sums in memory."""
    check(make_inputs(sequences, 16, 32, hidden=64, dtype=torch.float16), 4)


@pytest.mark.parametrize("channels", [12, 40])
def test_no_sequences(channels: int) -> None:
    inputs = make_inputs(0, 16, channels)
    with nan_filled_memory():
        y, gradients = output_and_gradients(
            lambda *t: inner_block(*t, num_heads=4, backend="triton"), inputs, randn(0, 16, channels, seed=0)
        )
    assert y.shape == (0, 16, channels)
    assert all(g is not None and not g.any() for g in gradients)


def test_absent_parameters() -> None:
    check(make_inputs(5, 16, 12, absent=BIASES), 4)
    check(make_inputs(5, 16, 12, absent=("ln1_weight", "ln1_bias", "ln2_weight", "ln2_bias")), 4)


def test_parameters_wider_than_the_tokens() -> None:
    check(make_inputs(5, 16, 12, dtype=torch.float16, parameter_dtype=torch.float32), 4)


def test_layouts() -> None:
    inputs = make_inputs(5, 16, 12)
    assert inputs[0] is not None
    dy = randn(5, 16, 12, seed=3)
    check(inputs, 4, transposed_layout(dy))
    check(inputs, 4, expanded_gradient((5, 16, 12), torch.float32))
    check([transposed_layout(inputs[0]), *inputs[1:]], 4, dy)


@pytest.mark.parametrize("factor", [10.0, 200.0])
def test_large_scores(factor: float) -> None:
    """Saturated softmax: no worse than twice plain PyTorch in the same precision, and finite where it is one-hot."""
    inputs = make_inputs(4, 16, 12)
    qkv = inputs[NAMES.index("qkv_weight")]
    assert qkv is not None
    inputs[NAMES.index("qkv_weight")] = qkv * factor
    dy = randn(4, 16, 12, seed=5)
    truth = output_and_gradients(lambda *t: inner_block_reference(*t, num_heads=4), inputs, dy, torch.float64)
    plain = output_and_gradients(lambda *t: inner_block_reference(*t, num_heads=4), inputs, dy)
    fused = output_and_gradients(lambda *t: inner_block(*t, num_heads=4, backend="triton"), inputs, dy)
    assert relative_error(fused[0], truth[0]) < 2 * relative_error(plain[0], truth[0])
    for actual, eager, expected in zip(fused[1], plain[1], truth[1], strict=True):
        assert actual is not None
        assert eager is not None
        assert expected is not None
        assert actual.isfinite().all()
        if factor < 100:
            assert relative_error(actual, expected) < 2 * relative_error(eager, expected) + 1e-6


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),  # shrinking would take minutes in the interpreter
    suppress_health_check=list(HealthCheck),
)
@given(
    sequences=st.integers(1, 9),
    length=st.integers(1, 16),
    heads=st.integers(1, 4),
    width=st.integers(3, 5),  # LayerNorm over 2 channels is ill-conditioned: plain float32 is off by 2e-5 as well
    hidden=st.integers(1, 40),
    absent=st.sets(st.sampled_from(BIASES)),
)
def test_drawn_shapes(sequences: int, length: int, heads: int, width: int, hidden: int, absent: set[str]) -> None:
    check(make_inputs(sequences, length, heads * width, hidden=hidden, absent=tuple(absent)), heads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: bfloat16 kernels did not run")
@pytest.mark.parametrize(("length", "channels", "heads"), [(16, 12, 4), (4, 12, 2), (16, 24, 4), (16, 40, 4)])
def test_bfloat16_on_gpu(length: int, channels: int, heads: int) -> None:
    """Error at most twice that of plain PyTorch in bfloat16; two runs equal bit for bit."""
    inputs = make_inputs(301, length, channels, dtype=torch.bfloat16)
    dy = randn(301, length, channels, seed=99, dtype=torch.bfloat16)

    def fused(*t: Tensor) -> Tensor:
        return inner_block(*t, num_heads=heads, backend="triton")

    def plain(*t: Tensor) -> Tensor:
        return inner_block_reference(*t, num_heads=heads)

    y64, g64 = output_and_gradients(plain, inputs, dy, torch.float64)
    y16, g16 = output_and_gradients(plain, inputs, dy)
    y, g = output_and_gradients(fused, inputs, dy)
    again, g_again = output_and_gradients(fused, inputs, dy)
    for actual, repeated, eager, truth in zip([y, *g], [again, *g_again], [y16, *g16], [y64, *g64], strict=True):
        assert actual is not None
        assert repeated is not None
        assert eager is not None
        assert truth is not None
        assert torch.equal(actual, repeated)
        assert relative_error(actual, truth) <= 2 * relative_error(eager, truth)
