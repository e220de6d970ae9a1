"""Times of short operations: rotated inputs, medians with their spread, with and without launch overhead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.record import described

WARM_UPS, REPETITIONS = 3, 30
GPU_SECONDS, FEWEST = 0.2, 5  # fewer repetitions where they would take longer, but not fewer than these
CPU_SECONDS, CPU_REPETITIONS = 0.5, 5  # stop after so long, but not before so many calls

Times = dict[str, Any]


def microseconds(
    function: Callable[[Any], Any], sets: Sequence[Any], device: torch.device, *, small: bool = False
) -> tuple[Times, Times]:
    """Microseconds of one `function(inputs)`, with `inputs` going through all `sets` so that no cache holds them.

    Returns:
        As Python launches it (on a GPU from events around all sets, on a CPU the wall time of single calls), and as a
        CUDA graph of all sets replays it, without launch overhead, or {"error": why there is none}. Each has median,
        p10, p90 and repetitions. `small`: one call on a CPU.
    """
    if device.type != "cuda":
        return _on_cpu(function, sets, small), {"error": "no GPU"}

    def everything() -> None:
        for inputs in sets:
            function(inputs)

    launched = _on_gpu(everything, len(sets))
    try:
        graph = _on_gpu(captured(everything).replay, len(sets))
    except Exception as error:
        torch.cuda.synchronize()
        graph = {"error": described(error)}
    return launched, graph


def _on_cpu(function: Callable[[Any], Any], sets: Sequence[Any], small: bool) -> Times:
    if small:
        sets = sets[:1]
    else:
        function(sets[0])
    elapsed: list[float] = []
    began = time.perf_counter()
    while True:
        for inputs in sets:
            start = time.perf_counter()
            function(inputs)
            elapsed.append((time.perf_counter() - start) * 1e6)
            enough = small or len(elapsed) >= REPETITIONS or time.perf_counter() - began > CPU_SECONDS
            if enough and len(elapsed) >= (1 if small else CPU_REPETITIONS):
                return _summary(elapsed)


def _on_gpu(everything: Callable[[], Any], count: int) -> Times:
    for _ in range(WARM_UPS):
        everything()
    torch.cuda.synchronize()
    began = time.perf_counter()
    everything()
    torch.cuda.synchronize()
    repetitions = max(FEWEST, min(REPETITIONS, int(GPU_SECONDS / (time.perf_counter() - began))))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    for start, end in events:
        start.record()
        everything()
        end.record()
    torch.cuda.synchronize()
    return _summary([start.elapsed_time(end) * 1e3 / count for start, end in events])


def captured(everything: Callable[[], None]) -> torch.cuda.CUDAGraph:
    """`everything` as a CUDA graph, after the warm-up on a side stream that capture asks for."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            everything()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        everything()
    return graph


def _summary(elapsed: Sequence[float]) -> Times:
    times = torch.tensor(elapsed, dtype=torch.float64)
    points = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    low, median, high = (round(point, 3) for point in times.quantile(points).tolist())
    return {"median": median, "p10": low, "p90": high, "repetitions": len(elapsed)}
