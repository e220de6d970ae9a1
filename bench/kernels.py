"""Every operation by every provider: right first, then timed against the floors that the device's ceilings set.

    python -m bench.kernels [--device D] [--seconds N] [--out DIR]
    python -m bench.kernels --dry-run [--out DIR]

A row is one operation, size, dtype, mode and provider: microseconds as launched and as a replayed CUDA graph, bytes and
operations that no implementation can avoid, the floors that follow, the share of the larger floor in the time, peak
memory and the error against float64; or the reason why it was not timed. `pytest bench` takes the same rows as tests.
--dry-run does the same at toy sizes on the CPU, in Triton's interpreter, where the times mean nothing.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import ceilings as ceilings_of
from bench import correctness as correctness_of
from bench.correctness import SEED, Problem, largest, problem, warnings_kept, within
from bench.kernel_cases import MODES, Case, cases
from bench.memory import peak_growth
from bench.providers import Provider, providers
from bench.record import RESULTS, Record, described
from bench.rivals import Function, Refused
from bench.timing import microseconds
from titn.errors import OneLineParser, UserError, command
from titn.kernels.common.backend import BackendUnavailable, installed, interpreting
from titn.training.switches import select_device

RIVAL_FACTOR = 10.0  # beyond this many times plain PyTorch's error a rival computes something else
DTYPE_ORDER = ("bf16", "fp16", "fp32")

Row = dict[str, Any]


class Trial:
    """One provider on one problem; `verdict` is that of `bench.correctness` on our own kernels, None for others."""

    def __init__(self, given: Problem, provider: Provider, verdict: Row | None, *, small: bool) -> None:
        self.given, self.provider, self.verdict, self.small = given, provider, verdict, small
        self._function: Function | None = None

    def head(self, mode: str) -> Row:
        """What identifies a row."""
        case = self.given.case
        names = {"operation": case.operation, "case": case.name, "dtype": self.given.dtype}
        return names | {"mode": mode, "provider": self.provider.name}

    def call(self, mode: str) -> Callable[[Any], Any]:
        """What is timed: of one of the problem's sets."""
        return self.given.call(self.function(), mode)

    def function(self) -> Function:
        """The provider's function, built at the first call."""
        if self._function is None:
            self._function = self.provider.build()
        return self._function

    def error(self, mode: str) -> float:
        """The largest error against float64 of what `mode` computes.

        Raises:
            Refused: the results are wrong, or nobody checked them.
        """
        plain = self.given.plain[:1] if mode == MODES[0] else self.given.plain
        if self.provider.name == "triton":
            self.function()  # which may refuse
            if self.verdict is None:
                raise Refused("not timed: its results were not checked")
            if not self.verdict.get("ok"):
                why = self.verdict.get("skipped") or self.verdict.get("error") or "its results are wrong"
                raise Refused(why if "skipped" in self.verdict else f"not timed: {why}")
            errors = self.verdict["errors"][: len(plain)]
        else:
            errors = self.given.errors(self.given.run(self.function(), mode))
        found = largest(errors)
        if found is None or not all(within(errors, plain, RIVAL_FACTOR)):
            listed = [", ".join("not finite" if e is None else f"{e:.1e}" for e in each) for each in (errors, plain)]
            raise Refused(f"not timed: its errors are {listed[0]}, plain PyTorch's {listed[1]}")
        return found

    def row(self, mode: str, ceilings: dict[str, Any] | None) -> Row:
        """The row of `mode`, or the reason why there is none."""
        row = self.head(mode)
        with warnings_kept() as notes, self.provider.context():
            try:
                return row | self._measured(mode, ceilings)
            except (Refused, BackendUnavailable) as error:
                return row | {"reason": str(error)}
            except Exception as error:
                return row | {"reason": described(error, notes)}

    def _measured(self, mode: str, ceilings: dict[str, Any] | None) -> Row:
        given, device = self.given, self.given.device
        error = self.error(mode)
        call = self.call(mode)
        peak = peak_growth(lambda: call(given.sets[0]), device)
        us, graph = microseconds(call, given.sets, device, small=self.small)
        flops, traffic = given.case.flops(mode), given.traffic[mode]
        floors = ceilings_of.floors(flops, traffic, given.dtype, ceilings)
        floor = max((value for value in floors.values() if value is not None), default=None)
        taken: float = graph["median"] if "median" in graph else us["median"]
        return {
            "us": us,
            "graph_us": graph,
            "bytes": traffic,
            "flops": flops,
            "floor_us": floors,
            "percent_of_floor": None if floor is None else float(f"{100 * floor / taken:.4g}"),
            "peak_bytes": peak,
            "error_fp64": error,
        }


def measure(
    device: torch.device,
    correctness: Sequence[Row],
    ceilings: dict[str, Any] | None,
    *,
    small: bool,
    seconds: float | None,
    console: Console,
) -> list[Row]:
    """Rows of all cases, dtypes and providers, in that order.

    Taken in the order of their worth, so that what does not fit into `seconds` (None: no limit) is the least of them:
    first everything in bfloat16 that needs no torch.compile, then torch.compile, then the other dtypes, then what tries
    out candidates. Toy sizes are timed in float16 alone, the one 16-bit dtype that the interpreter knows.
    """
    began = time.perf_counter()
    verdicts = {(row["operation"], row["case"], row["dtype"]): row for row in correctness}
    everything = work(device, small=small)
    order = sorted(range(len(everything)), key=lambda i: worth(everything[i]))
    rows: dict[int, list[Row]] = {}
    for index in track(order, "timing", console=console, transient=True):
        case, dtype, provider = everything[index]
        if seconds is not None and time.perf_counter() - began > seconds:
            head = {"operation": case.operation, "case": case.name, "dtype": dtype}
            late = {"provider": provider.name, "reason": f"not reached within {seconds:g} seconds"}
            rows[index] = [head | {"mode": mode} | late for mode in MODES]
        else:
            verdict = verdicts.get((case.operation, case.name, dtype))
            rows[index] = list(rows_of(case, dtype, provider, device, verdict, ceilings, small=small))
    found = [row for index in range(len(everything)) for row in rows[index]]
    show(console, found)
    return found


