"""Whether an implementation is right: output and every gradient against float64, beside plain PyTorch's own error.

Right means: each error is at most twice that of plain PyTorch in the same dtype, or below 1e-5, and two runs are equal
bit by bit. 1e-5 is what float32 arithmetic leaves of a long sum; a 16-bit result never comes near it, but the loss is a
float32 number in every dtype, and plain PyTorch's own may be right to nine digits by luck. For the same reason the
gradients of vectors shorter than SHORT are judged together: the error of twelve numbers is a matter of luck, and right
arithmetic would fail a twofold rule on one of them every other time.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from bench.kernels.cases import MODES, Case, Inputs
from bench.kernels.cases import size as bytes_of
from bench.options import Setting
from bench.record import described
from bench.timing import DTYPES, require_answer
from titn.kernels.common.backend import BackendUnavailable, installed
from titn.training.switches import native_bfloat16

SEED = 2024
FLOAT32_LIMIT = 1e-5
SHORT = 1024
"""Vectors of fewer numbers share one error."""
ROTATED_BYTES = {"cuda": 2**28, "cpu": 2**26}  # several times the last cache
MOST_COPIES = 16

Set = tuple[Inputs, Tensor]
Row = dict[str, Any]


class Problem:
    """A case in one dtype on one device: inputs, the output's gradient, the truth, and plain PyTorch's errors.

    Attributes:
        case, dtype, device: dtype is a key of DTYPES.
        traffic: bytes that no implementation can avoid, by mode.
        plain: plain PyTorch's errors, as `errors` gives them.
    """

    def __init__(self, case: Case, dtype: str, device: torch.device, seed: int = SEED) -> None:
        self.case, self.dtype, self.device = case, dtype, device
        generator = torch.Generator().manual_seed(seed)
        self._drawn = case.draw(DTYPES[dtype], generator)
        plain = case.by("torch")
        inputs = self.inputs()
        with precision(device, dtype):
            output = plain(inputs)
        self.traffic = {mode: case.traffic(inputs, output, mode) for mode in MODES}
        self._gradient = torch.randn(output.shape, generator=generator).to(device, output.dtype)
        self._truth = self._run(plain, torch.float64, MODES[1])
        self.plain = self.errors(self.run(plain))

    @functools.cached_property
    def sets(self) -> list[Set]:
        """Copies of inputs and gradient to go round, as many as outgrow the caches, from 2 to MOST_COPIES.

        Small inputs stay in the cache whatever their number, as they do in a training step.
        """
        total = sum(bytes_of(t) for t in self._drawn) + bytes_of(self._gradient)
        copies = max(2, min(MOST_COPIES, ROTATED_BYTES[self.device.type] // total))
        return [(self.inputs(), self._gradient.clone()) for _ in range(copies)]

    def inputs(self, dtype: torch.dtype | None = None) -> Inputs:
        """A fresh copy of the inputs on the device, in `dtype` (None: as drawn)."""
        copies: Inputs = []
        for position, tensor in enumerate(self._drawn):
            if tensor is None or not tensor.is_floating_point():
                copies.append(None if tensor is None else tensor.to(self.device))
            else:
                copy = tensor.to(self.device, dtype or tensor.dtype, copy=True)
                copies.append(copy.requires_grad_(self.case.differentiable(position, tensor)))
        return copies

    def call(self, function: Callable[[Inputs], Tensor], mode: str) -> Callable[[Set], Any]:
        """The thing to be timed: of a set to the output ("forward"), or to all gradients.

        Gradients are enabled in both, as in training.
        """

        def forward(given: Set) -> Tensor:
            with precision(self.device, self.dtype):
                return function(given[0])

        if mode == "forward":
            return forward
        return lambda given: gradients(forward(given), *given)

    def run(self, function: Callable[[Inputs], Tensor], mode: str = MODES[1]) -> list[Tensor]:
        """The output, and in mode "forward_backward" all gradients, of one call on fresh inputs."""
        with precision(self.device, self.dtype):
            return self._run(function, None, mode)

    def errors(self, results: Sequence[Tensor]) -> list[float | None]:
        """Relative errors against float64 of what `run` gave; None where one is not finite.

        Of the output, then of each gradient in the order of the inputs but for short vectors, whose root mean square
        comes last.
        """
        each = [(relative_error(a, t), t) for a, t in zip(results, self._truth, strict=False)]
        short = [error for error, t in each[1:] if t.ndim == 1 and t.numel() < SHORT]
        long = [error for i, (error, t) in enumerate(each) if i == 0 or t.ndim != 1 or t.numel() >= SHORT]
        return [*long, root_mean_square(short)] if short else long

    def _run(self, function: Callable[[Inputs], Tensor], dtype: torch.dtype | None, mode: str) -> list[Tensor]:
        inputs = self.inputs(dtype)
        output = function(inputs)
        if hasattr(self, "_truth") and output.shape != self._gradient.shape:
            raise ValueError(f"the output is {list(output.shape)}, not {list(self._gradient.shape)}")
        backward = [] if mode == MODES[0] else gradients(output, inputs, self._gradient)
        return [output.detach(), *backward]


@functools.lru_cache(maxsize=1)
def problem(case: Case, dtype: str, device: torch.device) -> Problem:
    """The problem, kept until another one is asked for."""
    return Problem(case, dtype, device)


def precision(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
    """Autocast to a 16-bit dtype; nothing for float32."""
    return nullcontext() if dtype == "fp32" else torch.autocast(device.type, DTYPES[dtype])


def gradients(output: Tensor, inputs: Inputs, gradient: Tensor) -> Sequence[Tensor]:
    """Gradients of all inputs that require one."""
    taking = [t for t in inputs if t is not None and t.requires_grad]
    return torch.autograd.grad(output, taking, gradient.to(output.dtype))


def relative_error(actual: Tensor, truth: Tensor) -> float | None:
    """||actual - truth|| / ||truth||, absolute where the truth is 0; None where it is not finite."""
    norm = truth.double().norm().item()
    error = (actual.double() - truth.double()).norm().item() / (norm or 1.0)
    return error if error < float("inf") else None


def root_mean_square(errors: Sequence[float | None]) -> float | None:
    """None where one of them is."""
    known = [error for error in errors if error is not None]
    return (sum(error**2 for error in known) / len(known)) ** 0.5 if len(known) == len(errors) else None


def within(errors: Sequence[float | None], plain: Sequence[float | None], factor: float = 2.0) -> list[bool]:
    """Whether each error is at most `factor` times plain PyTorch's, or below 1e-5; not where one is not finite."""
    pairs = zip(errors, plain, strict=True)
    return [a is not None and b is not None and a <= max(factor * b, FLOAT32_LIMIT) for a, b in pairs]


