"""What the operations accept compiles, in bounded time and within a GPU's shared memory; the rest is refused.

The operations run on the CPU in a process whose launches compile for a GPU instead. Each case has its own fork with a
limit on processor time. What no device could run is refused with its reason.

sm_86 has the least shared memory, and takes the configurations that are meant for any architecture: there every case
compiles to the end. sm_120 has as little, and another compiler backend: it gets the case of every operation that needs
most on sm_86 (NEAREST). The others have more memory, and the widest rows and the inner blocks that are shipped compile
for them in tests/bench/test_codegen.py: they get the rest of NEAREST. On all but sm_86 the compiler stops before the
assembler, which does not change the shared memory.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes a program may use
SECONDS = 240  # of processor time for forward and backward of one case

PROGRAM = """
import json, os, resource, sys
import torch
import triton
from torch import Tensor
os.environ["TRITON_INTERPRET"] = "1"  # the operators take CPU tensors, though Triton compiles
import titn.kernels
del os.environ["TRITON_INTERPRET"]
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, "tests/kernels")
from operations import Operation, _block, _mlp, _loss
from util import block_shapes
from titn.kernels import BackendUnavailable, inner_block, outer_attention, pixels_to_patches, short_attention

SECONDS, SHARED, PLAN = int(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
TYPES |= {torch.float64: "*fp64", torch.int32: "*i32"}
used = []

def compile_instead(self, *arguments, grid, warmup, **named):
    given = dict(zip(self.arg_names, arguments)) | named
    types, constants = {}, {}
    for name in self.arg_names:
        value, fixed = given.pop(name), self.params[self.arg_names.index(name)].is_constexpr
        kind = TYPES[value.dtype] if isinstance(value, Tensor) else "i32" if type(value) is int else "fp32"
        types[name] = "constexpr" if fixed or value is None else kind
        if types[name] == "constexpr":
            constants[name] = value
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(types.values()) if kind.startswith("*")}
    source = ASTSource(fn=self, signature=types, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options={"enable_fp_fusion": True} | given)
    used.append((self.__name__, compiled.metadata.shared))

def patched(operation):
    for name in ("op", "launch"):
        module = sys.modules.get(f"titn.kernels.{operation}.{name}")
        for function, value in (
            ("triton_reasons", lambda *a, **k: []),
            ("architecture", lambda x: arch),
            ("shared_memory", lambda x: SHARED[str(arch)]),
        ):
            if hasattr(module, function):
                setattr(module, function, value)

JITFunction.run = compile_instead
import titn.kernels.common.wide as wide
wide.triton_reasons = lambda *a, **k: []
NAMES = "inner_block outer_block layernorm_mlp pixels_to_patches short_attention distillation_loss"
for operation in NAMES.split():
    __import__(f"titn.kernels.{operation}.launch")
    patched(operation)

def inner(length, channels, heads):
    return Operation(_block(inner_block, heads), {"x": (2, length, channels)}, block_shapes(channels, 4 * channels))

