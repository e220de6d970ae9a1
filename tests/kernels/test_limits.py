"""Every kernel and dtype that the operations accept compiles, in bounded time and within a GPU's shared memory.

The operations run on the CPU in a process whose launches compile for a GPU instead. Each case has its own fork with a
limit on processor time. What no device could run is refused with its reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHARED = {80: 163 * 1024, 86: 99 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}  # bytes a program may use
SECONDS = 240  # of processor time for forward and backward of one case

PROGRAM = """
import itertools, json, os, resource, sys
import torch
import triton
from torch import Tensor
os.environ["TRITON_INTERPRET"] = "1"  # the operators take CPU tensors, though Triton compiles
import titn.kernels
del os.environ["TRITON_INTERPRET"]
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

sys.path.insert(0, "tests/kernels")
from operations import Operation, _block, _mlp, _loss
from util import block_shapes
from titn.kernels import BackendUnavailable, inner_block, outer_attention, pixels_to_patches, short_attention

ARCH, SECONDS = int(sys.argv[1]), int(sys.argv[2])
TYPES = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int64: "*i64"}
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
    compiled = triton.compile(source, target=GPUTarget("cuda", ARCH, 32), options={"enable_fp_fusion": True} | given)
    used.append((self.__name__, compiled.metadata.shared))

def patched(operation):
    for name in ("op", "launch"):
        module = sys.modules.get(f"titn.kernels.{operation}.{name}")
        for function, value in (("triton_reasons", lambda *a, **k: []), ("architecture", lambda x: ARCH)):
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

def loss(kind):
    return Operation(lambda t, backend: _loss(t, backend, kind), dict.fromkeys("zs", (2, 4096)), {})

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

CASES = {
    **{f"inner_block {s}": inner(*s) for s in ((16, 12, 4), (16, 15, 1), (64, 31, 1), (16, 40, 4), (64, 63, 3))},
    "inner_block (16, 63, 63)": inner(16, 63, 63),
    **{f"outer_attention {w}": outer(w) for w in (192, 384, 640)},
    **{f"layernorm_mlp {w}": mlp(w) for w in (192, 384, 640)},
    **{f"pixels_to_patches {s}": patches(*s) for s in ((16, 12, 192), (16, 63, 640), (64, 16, 128))},
    **{f"short_attention {s}": attention(*s) for s in ((16, 4, 3), (32, 2, 64), (72, 1, 64))},
    **{f"distillation_loss 4096 {kind}": loss(kind) for kind in ("soft", "standardized", "decoupled")},
}

for (name, case), dtype in itertools.product(CASES.items(), (torch.float32, torch.bfloat16)):
    if sys.argv[3] not in name:
        continue
    if os.fork() == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        try:
            inputs = [t.requires_grad_() for t in case.draw(dtype)]
            output = case.run(inputs, "triton")
            torch.autograd.grad(output, inputs, torch.ones_like(output))
            result = {"shared": used}
        except BackendUnavailable as error:
            result = {"refused": str(error)}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"[-2000:]}
        print(json.dumps({"case": name, "dtype": str(dtype), **result}), flush=True)
        os._exit(0)
    _, status = os.wait()
    if status:
        print(json.dumps({"case": name, "dtype": str(dtype), "error": f"killed after {SECONDS} s"}), flush=True)
"""
OPERATIONS = ("inner_block", "outer_attention", "layernorm_mlp", "pixels_to_patches", "short_attention", "distillation")


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("arch", [80, 86])
def test_what_is_accepted_compiles_within_the_device(operation: str, arch: int) -> None:
    """sm_80 and sm_86 have the least shared memory of those with entries of their own, and of the others."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", PROGRAM, str(arch), str(SECONDS), operation]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    rows = [json.loads(line) for line in run.stdout.splitlines()]
    assert {row["dtype"] for row in rows} == {"torch.float32", "torch.bfloat16"}
    for row in rows:
        assert "error" not in row, row
        assert all(shared <= SHARED[arch] for _, shared in row.get("shared", ())), row
    refused = {(row["case"], row["dtype"]) for row in rows if "refused" in row}
    too_large = ("(64, 31, 1)", "(16, 40, 4)", "(64, 63, 3)", "(16, 63, 63)")
    expected = {(f"inner_block {sizes}", "torch.float32") for sizes in too_large}
    expected.add(("inner_block (64, 63, 3)", "torch.bfloat16"))
    assert refused == (expected if operation == "inner_block" else set())
