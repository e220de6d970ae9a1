"""The harvest of a GPU on the null device, from cold caches at toy sizes: every part, every row, one part killed.

All parts of `python -m bench.harvest --dry-run --device cuda`, as they run on a GPU: kernels compiled by Triton, steps
captured in CUDA graphs. What a device that computes nothing cannot show is that results are right, so the checks of the
two parts that make them fail. Left out at toy sizes: inductor's code (test_steps.py compiles it) and other sizes.
`other-batches` is killed as soon as it has saved a row.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from null_device import ROOT, NullDevice

from bench.harvest import PARTS
from bench.kernels.cases import MODES, cases
from bench.kernels.providers import providers

Row = dict[str, Any]

NAMES = [part.name for part in PARTS if not part.before or shutil.which(part.before[0]) is None]
"""All parts; a sanitizer, where there is one, has no device to look at."""
CASES = cases("cuda", True)
ERRORS = {name: f"{len(CASES)} of {len(CASES)} checks are not right" for name in ("kernels", "rivals")}
CONTENDERS = [
    "titn --fast",
    "titn, torch.compile, CUDA graph",
    "timm TNT, eager",
    "timm TNT, whole step in one CUDA graph",
    "timm TNT, torch.compile",
    "timm TNT, torch.compile, CUDA graph",
    "timm TNT, torch.compile of blocks",
    "titn, torch.compile",
    "titn reference, float32",
]
BATCH_SIZE, KILLED_AT = 2, 3
"""Of the parts training and other-batches."""


def saved(out: Path) -> Iterator[Row]:
    """Rows of throughput that a part still at work has saved so far."""
    for path in out.glob(".part-*/*/*.json"):
        with contextlib.suppress(FileNotFoundError):
            yield from json.loads(path.read_text())["sections"].get("throughput", {}).get("rows", [])


def kill_part_with_a_row(harvest: subprocess.Popen[bytes], out: Path) -> None:
    """Wait until other-batches has saved a measured row, and kill its process."""
    while harvest.poll() is None:
        if any(row["batch_size"] == KILLED_AT and "images_per_second" in row for row in saved(out)):
            (part,) = map(int, Path(f"/proc/{harvest.pid}/task/{harvest.pid}/children").read_text().split())
            os.kill(part, signal.SIGKILL)
            return
        time.sleep(0.02)


@pytest.fixture(scope="module")
def harvested(null_cuda: NullDevice, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    """The sections of the result file, and the faults that the device has seen in any process."""
    folder = tmp_path_factory.mktemp("harvest")
    line = [sys.executable, "-m", "bench.harvest", "--dry-run", "--device", "cuda", "--minutes", "600"]
    line += ["--out", str(folder / "out"), "--runs-dir", str(folder / "runs"), "--parts", *NAMES]
    cold, faults = replace(null_cuda, caches=folder / "caches"), folder / "faults"
    environment = cold.environment() | {"NULL_CUDA_FAULTS": str(faults)}
    with (folder / "log").open("wb") as log:
        harvest = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        kill_part_with_a_row(harvest, folder / "out")
        status = harvest.wait()
    assert status == 1, (folder / "log").read_text()  # a part has failed
    (path,) = (folder / "out").rglob("*.json")
    content = json.loads(path.read_text())
    assert content["finished"] and content["device"]["type"] == "cuda"
    return content["sections"], faults.read_text().splitlines() if faults.exists() else []


@pytest.fixture(scope="module")
def sections(harvested: tuple[dict[str, Any], list[str]]) -> dict[str, Any]:
    return harvested[0]


@pytest.fixture(scope="module")
def parts(sections: dict[str, Any]) -> dict[str, Row]:
    return {part["part"]: part for part in sections["harvest"]["parts"]}


def test_the_device_saw_no_fault(harvested: tuple[dict[str, Any], list[str]]) -> None:
    assert harvested[1] == []


def test_every_part_ran_and_failed_for_its_own_reason_only(parts: dict[str, Row]) -> None:
    assert list(parts) == NAMES
    errors = {name: part["error"] for name, part in parts.items() if part["error"]}
    assert errors == ERRORS | {"other-batches": "the process ended with SIGKILL"}


def test_every_kernel_is_timed_or_says_why_not(sections: dict[str, Any]) -> None:
    rows = {(row["operation"], row["case"], row["provider"], row["mode"]): row for row in sections["kernels"]}
    device = torch.device("cuda")
    expected = {
        (case.operation, case.name, provider.name, mode): provider.name
        for case in CASES
        for provider in providers(case, device, small=True)
        for mode in MODES
    }
    assert set(rows) == set(expected)
    assert [key for key, row in rows.items() if not ("us" in row and "graph_us" in row) and not row.get("reason")] == []
    ours = [key for key, name in expected.items() if name in ("triton", "torch", "compile")]
    assert {key: rows[key].get("reason") for key in ours if "median" not in rows[key].get("graph_us", {})} == {}
    checked = [(row["operation"], row["case"]) for row in sections["correctness"] if "errors" in row]
    assert checked == [(case.operation, case.name) for case in CASES]


def test_every_contender_is_timed(sections: dict[str, Any]) -> None:
    rows = [row for row in sections["throughput"]["rows"] if row["batch_size"] == BATCH_SIZE]
    assert [row["contender"] for row in rows] == CONTENDERS
    assert {row["contender"]: row["reason"] for row in rows if "images_per_second" not in row} == {}


def test_every_switch_of_the_waterfall_is_timed(sections: dict[str, Any]) -> None:
    rows = sections["waterfall"]["rows"]
    switches = ("amp", "compile", "kernels", "pipeline", "teacher cache", "cuda graph")
    assert [row["name"] for row in rows] == ["reference", *(f"+ {switch}" for switch in switches)]
    assert {row["name"]: row["reason"] for row in rows if "images_per_second" not in row} == {}


def test_a_profiler_that_sees_nothing_costs_the_profile_only(sections: dict[str, Any], parts: dict[str, Row]) -> None:
    """CUPTI does not start on the null device, as it may not on a GPU whose driver refuses it."""
    assert sections["step_profile"] == {"error": "RuntimeError: torch.profiler saw nothing of the step on cuda:0"}
    assert parts["training"]["sections"] == ["throughput", "step_profile"]


def test_a_part_killed_half_way_keeps_its_rows_and_the_next_one_runs(
    sections: dict[str, Any], parts: dict[str, Row]
) -> None:
    kept = [row["contender"] for row in sections["throughput"]["rows"] if row["batch_size"] == KILLED_AT]
    assert kept == CONTENDERS[: len(kept)] and 1 <= len(kept) < len(CONTENDERS)
    assert parts["other-batches"]["sections"] == ["throughput"]
    assert NAMES[-1] == "accuracy" and [run["seed"] for run in sections["accuracy"]["runs"]] == [0, 1]
