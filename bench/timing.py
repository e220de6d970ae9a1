"""The one timer: seconds of calls on a device, as launched and replayed from a CUDA graph; memory that a call needs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from bench.record import described
from titn.training.captured import capture, warm_up

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
TRIALS, REPETITIONS = 3, 30
GPU_SECONDS, FEWEST = 0.2, 5  # fewer repetitions where they would take longer, but not fewer than these
CPU_SECONDS, CPU_REPETITIONS = 0.5, 5  # stop after so long, but not before so many calls

Times = dict[str, Any]


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Within, `device` is the current GPU, so that streams, events and graphs are its own."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def require_answer(device: torch.device) -> None:
    """Raise RuntimeError where a fault (an illegal address, say) has left the device of no use to this process."""
    if device.type == "cuda":
        try:
            torch.ones(1, device=device).add_(1).item()
        except RuntimeError as error:
            raise RuntimeError(f"{device} answers nothing any more in this process: {described(error)}") from None


def laps(call: Callable[[], Any], device: torch.device, count: int = 1) -> list[float]:
    """Seconds of each of `count` calls in a row; on a GPU between events, which count the waiting for launches."""
    if device.type != "cuda":
        elapsed = []
        for _ in range(count):
            began = time.perf_counter()
            call()
            elapsed.append(time.perf_counter() - began)
        return elapsed
    with on(device):
        torch.cuda.synchronize(device)
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
        for start, end in events:
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
        return [start.elapsed_time(end) / 1e3 for start, end in events]


def microseconds(
    function: Callable[[Any], Any], sets: Sequence[Any], device: torch.device, *, small: bool = False
) -> tuple[Times, Times]:
    """Microseconds of one `function(inputs)`, with `inputs` going through all `sets` so that no cache holds them.

    Returns:
        As Python launches it (on a GPU from events around all sets, on a CPU the wall time of single calls), and as a
        CUDA graph of all sets replays it, without launch overhead, or {"error": why there is none}. Each has median,
        p10, p90 and repetitions. `small`: one call.
    """
    if device.type != "cuda":
        return _on_cpu(function, sets, small), {"error": "no GPU"}

    def everything() -> None:
        for inputs in sets:
            function(inputs)

    launched = _on_gpu(everything, len(sets), device, small)
    try:
        graph = _on_gpu(captured(everything, device).replay, len(sets), device, small)
    except Exception as error:
        synchronize(device)
        graph = {"error": described(error)}
    return launched, graph


def _on_cpu(function: Callable[[Any], Any], sets: Sequence[Any], small: bool) -> Times:
    if small:
        return _summary(laps(lambda: function(sets[0]), torch.device("cpu")))
    function(sets[0])
    elapsed: list[float] = []
    while len(elapsed) < REPETITIONS and (len(elapsed) < CPU_REPETITIONS or sum(elapsed) < CPU_SECONDS):
        inputs = sets[len(elapsed) % len(sets)]
        elapsed += laps(lambda inputs=inputs: function(inputs), torch.device("cpu"))  # type: ignore[misc]
    return _summary(elapsed)


def _on_gpu(everything: Callable[[], Any], count: int, device: torch.device, small: bool) -> Times:
    for _ in range(0 if small else TRIALS):
        everything()
    (once,) = laps(everything, device)
    repetitions = 1 if small else max(FEWEST, min(REPETITIONS, int(GPU_SECONDS / max(once, 1e-9))))
    return _summary([seconds / count for seconds in laps(everything, device, repetitions)])


def captured(everything: Callable[[], Any], device: torch.device) -> torch.cuda.CUDAGraph:
    """`everything` as a CUDA graph on `device`, after the warm-up on a side stream that capture asks for.

    Raises:
        EmptyGraph: nothing was launched on the device while capturing.
    """
    warm_up(everything, device)
    return capture(everything, device)


def _summary(seconds: Sequence[float]) -> Times:
    times = torch.tensor(seconds, dtype=torch.float64) * 1e6
    points = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, median, high = (round(point, 3) for point in times.quantile(points).tolist())
    return {"median": median, "p10": low, "p90": high, "repetitions": len(seconds)}


def peak_growth(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that `call()` holds at once beyond what was allocated before it.

    A GPU's allocator counts them. A CPU's allocations are summed up as torch.profiler records them; what oneDNN and
    other libraries allocate for themselves is not among them.
    """
    if device.type == "cuda":
        synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        synchronize(device)
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
