"""Timing of training steps: a compiler that starts afresh, warm-up, peak memory, interleaved rounds, their spread."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.contenders import Contender, Sizes, Step
from bench.memory import peak_growth
from bench.record import described, statistic
from titn.errors import UserError

ROUND_SECONDS = 0.2
"""A round of a contender on a GPU lasts about this long, so that waiting for the last step does not count."""
MOST_STEPS = 100


@contextlib.contextmanager
def fresh_compiler(device: torch.device) -> Iterator[None]:
    """torch.compile as in a new process, so that no shape that was compiled before makes sizes symbolic.

    Several contenders share code, so it may be compiled more often than in a training; one that the compiler gives up
    on fails instead of running eagerly.
    """
    _forget(device)
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        yield
    _forget(device)


def _forget(device: torch.device) -> None:
    """Drop compiled code, captured graphs and cached memory."""
    torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()
        torch.cuda.empty_cache()


def seconds_of(step: Step, device: torch.device, count: int = 1) -> float:
    """Seconds of one step by a synchronised clock, averaged over `count` steps in a row."""
    synchronize(device)
    began = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return (time.perf_counter() - began) / count


def synchronize(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Budget:
    """Seconds that a section may take (None: any); an item that may take as long as the longest so far is refused."""

    def __init__(self, seconds: float | None) -> None:
        self.seconds = seconds
        self._began, self._longest = time.perf_counter(), 0.0

    def refusal(self) -> str | None:
        """Why no further item is begun; None: there is time for one."""
        if self.seconds is None or time.perf_counter() - self._began + self._longest <= self.seconds:
            return None
        return f"the time for this part, {self.seconds:.0f} s, was over"

    @contextlib.contextmanager
    def item(self) -> Iterator[None]:
        """Time an item."""
        began = time.perf_counter()
        yield
        self._longest = max(self._longest, time.perf_counter() - began)


@dataclass(frozen=True)
class Ready:
    """A step that is compiled and warm, its peak memory in bytes and the steps of one of its rounds."""

    step: Step
    peak_bytes: int
    count: int


def prepare(
    contender: Contender, device: torch.device, batch_size: int, sizes: Sizes, *, small: bool = False
) -> Ready | str:
    """Build, compile and warm up a contender; or the reason why it cannot run.

    The peak counts parameters, optimiser, batch and activations. On a GPU it is `torch.cuda.max_memory_allocated` over
    the second and third step, less what lay there before the contender was built; a CUDA graph is captured in these
    steps, and its replays would no longer show what it holds. On a CPU it is what lies there between two steps, and
    what one step allocates on top.
    """
    if contender.reasons:
        return "; ".join(contender.reasons)
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    try:
        step = Step(contender, device, batch_size, sizes, small=small)
        step()
        synchronize(device)
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        warm = [seconds_of(step, device) for _ in range(1 if small else 2)]
        if cuda:
            peak = torch.cuda.max_memory_allocated(device) - before
        else:
            step.release()
            peak = step.held_bytes() + peak_growth(step, device)
        count = 1
        if cuda and not small:
            warm = [seconds_of(step, device) for _ in range(3)]
            count = max(1, min(MOST_STEPS, math.ceil(ROUND_SECONDS / min(warm))))
        step.release()
    except UserError as error:
        return str(error)
    except Exception as error:
        reason = described(error)
    else:
        return Ready(step, peak, count)
    free(device)
    return reason


def free(device: torch.device) -> None:
    """Give back the memory of what was deleted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def take_turns(
    ready: Mapping[str, Ready], rounds: int, device: torch.device
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Seconds per step of each, interleaved A B A B, so that a drifting machine moves all alike.

    Returns:
        Seconds by name, one per round; and the reason by name of those that failed on the way.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ready}
    failed: dict[str, str] = {}
    for _ in range(rounds):
        for name, one in ready.items():
            if name in failed:
                continue
            try:
                seconds[name].append(seconds_of(one.step, device, one.count))
                one.step.release()
            except Exception as error:
                failed[name] = described(error)
    return {name: values for name, values in seconds.items() if name not in failed}, failed


def images_per_second(batch_size: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Images per second of each repeat, as `statistic`."""
    return statistic([batch_size / value for value in seconds])