def outer(width):
    shapes = dict(list(block_shapes(width, width).items())[:6])
    return Operation(_block(outer_attention, width // 32), {"x": (2, 3, width)}, shapes)

def mlp(width):
    return Operation(_mlp(True), {"x": (2, width)}, dict(list(block_shapes(width, 4 * width).items())[6:]))

def patches(length, channels, width):
    parameters = {"norm": (channels,), "bias": (channels,), "w": (width, length * channels), "b": (width,)}
    tokens = {"pixels": (1, 2, length, channels), "patches": (1, 3, width)}
    return Operation(lambda t, backend: pixels_to_patches(*t, backend=backend), tokens, parameters)

def attention(length, heads, width):
    return Operation(lambda t, backend: short_attention(*t, backend=backend), {"qkv": (2, length, 3, heads, width)}, {})

def loss(classes, kind):
    return Operation(lambda t, backend: _loss(t, backend, kind=kind), dict.fromkeys("zs", (2, classes)), {})

OPERATIONS = dict(inner_block=inner, outer_attention=outer, layernorm_mlp=mlp, pixels_to_patches=patches)
OPERATIONS |= dict(short_attention=attention, distillation_loss=loss)

for arch, operation, sizes, dtype, assemble in PLAN:
    row = {"arch": arch, "operation": operation, "sizes": sizes, "dtype": dtype}
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        if not assemble:
            CUDABackend.make_cubin = lambda *a: b""
        try:
            case = OPERATIONS[operation](*sizes)
            inputs = [t.requires_grad_() for t in case.draw(getattr(torch, dtype))]
            output = case.run(inputs, "triton")
            torch.autograd.grad(output, inputs, torch.ones_like(output))
            row["shared"] = used
        except BackendUnavailable as error:
            row["refused"] = str(error)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"[-2000:]
        print(json.dumps(row), flush=True)
        os._exit(0)
    _, status = os.wait()
    if status:
        print(json.dumps(row | {"error": f"killed after {SECONDS} s"}), flush=True)
"""
Sizes = tuple[int | str, ...]
Row = dict[str, Any]

BOTH, HALF = ("float32", "bfloat16"), ("bfloat16",)
INNER_BLOCKS = ((16, 15, 1), (64, 31, 1), (16, 40, 8), (64, 63, 3), (16, 63, 63))
CASES: dict[tuple[str, Sizes], tuple[str, ...]] = {  # the widest of every entry in the table of configurations
    **{("inner_block", sizes): BOTH for sizes in INNER_BLOCKS},
    **{(name, (width,)): HALF for name in ("outer_attention", "layernorm_mlp") for width in (192, 384)},
    **{(name, (640,)): BOTH for name in ("outer_attention", "layernorm_mlp")},
    **{("pixels_to_patches", sizes): BOTH for sizes in ((16, 12, 192), (16, 63, 640), (64, 16, 128))},
    **{("short_attention", sizes): BOTH for sizes in ((16, 4, 3), (32, 2, 64), (72, 1, 64))},
    **{("distillation_loss", (4096, kind)): BOTH for kind in ("soft", "standardized", "decoupled")},
}
LARGE: tuple[tuple[str, Sizes], ...] = (
    ("pixels_to_patches", (16, 63, 640)), ("short_attention", (32, 2, 64)), ("short_attention", (72, 1, 64)),
)  # fmt: skip
NEAREST: tuple[tuple[str, Sizes], ...] = (
    *LARGE, ("inner_block", (16, 40, 8)), ("outer_attention", (384,)), ("layernorm_mlp", (640,)),
    ("distillation_loss", (4096, "standardized")),
)  # fmt: skip
PLAN = [(86, *case, dtype, True) for case, dtypes in CASES.items() for dtype in dtypes]
PLAN += [(120, *case, dtype, False) for case in NEAREST for dtype in CASES[case]]
PLAN += [(arch, *case, dtype, False) for arch in (80, 90, 100) for case in LARGE for dtype in CASES[case]]
TOO_LARGE = {((64, 63, 3), "bfloat16"), *((sizes, "float32") for sizes in INNER_BLOCKS[1:])}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What became of the plan, by one process: every case with "shared" (kernels and bytes), "refused" or "error"."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))  # kernels without a binary stay in here
    command = [sys.executable, "-c", PROGRAM, str(SECONDS), json.dumps(SHARED), json.dumps(PLAN)]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def refused(arch: int, operation: str, sizes: Sizes, dtype: str) -> bool:
    """Inner blocks that no GPU holds, many heads of wide ones, and attention that needs more than 99 KB."""
    if operation == "inner_block":
        return (sizes, dtype) in TOO_LARGE or (sizes == (16, 63, 63) and SHARED[arch] < 188 * 1024)
    return operation == "short_attention" and sizes == (72, 1, 64) and dtype == "float32" and SHARED[arch] < 104 * 1024


@pytest.mark.parametrize(("arch", "operation", "sizes", "dtype"), [case[:4] for case in PLAN])
def test_what_is_accepted_compiles_within_the_device(
    rows: list[Row], arch: int, operation: str, sizes: Sizes, dtype: str
) -> None:
    wanted = {"arch": arch, "operation": operation, "sizes": list(sizes), "dtype": dtype}
    (row,) = (row for row in rows if row.items() >= wanted.items())
    assert "error" not in row, row
    if refused(arch, operation, sizes, dtype):
        assert "refused" in row, row
    else:
        assert row["shared"] and all(shared <= SHARED[arch] for _, shared in row["shared"]), row


def test_the_nearest_cases_need_most(rows: list[Row]) -> None:
    need: dict[str, list[tuple[int, Sizes]]] = {}
    for row in rows:
        if row["arch"] == 86 and "shared" in row:
            most = max(shared for _, shared in row["shared"])
            need.setdefault(row["operation"], []).append((most, tuple(row["sizes"])))
    assert {(operation, max(found)[1]) for operation, found in need.items()} <= set(NEAREST)
    assert need.keys() == {operation for operation, _ in CASES}
