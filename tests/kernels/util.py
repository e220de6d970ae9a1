"""What the kernel tests share: error measure, float64 gradients, NaN-filled memory, gradients of unusual layout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# Largest relative error (see `relative_error`) against the float64 reference on the same, already rounded inputs.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3}


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """||actual - expected|| / ||expected|| over all elements, in float64; NaN where `actual` holds a NaN.

    Where `expected` is zero throughout, the absolute norm of `actual`.
    """
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    wide, truth = actual.detach().double().cpu(), expected.detach().double().cpu()
    norm = truth.norm().item()
    return (wide - truth).norm().item() / (norm if norm > 0 else 1.0)


def assert_close(actual: Tensor, expected: Tensor, limit: float, what: str = "tensor") -> None:
    """Fails unless the relative error is below `limit`; a NaN fails."""
    error = relative_error(actual, expected)
    assert error < limit, f"{what}: relative error {error:.2e}, allowed {limit:.1e}"


@contextmanager
def nan_filled_memory() -> Iterator[None]:
    """Within, `torch.empty` and its kin return NaN (the largest value for integers): an element never written shows."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def randn(*shape: int, seed: int, scale: float = 1.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal numbers on DEVICE, drawn on the CPU from a generator of their own: the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(DEVICE, dtype)


def output_and_gradients(
    function: Callable[..., Tensor], inputs: Sequence[Tensor | None], gradient: Tensor, dtype: torch.dtype | None = None
) -> tuple[Tensor, list[Tensor | None]]:
    """`function(*inputs)` and the gradient of every input for the incoming `gradient`, in `dtype` (None: as they are).

    With dtype=torch.float64 and a reference implementation this is the truth the kernels are held to. An input that is
    None, or not of floating point, is passed on and has the gradient None.
    """
    prepared: list[Tensor | None] = []
    for tensor in inputs:
        if tensor is None or not tensor.is_floating_point():
            prepared.append(tensor)
        else:
            prepared.append(tensor.detach().to(dtype or tensor.dtype).requires_grad_())
    output = function(*prepared)
    wanted = [tensor for tensor in prepared if tensor is not None and tensor.requires_grad]
    found = iter(torch.autograd.grad(output, wanted, gradient.to(output.dtype)))
    return output.detach(), [next(found) if t is not None and t.requires_grad else None for t in prepared]


def transposed_layout(tensor: Tensor) -> Tensor:
    """The same values with the strides of the first and last dimension exchanged: not contiguous (where size > 1)."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def expanded_gradient(shape: Sequence[int], dtype: torch.dtype, value: float = 0.5) -> Tensor:
    """One number seen as a tensor of `shape` with strides 0, as the gradient of `output.sum()` arrives."""
    return torch.tensor(value, dtype=dtype, device=DEVICE).expand(*shape)
