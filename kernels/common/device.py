"""What an operation may ask about the device and the dtypes it runs on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What Triton kernels read and write."""

INTERPRETED_PROGRAMS = 2
"""Programs of a persistent grid in the interpreter: enough for its loop and for the sum over programs."""


def interpreting() -> bool:
    """Whether Triton runs kernels in its CPU interpreter (TRITON_INTERPRET=1 before the first import of triton)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def architecture(tensor: Tensor) -> int:
    """Compute capability of the tensor's device, such as 90; 0 where it is no CUDA device."""
    major, minor = torch.cuda.get_device_capability(tensor.device) if tensor.is_cuda else (0, 0)
    return 10 * major + minor


def programs(tensor: Tensor, work: int, per_multiprocessor: int = 1) -> int:
    """Size of a grid whose programs share `work` tiles: what the device runs at a time, and no program without work."""
    if not tensor.is_cuda:
        return max(1, min(work, INTERPRETED_PROGRAMS))
    multiprocessors = torch.cuda.get_device_properties(tensor.device).multi_processor_count
    return max(1, min(work, multiprocessors * per_multiprocessor))


def shared_memory(tensor: Tensor) -> int:
    """Bytes of shared memory that one program may use on the tensor's CUDA device."""
    p: Any = torch.cuda.get_device_properties(tensor.device)
    return int(p.shared_memory_per_block_optin)


def resident(registers: int, shared: int, warps: int, device: torch.device) -> int:
    """How many programs a multiprocessor holds: registers a thread, bytes of shared memory and warps of each."""
    p: Any = torch.cuda.get_device_properties(device)
    by_registers = p.regs_per_multiprocessor // (-(-registers // 8) * 8 * 32 * warps)
    by_shared = p.shared_memory_per_multiprocessor // (shared + 1024)  # the system keeps 1 KB of every program's
    return max(1, min(by_registers, by_shared, p.max_threads_per_multi_processor // (32 * warps)))


_resident: dict[tuple[Any, ...], int] = {}


def compiled_resident(kernel: Any, x: Tensor, arguments: Sequence[Any], named: Mapping[str, Any]) -> int:
    """`resident` of a Triton kernel as this Triton compiles it for these arguments; 1 where x is no CUDA tensor.

    A dtype among the arguments stands for a tensor yet to be made. x.dtype and `named` (constants, launch options) tell
    apart all that compiles differently.
    """
    if not x.is_cuda:
        return 1
    key = (id(kernel), x.device, x.dtype, *named.items())
    if key not in _resident:
        compiled = kernel.warmup(*arguments, grid=(1,), **named)
        compiled.run  # noqa: B018 (loads the kernel, which tells its registers)
        _resident[key] = resident(compiled.n_regs, compiled.metadata.shared, compiled.metadata.num_warps, x.device)
    return _resident[key]


def positive(eps: float) -> float:
    """eps, at least the smallest normal float32: rows that pad a tile have no variance, and 0 / 0 would spread."""
    return max(eps, 2.0**-126)


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for on this kind of device; None where it is off, as always on the meta device."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
