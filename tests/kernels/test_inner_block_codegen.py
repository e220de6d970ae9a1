"""What the compiler makes of the inner block's kernels, without a GPU: no spills, budgets, tensor cores."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

REPORT = """
import json, sys
from titn.kernels.common.compilation import compile_offline, issue_floor_microseconds
from titn.kernels.common.compilation import resources, warp_instructions_per_row
from titn.kernels.inner_block.triton import shipped

found = []
for c in shipped(int(sys.argv[1])):
    if c.widths in sys.argv[2:]:
        r = resources(compile_offline(c, int(sys.argv[1])))
        floor = issue_floor_microseconds(warp_instructions_per_row(c, r), 16384 * 16)
        found.append((c.widths, c.kernel, r.registers, r.stack, r.shared, r.spills, r.tensor_core, floor))
print(json.dumps(found))
"""

LARGE = {"forward", "mlp_backward", "attention_backward"}

# Issue floors in microseconds for 16,384 sequences on one H200, by (widths, kernel).
FLOORS = {
    ("16x12 4 heads", "forward"): 15.0,
    ("16x12 4 heads", "mlp_backward"): 15.0,
    ("16x12 4 heads", "attention_backward"): 18.0,
    ("16x12 2 heads", "attention_backward"): 14.0,
}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("widths", [("16x12 4 heads", "16x12 2 heads"), ("16x24 4 heads",)])
def test_no_spills_within_budgets(arch: int, widths: tuple[str, ...]) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", REPORT, str(arch), *widths]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert {w for w, *_ in found} == set(widths)
    for width, kernel, registers, stack, shared, spills, tensor_core, floor in found:
        what = f"{width} {kernel} sm_{arch}"
        assert stack == 0, what
        assert spills == 0, what
        assert registers <= 255, what
        assert shared <= 48 * 1024, what
        assert (tensor_core > 0) == (kernel in LARGE), what
        if arch == 90 and (width, kernel) in FLOORS:
            assert floor <= FLOORS[width, kernel], what
