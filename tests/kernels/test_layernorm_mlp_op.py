"""layernorm_mlp as an operation: registration, torch.compile, autocast, memory kept, the choice of backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from util import (
    CPU_ONLY,
    DEVICE,
    Function,
    assert_autocasts,
    assert_close,
    assert_compiles,
    assert_once_differentiable,
    assert_refuses_bfloat16,
    assert_repeats,
    randn,
    transposed_layout,
)

from titn.kernels import BackendUnavailable, MlpWeights, layernorm_mlp
from titn.kernels.common.partial_sums import summed
from titn.kernels.common.wide import wide_reasons

WIDTH, HIDDEN = 12, 20


def make_inputs(dtype: torch.dtype = torch.float32, width: int = WIDTH, hidden: int = HIDDEN) -> list[Tensor]:
    """x [2, 3, width] and the six parameters."""
    shapes = ((2, 3, width), (width,), (width,), (hidden, width), (hidden,), (width, hidden), (width,))
    return [randn(*shape, seed=seed, scale=0.5, dtype=dtype) for seed, shape in enumerate(shapes)]


def fused(*inputs: Tensor) -> Tensor:
    return layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), backend="triton")


def plain(*inputs: Tensor) -> Tensor:
    return layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), backend="torch")


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("vectors", [True, False])
def test_opcheck(vectors: bool, residual: bool) -> None:
    x, norm_weight, norm_bias, w1, b1, w2, b2 = make_inputs()
    norm = (norm_weight, norm_bias) if vectors else (None, None)
    first, second = (b1, b2) if vectors else (None, None)
    arguments = (transposed_layout(x), *norm, w1, first, w2, second, 1e-5, residual)
    torch.library.opcheck(torch.ops.titn.layernorm_mlp.default, arguments)
    _, mean, rstd = torch.ops.titn.layernorm_mlp(*arguments)
    dy = transposed_layout(randn(2, 3, WIDTH, seed=9))
    torch.library.opcheck(
        torch.ops.titn.layernorm_mlp_backward.default, (dy, x, mean, rstd, *norm, w1, first, w2, residual)
    )


def test_opcheck_of_mixed_dtypes() -> None:
    """As under autocast: float32 tokens and vectors, float16 products."""
    x, norm_weight, norm_bias, w1, b1, w2, b2 = make_inputs()
    for residual in (True, False):
        arguments = (x, norm_weight, norm_bias, w1.half(), b1, w2.half(), b2, 1e-5, residual)
        torch.library.opcheck(torch.ops.titn.layernorm_mlp.default, arguments)
        y, mean, rstd = torch.ops.titn.layernorm_mlp(*arguments)
        assert y.dtype == (torch.float32 if residual else torch.float16)
        torch.library.opcheck(
            torch.ops.titn.layernorm_mlp_backward.default,
            (y, x, mean, rstd, norm_weight, norm_bias, w1.half(), b1, w2.half(), residual),
        )


def test_statistics() -> None:
    """What the forward keeps: mean and 1 / deviation of every row, in float32."""
    x, *parameters = make_inputs()
    _, mean, rstd = torch.ops.titn.layernorm_mlp(x, *parameters, 1e-5, True)
    rows = x.double().reshape(-1, WIDTH)
    assert_close(mean, rows.mean(1), 1e-6)
    assert_close(rstd, (rows.var(1, correction=0) + 1e-5).rsqrt(), 1e-6)


@pytest.mark.parametrize("eps", [1e-6, 0.5])
def test_eps(eps: float) -> None:
    inputs = make_inputs()
    found = layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), eps=eps, backend="triton")
    assert_close(
        found,
        layernorm_mlp(inputs[0].double(), MlpWeights(*(t.double() for t in inputs[1:])), eps=eps, backend="torch"),
        1e-6,
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(dynamic: bool) -> None:
    assert_compiles(fused, make_inputs(), randn(2, 3, WIDTH, seed=50), dynamic=dynamic)


def test_compiled_under_autocast() -> None:
    def step(*tensors: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.float16):
            return fused(*tensors)

    assert assert_compiles(step, make_inputs(), randn(2, 3, WIDTH, seed=50)).dtype == torch.float32


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(residual: bool, backward_inside: bool) -> None:
    """Products in float16, the residual stream and all gradients in float32; without residual the products' dtype."""
    dy = randn(2, 3, WIDTH, seed=50, dtype=torch.float32 if residual else torch.float16)

    def mlp(backend: str) -> Function:
        return lambda *t: layernorm_mlp(t[0], MlpWeights(*t[1:]), residual=residual, backend=backend)

    assert_autocasts(mlp("triton"), mlp("torch"), make_inputs(), dy, backward_inside=backward_inside)


