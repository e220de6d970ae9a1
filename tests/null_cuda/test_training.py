"""`python -m titn.train` on the null device, from teacher to report: no fault, no waiting between two displays.

Training reads its sums for a display, and nothing else may wait in between. Digits, one epoch of 44 steps, depth 1; the
teacher is trained by the first run and found by the others. Every value on the device is zero, so the loss is finite.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from null_device import NullDevice, count

CHOICES = {
    "fast": ("--fast",),
    "float32": (),
    "bf16 with Triton kernels": ("--amp", "bf16", "--kernels", "triton"),
    "fp16": ("--amp", "fp16"),
}
SIZE = ("--dataset", "digits", "--depth", "1", "--epochs", "1", "--teacher-epochs", "1", "--batch-size", "32")
DEVICE = "1"

choices = pytest.mark.parametrize("choice", CHOICES)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@cache
def trained(null_cuda: NullDevice, runs: Path, choice: str) -> list[dict[str, Any]]:
    where = ("--device", f"cuda:{DEVICE}", "--runs-dir", str(runs), "--name", choice.replace(" ", "-"))
    return null_cuda.run("train.py", *CHOICES[choice], *SIZE, *where, devices=2)


@choices
def test_training_ends_well(null_cuda: NullDevice, runs: Path, choice: str) -> None:
    intervals = trained(null_cuda, runs, choice)
    assert [interval["report"]["faults"] for interval in intervals] == [[]] * len(intervals)
    assert (runs / choice.replace(" ", "-") / "result.json").is_file()


@choices
def test_every_kernel_runs_on_the_chosen_device(null_cuda: NullDevice, runs: Path, choice: str) -> None:
    assert {device for interval in trained(null_cuda, runs, choice) for device in interval["report"]["devices"]} == {
        DEVICE
    }


@choices
def test_nothing_waits_between_two_displays(null_cuda: NullDevice, runs: Path, choice: str) -> None:
    intervals = trained(null_cuda, runs, choice)
    between = [interval["report"] for before, interval in pairwise(intervals) if before["bar"] == interval["bar"]]
    assert between
    for report in between:
        assert count(report, "launch kernel") and count(report, "copy pinned to device")
        assert count(report, "synchronize") <= 1 and count(report, "copy device to pageable") <= 1
        assert count(report, "copy pageable to device", "allocate", "load module", "capture") == 0
