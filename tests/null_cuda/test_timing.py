"""bench.timing on the second of two null devices, while the first is the current one; and bench.step."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from null_device import ROOT, NullDevice


@pytest.fixture(scope="module")
def timed(null_cuda: NullDevice) -> dict[str, Any]:
    return null_cuda.run("timing.py", "cuda:1", devices=2)


def test_everything_that_is_timed_runs_on_the_device_that_was_given(timed: dict[str, Any]) -> None:
    assert timed["report"]["faults"] == [] and set(timed["report"]["devices"]) == {"1"}
    assert "error" not in timed["graph"]


def test_an_empty_graph_is_refused(timed: dict[str, Any]) -> None:
    assert timed["empty"] == "refused"


def test_a_step_that_the_profiler_does_not_see_ends_in_one_line(null_cuda: NullDevice) -> None:
    """CUPTI does not start on the null device, as it may not on a GPU whose driver refuses it; all else has run."""
    line = [sys.executable, "-m", "bench.step", "--batch-size", "8", "--steps", "2", "--device", "cuda"]
    done = subprocess.run(line, cwd=ROOT, env=null_cuda.environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.splitlines()[-1].startswith("error: the profiler saw nothing that ran on cuda:0")
