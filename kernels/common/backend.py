"""The choice of a backend: each one lists why it cannot run on the inputs at hand, and nothing falls back silently."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping

import torch

_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("triton", "xformers")}


class BackendUnavailable(RuntimeError):
    """The requested backend cannot run here; the message lists every reason."""


def choose(operation: str, requested: str, reasons: Mapping[str, Callable[[], list[str]]]) -> str:
    """Name of the backend that will run.

    `reasons` maps each backend, in order of preference, to a function that returns why it cannot run (empty: it can).
    `requested="auto"` takes the first backend without reasons; any other name is taken or refused.

    Raises:
        ValueError: the operation has no backend of that name.
        BackendUnavailable: the requested backend cannot run (or, for "auto", none can).
    """
    if requested == "auto":
        refused = []
        for name, why_not in reasons.items():
            why = why_not()
            if not why:
                return name
            refused.append(f"{name} ({'; '.join(why)})")
        raise BackendUnavailable(f"{operation}: no backend can run: {', '.join(refused)}")
    if requested not in reasons:
        raise ValueError(f"{operation}: unknown backend {requested!r}; choose from auto, {', '.join(reasons)}")
    why = reasons[requested]()
    if why:
        raise BackendUnavailable(f"{operation}: backend {requested!r} cannot run: {'; '.join(why)}")
    return requested


def installed(package: str) -> bool:
    """Whether an optional package ("triton" or "xformers") was there when this module was imported."""
    return _INSTALLED[package]


def interpreting() -> bool:
    """Whether Triton runs kernels in its CPU interpreter (TRITON_INTERPRET=1 before the first import of triton)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def triton_reasons(tensor: torch.Tensor, requested: str) -> list[str]:
    """Why Triton kernels cannot run on `tensor`; the interpreter counts only where "triton" is asked for by name."""
    if not installed("triton"):
        return ["the package triton is not installed"]
    if interpreting():
        if requested != "triton":
            return ["Triton's interpreter is for tests and runs only when asked for by name"]
        return ["the interpreter computes wrong bfloat16 results"] if tensor.dtype == torch.bfloat16 else []
    if not tensor.is_cuda:
        return [f"the tensor is on {tensor.device.type}, Triton kernels need a CUDA device"]
    if torch.version.hip is not None:
        return ["ROCm builds of PyTorch are untested"]
    if torch.cuda.get_device_capability(tensor.device) < (8, 0):
        return ["the device's compute capability is below 8.0"]
    return []


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype that autocast asks for on this kind of device; None where it is off, as always on the meta device."""
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None
