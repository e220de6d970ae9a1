"""Epochs of a captured step, on the second of two devices: one graph a step, and nothing in front of it.

That batches, weights and sums are those of the plain step is shown on a CPU in
tests/titn/training/test_captured_epochs.py.
"""

from __future__ import annotations

from typing import Any

import pytest
from budgets import budget
from null_device import NullDevice, count

DEVICE = "1"
NAMES = ("sgd, twelve blocks", "adamw, twelve blocks, averaged", "sgd, fp16, logits")

names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def epochs(null_cuda: NullDevice) -> dict[str, Any]:
    return null_cuda.run("epochs.py", f"cuda:{DEVICE}", devices=2)


@names
def test_one_capture_without_fault_on_its_device(epochs: dict[str, Any], name: str) -> None:
    assert tuple(epochs) == NAMES
    everything = [epochs[name]["first"], epochs[name]["begin"], *epochs[name]["steps"]]
    assert len(everything) == 8
    assert [(report["faults"], set(report["devices"])) for report in everything] == [([], {DEVICE})] * 8
    assert [report["counts"].get("capture", 0) for report in everything] == [1] + [0] * 7


@names
def test_a_step_is_one_graph_and_nothing_else(epochs: dict[str, Any], name: str) -> None:
    for report in epochs[name]["steps"]:
        assert set(report["counts"]) == {"launch graph", "graph node"} and report["counts"]["launch graph"] == 1


@names
def test_an_epoch_begins_with_two_uploads_and_waits_for_nothing(epochs: dict[str, Any], name: str) -> None:
    """The table; sums and step, which are then copied to where the graph reads them."""
    report = epochs[name]["begin"]
    assert count(report, "copy pinned to device") == count(report, "copy device to device") == 2
    assert count(report, "launch kernel", "synchronize", "allocate device", "load module") == 0
    assert count(report, "copy pageable", "copy device to pageable", "copy device to pinned") == 0


@pytest.mark.parametrize("name", [name for name in NAMES if "twelve" in name])
def test_nodes_of_a_step(epochs: dict[str, Any], name: str) -> None:
    nodes = {report["counts"]["graph node"] for report in epochs[name]["steps"]}
    assert max(nodes) <= budget("nodes of a step in a captured epoch")[name]
