"""Memory that a call needs: the most it holds at once, on a GPU and on a CPU."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def peak_growth(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that `call()` holds at once beyond what was allocated before it.

    A GPU's allocator counts them. A CPU's allocations are summed up as torch.profiler records them; what oneDNN and
    other libraries allocate for themselves is not among them.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    quiet_profiler()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory behind the tensors, each once."""
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def quiet_profiler() -> None:
    """Keep torch.profiler from printing lines of its own, two a profile."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
