"""What the compiler makes of every shipped kernel, without a GPU: registers, spills, tensor cores, issue floors.

    python -m bench.codegen [--arch 80 90 100] [--operation NAME] [--device-name H200] [--json FILE]

The issue floor is the time a GPU needs only to issue the instructions of the main loop: warp instructions per row times
rows over schedulers times clock. A kernel takes longer; a change that raises the floor has to earn it elsewhere.
"""

from __future__ import annotations

import functools
import importlib
import json
import multiprocessing
import os
import re
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.kernels.common.backend import installed, interpreting
from titn.kernels.common.compilation import (
    Compilation,
    compile_offline,
    issue_floor_microseconds,
    resources,
    warp_instructions_per_row,
)
from titn.provenance import source_commit, versions

OPERATIONS = (
    "inner_block",
    "outer_block",
    "layernorm_mlp",
    "short_attention",
    "pixels_to_patches",
    "distillation_loss",
)
IMAGES, PATCHES, TOKENS = 1024, 16, 262_144  # a batch; its patches of an image; its pixel-level tokens, 16,384 x 16
PATCH_TOKENS = 18_432  # 1,024 images of 18


@dataclass(frozen=True)
class Device:
    """A GPU: compute capability (90 for sm_90), multiprocessors, clock while computing in GHz."""

    arch: int
    multiprocessors: int
    gigahertz: float


DEVICES = {
    "A100": Device(80, 108, 1.41),
    "H100": Device(90, 132, 1.75),
    "H200": Device(90, 132, 1.75),
    "B200": Device(100, 148, 1.85),
}


@dataclass(frozen=True)
class Row:
    """One kernel in one shipped configuration on one architecture.

    `half_products`: the kernel multiplies matrices of 16-bit numbers, so tensor-core instructions must appear; `hgmma`
    counts those of a whole warp group, which only sm_90 has. `rows`:
    how many the problem has (see `problem_rows`), None where the work does not grow with the batch.
    """

    operation: str
    kernel: str
    widths: str
    arch: int
    warps: int
    registers: int
    shared_bytes: int
    stack_bytes: int
    spills: int
    tensor_core: int
    hgmma: int
    half_products: bool
    instructions: int
    warp_instructions_per_row: float
    rows: int | None
    device: str | None
    issue_floor_us: float | None


@dataclass(frozen=True)
class Failure:
    """A shipped configuration that does not compile."""

    operation: str
    kernel: str
    widths: str
    arch: int
    error: str


