"""The inner block in the form for compiled CPUs equals the reference, and is what torch.compile gets there."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from util import weights

from titn.kernels.inner_block import inner_block, op
from titn.kernels.inner_block.reference import inner_block_innermost, inner_block_reference

WIDTH, HEADS, LENGTH = 12, 4, 16


def make(sequences: int, *, bias: bool, dtype: torch.dtype = torch.float64) -> list[Tensor | None]:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [
        (sequences, LENGTH, WIDTH), (WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,),
        (WIDTH,), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,),
    ]  # fmt: skip
    biases = (2, 4, 6, 8, 10, 12)
    return [
        None
        if index in biases and not bias
        else (torch.randn(shape, generator=generator, dtype=dtype) * 0.5).requires_grad_()
        for index, shape in enumerate(shapes)
    ]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("sequences", [1, 24, 64])
def test_output_and_every_gradient_equal_the_reference(sequences: int, bias: bool) -> None:
    arguments = make(sequences, bias=bias)
    given = [tensor for tensor in arguments if tensor is not None]
    results = []
    for form in (inner_block_reference, partial(inner_block_innermost, group=math.gcd(sequences, 64))):
        output = form(arguments[0], *weights(arguments[1:]), num_heads=HEADS)
        seed = torch.randn(output.shape, generator=torch.Generator().manual_seed(1), dtype=output.dtype)
        results.append((output, *torch.autograd.grad(output, given, seed)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_compiled_cpus_under_bfloat16_get_this_form(monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def record(x: Tensor, *halves: object, num_heads: int, eps: float) -> Tensor:
        used.append(x.shape[0])
        return x.clone()

    monkeypatch.setattr(op, "inner_block_innermost", record)
    torch._dynamo.reset()
    for sequences in (64, 63):
        arguments = make(sequences, bias=True, dtype=torch.float32)

        def run(arguments: list[Tensor | None] = arguments) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return inner_block(arguments[0], *weights(arguments[1:]), num_heads=HEADS)

        run()
        assert not used or used == [64]
        torch.compile(run, backend="eager")()
    assert used == [64]