def largest(errors: Sequence[float | None]) -> float | None:
    """The largest error, None where one is not finite."""
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None


def in_words(errors: Sequence[float | None]) -> str:
    """ "1.2e-03, not finite"."""
    return ", ".join("not finite" if error is None else f"{error:.1e}" for error in errors)


@contextmanager
def warnings_kept() -> Iterator[list[warnings.WarningMessage]]:
    """Within, warnings are kept in a list, one for each place, instead of printed."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("default")
        yield notes


def check(case: Case, dtype: str, device: torch.device, backend: str = "triton") -> Row:
    """The verdict on one backend of ours: errors, plain PyTorch's, which are within the rule, equality of two runs.

    {"skipped": why} where the backend cannot run here, {"error": ...} where it fails.
    """
    row: Row = {"operation": case.operation, "case": case.name, "dtype": dtype}
    if backend == "triton" and not installed("triton"):
        return row | {"skipped": "the package triton is not installed"}
    try:
        given = problem(case, dtype, device)
        first, second = (given.run(case.by(backend)) for _ in range(2))
    except BackendUnavailable as error:
        return row | {"skipped": str(error)}
    except Exception as error:
        return row | {"error": described(error)}
    errors = given.errors(first)
    verdicts = within(errors, given.plain)
    equal = all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    row |= {"ok": all(verdicts) and equal, "errors": errors, "plain_errors": given.plain}
    return row | {"within": verdicts, "runs_equal": equal}


def dtypes(device: torch.device, *, small: bool) -> tuple[str, ...]:
    """Those worth measuring: all on a GPU and in the interpreter; on a CPU float32, and bfloat16 where it has it."""
    if small or device.type == "cuda":
        return tuple(DTYPES)
    return ("bf16", "fp32") if native_bfloat16(device) else ("fp32",)


def measure(at: Setting, chosen: Sequence[Case], names: Sequence[str]) -> list[Row]:
    """The section "correctness": our Triton kernels in every case, one dtype after the other."""
    rows: list[Row] = []
    for dtype in names:
        for case in chosen:
            late = at.budget.refusal()
            head = {"operation": case.operation, "case": case.name, "dtype": dtype}
            rows.append(head | {"skipped": late} if late else check(case, dtype, at.device))
            at.say(sentence(rows[-1]))
            at.save("correctness", rows)
            require_answer(at.device)
    return rows


def sentence(row: Row) -> str:
    """One verdict as a line: "inner_block 9 x 16 x 12, 4 heads fp32: right (error 1.2e-07, plain 1.4e-07)"."""
    head = f"{row['operation']} {row['case']} {row['dtype']}:"
    if "ok" not in row:
        return f"{head} {'skipped, ' + row['skipped'] if 'skipped' in row else 'FAILED, ' + row['error']}"
    mine, plain = (in_words([largest(row[name])]) for name in ("errors", "plain_errors"))
    repeat = "" if row["runs_equal"] else ", two runs differ"
    return f"{head} {'right' if row['ok'] else 'WRONG'} (error {mine}, plain PyTorch {plain}{repeat})"
