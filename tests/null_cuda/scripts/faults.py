"""Does what a GPU would refuse or nobody can want, each in a process of its own.

Answers {name: {"faults": those seen, "exit": the process's code}}.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import counters
import torch
import triton
import triton.language as tl
from torch import Tensor

FIRST, SECOND = torch.device("cuda:0"), torch.device("cuda:1")
LIBRARY = ctypes.CDLL(None)  # the device, which is preloaded


@triton.jit
def fill_kernel(pointer, length, block: tl.constexpr):
    columns = tl.arange(0, block)
    tl.store(pointer + columns, columns, mask=columns < length)


def fill(tensor: Tensor, grid: tuple[int, ...] = (1,)) -> None:
    fill_kernel[grid](tensor, tensor.numel(), block=64)


def captured(body: Callable[[], object]) -> torch.cuda.CUDAGraph:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def fork_without_join() -> None:
    side = torch.cuda.Stream()

    def body() -> None:
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            x.add_(1)

    captured(body)


def work_on_a_stream_apart() -> None:
    side = torch.cuda.Stream()

    def body() -> None:
        x.add_(1)
        with torch.cuda.stream(side):
            x.add_(1)

    captured(body)


def wait_for_an_event_from_before() -> None:
    event = torch.cuda.Event()
    event.record()

    def body() -> None:
        x.add_(1)
        torch.cuda.current_stream().wait_event(event)

    captured(body)


def product_on_a_stream_of_another_device() -> None:
    handle = ctypes.c_void_p()
    LIBRARY.cublasCreate_v2(ctypes.byref(handle))
    LIBRARY.cublasSetStream_v2(handle, ctypes.c_void_p(torch.cuda.Stream(SECOND).cuda_stream))
    LIBRARY.cublasSgemm_v2(handle)


def allocation() -> None:
    pointer = ctypes.c_void_p()
    captured(lambda: LIBRARY.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(512)))


def copy_of_pageable_memory() -> None:
    """The copy that PyTorch itself refuses to make."""
    to, source, host_to_device = ctypes.c_void_p(x.data_ptr()), ctypes.create_string_buffer(256), 1

    def body() -> None:
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        LIBRARY.cudaMemcpyAsync(to, source, ctypes.c_size_t(256), host_to_device, stream)

    captured(body)


FAULTS: dict[str, Callable[[], object]] = {
    "allocation in a capture": allocation,
    "copy of pageable memory in a capture": copy_of_pageable_memory,
    "empty graph": lambda: captured(lambda: None).replay(),
    "event from before the capture": wait_for_an_event_from_before,
    "first launch of a Triton kernel in a capture": lambda: captured(lambda: fill(x)),
    "fork without join": fork_without_join,
    "grid too large": lambda: fill(x, (1, 65536)),
    "host access to device memory": lambda: ctypes.string_at(x.data_ptr(), 1),
    "host pointer to a Triton kernel": lambda: fill(torch.zeros(64)),
    "reading a value in a capture": lambda: captured(lambda: x[0].item()),
    "stream of another device": product_on_a_stream_of_another_device,
    "synchronisation in a capture": lambda: captured(torch.cuda.synchronize),
    "Triton kernel on another device than its data": lambda: fill(torch.zeros(64, device=SECOND)),
    "work on a stream apart from the capture": work_on_a_stream_apart,
}


def attempt(name: str, answers: Connection) -> None:
    """Send the faults that are seen when FAULTS[name] is done."""
    global x
    x = torch.zeros(64, device=FIRST)
    counters.reset()
    with contextlib.suppress(Exception):  # what the product would see; which it is depends on PyTorch and Triton
        FAULTS[name]()
    answers.send(counters.read()["faults"])


def seen(name: str) -> dict[str, Any]:
    receiver, sender = fork.Pipe(duplex=False)
    process = fork.Process(target=attempt, args=(name, sender))
    process.start()
    sender.close()
    faults = None
    with contextlib.suppress(EOFError):  # it died before it could send
        faults = receiver.recv()
    process.join()
    return {"faults": faults, "exit": process.exitcode}


if __name__ == "__main__":
    fork = multiprocessing.get_context("fork")  # CUDA is first used in the children
    counters.answer({name: seen(name) for name in FAULTS})
