"""What an operation may ask about the device and the dtypes it runs on."""

from __future__ import annotations

import os

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


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for on this kind of device; None where it is off, as always on the meta device."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
