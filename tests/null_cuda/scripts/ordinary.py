"""Ordinary work, counted; answers {name: report}."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from threading import Thread
from typing import Any

import counters
import torch

from titn.training.captured import capture

CUDA = torch.device("cuda")


def work() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Names and what to count of each."""
    x, weight = torch.zeros(64, 64, device=CUDA), torch.zeros(64, 64, device=CUDA)
    pinned, side = torch.ones(64, 64).pin_memory(), torch.cuda.Stream()
    graph, copied = torch.cuda.CUDAGraph(), torch.cuda.Event()

    def fork_and_join() -> None:
        with torch.cuda.graph(graph):
            x.add_(1)
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                weight.add_(1)
            torch.cuda.current_stream().wait_stream(side)
            x.add_(weight)

    def beside_a_thread() -> None:
        def body() -> None:
            thread = Thread(target=copied.synchronize)
            thread.start()
            x.add_(1)
            thread.join()

        copied.record()
        capture(body, torch.device("cuda", 0))

    yield "add", lambda: x.add_(1)
    yield "product", lambda: torch.mm(x, weight)
    yield "upload from pinned memory", lambda: x.copy_(pinned, non_blocking=True)
    yield "upload from pageable memory", lambda: x.copy_(torch.ones(64, 64))
    yield "download", lambda: x.cpu()
    yield "value", lambda: x[0, 0].item()
    yield "capture", fork_and_join
    yield "replay", graph.replay
    yield "capture beside a thread that waits", beside_a_thread
    yield "second device", lambda: torch.zeros(64, device="cuda:1").add_(1)


if __name__ == "__main__":
    reports = {}
    for name, body in work():
        counters.reset()
        result = body()
        reports[name] = counters.read()
        if name == "download":
            reports[name]["zeros"] = not result.any().item()
    counters.answer(reports)