def problem_rows(c: Compilation) -> int | None:
    """Rows, in the kernel's own count, of one layer at 1,024 images of 16 patches of 16 pixels.

    inner_block: 262,144 tokens. short_attention: tokens times heads; up to 16 tokens are pixels, more are the patches
    of an image. pixels_to_patches: 16,384 patches, once for every chunk of pixels and tile of columns. outer_block and
    layernorm_mlp: 18,432 tokens. distillation_loss: images.
    """
    constants = c.constants
    if c.operation == "inner_block" and c.kernel in ("forward", "mlp_backward", "attention_backward"):
        return TOKENS
    if c.operation == "short_attention":
        return (TOKENS if constants["L"] <= 16 else IMAGES * constants["L"]) * constants["H"]
    if c.operation == "pixels_to_patches" and c.kernel != "reduction":
        return IMAGES * PATCHES * -(-constants["L"] // constants["LB"]) * constants["TILES"]
    if c.operation in ("outer_block", "layernorm_mlp") and "M" in constants:
        return PATCH_TOKENS
    return IMAGES if c.operation == "distillation_loss" else None


@functools.cache
def shipped(operation: str, arch: int) -> list[Compilation]:
    """The shipped configurations of `operation` for compute capability `arch`."""
    found: list[Compilation] = importlib.import_module(f"titn.kernels.{operation}.triton").shipped(arch)
    return found


def measure(operation: str, arch: int, index: int, device: str | None) -> Row | Failure:
    """Compiles the configuration `shipped(operation, arch)[index]`; `device` is for the issue floor."""
    c = shipped(operation, arch)[index]
    try:
        compiled = compile_offline(c, arch)
    except Exception as error:
        return Failure(operation, c.kernel, c.widths, arch, f"{type(error).__name__}: {error}")
    found = resources(compiled)
    per_row = warp_instructions_per_row(c, found)
    rows = problem_rows(c)
    floor = None
    if device is not None and rows is not None:
        gpu = DEVICES[device]
        floor = issue_floor_microseconds(per_row, rows, multiprocessors=gpu.multiprocessors, gigahertz=gpu.gigahertz)
    return Row(
        operation=operation,
        kernel=c.kernel,
        widths=c.widths,
        arch=arch,
        warps=c.options["num_warps"],
        registers=found.registers,
        shared_bytes=found.shared,
        stack_bytes=found.stack,
        spills=found.spills,
        tensor_core=found.tensor_core,
        hgmma=found.instructions.get("HGMMA", 0),
        half_products=re.search(r"tt\.dot .*x(bf16|f16)>", compiled.asm["ttir"]) is not None,
        instructions=sum(found.instructions.values()),
        warp_instructions_per_row=round(per_row, 3),
        rows=rows,
        device=device if floor is not None else None,
        issue_floor_us=None if floor is None else round(floor, 2),
    )


def measure_all(
    operations: Iterable[str], archs: Iterable[int], device: str | None, jobs: int
) -> tuple[list[Row], list[Failure]]:
    """Every shipped configuration, compiled in `jobs` processes; `device` replaces its architecture's usual GPU."""
    gpus = {DEVICES[name].arch: name for name in ("A100", "H200", "B200")}
    if device is not None:
        gpus[DEVICES[device].arch] = device
    work = [
        (operation, arch, index, gpus.get(arch))
        for operation in operations
        for arch in archs
        for index in range(len(shipped(operation, arch)))
    ]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(measure, *zip(*work, strict=True), chunksize=1))
    return [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, Failure)]


def table(rows: Iterable[Row]) -> Table:
    """The rows as they are printed."""
    result = Table(title="Compiled kernels")
    for name in ("operation", "kernel", "widths", "arch"):
        result.add_column(name, no_wrap=True)
    for name in ("warps", "regs", "shared", "stack", "LDL+STL", "tensor", "instr", "warp-instr/row", "floor us"):
        result.add_column(name, justify="right", no_wrap=True)
    for r in rows:
        floor = "" if r.issue_floor_us is None else f"{r.issue_floor_us:.1f} {r.device}"
        numbers = (r.warps, r.registers, r.shared_bytes, r.stack_bytes, r.spills, r.tensor_core, r.instructions)
        cells = [r.operation, r.kernel, r.widths, f"sm_{r.arch}", *map(str, numbers)]
        style = "red" if r.stack_bytes or r.spills else None
        result.add_row(*cells, f"{r.warp_instructions_per_row:.1f}", floor, style=style)
    return result


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.codegen", description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=(80, 90, 100), default=[80, 90, 100])
    parser.add_argument("--operation", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--device-name", choices=tuple(DEVICES), help="GPU of the issue floor on its architecture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and versions to FILE")
    options = parser.parse_args(argv)
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    if interpreting():
        raise UserError("TRITON_INTERPRET=1 is set, and the interpreter has no compiler; unset it")
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"--json {options.json}: the folder {options.json.parent} does not exist")
    rows, failures = measure_all(options.operation, options.arch, options.device_name, os.cpu_count() or 1)
    console = Console(width=None if os.isatty(1) else 180)
    console.print(table(rows))
    for f in failures:
        console.print(f"{f.operation} {f.kernel} {f.widths} sm_{f.arch} does not compile: {f.error}", markup=False)
    if options.json is not None:
        content = {
            "commit": source_commit(),
            "versions": versions("torch", "triton"),
            "rows": [asdict(row) for row in rows],
        }
        content["failures"] = [asdict(failure) for failure in failures]
        write_atomic(options.json, json.dumps(content, indent=1) + "\n")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
