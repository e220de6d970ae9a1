"""Rows of the configuration table, by measurement: every candidate right and without spills first, then the fastest.

    python -m bench.tune [--operation NAME ...] [--write] [--out DIR]
    python -m bench.tune --dry-run [--out DIR]

Tunes the rows of kernels/common/configurations.py for this GPU's architecture, one kernel at a time with the others as
they are. The tiles of short_attention and distillation_loss follow from their shapes alone: nothing of them is tuned.
--write puts the rows between the table's markers; --dry-run tries two candidates in the interpreter, where neither
spills nor times mean anything, and writes no rows.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from bench.correctness import SEED, check, problem
from bench.kernels import interpret
from bench.record import RESULTS, Record, described
from bench.timing import microseconds
from bench.tune_rows import TABLE, Settings, installed_row, source, with_rows
from bench.tune_targets import OPERATIONS, PROGRAMS, Target, targets
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.kernels.common.compilation import compile_offline, resources


def refusal(target: Target, settings: Settings, architecture: int) -> str | None:
    """Why the compiler rules the candidate out: it fails, or spills; None where it does neither."""
    operation, name = target.kernel.split(".")
    with installed_row((target.kernel, target.widths, architecture), settings):
        try:
            shipped = importlib.import_module(f"titn.kernels.{operation}.triton").shipped(architecture)
            mine = [c for c in shipped if c.kernel.split()[-1] == name and target.compiled in c.widths]
            found = [resources(compile_offline(c, architecture)) for c in mine]
        except Exception as error:
            return described(error)
    if not found:
        return "no compilation of it is shipped, so nobody looks whether it spills"
    stack = max(each.stack for each in found)
    return f"spills: {stack} bytes a thread" if stack or any(each.spills for each in found) else None


def tuned(target: Target, device: torch.device, architecture: int, *, small: bool) -> dict[str, Any]:
    """Every candidate with its time or the reason why it has none, and the row to use.

    The row in use stays, unless the 90th percentile of the fastest is below its median.
    """
    candidates = target.candidates(architecture)
    refusals: list[str | None] = [None] * len(candidates)
    if small:
        candidates, refusals = candidates[:2], refusals[:2]
    else:
        refusals = compiled(target, candidates, architecture)
    dtype = "fp16" if small else "bf16"
    mode = "forward" if target.kernel.endswith(".forward") else "forward_backward"
    rows: list[dict[str, Any]] = []
    for settings, why in zip(candidates, refusals, strict=True):
        with installed_row((target.kernel, target.widths, architecture), settings):
            rows.append(
                {"settings": dict(settings)} | ({"reason": why} if why else timed(target, dtype, mode, device, small))
            )
    times = [(row["us"]["median"], i) for i, row in enumerate(rows) if "us" in row]
    best = rows[min(times)[1]] if times else None
    current = rows[0]
    if best is not None and "us" in current and best["us"]["p90"] >= current["us"]["median"]:
        best = current
    head = {"kernel": target.kernel, "widths": target.widths, "architecture": architecture, "case": target.case.name}
    return head | {"dtype": dtype, "mode": mode, "best": None if best is None else best["settings"], "candidates": rows}


def compiled(target: Target, candidates: Sequence[Settings], architecture: int) -> list[str | None]:
    """`refusal` of each candidate, those that differ only in the size of the grid compiled once, in processes."""
    keys = [tuple((name, value) for name, value in c.items() if name != PROGRAMS) for c in candidates]
    first = {key: candidates[keys.index(key)] for key in keys}
    work = [(target.kernel, target.widths, settings, architecture) for settings in first.values()]
    with ProcessPoolExecutor(
        min(len(work), os.cpu_count() or 1), mp_context=multiprocessing.get_context("spawn")
    ) as pool:
        found = dict(zip(first, pool.map(_refusal, work), strict=True))
    return [found[key] for key in keys]


def _refusal(work: tuple[str, str, Settings, int]) -> str | None:
    kernel, widths, settings, architecture = work
    (target,) = (t for t in targets(OPERATIONS, small=False) if (t.kernel, t.widths) == (kernel, widths))
    return refusal(target, settings, architecture)


def timed(target: Target, dtype: str, mode: str, device: torch.device, small: bool) -> dict[str, Any]:
    """Microseconds of the operation with the row that the table holds, if its results are right."""
    try:
        verdict = check(target.case, dtype, device)
        if not verdict.get("ok"):
            return {"reason": verdict.get("skipped") or verdict.get("error") or "its results are wrong"}
        given = problem(target.case, dtype, device)
        launched, graph = microseconds(given.call(target.case.by("triton"), mode), given.sets, device, small=small)
        return {"us": graph if "median" in graph else launched}
    except Exception as error:
        return {"reason": described(error)}


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--write", action="store_true", help="write the rows into the table")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--dry-run", action="store_true", help="two candidates in Triton's interpreter")
    options = parser.parse_args(argv)
    arguments = sys.argv[1:] if argv is None else argv
    if options.dry_run and options.write:
        raise UserError("--dry-run measures nothing, so there is nothing to --write")
    interpret("bench.tune", arguments, dry_run=options.dry_run)
    if not options.dry_run and not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU here; use --dry-run to try the command on the CPU")
    device = torch.device("cpu" if options.dry_run else "cuda")
    major, minor = (0, 0) if options.dry_run else torch.cuda.get_device_capability(device)
    console = Console(width=None if os.isatty(1) else 160)
    command_line = shlex.join(["python", "-m", "bench.tune", *arguments])
    record = Record(command_line, device, SEED, options.out, dry_run=options.dry_run)
    if options.write:
        with_rows(TABLE.read_text(), {})  # refused now, not after the work
    found = []
    for target in targets(options.operation, small=options.dry_run)[: 1 if options.dry_run else None]:
        found.append(tuned(target, device, 10 * major + minor, small=options.dry_run))
        record.add("tune", found)
        show(console, found[-1])
    rows = {(r["kernel"], r["widths"], r["architecture"]): r["best"] for r in found if r["best"] is not None}
    console.print(source(rows), markup=False, highlight=False, soft_wrap=True)
    if options.write:
        write_atomic(TABLE, with_rows(TABLE.read_text(), rows))
        console.print(f"rows written to {TABLE}", highlight=False, soft_wrap=True)
    console.print(f"written to {record.path}", highlight=False, soft_wrap=True)


def show(console: Console, row: dict[str, Any]) -> None:
    """One line a candidate."""
    console.print(f"{row['kernel']} {row['widths']}, {row['case']} {row['dtype']}", markup=False, highlight=False)
    for candidate in row["candidates"]:
        words = " ".join(f"{name} {value}" for name, value in candidate["settings"].items())
        said = f"{candidate['us']['median']:.1f} us" if "us" in candidate else candidate["reason"]
        mark = "*" if candidate["settings"] == row["best"] else " "
        console.print(f"{mark} {words}: {said}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
