"""Offline compilation of Triton kernels: registers, spills, shared memory and machine instructions without a GPU.

Needs the real compiler, so a process in which TRITON_INTERPRET is not set.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from titn.kernels.common.backend import interpreting


@dataclass(frozen=True)
class Compilation:
    """One kernel in one configuration, as it is shipped.

    Attributes:
        operation: name of the public operation, such as "inner_block".
        kernel: which of its kernels, such as "forward".
        function: the `@triton.jit` function.
        types: Triton type of every run-time argument ("*bf16", "i32", "fp32", ...), by name; pointers count as aligned
            to 16 bytes.
        constants: value of every `tl.constexpr` argument, by name.
        options: launch options: num_warps, num_stages.
        rows_per_tile: rows (tokens, or batch rows) that one pass of the kernel's main loop handles, or one program
            where `passes` is given; 0 for a kernel whose work does not grow with the rows.
        widths: what distinguishes the configuration, such as "16x12 4 heads".
        passes: for a kernel without a loop over rows, how often a program goes through each loop that holds products
            and through each that holds none.
        inner_passes: how often a pass of the main loop goes through the loops within it.
    """

    operation: str
    kernel: str
    function: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int]
    rows_per_tile: int
    widths: str
    passes: tuple[int, int] | None = None
    inner_passes: int = 1


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
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _cuobjdump("--dump-resource-usage", file.name)
        listing = _parse_sass(_cuobjdump("--dump-sass", file.name))
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


def _cuobjdump(flag: str, path: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    return subprocess.run([str(tool), flag, path], capture_output=True, text=True, check=True).stdout


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
    backward = sorted(
        (i.branch_target, i.address) for i in listing if i.branch_target is not None and i.branch_target < i.address
    )
    merged: list[tuple[int, int]] = []
    for start, end in backward:
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged, [loop for loop in backward if loop not in merged]
