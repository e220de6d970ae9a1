"""What the compiler makes of every shipped kernel, without a GPU: registers, spills, tensor cores, issue floors.

    python -m bench.codegen [--arch 80 90 100] [--operation NAME] [--device-name H200] [--json FILE]

The issue floor is the time a GPU needs only to issue the instructions of the main loop: warp instructions per row times
rows over schedulers times clock. A kernel takes longer; a change that raises the floor has to earn it elsewhere. Needs
the real compiler, so a process in which TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.kernels.shipped import OPERATIONS, Compilation, shipped
from bench.options import console
from bench.report.render import NONE, Columns, Table, show
from titn.errors import OneLineParser, UserError, command
from titn.files import write_atomic
from titn.kernels.common import nvrtc
from titn.kernels.common.backend import installed, interpreting
from titn.kernels.inner_block import cuda
from titn.provenance import source_commit, versions

IMAGES, PATCHES, TOKENS = 1024, 16, 262_144  # a batch; its patches of an image; its pixel-level tokens, 16,384 x 16
PATCH_TOKENS = 18_432  # 1,024 images of 18
CUDA = "inner_block_cuda"
KINDS = (*OPERATIONS, CUDA)


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
    layernorm_mlp: 18,432 tokens. pixel_embedding: 262,144 pixels. class_heads, distillation_loss: images.
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
    if c.operation == "pixel_embedding":
        return TOKENS
    return IMAGES if c.operation in ("distillation_loss", "class_heads") and c.rows_per_tile else None


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


def measure_cuda(arch: int, device: str | None) -> list[Row | Failure]:
    """The inner block's kernels of CUDA C++, one sequence of 16 rows to a warp.

    Their main loop is the first that multiplies and stores; a second one takes what needs the maxima of scores.
    """
    try:
        cubin = nvrtc.compiled(cuda.SOURCE, arch)
    except RuntimeError as error:
        return [Failure(CUDA, cuda.SOURCE, "", arch, str(error))]
    usage, sass = (_dumped(cubin, flag) for flag in ("--dump-resource-usage", "--dump-sass"))
    listings = {text.split(maxsplit=1)[0]: _parse_sass(text) for text in sass.split("Function : ")[1:]}
    found: list[Row | Failure] = []
    for name, resources in re.findall(r"Function (\w+):\s*(REG:.*)", usage):
        limits = {kind: int(value) for kind, value in re.findall(r"\b(REG|STACK|SHARED):(\d+)", resources)}
        listing, counts = listings[name], Counter(i.mnemonic for i in listings[name])
        bodies = [[i for i in listing if start <= i.address <= end] for start, end in _backward(listing)]
        main = next(b for b in bodies if {"HMMA", "STG"} <= {i.mnemonic for i in b})
        per_row, floor = len(main) / cuda.SHAPE[0], None
        if device is not None:
            gpu = DEVICES[device]
            floor = issue_floor_microseconds(
                per_row, TOKENS, multiprocessors=gpu.multiprocessors, gigahertz=gpu.gigahertz
            )
        found.append(
            Row(
                operation=CUDA,
                kernel=name.removeprefix("titn_inner_"),
                widths="{}x{} {} heads".format(*cuda.SHAPE),
                arch=arch,
                warps=cuda.WARPS,
                registers=limits["REG"],
                shared_bytes=limits["SHARED"],
                stack_bytes=limits["STACK"],
                spills=counts["LDL"] + counts["STL"],
                tensor_core=_tensor_core(counts),
                hgmma=0,
                half_products=True,
                instructions=len(listing),
                warp_instructions_per_row=round(per_row, 3),
                rows=TOKENS,
                device=device,
                issue_floor_us=None if floor is None else round(floor, 2),
            )
        )
    return found


def measure_all(
    operations: Sequence[str], archs: Sequence[int], device: str | None, jobs: int
) -> tuple[list[Row], list[Failure]]:
    """Shipped configurations of these KINDS, in `jobs` processes; `device` replaces its architecture's usual GPU."""
    gpus = {DEVICES[name].arch: name for name in ("A100", "H200", "B200")}
    if device is not None:
        gpus[DEVICES[device].arch] = device
    work = [
        (operation, arch, index, gpus.get(arch))
        for operation in operations
        if operation != CUDA
        for arch in archs
        for index in range(len(shipped(operation, arch)))
    ]
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork")) as pool:
        found = list(pool.map(_measured, work, chunksize=1))
        if CUDA in operations:
            found += [row for rows in pool.map(measure_cuda, archs, map(gpus.get, archs)) for row in rows]
    return [r for r in found if isinstance(r, Row)], [r for r in found if isinstance(r, Failure)]


