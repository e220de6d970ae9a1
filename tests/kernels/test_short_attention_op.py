"""short_attention in PyTorch's machinery: opcheck, torch.compile, autocast, the choice of backend and its reasons."""

from __future__ import annotations

import pytest
import torch
from util import CPU_ONLY, DEVICE, assert_close, randn

from titn.kernels.common.backend import BackendUnavailable
from titn.kernels.short_attention import op, short_attention


def test_opcheck() -> None:
    """The operators as registered: schema, fake, autograd registration and AOT dispatch."""
    q, k, v, gradient = (randn(3, 16, 2, 3, seed=i) for i in range(4))
    gradient = gradient.transpose(0, 1).contiguous().transpose(0, 1)
    qkv = randn(3, 5, 3, 2, 3, seed=4)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in (
        (torch.ops.titn.short_attention, (q, k, v, 0.5)),
        (
            torch.ops.titn.short_attention_backward,
            (gradient, q, k, v, 0.5),
        ),
        (torch.ops.titn.short_attention_packed, (qkv, 0.5)),
        (torch.ops.titn.short_attention_packed_backward, (randn(3, 5, 2, 3, seed=5), qkv, 0.5)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=tests)


@pytest.mark.parametrize("backend", ["auto", "torch", "sdpa", "triton"])
@pytest.mark.parametrize("packed", [True, False])
def test_compiles_as_one_graph(backend: str, packed: bool) -> None:
    qkv = randn(3, 16, 3, 4, 3, seed=0).requires_grad_()

    def function(x: torch.Tensor) -> torch.Tensor:
        if packed:
            return short_attention(x * 1.0, backend=backend)
        q, k, v = (part.transpose(1, 2) for part in x.unbind(2))
        return short_attention(q, k, v, backend=backend).transpose(1, 2)

    (expected,) = torch.autograd.grad(function(qkv).square().sum(), qkv)
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(qkv).square().sum(), qkv)
    assert_close(found, expected, 1e-6)


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


@CPU_ONLY
def test_auto_on_the_cpu_is_the_reference() -> None:
    qkv = randn(2, 16, 3, 4, 3, seed=0)
    assert op._choose(qkv, 16, 0.5, "auto") == "torch"
    assert torch.equal(short_attention(qkv), short_attention(qkv, backend="torch"))


@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "reason"),
    [
        ((2, 73, 3, 1, 8), torch.float32, None, "73 tokens"),
        ((2, 4, 3, 1, 65), torch.float32, None, "head dimension 65"),
        ((2, 4, 3, 1, 8), torch.float64, None, "float64"),
        ((2, 4, 3, 1, 8), torch.float32, -1.0, "scale -1.0"),
    ],
)
def test_triton_says_why_not(shape: tuple[int, ...], dtype: torch.dtype, scale: float | None, reason: str) -> None:
    with pytest.raises(BackendUnavailable, match=reason):
        short_attention(randn(*shape, seed=0, dtype=dtype), scale=scale, backend="triton")


@CPU_ONLY
def test_triton_interpreter_refuses_bfloat16() -> None:
    with pytest.raises(BackendUnavailable, match="bfloat16"):
        short_attention(randn(1, 4, 3, 1, 3, seed=0, dtype=torch.bfloat16), backend="triton")


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


def test_native_is_not_built() -> None:
    with pytest.raises(BackendUnavailable, match="no native kernel"):
        short_attention(randn(1, 4, 3, 1, 8, seed=0), backend="native")


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


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        short_attention(randn(1, 4, 3, 1, 8, seed=0), backend="cuda")
