"""What holds for every operation: registration, compilation, export, autocast, bfloat16, refusals, repetition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from operations import NATIVE_OPERATIONS, OPERATIONS, Operation
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from util import (
    CPU_ONLY,
    DEVICE,
    HALF,
    NEEDS_NATIVE,
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
from titn.kernels.common import native

BLOCKS = [name for name in OPERATIONS if not name.startswith(("distillation", "short"))]


def by_backend(names: Iterable[str]) -> pytest.MarkDecorator:
    """The operations of these names, each by every backend that has it."""
    cases = [pytest.param(OPERATIONS[name], "triton", id=name) for name in names]
    cases += [
        pytest.param(OPERATIONS[name], "native", id=f"{name} native", marks=NEEDS_NATIVE)
        for name in names
        if name in NATIVE_OPERATIONS
    ]
    return pytest.mark.parametrize(("operation", "backend"), cases)


every = by_backend(OPERATIONS)
blocks = by_backend(BLOCKS)
NATIVE = [OPERATIONS[name] for name in NATIVE_OPERATIONS]
each = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
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
def test_operators_pass_opcheck(operation: Operation, backend: str, mixed: bool) -> None:
    """Each operator that forward and backward call, with the arguments it gets: schema, fakes, autograd, AOT.

    mixed: 16-bit tokens of float32 tensors, none of them contiguous.
    """
    inputs, dy = operation.draw(), operation.gradient()
    if mixed:
        inputs, dy = [transposed_layout(t) for t in inputs], transposed_layout(dy) if dy.dim() else dy
    with Recorded() as recorded, torch.autocast(DEVICE, HALF[backend], enabled=mixed):
        output_and_gradients(operation.by(backend), inputs, dy)
    assert recorded.calls
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    for operator, arguments in recorded.calls:
        detached = [a.detach() if isinstance(a, Tensor) else a for a in arguments]
        torch.library.opcheck(operator, tuple(detached), test_utils=tests)


@every
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_in_one_graph(operation: Operation, backend: str, dynamic: bool) -> None:
    """Shapes may be free; PyTorch 2.14 cannot pass one free float (eps) to two autograd functions."""
    with torch._dynamo.config.patch(specialize_float=True):
        assert_compiles(operation.by(backend), operation.draw(), operation.gradient(), dynamic=dynamic)


@every
def test_compiled_under_autocast(operation: Operation, backend: str) -> None:
    def step(*inputs: Tensor) -> Tensor:
        with torch.autocast(DEVICE, HALF[backend]):
            return operation.by(backend)(*inputs)

    assert_compiles(step, operation.draw(), operation.gradient())


@each
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
def test_autocast(operation: Operation, backend: str, backward_inside: bool) -> None:
    """Tokens in 16 bits, gradients in the tensors' float32."""
    inputs = operation.draw()
    with torch.no_grad(), torch.autocast(DEVICE, HALF[backend]):
        dtype = operation.by(backend)(*inputs).dtype
    dy = operation.gradient(dtype)
    fused, plain = operation.by(backend), operation.by("torch")
    assert_autocasts(fused, plain, inputs, dy, HALF[backend], backward_inside=backward_inside)


@every
@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32], ids=str)
def test_bfloat16(operation: Operation, backend: str, parameters: torch.dtype) -> None:
    """In bfloat16 throughout, and as under autocast with float32 parameters; four draws."""
    if parameters == torch.float32 and not operation.parameters:
        pytest.skip("there are no parameters")
    draws = [operation.draw(torch.bfloat16, parameters, seed) for seed in range(4)]
    dtype = torch.bfloat16 if operation.gradient().dim() else torch.float32
    fused, plain = operation.by(backend), operation.by("torch")
    gradients = [operation.gradient(dtype, seed) for seed in range(4)]
    assert_at_most_twice_plain(fused, plain, draws, operation.names, gradients, products=torch.bfloat16)


@every
def test_gradients_of_gradients_are_refused(operation: Operation, backend: str) -> None:
    assert_once_differentiable(operation.by(backend), operation.draw())


@every
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_are_equal(operation: Operation, backend: str, dtype: torch.dtype) -> None:
    if DEVICE != "cpu" and operation is OPERATIONS["outer_block of 80 tokens"]:
        pytest.skip("PyTorch's own attention may sum in any order")
    if backend == "native" and dtype not in native.STORAGE:
        pytest.skip("native operations store no float16")
    assert_repeats(operation.by(backend), operation.draw(dtype), operation.gradient())


@every
def test_only_the_first_input_needs_a_gradient(operation: Operation, backend: str) -> None:
    x, *others = operation.draw()
    x.requires_grad_()
    dy = operation.gradient()
    found, expected = (torch.autograd.grad(operation.by(each)(x, *others), x, dy)[0] for each in (backend, "torch"))
    assert_close(found, expected, 1e-5)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "outer_block of 80 tokens"])
@CPU_ONLY
def test_auto_on_the_cpu(name: str) -> None:
    """Native code where there is some, else the reference; half of it for more tokens (test_native_patches.py)."""
    operation = OPERATIONS[name]
    inputs = operation.draw()
    is_native = operation in NATIVE and native.ABSENT is None
    assert torch.equal(operation.by("auto")(*inputs), operation.by("native" if is_native else "torch")(*inputs))


@each
def test_backends_say_why_they_cannot_run(operation: Operation) -> None:
    inputs = operation.draw()
    if operation not in NATIVE:
        with pytest.raises(BackendUnavailable, match="no native kernel"):
            operation.by("native")(*inputs)
    with pytest.raises(ValueError, match=r"unknown backend 'metal'; choose from auto, "):
        operation.by("metal")(*inputs)
    with pytest.raises(BackendUnavailable, match="float64 is none of float32, float16, bfloat16"):
        operation.by("triton")(*operation.draw(torch.float64))
    if operation.parameters:
        with pytest.raises(BackendUnavailable, match="float64 is none of"):
            operation.by("triton")(*operation.draw(parameters=torch.float64))
        tokens, parameters = inputs[: len(operation.tokens)], inputs[len(operation.tokens) :]
        with pytest.raises(BackendUnavailable, match="different devices"):
            operation.by("triton")(*tokens, *(p.to("meta") for p in parameters))


@pytest.mark.parametrize("operation", [OPERATIONS[name] for name in BLOCKS], ids=BLOCKS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_weights_that_do_not_fit(operation: Operation, backend: str) -> None:
    for i, (name, shape) in enumerate(operation.parameters.items(), start=len(operation.tokens)):
        inputs = operation.draw()
        inputs[i] = torch.zeros(*shape[:-1], shape[-1] + 1, device=DEVICE)
        short = name.replace("norm1", "norm").replace("norm2", "norm").removeprefix("other_")
        with pytest.raises(ValueError, match=rf"{short} must have shape \[[\d, ]+\], not \[[\d, ]+\]"):
            operation.by(backend)(*inputs)