def test_autocast_keeps_the_residual_stream() -> None:
    """With fc2 zero the result is x itself, not x rounded to float16."""
    x, norm_weight, norm_bias, w1, b1, w2, b2 = make_inputs()
    with torch.autocast(DEVICE, torch.float16):
        assert torch.equal(fused(x, norm_weight, norm_bias, w1, b1, w2 * 0, b2 * 0), x)


@CPU_ONLY
def test_bfloat16_is_refused_by_the_interpreter() -> None:
    assert_refuses_bfloat16(fused, make_inputs())


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
    inputs = make_inputs(torch.float16, width, hidden)
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


def test_two_runs_are_equal() -> None:
    inputs = make_inputs(torch.float16)
    inputs[0] = randn(130, WIDTH, seed=0, dtype=torch.float16)  # three tiles
    assert_repeats(fused, inputs, randn(130, WIDTH, seed=99, dtype=torch.float16))


def test_only_the_tokens_need_gradients() -> None:
    x, *parameters = make_inputs()
    dy = randn(2, 3, WIDTH, seed=50)
    x.requires_grad_()
    (found,) = torch.autograd.grad(fused(x, *parameters), x, dy)
    (expected,) = torch.autograd.grad(plain(x, *parameters), x, dy)
    assert_close(found, expected, 1e-5)


def test_only_a_parameter_needs_a_gradient() -> None:
    inputs = make_inputs()
    dy = randn(2, 3, WIDTH, seed=50)
    weight = inputs[5].requires_grad_()
    (found,) = torch.autograd.grad(fused(*inputs), weight, dy)
    (expected,) = torch.autograd.grad(plain(*inputs), weight, dy)
    assert_close(found, expected, 1e-5)


def test_gradients_of_gradients_are_refused() -> None:
    assert_once_differentiable(fused, make_inputs())


def test_auto_is_torch_until_a_benchmark_says_otherwise() -> None:
    inputs = make_inputs()
    assert torch.equal(layernorm_mlp(inputs[0], MlpWeights(*inputs[1:])), plain(*inputs))
    assert "not yet shown to beat torch.compile: ask for it by name" in wide_reasons(
        inputs[0], "auto", dtype=torch.float32
    )
    assert wide_reasons(inputs[0], "triton", *inputs[1:], dtype=torch.float32) == []


@pytest.mark.parametrize(
    ("width", "dtype", "parameter_dtype", "reason"),
    [
        (641, torch.float32, torch.float32, "rows of 641 channels, kernels exist for 1 to 640"),
        (0, torch.float32, torch.float32, "rows of 0 channels"),
        (12, torch.float64, torch.float64, "none of float32, float16, bfloat16"),
        (12, torch.float32, torch.float64, "none of float32, float16, bfloat16"),
    ],
)
def test_triton_says_why_it_cannot_run(
    width: int, dtype: torch.dtype, parameter_dtype: torch.dtype, reason: str
) -> None:
    shapes = ((width,), (width,), (4, width), (4,), (width, 4), (width,))
    parameters = [torch.zeros(s, dtype=parameter_dtype, device=DEVICE) for s in shapes]
    with pytest.raises(BackendUnavailable, match=reason):
        fused(torch.zeros(3, width, dtype=dtype, device=DEVICE), *parameters)


def test_tensors_on_two_devices() -> None:
    x, *parameters = make_inputs()
    with pytest.raises(BackendUnavailable, match="different devices"):
        fused(x, *(p.to("meta") for p in parameters))


def test_other_backends() -> None:
    inputs = make_inputs()
    with pytest.raises(BackendUnavailable, match="no native kernel"):
        layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), backend="native")
    with pytest.raises(ValueError, match="unknown backend 'cuda'; choose from auto, triton, native, torch"):
        layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), backend="cuda")


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize(
    ("index", "shape", "message"),
    [
        (0, (), r"x must be \[..., D\]"),
        (0, (3, WIDTH + 1), r"fc1_weight must have shape \[20, 13\]"),
        (1, (WIDTH + 1,), r"norm_weight must have shape \[12\], not \[13\]"),
        (2, (1, WIDTH), "norm_bias must have shape"),
        (3, (HIDDEN,), r"fc1_weight must be \[F, D\]"),
        (4, (WIDTH,), r"fc1_bias must have shape \[20\]"),
        (5, (HIDDEN, WIDTH), r"fc2_weight must have shape \[12, 20\]"),
        (6, (1,), r"fc2_bias must have shape \[12\]"),
    ],
)
def test_shapes_that_do_not_fit(index: int, shape: tuple[int, ...], message: str, backend: str) -> None:
    inputs: list[Any] = make_inputs()
    inputs[index] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        layernorm_mlp(inputs[0], MlpWeights(*inputs[1:]), backend=backend)
