"""The operations at the sizes of TITN's training step, and the ways to compute each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from titn.kernels import distillation_loss, inner_block, pixels_to_patches, short_attention

Inputs = list[Tensor | None]
PARAMETERS = torch.float32  # as autocast leaves them


@dataclass(frozen=True)
class Case:
    """One operation at one size.

    Attributes:
        operation, name: "inner_block", "16384 x 16 x 12, 4 heads".
        draw: (dtype, generator) to fresh inputs on the CPU; activations in dtype, parameters float32.
        call: (inputs, backend) to the output.
        sdpa: whether backend "torch" or "sdpa" goes through scaled_dot_product_attention, whose kernels are baselines.
    """

    operation: str
    name: str
    draw: Callable[[torch.dtype, torch.Generator], Inputs]
    call: Callable[[Inputs, str], Tensor]
    sdpa: str | None = None


def cases(small: bool) -> Iterator[Case]:
    """All cases; `small` ones run in seconds in Triton's interpreter."""
    sequences, images, classes = (9, 2, 10) if small else (16_384, 1024, 100)

    def inner(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        c, f = 12, 48
        shapes = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,), (f, c), (f,), (c, f), (c,)]
        parameters = [_normal(shape, g, PARAMETERS, 0.3) for shape in shapes]
        for norm in (0, 6):
            parameters[norm] += 1.0
        return [_normal((sequences, 16, c), g, dtype), *parameters]

    def packed(*shape: int) -> Callable[[torch.dtype, torch.Generator], Inputs]:
        return lambda dtype, g: [_normal(shape, g, dtype)]

    def patches(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        shapes = [(12,), (12,), (192, 192), (192,)]
        parameters = [_normal(shape, g, PARAMETERS, 0.1) for shape in shapes]
        parameters[0] += 1.0
        return [_normal((images, 16, 16, 12), g, dtype), _normal((images, 18, 192), g, dtype), *parameters]

    def losses(dtype: torch.dtype, g: torch.Generator) -> Inputs:
        labels = [torch.randint(classes, (images,), generator=g) for _ in range(3)]
        logits = [_normal((images, classes), g, dtype, 2.0) for _ in range(2)]
        return [*logits, *labels[:2], torch.rand(images, generator=g), labels[2]]

    yield Case(
        "inner_block",
        f"{sequences} x 16 x 12, 4 heads",
        inner,
        lambda i, backend: _call(inner_block, i, num_heads=4, backend=backend),
        sdpa="torch",
    )
    for shape in ((sequences, 16, 3, 4, 3), (images, 18, 3, 8, 24)):
        yield Case(
            "short_attention",
            f"{shape[0]} x {shape[1]} x {shape[4]}, {shape[3]} heads",
            packed(*shape),
            lambda i, backend: _call(short_attention, i, backend=backend),
            sdpa="sdpa",
        )
    yield Case(
        "pixels_to_patches",
        f"{images} x 16 patches of 16 x 12 to 192",
        patches,
        lambda i, backend: _call(pixels_to_patches, i, backend=backend),
    )
    yield Case(
        "distillation_loss",
        f"{images} x {classes}, hard",
        losses,
        lambda i, backend: _call(distillation_loss, i, backend=backend),
    )


@dataclass(frozen=True)
class Candidate:
    """One way to compute a case: `function` of the inputs, within `context`."""

    name: str
    function: Callable[[Inputs], Tensor]
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def candidates(case: Case, small: bool) -> Iterator[Candidate]:
    """The Triton backend and its rivals; in small runs torch.compile captures and checks, but generates no code."""
    yield Candidate("triton", lambda inputs: case.call(inputs, "triton"))

    def eager(inputs: Inputs) -> Tensor:
        return case.call(inputs, "torch")

    yield Candidate("eager", eager)
    if small:
        yield Candidate("compile", torch.compile(eager, backend="aot_eager"))
    else:
        yield Candidate("compile", torch.compile(eager))
        yield Candidate("compile max-autotune", torch.compile(eager, mode="max-autotune-no-cudagraphs"))
    if case.sdpa is not None:
        backend = case.sdpa
        for kernel in ("MATH", "EFFICIENT_ATTENTION", "FLASH_ATTENTION", "CUDNN_ATTENTION"):
            forced = getattr(SDPBackend, kernel)
            yield Candidate(
                f"sdpa {kernel.split('_')[0].lower()}",
                lambda inputs: case.call(inputs, backend),
                lambda forced=forced: sdpa_kernel(forced),  # type: ignore[misc]
            )
    if case.operation == "short_attention":
        yield Candidate("xformers", lambda inputs: case.call(inputs, "xformers"))


@contextmanager
def precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast to a 16-bit dtype; nothing for float32 and float64."""
    with ExitStack() as stack:
        if dtype in (torch.bfloat16, torch.float16):
            stack.enter_context(torch.autocast(device.type, dtype))
        yield


def prepare(inputs: Inputs, device: torch.device, dtype: torch.dtype | None = None) -> Inputs:
    """Copies on `device`, in `dtype` (None: as they are); those of floating point require gradients, `lam` apart."""
    found: Inputs = []
    for tensor in inputs:
        if tensor is None or not tensor.is_floating_point():
            found.append(None if tensor is None else tensor.to(device))
        else:
            copy = tensor.detach().to(device, dtype or tensor.dtype, copy=True)
            found.append(copy.requires_grad_(not _is_lam(tensor, inputs)))
    return found


def gradients(output: Tensor, inputs: Inputs, gradient: Tensor) -> Sequence[Tensor]:
    """Gradients of all inputs that require one."""
    return torch.autograd.grad(output, [t for t in inputs if t is not None and t.requires_grad], gradient)


def _is_lam(tensor: Tensor, inputs: Inputs) -> bool:
    return len(inputs) == 6 and tensor is inputs[4] and inputs[5] is not None and not inputs[5].is_floating_point()


def _normal(shape: Sequence[int], g: torch.Generator, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    return (torch.randn(*shape, generator=g, dtype=torch.float32) * scale).to(dtype)


def _call(function: Callable[..., Tensor], inputs: Inputs, **keywords: Any) -> Tensor:
    return function(*inputs, **keywords)