def _measured(work: tuple[str, int, int, str | None]) -> Row | Failure:
    return measure(*work)


# Reading what the compiler made


@dataclass(frozen=True)
class Resources:
    """What the compiler made of a kernel.

    Attributes:
        registers: registers per thread.
        stack: bytes of local memory per thread; above zero means spills.
        shared: bytes of shared memory per program.
        instructions: machine instructions of the whole kernel, by mnemonic ("HMMA", "FFMA", "LDL", ...).
        loops: those within each of its outermost loops, by mnemonic.
        inner: number of those within loops that lie in others.
    """

    registers: int
    stack: int
    shared: int
    instructions: Mapping[str, int] = field(hash=False)
    loops: tuple[Mapping[str, int], ...] = field(hash=False)
    inner: int

    @property
    def tensor_core(self) -> int:
        """Number of tensor-core instructions (HMMA, HGMMA or the UTC*MMA of sm_100)."""
        return _tensor_core(self.instructions)

    @property
    def spills(self) -> int:
        """Number of loads from and stores to local memory."""
        return self.instructions.get("LDL", 0) + self.instructions.get("STL", 0)


def compile_offline(c: Compilation, arch: int) -> Any:
    """Compiles for compute capability `arch` (80, 90, 100) without a device; returns Triton's compiled kernel.

    Raises:
        RuntimeError: the process runs Triton's interpreter, which has no compiler.
    """
    if interpreting():
        raise RuntimeError("offline compilation needs a process without TRITON_INTERPRET=1")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = c.function.arg_names
    signature = {name: c.types.get(name, "constexpr") for name in names}
    missing = [name for name in names if signature[name] == "constexpr" and name not in c.constants]
    if missing:
        raise ValueError(f"{c.operation} {c.kernel}: neither type nor constant given for {', '.join(missing)}")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if signature[name].startswith("*")}
    source = ASTSource(fn=c.function, signature=signature, constexprs=dict(c.constants), attrs=aligned)
    options = {"enable_fp_fusion": True, **c.options}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(compiled: Any) -> Resources:
    """Registers and stack from the cubin, shared memory from Triton's metadata, instructions from the disassembly."""
    usage = _dumped(compiled.asm["cubin"], "--dump-resource-usage")
    listing = _parse_sass(_dumped(compiled.asm["cubin"], "--dump-sass"))
    found = {name: int(value) for name, value in re.findall(r"\b(REG|STACK):(\d+)", usage)}
    loops, inner = _loops(listing)
    return Resources(
        registers=found["REG"],
        stack=found["STACK"],
        shared=compiled.metadata.shared,
        instructions=Counter(i.mnemonic for i in listing),
        loops=tuple(Counter(i.mnemonic for i in listing if start <= i.address <= end) for start, end in loops),
        inner=sum(any(start <= i.address <= end for start, end in inner) for i in listing),
    )


def warp_instructions_per_row(c: Compilation, found: Resources) -> float:
    """Instructions issued by all warps of a program per row handled; 0 where its work does not grow with the rows.

    Those of one pass of every loop (without any: of the whole kernel) with the passes of the loops within, or, where
    `c.passes` is given, those outside of loops and of all passes.
    """
    if c.rows_per_tile == 0:
        return 0.0
    everything, within = sum(found.instructions.values()), [sum(loop.values()) for loop in found.loops]
    count = sum(within) + (c.inner_passes - 1) * found.inner if within else everything
    if c.passes is not None:
        passes = [c.passes[0 if _tensor_core(loop) else 1] for loop in found.loops]
        count = everything + sum(n * (times - 1) for n, times in zip(within, passes, strict=True))
    return count * c.options["num_warps"] / c.rows_per_tile


def _tensor_core(instructions: Mapping[str, int]) -> int:
    return sum(n for name, n in instructions.items() if name in ("HMMA", "HGMMA") or re.match(r"UTC\w*MMA", name))