def work(device: torch.device, *, small: bool) -> list[tuple[Case, str, Provider]]:
    """Everything there is to time on a device: cases, dtypes, providers."""
    names = ("fp16",) if small else correctness_of.dtypes(device, small=small)
    return [
        (case, dtype, provider)
        for case in cases(device.type, small)
        for dtype in names
        for provider in providers(case, device, small=small)
    ]


def worth(what: tuple[Case, str, Provider]) -> tuple[int, int]:
    """The smaller, the earlier a provider is timed in a dtype; see `measure`."""
    _, dtype, provider = what
    rank = DTYPE_ORDER.index(dtype)
    other = rank > 0
    return ((0, 1, 3)[provider.cost] if not other else (2, 4, 5)[provider.cost]), rank


def rows_of(
    case: Case,
    dtype: str,
    provider: Provider,
    device: torch.device,
    verdict: Row | None,
    ceilings: dict[str, Any] | None,
    *,
    small: bool,
) -> Iterator[Row]:
    """A row for each mode."""
    try:
        trial = Trial(problem(case, dtype, device), provider, verdict, small=small)
    except Exception as error:
        head = {"operation": case.operation, "case": case.name, "dtype": dtype, "provider": provider.name}
        yield from (head | {"mode": mode, "reason": described(error)} for mode in MODES)
        return
    yield from (trial.row(mode, ceilings) for mode in MODES)


def show(console: Console, rows: Sequence[Row]) -> None:
    """A table for each case and dtype, its reasons below it; and a warning where the ceilings cannot be right."""
    groups: dict[tuple[str, ...], dict[str, dict[str, Row]]] = {}
    for row in rows:
        key = row["operation"], row["case"], row["dtype"]
        groups.setdefault(key, {}).setdefault(row["provider"], {})[row["mode"]] = row
    for (operation, case, dtype), found in groups.items():
        table = Table(title=f"{operation}: {case}, {dtype}", title_justify="left")
        table.add_column("provider", no_wrap=True)
        for mode in ("forward", "forward + backward"):
            for name in (f"{mode} us", "spread", "graph us", "% of floor"):
                table.add_column(name, justify="right")
        for name, by_mode in found.items():
            if any("us" in row for row in by_mode.values()):
                table.add_row(name, *(cell for mode in MODES for cell in _cells(by_mode[mode])))
        console.print(table)
        for name, by_mode in found.items():
            for reason in dict.fromkeys(row["reason"] for row in by_mode.values() if "reason" in row):
                console.print(f"  {name}: {reason}", markup=False, highlight=False, style="dim", soft_wrap=True)
    highest = max((row["percent_of_floor"] or 0.0 for row in rows if "us" in row), default=0.0)
    if highest > 100:
        console.print(
            f"a floor was beaten ({highest:.0f}%): the device was slower when its ceilings were taken; measure again",
            highlight=False,
        )


def _cells(row: Row) -> list[str]:
    if "us" not in row:
        return ["-"] * 4
    us, graph, percent = row["us"], row["graph_us"], row["percent_of_floor"]
    shown = [f"{us['median']:.1f}", f"{us['p10']:.1f} to {us['p90']:.1f}"]
    shown.append(f"{graph['median']:.1f}" if "median" in graph else "-")
    return [*shown, "-" if percent is None else f"{percent:.1f}"]


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.kernels", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--seconds", type=float, help="stop timing after so many seconds (default: no limit)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--dry-run", action="store_true", help="toy sizes on the CPU in Triton's interpreter")
    options = parser.parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    if options.seconds is not None and not options.seconds > 0:
        raise UserError(f"--seconds must be above 0, not {options.seconds:g}")
    interpret("bench.kernels", arguments, dry_run=options.dry_run)
    if options.dry_run and options.device not in ("auto", "cpu"):
        raise UserError(f"--dry-run runs on the CPU, not on {options.device}; leave out --device")
    device = torch.device("cpu") if options.dry_run else select_device(options.device)
    console = Console(width=None if os.isatty(1) else 160)
    line = shlex.join(["python", "-m", "bench.kernels", *arguments])
    record = Record(line, device, SEED, options.out, dry_run=options.dry_run)
    ceilings = ceilings_of.measure(device, small=options.dry_run)
    record.add("ceilings", ceilings)
    checked = correctness_of.measure(device, small=options.dry_run, console=console)
    record.add("correctness", checked)
    rows = measure(device, checked, ceilings, small=options.dry_run, seconds=options.seconds, console=console)
    record.add("kernels", rows)
    console.print(f"written to {record.path}", highlight=False, soft_wrap=True)
    if not all(row.get("ok") or "skipped" in row for row in checked):
        raise SystemExit(1)


def interpret(module: str, arguments: Sequence[str], *, dry_run: bool) -> None:
    """Start `module` again in Triton's interpreter for a dry run, and refuse it otherwise.

    Triton reads TRITON_INTERPRET when it is first imported.

    Raises:
        UserError: the interpreter is on without a dry run.
    """
    if interpreting() and not dry_run:
        raise UserError("TRITON_INTERPRET=1 is set; unset it, or use --dry-run")
    if dry_run and not interpreting() and installed("triton"):
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        os.execve(sys.executable, [sys.executable, "-m", module, *arguments], environment)


if __name__ == "__main__":
    main()
