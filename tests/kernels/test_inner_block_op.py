"""The inner block as an operation: registration, torch.compile, autocast, the choice of backend and its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from util import DEVICE, output_and_gradients, randn, relative_error

from titn.kernels import BackendUnavailable, inner_block

CHANNELS, HEADS = 12, 4


def make_inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    c, f = CHANNELS, 4 * CHANNELS
    shapes = ((3, 16, c), (c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (f, c), (f,), (c, f), (c,))
    return [randn(*shape, seed=seed, scale=0.5, dtype=dtype) for seed, shape in enumerate(shapes)]


def fused(*inputs: Tensor) -> Tensor:
    return inner_block(*inputs, num_heads=HEADS, backend="triton")


def plain(*inputs: Tensor) -> Tensor:
    return inner_block(*inputs, num_heads=HEADS, backend="torch")


def test_opcheck() -> None:
    inputs = make_inputs()
    torch.library.opcheck(torch.ops.titn.inner_block_forward.default, (*inputs, HEADS, 1e-5))
    y, mid, packed = torch.ops.titn.inner_block_forward(*inputs, HEADS, 1e-5)
    x, *parameters = inputs
    arguments = (torch.ones_like(y), x, mid, packed, *parameters, HEADS, 1e-5)
    torch.library.opcheck(torch.ops.titn.inner_block_backward.default, arguments)


def test_compiled_in_one_graph() -> None:
    inputs = make_inputs()
    dy = randn(3, 16, CHANNELS, seed=50)
    expected = output_and_gradients(fused, inputs, dy)
    torch._dynamo.reset()
    found = output_and_gradients(torch.compile(fused, fullgraph=True, backend="aot_eager"), inputs, dy)
    assert torch.equal(found[0], expected[0])
    for actual, eager in zip(found[1], expected[1], strict=True):
        assert actual is not None
        assert eager is not None
        assert torch.equal(actual, eager)


def test_autocast() -> None:
    """Computes in autocast's dtype and keeps float32 gradients for float32 parameters and tokens."""
    inputs = make_inputs()
    dy = randn(3, 16, CHANNELS, seed=50, dtype=torch.float16)
    with torch.autocast(DEVICE, torch.float16):
        y, gradients = output_and_gradients(fused, inputs, dy)
    truth, true_gradients = output_and_gradients(plain, inputs, dy, torch.float64)
    assert y.dtype == torch.float16
    assert relative_error(y, truth) < 4e-3
    for actual, expected in zip(gradients, true_gradients, strict=True):
        assert actual is not None
        assert expected is not None
        assert actual.dtype == torch.float32
        assert relative_error(actual, expected) < 4e-3


def test_only_the_tokens_need_gradients() -> None:
    x, *parameters = make_inputs()
    x.requires_grad_()
    fused(x, *parameters).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_gradients_of_gradients_are_refused() -> None:
    inputs = [t.requires_grad_() for t in make_inputs()]
    (dx,) = torch.autograd.grad(fused(*inputs).square().sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


def test_auto_on_the_cpu_is_the_reference() -> None:
    inputs = [t.cpu() for t in make_inputs()]
    assert torch.equal(inner_block(*inputs, num_heads=HEADS), plain(*inputs))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dtype": torch.float64}, "none of float32, float16, bfloat16"),
        ({"length": 65}, "sequences of 65"),
        ({"channels": 64}, "64 channels"),
        ({"channels": 32, "heads": 1}, "heads of width 32"),
        ({"parameters": torch.float64}, "a parameter is none of"),
    ],
)
def test_triton_says_why_it_cannot_run(change: dict[str, object], reason: str) -> None:
    c, length, heads = (int(str(change.get(k, v))) for k, v in (("channels", 12), ("length", 16), ("heads", 4)))
    shapes = ((c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (4 * c, c), (4 * c,), (c, 4 * c), (c,))
    dtype = change.get("dtype", torch.float32)
    assert isinstance(dtype, torch.dtype)
    parameters = [torch.zeros(s, dtype=torch.float64 if "parameters" in change else dtype) for s in shapes]
    x = torch.zeros(1, length, c, dtype=dtype)
    with pytest.raises(BackendUnavailable, match=reason):
        inner_block(x, *parameters, num_heads=heads, backend="triton")


def test_other_backends() -> None:
    inputs = make_inputs()
    with pytest.raises(BackendUnavailable, match="native library is not built"):
        inner_block(*inputs, num_heads=HEADS, backend="native")
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        inner_block(*inputs, num_heads=HEADS, backend="cuda")


def test_shapes_that_do_not_fit() -> None:
    x, *parameters = make_inputs()
    with pytest.raises(ValueError, match="do not divide"):
        inner_block(x, *parameters, num_heads=5)
    with pytest.raises(ValueError, match="must be"):
        inner_block(x[0], *parameters, num_heads=HEADS)
    with pytest.raises(ValueError, match="qkv_weight must have shape"):
        inner_block(x, *parameters[:2], parameters[2][:12], *parameters[3:], num_heads=HEADS)


def test_bfloat16_is_refused_by_the_interpreter() -> None:
    if DEVICE == "cuda":
        pytest.skip("kernels are compiled here")
    inputs = make_inputs()
    with torch.autocast(DEVICE, torch.bfloat16), pytest.raises(BackendUnavailable, match="wrong bfloat16"):
        fused(*inputs)
