"""Rows of the configuration table: candidates that compile without spills, the likeliest of them timed on the GPU.

    python -m bench.tune --compile [--arch 90] [--operation NAME ...]    # no GPU: writes the candidates worth timing
    python -m bench.tune [--shortlist FILE] [--seconds S] [--write]      # a GPU: times them
    python -m bench.tune --dry-run

Tunes the rows of kernels/common/configurations.py for one architecture, one kernel at a time with the others as they
are. Every combination of the choices is compiled; those that fail or spill are out, and of the others the row in use
and the MOST with the lowest issue floor (`bench.codegen`) are timed, if they are right. The tiles of short_attention
and distillation_loss follow from their shapes, those of the heads and of the pixel embedding are constants: nothing of
them is tuned. --write puts the rows between the
table's markers; --dry-run times two candidates in the interpreter, where times mean nothing, and writes no rows.
"""

from __future__ import annotations

import ast
import itertools
import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench import options
from bench.kernels.cases import Case, block, mlp, patches
from bench.kernels.codegen import compile_offline, resources, warp_instructions_per_row
from bench.kernels.correctness import SEED, check, problem
from bench.kernels.shipped import configurations
from bench.options import Setting
from bench.record import described
from bench.timing import microseconds
from titn.errors import UserError, command
from titn.files import write_atomic
from titn.kernels import inner_block, outer_block
from titn.kernels.common.backend import interpreting
from titn.kernels.common.configurations import CONFIGURATIONS, configuration
from titn.provenance import ROOT

TABLE = ROOT / "kernels" / "common" / "configurations.py"
BEGIN, END = "    # Tuned rows, written by bench.tune: begin\n", "    # Tuned rows: end\n"
OPERATIONS = ("inner_block", "pixels_to_patches", "layernorm_mlp", "outer_block")
MOST = 5

Settings = Mapping[str, int]
Key = tuple[str, str, int]
Row = dict[str, Any]


# What there is to tune


@dataclass(frozen=True)
class Target:
    """A row to tune: kernel and widths in the table, what its compilations' widths hold, the case that times it."""

    kernel: str
    widths: str
    compiled: str
    case: Case
    choices: Mapping[str, tuple[int, ...]]

    def candidates(self, architecture: int) -> list[Settings]:
        """The row in use, then every combination of the choices."""
        current = dict(configuration(self.kernel, self.widths, architecture))
        combined = (
            dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())
        )
        return [current, *(c for c in combined if c != current)]


def targets(operations: Sequence[str], *, small: bool) -> list[Target]:
    """All rows of the operations in 16-bit precision, at TITN's, TNT-S's and TNT-B's widths."""
    found = []
    grid: dict[str, tuple[int, ...]] = {"num_warps": (2, 4, 8)}
    halves = grid | {"resident": (0, 1), "shared_sums": (0, 1), "parts": (1, 3)}
    in_memory = {"num_warps": (4, 8), "unroll": (1, 2, 5)}
    for widths, channels, sequences in (("16", 12, 16_384), ("32", 24, 12_544), ("64", 40, 12_544)):
        case = block(inner_block, 5 if small else sequences, 16, channels, 4)
        forward = grid | {"resident_slices": (0, 2, 9), "resident_blocks": (0, 4, 9)}
        backward = ("64 in memory", in_memory) if widths == "64" else (widths, halves)
        rows = {"forward": (widths, forward), "mlp_backward": backward, "attention_backward": backward}
        for name, (key, choices) in rows.items():
            found.append(Target(f"inner_block.{name}", key, f"16x{channels} 4 heads", case, choices))
    chunks = {"num_warps": (4, 8), "rows": (16, 32, 64, 128), "columns": (32, 64, 128)}
    for widths, images, count, channels, width in (
        ("16", 1024, 16, 12, 192),
        ("32", 64, 196, 24, 384),
        ("64", 64, 196, 40, 640),
    ):
        images, count = (2, 3) if small else (images, count)
        case = patches(images, count, 16, channels, width, tokens=count + 2)
        for name in ("forward", "backward"):
            found.append(Target(f"pixels_to_patches.{name}", widths, f"x{channels} to ", case, chunks))
    wide = {
        "num_warps": (4, 8),
        "num_stages": (1, 2, 3),
        "rows": (32, 64, 128),
        "columns": (64,),
        "block": (16, 32, 64),
    }
    for width, images, tokens, heads in ((192, 1024, 18, 8), (384, 128, 197, 6), (640, 128, 197, 10)):
        images = 2 if small else images
        for case in (mlp(images * tokens, width), block(outer_block, images, tokens, width, heads)):
            tail = ("tail_forward", "tail_backward") if case.operation == "outer_block" else ()
            for name in ("forward", "backward", *tail):
                found.append(Target(f"{case.operation}.{name}", str(width), f"{width} to ", case, wide))
    return [t for t in found if t.case.operation in operations]


