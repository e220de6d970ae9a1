"""Times of short GPU operations: rotated inputs, medians with their spread, with and without launch overhead."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

WARM_UPS, REPETITIONS = 5, 50

Times = dict[str, Any]


def microseconds(function: Callable[[Any], Any], sets: Sequence[Any], device: torch.device) -> dict[str, Times]:
    """Microseconds of one `function(inputs)`, with `inputs` going through all `sets` so that no cache holds them.

    Returns:
        "launched": as Python launches it. "graph": as a CUDA graph of all sets replays it, without launch overhead, or
        the reason why there is none. Each has median, p10, p90 and repetitions.
    """
    if device.type != "cuda":
        return {"launched": _on_cpu(function, sets), "graph": {"error": "no GPU"}}

    def everything() -> None:
        for inputs in sets:
            function(inputs)

    launched = _on_gpu(everything, len(sets))
    try:
        graph = _on_gpu(_captured(everything).replay, len(sets))
    except Exception as error:
        graph = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    return {"launched": launched, "graph": graph}


def _on_cpu(function: Callable[[Any], Any], sets: Sequence[Any]) -> Times:
    elapsed = []
    for inputs in sets:
        start = time.perf_counter()
        function(inputs)
        elapsed.append((time.perf_counter() - start) * 1e6)
    return _summary(elapsed)


def _on_gpu(everything: Callable[[], None], count: int) -> Times:
    for _ in range(WARM_UPS):
        everything()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(REPETITIONS)]
    for start, end in events:
        start.record()
        everything()
        end.record()
    torch.cuda.synchronize()
    return _summary([start.elapsed_time(end) * 1e3 / count for start, end in events])


def _captured(everything: Callable[[], None]) -> torch.cuda.CUDAGraph:
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
