"""Timing of training steps: a compiler that starts afresh, warm-up, peak memory, interleaved rounds, their spread."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from bench.options import Setting
from bench.record import described, statistic
from bench.timing import laps, peak_growth, require_answer
from bench.training.contenders import TOY, Contender, Sizes, Step
from titn.errors import UserError

ROUND_SECONDS = 0.2
"""A round of a contender on a GPU lasts about this long, so that waiting for the last step does not count."""
MOST_STEPS = 100
EARLY_ROUNDS = 3
"""Where time is limited all that is ready is timed for so many rounds whenever a contender joins."""


@dataclass(frozen=True)
class Timed:
    """Seconds of a step, one per round, and peak memory in bytes."""

    seconds: list[float]
    peak_bytes: int | None


class Steps(Protocol):
    """Calling it takes one step; `release` frees what is of no use after it."""

    def __call__(self) -> None: ...

    def release(self) -> None: ...


S = TypeVar("S", bound=Steps)


@dataclass(frozen=True)
class Ready(Generic[S]):
    """A step that is compiled and warm, its peak memory in bytes and the steps of one of its rounds."""

    step: S
    peak_bytes: int | None
    count: int


@dataclass(frozen=True)
class Race:
    """How a race stands: what was timed, by contender, or why it was not; and the steps that are warm."""

    outcomes: dict[str, Timed | str]
    ready: dict[str, Ready[Step]]
    over: bool


def race(
    at: Setting, contenders: Sequence[Contender], batch_size: int, rounds: int, sizes: Sizes | None = None
) -> Iterator[Race]:
    """Prepare the contenders one after the other and time them in interleaved rounds A B A B.

    Yields the standing once at the end, all steps still warm; where time is limited also whenever a contender has
    joined, after EARLY_ROUNDS rounds of all that are ready, so that whoever saves it loses little if the process is
    killed. A contender that takes long to compile takes no time from the next ones but its own: each is begun as long
    as there is any time left.
    """
    sizes = sizes or (TOY if at.small else Sizes())
    ready: dict[str, Ready[Step]] = {}
    reasons: dict[str, str] = {}
    with fresh_compiler(at.device):
        for one in contenders:
            outcome = at.budget.refusal() or prepare(one, at.device, batch_size, sizes, small=at.small)
            if isinstance(outcome, Ready):
                ready[one.name] = outcome
            else:
                reasons[one.name] = outcome
                require_answer(at.device)
            at.say(f"batch {batch_size}: {one.name}: {reasons.get(one.name, 'ready')}")
            if at.budget.seconds is not None and isinstance(outcome, Ready):
                yield _timed(ready, reasons, EARLY_ROUNDS, at.device, over=False)
        yield _timed(ready, reasons, rounds, at.device, over=True)
        ready.clear()
        free(at.device)


def _timed(
    ready: dict[str, Ready[Step]], reasons: dict[str, str], rounds: int, device: torch.device, *, over: bool
) -> Race:
    seconds, failed = take_turns(ready, rounds, device)
    for name in failed:
        del ready[name]
    reasons |= failed
    return Race({name: Timed(seconds[name], one.peak_bytes) for name, one in ready.items()} | reasons, ready, over)


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
    if device.type == "cuda":
        from torch._inductor.cudagraph_trees import reset_cudagraph_trees

        reset_cudagraph_trees()
    free(device)


def free(device: torch.device) -> None:
    """Give back the memory of what was deleted."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def prepare(
    contender: Contender, device: torch.device, batch_size: int, sizes: Sizes, *, small: bool = False
) -> Ready[Step] | str:
    """Build, compile and warm up a contender; or the reason why it cannot run.

    The peak counts parameters, optimiser, batch and activations. On a GPU it is `torch.cuda.max_memory_allocated`, less
    what lay there before the contender was built, over the second and third step: a CUDA graph of torch.compile is
    captured in these, and replays do not show what it holds. A step that is one graph is captured in its first call,
    so that counts. On a CPU it is what lies there between two steps, and what one step allocates on top.
    """
    if contender.reasons:
        return "; ".join(contender.reasons)
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated(device) if cuda else 0
    try:
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        step = Step(contender, device, batch_size, sizes, small=small)
        laps(step, device)
        if cuda and contender.form != "captured":
            torch.cuda.reset_peak_memory_stats(device)
        laps(step, device, 1 if small else 2)
        if cuda:
            peak = torch.cuda.max_memory_allocated(device) - before
        else:
            step.release()
            peak = step.held_bytes() + peak_growth(step, device)
        count = 1
        if cuda and not small:
            count = max(1, min(MOST_STEPS, math.ceil(ROUND_SECONDS / max(min(laps(step, device, 3)), 1e-9))))
        step.release()
    except UserError as error:
        return str(error)
    except Exception as error:
        reason = described(error)
    else:
        return Ready(step, peak, count)
    free(device)
    return reason


def take_turns(
    ready: Mapping[str, Ready[S]], rounds: int, device: torch.device
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
                seconds[name].append(one_round(one, device))
                one.step.release()
            except Exception as error:
                failed[name] = described(error)
    return {name: values for name, values in seconds.items() if name not in failed}, failed


def one_round(one: Ready[S], device: torch.device) -> float:
    """Seconds per step of `count` steps in a row."""

    def steps() -> None:
        for _ in range(one.count):
            one.step()

    return laps(steps, device)[0] / one.count


def images_per_second(batch_size: int, seconds: Sequence[float]) -> dict[str, Any]:
    """Images per second of each round, as `statistic`."""
    return statistic([batch_size / value for value in seconds])


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """How many times as fast ours is, round by round, as `statistic`."""
    return statistic([slow / fast for slow, fast in zip(theirs, ours, strict=True)])
