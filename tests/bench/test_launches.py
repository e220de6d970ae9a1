"""Counted kernel launches: of a module known by heart, and of the blocks, where fused is fewest."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from bench.kernels.launches import CASES, as_is
from titn.kernels.common.backend import installed
from titn.provenance import ROOT
from titn.training.switches import compile_reasons

COMPILED = """
import json, torch
from bench.kernels.launches import CASES, compiled
build, shape = CASES["outer block"]
print(json.dumps(compiled(build("torch"), torch.randn(shape, requires_grad=True))))
"""

pytestmark = pytest.mark.skipif(
    torch.cuda.is_available() or not installed("triton"), reason="counts in the interpreter"
)


def test_plain_operations_are_counted_and_views_are_not() -> None:
    """Forward: product, relu. Backward: relu's, sum of the bias, products for weight and input."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Unflatten(1, (2, 2)), nn.Flatten())
    assert as_is(module, torch.randn(5, 3, requires_grad=True)) == {"forward": 2, "backward": 4}


@pytest.mark.parametrize(("name", "forward", "backward"), [("inner block", 2, 3), ("outer block", 3, 8)])
def test_fused_blocks(name: str, forward: int, backward: int) -> None:
    """Inner: weights and one kernel; two kernels and a sum. Outer: three kernels; three, four products, a sum."""
    build, shape = CASES[name]
    inputs = torch.randn(shape, requires_grad=True)
    found = as_is(build("triton"), inputs)
    assert found == as_is(build("triton"), inputs), "a gradient that is there already changes nothing"
    assert found == {"forward": forward, "backward": backward}


@pytest.mark.skipif(bool(compile_reasons(torch.device("cpu"))), reason="torch.compile cannot run here")
def test_compiled_is_between_eager_and_fused() -> None:
    build, shape = CASES["outer block"]
    inputs = torch.randn(shape, requires_grad=True)
    run = subprocess.run([sys.executable, "-c", COMPILED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    counts = [as_is(build("torch"), inputs), json.loads(run.stdout), as_is(build("triton"), inputs)]
    assert sum(counts[0].values()) > sum(counts[1].values()) > sum(counts[2].values())
