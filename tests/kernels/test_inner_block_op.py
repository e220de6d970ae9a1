"""The inner block as an operation: registration, torch.compile, autocast, the choice of backend and its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from util import (
    CPU_ONLY,
    assert_autocasts,
    assert_compiles,
    assert_once_differentiable,
    assert_refuses_bfloat16,
    block_shapes,
    randn,
    weights,
)

from titn.kernels import BackendUnavailable, inner_block

CHANNELS, HEADS = 12, 4


def make_inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """x [3, 16, CHANNELS] and the twelve parameters."""
    shapes = ((3, 16, CHANNELS), *block_shapes(CHANNELS, 4 * CHANNELS).values())
    return [randn(*shape, seed=seed, scale=0.5, dtype=dtype) for seed, shape in enumerate(shapes)]


def fused(*inputs: Tensor) -> Tensor:
    return inner_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="triton")


def plain(*inputs: Tensor) -> Tensor:
    return inner_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="torch")


def test_opcheck() -> None:
    inputs = make_inputs()
    torch.library.opcheck(torch.ops.titn.inner_block_forward.default, (*inputs, HEADS, 1e-5))
    y, mid, packed = torch.ops.titn.inner_block_forward(*inputs, HEADS, 1e-5)
    x, *parameters = inputs
    arguments = (torch.ones_like(y), x, mid, packed, *parameters, HEADS, 1e-5)
    torch.library.opcheck(torch.ops.titn.inner_block_backward.default, arguments)


def test_compiled_in_one_graph() -> None:
    assert_compiles(fused, make_inputs(), randn(3, 16, CHANNELS, seed=50))


def test_autocast() -> None:
    """Computes in autocast's dtype and keeps float32 gradients for float32 parameters and tokens."""
    dy = randn(3, 16, CHANNELS, seed=50, dtype=torch.float16)
    assert_autocasts(fused, plain, make_inputs(), dy, backward_inside=True)


def test_only_the_tokens_need_gradients() -> None:
    x, *parameters = make_inputs()
    x.requires_grad_()
    fused(x, *parameters).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_gradients_of_gradients_are_refused() -> None:
    assert_once_differentiable(fused, make_inputs())


def test_auto_on_the_cpu_is_the_reference() -> None:
    inputs = [t.cpu() for t in make_inputs()]
    assert torch.equal(inner_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS), plain(*inputs))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "none of float32, float16, bfloat16"),
        ({"length": 65}, "sequences of 65"),
        ({"channels": 64}, "64 channels"),
        ({"channels": 32, "heads": 1}, "heads of width 32"),
        ({"parameters": torch.float64}, "float64 is none of"),
    ],
)
def test_triton_says_why_it_cannot_run(change: dict[str, object], reason: str) -> None:
    c, length, heads = (int(str(change.get(k, v))) for k, v in (("channels", 12), ("length", 16), ("heads", 4)))
    dtype = change.get("dtype", torch.float32)
    assert isinstance(dtype, torch.dtype)
    parameter_dtype = torch.float64 if "parameters" in change else dtype
    parameters = [torch.zeros(s, dtype=parameter_dtype) for s in block_shapes(c, 4 * c).values()]
    x = torch.zeros(1, length, c, dtype=dtype)
    with pytest.raises(BackendUnavailable, match=reason):
        inner_block(x, *weights(parameters), num_heads=heads, backend="triton")


def test_other_backends() -> None:
    inputs = make_inputs()
    with pytest.raises(BackendUnavailable, match="no native kernel"):
        inner_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="native")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        inner_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="cuda")


def test_shapes_that_do_not_fit() -> None:
    x, *parameters = make_inputs()
    with pytest.raises(ValueError, match="do not divide"):
        inner_block(x, *weights(parameters), num_heads=5)
    with pytest.raises(ValueError, match="must be"):
        inner_block(x[0], *weights(parameters), num_heads=HEADS)
    with pytest.raises(ValueError, match="qkv_weight must have shape"):
        inner_block(x, *weights([*parameters[:2], parameters[2][:12], *parameters[3:]]), num_heads=HEADS)


@CPU_ONLY
def test_bfloat16_is_refused_by_the_interpreter() -> None:
    assert_refuses_bfloat16(fused, make_inputs())
