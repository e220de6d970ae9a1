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
    "fast": ("cuda:1", "--fast"),
    "compiled": ("cuda:1", "--fast", "--compile", "on"),
    "float32": ("cuda", "--amp", "off"),
    "bf16-triton": ("cuda:1", "--amp", "bf16", "--kernels", "triton"),
    "fp16": ("cuda:1", "--amp", "fp16"),
}
"""Names of runs, on which of two devices and how each trains."""

SIZE = ("--dataset", "digits", "--depth", "1", "--epochs", "1", "--teacher-epochs", "1", "--batch-size", "32")

choices = pytest.mark.parametrize("choice", CHOICES)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@cache
def trained(null_cuda: NullDevice, runs: Path, choice: str) -> list[dict[str, Any]]:
    device, *how = CHOICES[choice]
    where = ("--device", device, "--runs-dir", str(runs), "--name", choice)
    return null_cuda.run("command.py", "titn.train", *how, *SIZE, *where, devices=2)


def devices(intervals: list[dict[str, Any]]) -> set[str]:
    return {device for interval in intervals for device in interval["report"]["devices"]}


@choices
def test_training_ends_well(null_cuda: NullDevice, runs: Path, choice: str) -> None:
    intervals = trained(null_cuda, runs, choice)
    assert [interval["report"]["faults"] for interval in intervals] == [[]] * len(intervals)
    assert (runs / choice / "result.json").is_file()


@choices
def test_every_kernel_runs_on_the_chosen_device(null_cuda: NullDevice, runs: Path, choice: str) -> None:
    assert devices(trained(null_cuda, runs, choice)) == {"1" if CHOICES[choice][0] == "cuda:1" else "0"}


def test_float32_is_not_tf32(null_cuda: NullDevice, runs: Path) -> None:
    assert not trained(null_cuda, runs, "float32")[-1]["tf32"]


@choices
def test_nothing_waits_between_two_displays(null_cuda: NullDevice, runs: Path, choice: str) -> None:
    intervals = trained(null_cuda, runs, choice)
    between = [interval["report"] for before, interval in pairwise(intervals) if before["bar"] == interval["bar"]]
    steady = [report for report in between if not count(report, "capture")]
    assert len(steady) >= 2 and len(between) - len(steady) <= 1, "one capture, which may wait, then 24 steps more"
    last_bar = max(interval["bar"] for interval in intervals)
    student = [interval["report"] for interval in intervals if interval["bar"] == last_bar]
    for report in steady:
        if choice == "fast" and report in student:  # what goes up does so at the beginning of the epoch
            assert count(report, "launch graph") and not count(report, "launch kernel", "copy pinned to device")
        else:
            assert count(report, "launch kernel") and count(report, "copy pinned to device")
        assert count(report, "synchronize") <= 1 and count(report, "copy device to pageable") <= 1
        assert count(report, "copy pageable to device", "allocate", "load module", "capture") == 0


def test_evaluation_on_another_device(null_cuda: NullDevice, runs: Path) -> None:
    trained(null_cuda, runs, "fp16")
    arguments = (str(runs / "fp16"), "--device", "cuda:0", "--json")
    (evaluation,) = null_cuda.run("command.py", "titn.evaluate", *arguments, devices=2)
    assert evaluation["report"]["faults"] == [] and devices([evaluation]) == {"0"}
    assert not evaluation["tf32"]