def issue_floor_microseconds(
    per_row: float, rows: int, *, multiprocessors: int = 132, schedulers: int = 4, gigahertz: float = 1.75
) -> float:
    """Least time to issue `per_row` warp instructions for each of `rows` rows: one per scheduler and cycle.

    The defaults are those of one H200.
    """
    return per_row * rows / (multiprocessors * schedulers * gigahertz * 1e3)


@dataclass(frozen=True)
class _Instruction:
    address: int
    mnemonic: str
    branch_target: int | None


def _dumped(cubin: bytes, flag: str) -> str:
    """What cuobjdump says of machine code."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), flag, file.name], capture_output=True, text=True, check=True).stdout


def _parse_sass(text: str) -> list[_Instruction]:
    found = []
    for match in re.finditer(r"/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)([^;]*);", text):
        address, mnemonic, operands = int(match[1], 16), match[2], match[3]
        target = re.search(r"(0x[0-9a-f]+)\s*$", operands.strip()) if mnemonic == "BRA" else None
        found.append(_Instruction(address, mnemonic, int(target[1], 16) if target else None))
    return found


def _loops(listing: list[_Instruction]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """First and last addresses of the outermost loops, overlapping ones merged, and of those that lie within one.

    A loop is a backward branch (the one to itself is the trap at the end). On sm_100 the compiler places waiting loops
    behind the code they belong to, so that a loop may reach further here than it does.
    """
    backward = _backward(listing)
    merged: list[tuple[int, int]] = []
    for start, end in backward:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged, [loop for loop in backward if loop not in merged]


def _backward(listing: list[_Instruction]) -> list[tuple[int, int]]:
    """First and last address of every loop, by the first, then the last."""
    branches = ((i.branch_target, i.address) for i in listing if i.branch_target is not None)
    return sorted((target, address) for target, address in branches if target < address)


# The command


COLUMNS: Columns = [
    ("operation", lambda r: r.operation),
    ("kernel", lambda r: r.kernel),
    ("widths", lambda r: r.widths),
    ("arch", lambda r: f"sm_{r.arch}"),
    ("warps:", lambda r: str(r.warps)),
    ("regs:", lambda r: str(r.registers)),
    ("shared:", lambda r: str(r.shared_bytes)),
    ("stack:", lambda r: str(r.stack_bytes)),
    ("LDL+STL:", lambda r: str(r.spills)),
    ("tensor:", lambda r: str(r.tensor_core)),
    ("instr:", lambda r: str(r.instructions)),
    ("warp-instr/row:", lambda r: f"{r.warp_instructions_per_row:.1f}"),
    ("floor us:", lambda r: NONE if r.issue_floor_us is None else f"{r.issue_floor_us:.1f} {r.device}"),
]


@command
def main(argv: list[str] | None = None) -> None:
    parser = OneLineParser(prog="python -m bench.codegen", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", choices=(80, 90, 100), default=[80, 90, 100])
    parser.add_argument("--operation", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--device-name", choices=tuple(DEVICES), help="GPU of the issue floor on its architecture")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and versions to FILE")
    options = parser.parse_args(argv)
    if not installed("triton"):
        raise UserError("the package triton is not installed; install it with: pip install triton")
    if interpreting():
        raise UserError("TRITON_INTERPRET=1 is set, and the interpreter has no compiler; unset it")
    if options.json is not None and not options.json.parent.is_dir():
        raise UserError(f"--json {options.json}: the folder {options.json.parent} does not exist")
    out, absent = console(), nvrtc.nvrtc_reasons()
    kinds = [each for each in options.operation if each != CUDA or not absent]
    if len(kinds) < len(options.operation):
        out.print(f"{CUDA} is left out: {'; '.join(absent)}", markup=False)
    rows, failures = measure_all(kinds, options.arch, options.device_name, os.cpu_count() or 1)
    show([Table.of(rows, COLUMNS, "Compiled kernels")], out)
    for f in failures:
        out.print(f"{f.operation} {f.kernel} {f.widths} sm_{f.arch} does not compile: {f.error}", markup=False)
    if options.json is not None:
        content = {
            "commit": source_commit(),
            "versions": versions("torch", "triton"),
            "rows": [asdict(row) for row in rows],
            "failures": [asdict(failure) for failure in failures],
        }
        write_atomic(options.json, json.dumps(content, indent=1) + "\n")
    if failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
