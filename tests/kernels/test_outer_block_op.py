"""The patch-level block as an operation: registration, torch.compile, autocast, the choice of backend."""

from __future__ import annotations

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
    block_shapes,
    randn,
    transposed_layout,
    weights,
)

from titn.kernels import BackendUnavailable, outer_attention, outer_block
from titn.kernels.outer_block.op import LayerNormLinear

WIDTH, HEADS, HIDDEN, LENGTH = 12, 2, 20, 5


def make_inputs(dtype: torch.dtype = torch.float32, length: int = LENGTH, width: int = WIDTH) -> list[Tensor]:
    """x [2, length, width] and the twelve parameters."""
    shapes = ((2, length, width), *block_shapes(width, HIDDEN).values())
    return [randn(*shape, seed=seed, scale=0.5, dtype=dtype) for seed, shape in enumerate(shapes)]


def fused(*inputs: Tensor) -> Tensor:
    return outer_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="triton")


def plain(*inputs: Tensor) -> Tensor:
    return outer_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="torch")


@pytest.mark.parametrize("vectors", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck_of_layernorm_linear(dtype: torch.dtype, vectors: bool) -> None:
    """float16: as under autocast, with float32 tokens and vectors."""
    x, *parameters = make_inputs()
    gamma, beta, bias = (parameters[0], parameters[1], parameters[3]) if vectors else (None, None, None)
    weight = parameters[2].to(dtype)
    arguments = (transposed_layout(x), gamma, beta, weight, bias, 1e-5)
    torch.library.opcheck(torch.ops.titn.layernorm_linear.default, arguments)
    out, mean, rstd = torch.ops.titn.layernorm_linear(*arguments)
    assert out.dtype == dtype
    for residual in (transposed_layout(x), None):
        torch.library.opcheck(
            torch.ops.titn.layernorm_linear_backward.default,
            (transposed_layout(out), residual, x, mean, rstd, gamma, beta, weight),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck_of_linear_residual(dtype: torch.dtype) -> None:
    """float16: as under autocast, with a float32 residual stream."""
    x, *parameters = make_inputs()
    heads, weight, bias = transposed_layout(x.to(dtype)), parameters[4].to(dtype), parameters[5]
    for b, residual in ((bias, transposed_layout(x)), (None, None)):
        torch.library.opcheck(torch.ops.titn.linear_residual.default, (heads, weight, b, residual))
        out = torch.ops.titn.linear_residual(heads, weight, b, residual)
        assert out.dtype == (dtype if residual is None else torch.float32)
        torch.library.opcheck(torch.ops.titn.linear_residual_backward.default, (transposed_layout(out), weight))


@pytest.mark.parametrize("case", ["triton", "triton dynamic", "triton 80 tokens", "torch"])
def test_compiled_in_one_graph(case: str) -> None:
    backend, _, detail = case.partition(" ")
    inputs = make_inputs(length=80 if detail == "80 tokens" else LENGTH)

    def function(*t: Tensor) -> Tensor:
        return outer_block(t[0], *weights(t[1:]), num_heads=HEADS, backend=backend)

    assert_compiles(function, inputs, randn(*inputs[0].shape, seed=50), dynamic=detail == "dynamic")


@pytest.mark.parametrize("residual", [True, False])
def test_attention_half_under_autocast(residual: bool) -> None:
    """Products in float16, the residual stream and all gradients in float32; without residual the products' dtype."""
    dy = randn(2, LENGTH, WIDTH, seed=50, dtype=torch.float32 if residual else torch.float16)

    def attention(backend: str) -> Function:
        return lambda *t: outer_attention(t[0], *weights(t[1:]), num_heads=HEADS, residual=residual, backend=backend)

    assert_autocasts(attention("triton"), attention("torch"), make_inputs()[:7], dy)


@pytest.mark.parametrize("length", [LENGTH, 80])
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(length: int, backward_inside: bool) -> None:
    dy = randn(2, length, WIDTH, seed=50)
    assert_autocasts(fused, plain, make_inputs(length=length), dy, backward_inside=backward_inside)


def test_autocast_keeps_the_residual_stream() -> None:
    """With both last layers zero the result is x itself, not x rounded to float16."""
    inputs = make_inputs()
    for index in (5, 6, 11, 12):
        inputs[index] = inputs[index] * 0
    with torch.autocast(DEVICE, torch.float16):
        assert torch.equal(fused(*inputs), inputs[0])


@CPU_ONLY
def test_bfloat16_is_refused_by_the_interpreter() -> None:
    assert_refuses_bfloat16(fused, make_inputs())


def test_two_runs_are_equal() -> None:
    assert_repeats(fused, make_inputs(), randn(2, LENGTH, WIDTH, seed=50))


def test_each_output_of_layernorm_linear_alone() -> None:
    """LN(x) W^T + b and the passed x: either may go unused."""
    x, gamma, beta, weight, bias = (t.requires_grad_() for t in make_inputs()[:5])
    out, passed = LayerNormLinear.apply(x, gamma, beta, weight, bias, 1e-5, torch.float32)
    assert torch.equal(passed, x)
    (through,) = torch.autograd.grad(passed, x, torch.ones_like(x), retain_graph=True)
    assert torch.equal(through, torch.ones_like(x))
    dout = randn(*out.shape, seed=50)
    found = torch.autograd.grad(out, (x, gamma, beta, weight, bias), dout)
    reference = torch.nn.functional.linear(torch.nn.functional.layer_norm(x, (WIDTH,), gamma, beta), weight, bias)
    expected = torch.autograd.grad(reference, (x, gamma, beta, weight, bias), dout)
    for actual, truth in zip(found, expected, strict=True):
        assert_close(actual, truth, 1e-5)


def test_only_the_tokens_need_gradients() -> None:
    x, *parameters = make_inputs()
    x.requires_grad_()
    dy = randn(2, LENGTH, WIDTH, seed=50)
    (found,) = torch.autograd.grad(fused(x, *parameters), x, dy)
    (expected,) = torch.autograd.grad(plain(x, *parameters), x, dy)
    assert_close(found, expected, 1e-5)


def test_gradients_of_gradients_are_refused() -> None:
    assert_once_differentiable(fused, make_inputs())


@CPU_ONLY
def test_auto_on_the_cpu_is_the_reference() -> None:
    inputs = make_inputs()
    assert torch.equal(outer_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS), plain(*inputs))


@pytest.mark.parametrize(
    ("width", "dtype", "parameter_dtype", "reason"),
    [
        (642, torch.float32, torch.float32, "outer_attention: .* rows of 642 channels"),
        (12, torch.float64, torch.float64, "none of float32, float16, bfloat16"),
        (12, torch.float32, torch.float64, "none of float32, float16, bfloat16"),
        (130, torch.float32, torch.float32, "short_attention: .* head dimension 65"),
    ],
)
def test_triton_says_why_it_cannot_run(
    width: int, dtype: torch.dtype, parameter_dtype: torch.dtype, reason: str
) -> None:
    x, *parameters = make_inputs(width=width)
    with pytest.raises(BackendUnavailable, match=reason):
        fused(x.to(dtype), *(p.to(parameter_dtype) for p in parameters))


def test_other_backends() -> None:
    inputs = make_inputs()
    with pytest.raises(BackendUnavailable, match="no native kernel"):
        outer_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="native")
    with pytest.raises(ValueError, match="unknown backend 'cuda'; choose from auto, triton, native, torch"):
        outer_block(inputs[0], *weights(inputs[1:]), num_heads=HEADS, backend="cuda")


@pytest.mark.parametrize(
    ("index", "shape", "heads", "message"),
    [
        (0, (LENGTH, WIDTH), HEADS, r"x must be \[B, T, D\], not of 2 dimensions"),
        (0, (2, LENGTH, WIDTH), 5, "5 heads do not divide 12 channels"),
        (0, (2, LENGTH, WIDTH), 0, "0 heads do not divide"),
        (1, (1,), HEADS, r"norm_weight must have shape \[12\], not \[1\]"),
        (3, (WIDTH, WIDTH), HEADS, r"qkv_weight must have shape \[36, 12\], not \[12, 12\]"),
        (4, (WIDTH,), HEADS, "qkv_bias must have shape"),
        (5, (WIDTH, 3), HEADS, "proj_weight must have shape"),
        (6, (3,), HEADS, "proj_bias must have shape"),
        (9, (HIDDEN, 3), HEADS, r"layernorm_mlp: fc1_weight must have shape \[20, 12\]"),
    ],
)
def test_shapes_that_do_not_fit(index: int, shape: tuple[int, ...], heads: int, message: str) -> None:
    inputs = make_inputs()
    inputs[index] = torch.zeros(shape, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        outer_block(inputs[0], *weights(inputs[1:]), num_heads=heads)
