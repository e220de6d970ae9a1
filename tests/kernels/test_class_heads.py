"""Both heads against their float64 reference: every gradient, sizes, pooling, absent parameters, layouts, launches."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from util import (
    TOLERANCE,
    Function,
    assert_close,
    nan_filled_memory,
    output_and_gradients,
    present,
    randn,
    together,
    transposed_layout,
)

from titn.kernels import HeadWeights, class_heads

NAMES = ("norm_weight", "norm_bias", "weight", "bias")


def make_inputs(
    images: int,
    tokens: int,
    width: int,
    classes: int,
    dtype: torch.dtype = torch.float32,
    parameter_dtype: torch.dtype | None = None,
    absent: tuple[str, ...] = (),
) -> list[Tensor | None]:
    """x [images, tokens, width] and the eight parameters; those named in `absent` are None in both heads."""
    inputs: list[Tensor | None] = [randn(images, tokens, width, seed=0, dtype=dtype)]
    for head in range(2):
        shapes = (width,), (width,), (classes, width), (classes,)
        for i, (name, shape) in enumerate(zip(NAMES, shapes, strict=True)):
            scale = width**-0.5 if name == "weight" else 0.3
            value = randn(*shape, seed=10 * head + i + 1, scale=scale) + (name == "norm_weight")
            inputs.append(None if name in absent else value.to(parameter_dtype or dtype))
    return inputs


def run(backend: str, pooled: int) -> Function:
    """Both logits side by side, [B, 2 K]."""

    def function(x: Tensor, *weights: Tensor) -> Tensor:
        heads = HeadWeights(*weights[:4]), HeadWeights(*weights[4:])
        return torch.cat(class_heads(x, heads, pooled=pooled, backend=backend), dim=1)

    return function


def check(inputs: list[Tensor | None], pooled: int, dy: Tensor | None = None) -> None:
    """Output and all gradients against the reference in float64, with memory that holds NaN where nobody wrote."""
    (x, weight), limit = present([inputs[0], inputs[3]]), TOLERANCE[present(inputs[:1])[0].dtype]
    dy = randn(x.shape[0], 2 * weight.shape[0], seed=99, dtype=x.dtype) if dy is None else dy
    expected = output_and_gradients(run("torch", pooled), inputs, dy, torch.float64)
    with nan_filled_memory():
        found = output_and_gradients(run("triton", pooled), inputs, dy)
    assert found[0].dtype == x.dtype
    assert_close(found[0], expected[0], limit, "logits")
    names = ("x", *(f"{head} {name}" for head in ("class", "distillation") for name in NAMES))
    for name, tensor, actual, truth in zip(names, inputs, found[1], expected[1], strict=True):
        assert (actual is None) == (tensor is None) == (truth is None)
        if actual is not None and truth is not None and tensor is not None:
            assert actual.dtype == tensor.dtype
            assert_close(actual, truth, limit, name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("images", "tokens", "width", "classes", "pooled"),
    [
        (5, 6, 192, 100, 5),
        (16, 3, 12, 10, 1),
        (17, 4, 20, 33, 2),
        (1, 2, 3, 1, 1),
        (33, 7, 65, 2, 4),
        (3, 5, 384, 7, 3),
    ],
)
def test_sizes(images: int, tokens: int, width: int, classes: int, pooled: int, dtype: torch.dtype) -> None:
    """Around a tile of 16 images, 64 columns and 32 classes; tokens between the pooled and the last get zero."""
    check(make_inputs(images, tokens, width, classes, dtype), pooled)


@pytest.mark.parametrize("absent", [("norm_weight", "norm_bias"), ("bias",), ("norm_bias",), ("norm_weight", "bias")])
def test_absent_parameters(absent: tuple[str, ...]) -> None:
    check(make_inputs(3, 4, 12, 5, absent=absent), 2)


def test_parameters_wider_than_the_tokens() -> None:
    check(make_inputs(3, 4, 12, 5, torch.float16, torch.float32), 3)


def test_layouts() -> None:
    inputs, dy = make_inputs(3, 4, 12, 5), randn(3, 10, seed=3)
    check([None if t is None else transposed_layout(t) for t in inputs], 3, transposed_layout(dy))


def test_no_images() -> None:
    inputs = present(make_inputs(0, 4, 12, 5))
    y, gradients = output_and_gradients(run("triton", 2), inputs, torch.zeros(0, 10, device=inputs[0].device))
    assert y.shape == (0, 10) and present(gradients)[0].shape == (0, 4, 12)
    assert all(torch.equal(g, torch.zeros_like(g)) for g in present(gradients)[1:])


def test_the_reference_is_two_heads() -> None:
    x, *weights = present(make_inputs(3, 5, 12, 7))
    found = run("torch", 4)(x, *weights)
    class_token, last = x[:, :4].sum(1) / 4, x[:, 4]
    for part, features, (gamma, beta, weight, bias) in zip(
        found.split(7, dim=1), (class_token, last), (weights[:4], weights[4:]), strict=True
    ):
        centred = features - features.mean(1, keepdim=True)
        normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        assert_close(part, F.linear(normed * gamma + beta, weight) + bias, 1e-5)
    for actual, truth in together(
        class_heads(x, (HeadWeights(*weights[:4]), HeadWeights(*weights[4:])), pooled=1, backend="torch"),
        class_heads(x[:, [0, 4]], (HeadWeights(*weights[:4]), HeadWeights(*weights[4:])), pooled=1, backend="torch"),
    ):
        assert torch.equal(actual, truth)


def test_what_does_not_fit() -> None:
    x, *weights = present(make_inputs(3, 5, 12, 7))
    heads = HeadWeights(*weights[:4]), HeadWeights(*weights[4:])
    with pytest.raises(ValueError, match=r"x must be \[B, T, D\] with T at least 2, not \[3, 1, 12\]"):
        class_heads(x[:, :1], heads, pooled=1)
    for pooled in (0, 5):
        with pytest.raises(ValueError, match=f"{pooled} pooled tokens are not within 1 to 4"):
            class_heads(x, heads, pooled=pooled)
    with pytest.raises(ValueError, match=r"weight must have shape \[7, 12\], not \[6, 12\]"):
        class_heads(x, (heads[0], heads[1]._replace(weight=weights[6][:6])), pooled=1)
