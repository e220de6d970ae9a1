"""The choice of a backend: each one lists why it cannot run on the inputs at hand, and nothing falls back silently."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from titn.kernels.common.device import FLOATS, interpreting

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


def triton_reasons(x: Tensor, requested: str, *others: Tensor | None, dtype: torch.dtype | None = None) -> list[str]:
    """Why Triton kernels cannot run on x and the other tensors with products in `dtype` (None: that of x).

    The interpreter counts only where "triton" is asked for by name.
    """
    if not installed("triton"):
        return ["the package triton is not installed"]
    present = [x, *(t for t in others if t is not None)]
    dtypes = [x.dtype if dtype is None else dtype, *(t.dtype for t in present)]
    if interpreting():
        if requested != "triton":
            return ["Triton's interpreter is for tests and runs only when asked for by name"]
    elif not x.is_cuda:
        return [f"the tensor is on {x.device.type}, Triton kernels need a CUDA device"]
    elif torch.version.hip is not None:
        return ["ROCm builds of PyTorch are untested"]
    elif torch.cuda.get_device_capability(x.device) < (8, 0):
        return ["the device's compute capability is below 8.0"]
    unknown = [kind for kind in dtypes if kind not in FLOATS]
    reasons = [f"{unknown[0]} is none of float32, float16, bfloat16"] if unknown else []
    if any(t.device != x.device for t in present):
        reasons.append("the tensors are on different devices")
    return reasons


def no_native_kernel() -> list[str]:
    """Why backend "native" cannot run."""
    return ["this version has no native kernel for it"]