# Compiling them, without a GPU


def judge(target: Target, settings: Settings, architecture: int) -> float | str:
    """Warp instructions per row of the candidate's compilations together, or why it is out: it fails, or spills."""
    operation, name = target.kernel.split(".")
    with installed_row((target.kernel, target.widths, architecture), settings):
        try:
            mine = [
                c
                for c in configurations(operation, architecture)
                if c.kernel.split()[-1] == name and target.compiled in c.widths
            ]
            compiled = [(c, resources(compile_offline(c, architecture))) for c in mine]
        except Exception as error:
            return described(error)
    if not compiled:
        return "no compilation of it is shipped, so nobody looks whether it spills"
    if any(each.stack or each.spills for _, each in compiled):
        return f"spills: {max(each.stack for _, each in compiled)} bytes per thread"
    return sum(warp_instructions_per_row(c, each) for c, each in compiled)


def shortlist(target: Target, architecture: int, pool: ProcessPoolExecutor) -> Row:
    """The candidates worth timing.

    Returns:
        "kernel", "widths", "architecture", and "candidates": "settings", and "instructions" per row or the "reason"
        why it is not timed; the row in use comes first.
    """
    candidates = target.candidates(architecture)
    work = [(target.kernel, target.widths, settings, architecture) for settings in candidates]
    rows: list[Row] = [
        {"settings": dict(settings), "reason" if isinstance(verdict, str) else "instructions": verdict}
        for settings, verdict in zip(candidates, pool.map(_judge, work), strict=True)
    ]
    sound = sorted((row for row in rows[1:] if "reason" not in row), key=lambda row: float(row["instructions"]))
    for row in sound[MOST:]:
        row["reason"] = f"not among the {MOST} with the fewest instructions"
    return {"kernel": target.kernel, "widths": target.widths, "architecture": architecture, "candidates": rows}


def _judge(work: tuple[str, str, Settings, int]) -> float | str:
    kernel, widths, settings, architecture = work
    (target,) = (t for t in targets(OPERATIONS, small=False) if (t.kernel, t.widths) == (kernel, widths))
    return judge(target, settings, architecture)


def compiled(at: Setting, chosen: Sequence[Target], architecture: int) -> Iterator[Row]:
    """The shortlist of every target, while there is time, compiled on all processors."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count() or 1, mp_context=context) as pool:
        for target in chosen:
            if at.budget.refusal():
                at.say(f"{target.kernel} {target.widths}: {at.budget.refusal()}")
                continue
            row = shortlist(target, architecture, pool)
            left = [candidate for candidate in row["candidates"] if "reason" not in candidate]
            at.say(
                f"{target.kernel} {target.widths}: {len(left)} of {len(row['candidates'])} candidates are worth timing"
            )
            yield row


# Timing them, on a GPU


def timed(target: Target, row: Row, at: Setting) -> Row:
    """The row of `shortlist` with "us" of every candidate that is right, and the "best" settings.

    The row in use stays, unless the 90th percentile of the fastest is below its median.
    """
    dtype = "fp16" if at.small else "bf16"
    mode = "forward" if target.kernel.endswith("forward") else "forward_backward"
    rows = []
    for candidate in row["candidates"]:
        with installed_row((target.kernel, target.widths, row["architecture"]), candidate["settings"]):
            why = candidate.get("reason") or at.budget.refusal()
            rows.append(candidate | ({"reason": why} if why else _timed(target, dtype, mode, at)))
    times = [(each["us"]["median"], i) for i, each in enumerate(rows) if "us" in each]
    best, current = rows[min(times)[1]] if times else None, rows[0]
    if best is not None and "us" in current and best["us"]["p90"] >= current["us"]["median"]:
        best = current
    chosen = None if best is None else best["settings"]
    return row | {"case": target.case.name, "dtype": dtype, "mode": mode, "best": chosen, "candidates": rows}


def _timed(target: Target, dtype: str, mode: str, at: Setting) -> Row:
    try:
        verdict = check(target.case, dtype, at.device)
        if not verdict.get("ok"):
            return {"reason": verdict.get("skipped") or verdict.get("error") or "its results are wrong"}
        given = problem(target.case, dtype, at.device)
        launched, graph = microseconds(
            given.call(target.case.by("triton"), mode), given.sets, at.device, small=at.small
        )
        return {"us": graph if "median" in graph else launched}
    except Exception as error:
        return {"reason": described(error)}


# The table


@contextmanager
def installed_row(key: Key, settings: Settings) -> Iterator[None]:
    """Within, the table holds `settings` under `key`."""
    before = CONFIGURATIONS.get(key)
    CONFIGURATIONS[key] = settings
    try:
        yield
    finally:
        if before is None:
            del CONFIGURATIONS[key]
        else:
            CONFIGURATIONS[key] = before


def source(rows: Mapping[Key, Settings]) -> str:
    """Table entries as Python, in the formatter's layout."""
    lines = []
    for (kernel, widths, architecture), settings in sorted(rows.items()):
        items = [f'"{name}": {value}' for name, value in settings.items()]
        head = f'    ("{kernel}", "{widths}", {architecture}): {{'
        line = f"{head}{', '.join(items)}}},\n"
        lines.append(line if len(line) <= 121 else head + "\n" + "".join(f"        {i},\n" for i in items) + "    },\n")
    return "".join(lines)


