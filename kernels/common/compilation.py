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
        rows_per_tile: rows (tokens, or batch rows) that one pass of the kernel's main loop handles; 0 for a kernel
            whose work does not grow with the rows.
        widths: what distinguishes the configuration, such as "16x12 4 heads".
    """

    operation: str
    kernel: str
    function: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, int]
    rows_per_tile: int
    widths: str


@dataclass(frozen=True)
class Resources:
    """What the compiler made of a kernel.

    Attributes:
        registers: registers per thread.
        stack: bytes of local memory per thread; above zero means spills.
        shared: bytes of shared memory per program.
        instructions: machine instructions of the whole kernel, by mnemonic ("HMMA", "FFMA", "LDL", ...).
        loop: those within its loops (over rows, one after the other), by mnemonic; empty where it has none.
    """

    registers: int
    stack: int
    shared: int
    instructions: Mapping[str, int] = field(hash=False)
    loop: Mapping[str, int] = field(hash=False)

    @property
    def tensor_core(self) -> int:
        """Number of tensor-core instructions (HMMA, HGMMA or the UTC*MMA of sm_100)."""
        return sum(
            n for name, n in self.instructions.items() if name in ("HMMA", "HGMMA") or re.match(r"UTC\w*MMA", name)
        )

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
    loops = _outermost_loops(listing)
    return Resources(
        registers=found["REG"],
        stack=found["STACK"],
        shared=compiled.metadata.shared,
        instructions=Counter(i.mnemonic for i in listing),
        loop=Counter(i.mnemonic for i in listing if any(start <= i.address <= end for start, end in loops)),
    )


def warp_instructions_per_row(c: Compilation, found: Resources) -> float:
    """Instructions issued by all warps of a program in one pass of every loop, per row handled.

    Where the kernel has no loop, all its instructions count, as one pass; 0 where its work does not grow with the rows.
    """
    if c.rows_per_tile == 0:
        return 0.0
    count = sum((found.loop or found.instructions).values())
    return count * c.options["num_warps"] / c.rows_per_tile


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


def _outermost_loops(listing: list[_Instruction]) -> list[tuple[int, int]]:
    """First and last addresses of the backward branches within no other (one to itself is the trap at the end)."""
    backward = [
        (i.branch_target, i.address) for i in listing if i.branch_target is not None and i.branch_target < i.address
    ]
    return [
        (start, end)
        for start, end in backward
        if not any(other != (start, end) and other[0] <= start and end <= other[1] for other in backward)
    ]
