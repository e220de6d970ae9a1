"""What holds for every operation: registration, compilation, export, autocast, bfloat16, refusals, repetition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from operations import OPERATIONS, Operation
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from util import (
    CPU_ONLY,
    DEVICE,
    assert_at_most_twice_plain,
    assert_autocasts,
    assert_close,
    assert_compiles,
    assert_once_differentiable,
    assert_repeats,
    output_and_gradients,
    transposed_layout,
)

from titn.kernels import BackendUnavailable

every = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
BLOCKS = [name for name in OPERATIONS if not name.startswith(("distillation", "short"))]
blocks = pytest.mark.parametrize("operation", [OPERATIONS[name] for name in BLOCKS], ids=BLOCKS)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


class Recorded(TorchDispatchMode):
    """Within, calls of the package's operators are kept, with their arguments as they were."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "titn":
            self.calls.append((function, args))
        return function(*args, **(kwargs or {}))


@every
@pytest.mark.parametrize("mixed", [False, True])
def test_operators_pass_opcheck(operation: Operation, mixed: bool) -> None:
    """Each operator that forward and backward call, with the arguments it gets: schema, fakes, autograd, AOT.

    mixed: float16 products of float32 tensors, none of them contiguous.
    """
    inputs, dy = operation.draw(), operation.gradient()
    if mixed:
        inputs, dy = [transposed_layout(t) for t in inputs], transposed_layout(dy) if dy.dim() else dy
    with Recorded() as recorded, torch.autocast(DEVICE, torch.float16, enabled=mixed):
        output_and_gradients(operation.by("triton"), inputs, dy)
    assert recorded.calls
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in recorded.calls:
        detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        torch.library.opcheck(operator, tuple(detached), test_utils=tests)


@every
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(operation: Operation, dynamic: bool) -> None:
    """Shapes may be free; PyTorch 2.14 cannot pass one free float (eps) to two autograd functions."""
    with torch._dynamo.config.patch(specialize_float=True):
        assert_compiles(operation.by("triton"), operation.draw(), operation.gradient(), dynamic=dynamic)


@every
def test_compiled_under_autocast(operation: Operation) -> None:
    def step(*inputs: Tensor) -> Tensor:
        with torch.autocast(DEVICE, torch.float16):
            return operation.by("triton")(*inputs)

    assert_compiles(step, operation.draw(), operation.gradient())


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_exported_with_a_free_batch(operation: Operation, dtype: torch.dtype) -> None:
    """One program for every batch: 2, 7, and 64, which the compiled form for CPUs looks for."""

    class Module(nn.Module):
        def forward(self, tokens: list[Tensor], parameters: list[Tensor]) -> Tensor:
            with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
                return operation.run([*tokens, *parameters], "torch")

    def split(inputs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        return inputs[: len(operation.tokens)], inputs[len(operation.tokens) :]

    batch = torch.export.Dim("batch")
    shapes = ([{0: batch} for _ in operation.tokens], [None] * len(operation.parameters))
    module = Module()
    program = torch.export.export(module, split(operation.draw(batch=4)), dynamic_shapes=shapes).module()
    for size in (2, 7, 64):
        arguments = split(operation.draw(batch=size, seed=size))
        expected = module(*arguments)
        torch.testing.assert_close(program(*arguments), expected, rtol=1e-6, atol=1e-6)


@blocks
@pytest.mark.parametrize("backward_inside", [False, True])
def test_autocast(operation: Operation, backward_inside: bool) -> None:
    """Products in float16, gradients in the tensors' float32."""
    inputs = operation.draw()
    with torch.no_grad(), torch.autocast(DEVICE, torch.float16):
        dtype = operation.by("triton")(*inputs).dtype
    dy = operation.gradient(dtype)
    assert_autocasts(operation.by("triton"), operation.by("torch"), inputs, dy, backward_inside=backward_inside)


@every
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32], ids=str)
def test_bfloat16(operation: Operation, parameters: torch.dtype) -> None:
    """In bfloat16 throughout, and as under autocast with float32 parameters; four draws."""
    if parameters == torch.float32 and not operation.parameters:
        pytest.skip("there are no parameters")
    draws = [operation.draw(torch.bfloat16, parameters, seed) for seed in range(4)]
    dtype = torch.bfloat16 if operation.gradient().dim() else torch.float32
    fused, plain = operation.by("triton"), operation.by("torch")
    gradients = [operation.gradient(dtype, seed) for seed in range(4)]
    assert_at_most_twice_plain(fused, plain, draws, operation.names, gradients, products=torch.bfloat16)


@every
def test_gradients_of_gradients_are_refused(operation: Operation) -> None:
    assert_once_differentiable(operation.by("triton"), operation.draw())


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_equal(operation: Operation, dtype: torch.dtype) -> None:
    if DEVICE != "cpu" and operation is OPERATIONS["outer_block of 80 tokens"]:
        pytest.skip("PyTorch's own attention may sum in any order")
    assert_repeats(operation.by("triton"), operation.draw(dtype), operation.gradient())


@every
def test_only_the_first_input_needs_a_gradient(operation: Operation) -> None:
    x, *others = operation.draw()
    x.requires_grad_()
    dy = operation.gradient()
    found, expected = (
        torch.autograd.grad(operation.by(backend)(x, *others), x, dy)[0] for backend in ("triton", "torch")
    )
    assert_close(found, expected, 1e-5)


@every
@CPU_ONLY
def test_auto_on_the_cpu_is_the_reference(operation: Operation) -> None:
    inputs = operation.draw()
    assert torch.equal(operation.by("auto")(*inputs), operation.by("torch")(*inputs))


@every
def test_backends_say_why_they_cannot_run(operation: Operation) -> None:
    inputs = operation.draw()
    with pytest.raises(BackendUnavailable, match="no native kernel"):
        operation.by("native")(*inputs)
    with pytest.raises(ValueError, match=r"unknown backend 'cuda'; choose from auto, "):
        operation.by("cuda")(*inputs)
    with pytest.raises(BackendUnavailable, match="float64 is none of float32, float16, bfloat16"):
        operation.by("triton")(*operation.draw(torch.float64))
    if operation.parameters:
        with pytest.raises(BackendUnavailable, match="float64 is none of"):
            operation.by("triton")(*operation.draw(parameters=torch.float64))
        tokens, parameters = inputs[: len(operation.tokens)], inputs[len(operation.tokens) :]
        with pytest.raises(BackendUnavailable, match="different devices"):
            operation.by("triton")(*tokens, *(p.to("meta") for p in parameters))


@blocks
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_weights_that_do_not_fit(operation: Operation, backend: str) -> None:
    for i, (name, shape) in enumerate(operation.parameters.items(), start=len(operation.tokens)):
        inputs = operation.draw()
        inputs[i] = torch.zeros(*shape[:-1], shape[-1] + 1, device=DEVICE)
        short = name.replace("norm1", "norm").replace("norm2", "norm")
        with pytest.raises(ValueError, match=rf"{short} must have shape \[[\d, ]+\], not \[[\d, ]+\]"):
            operation.by(backend)(*inputs)