def with_rows(text: str, rows: Mapping[Key, Settings]) -> str:
    """The table's source with `rows` between its markers, beside the rows of other keys that are there already.

    Raises:
        UserError: it has no markers.
    """
    head, begin, rest = text.partition(BEGIN)
    between, end, tail = rest.partition(END)
    if not begin or not end:
        raise UserError(f"{TABLE} has no markers {BEGIN.strip()!r} and {END.strip()!r}")
    return head + begin + source({**ast.literal_eval(f"{{{between}}}"), **rows}) + end + tail


# The command


@command
def main(argv: list[str] | None = None) -> None:
    parser = options.parser("tune", __doc__)
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--compile", action="store_true", help="only write the candidates worth timing: needs no GPU")
    parser.add_argument("--arch", type=int, choices=(80, 90, 100), help="of --compile (default: this GPU's)")
    parser.add_argument("--shortlist", type=Path, metavar="FILE", help="result file of --compile")
    parser.add_argument("--write", action="store_true", help="write the rows into the table")
    given, at = options.start(parser, argv, seed=SEED, interpret=True)
    if at.small and (given.write or given.compile):
        raise UserError("--dry-run measures nothing: leave out --write and --compile")
    chosen = targets(given.operation, small=at.small)
    if given.compile:
        if interpreting():
            raise UserError("TRITON_INTERPRET=1 is set, and the interpreter has no compiler; unset it")
        if given.arch is None and not torch.cuda.is_available():
            raise UserError("--compile without a GPU needs --arch")
        listed: list[Row] = []
        for row in compiled(at, chosen, given.arch or architecture_of(torch.device("cuda"))):
            listed.append(row)
            at.save("tune", listed)
        at.finish()
        return
    if not at.small and at.device.type != "cuda":
        raise UserError("PyTorch sees no GPU here; use --compile, or --dry-run to try the command on the CPU")
    if given.write:
        with_rows(TABLE.read_text(), {})  # refused now, not after the work
    architecture = architecture_of(at.device)
    if at.small:
        chosen = chosen[:1]
        two = [{"settings": dict(settings)} for settings in chosen[0].candidates(architecture)[:2]]
        names = {"kernel": chosen[0].kernel, "widths": chosen[0].widths}
        rows: Iterable[Row] = [names | {"architecture": architecture, "candidates": two}]
    elif given.shortlist:
        rows = read_shortlist(given.shortlist, architecture)
    else:
        rows = compiled(at, chosen, architecture)
    by_key = {(target.kernel, target.widths): target for target in chosen}
    done: list[Row] = []
    for row in rows:
        if (row["kernel"], row["widths"]) in by_key:
            done.append(timed(by_key[row["kernel"], row["widths"]], row, at))
            at.save("tune", done)
            show(done[-1], at)
    best = {(r["kernel"], r["widths"], r["architecture"]): r["best"] for r in done if r["best"] is not None}
    at.say(source(best))
    if given.write:
        write_atomic(TABLE, with_rows(TABLE.read_text(), best))
        at.say(f"rows written to {TABLE}")
    at.finish()


def read_shortlist(path: Path, architecture: int) -> list[Row]:
    """The section "tune" of a result file of --compile.

    Raises:
        UserError: it holds none for this architecture.
    """
    try:
        rows: list[Row] = json.loads(path.read_text())["sections"]["tune"]
        if rows and all(row["architecture"] == architecture for row in rows):
            return rows
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--shortlist {path}: no result file of bench.tune --compile ({error})") from None
    raise UserError(f"--shortlist {path} has no candidates for sm_{architecture}")


def architecture_of(device: torch.device) -> int:
    """Compute capability, such as 90; 0 on a CPU."""
    major, minor = torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
    return 10 * major + minor


def show(row: Row, at: Setting) -> None:
    """One line for each candidate that was to be timed."""
    at.say(f"{row['kernel']} {row['widths']}, {row['case']} {row['dtype']}")
    for candidate in row["candidates"]:
        words = " ".join(f"{name} {value}" for name, value in candidate["settings"].items())
        result = f"{candidate['us']['median']:.1f} us" if "us" in candidate else candidate["reason"]
        if "us" in candidate or not result.startswith(("spills", "not among")):
            at.say(f"{'*' if candidate['settings'] == row['best'] else ' '} {words}: {result}")


if __name__ == "__main__":
    main()
