"""The captured step of several trainings, on the second of two devices: captured without fault, replayed as one graph.

What capture forbids (waiting, reading a value, pageable copies, loading kernels) would show as a fault of the first
call; that values are right is shown on a CPU (tests/titn/training/test_captured.py) and on a GPU.
"""

from __future__ import annotations

from typing import Any

import pytest
from budgets import budget, executed, issued
from null_device import NullDevice, count

DEVICE = "1"
NAMES = (
    "sgd", "adam, accumulated", "adamw, averaged", "rmsprop", "muon", "sgd, fp16, averaged",
    "adamw, fp16, accumulated", "adamw, clipped", "sgd, fp16, clipped", "sgd, twelve blocks",
    "adamw, twelve blocks, averaged",
)  # fmt: skip

names = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def trainings(null_cuda: NullDevice) -> dict[str, Any]:
    return null_cuda.run("captured.py", f"cuda:{DEVICE}", devices=2)


def test_every_training_is_there(trainings: dict[str, Any]) -> None:
    assert tuple(trainings) == NAMES


@names
def test_one_capture_without_fault_on_its_device(trainings: dict[str, Any], name: str) -> None:
    report = trainings[name]["capture"]
    assert report["faults"] == [] and set(report["devices"]) == {DEVICE}
    assert report["counts"]["capture"] == report["counts"]["instantiate graph"] == report["counts"]["launch graph"] == 1


@names
def test_a_replay_is_a_copy_in_and_one_graph(trainings: dict[str, Any], name: str) -> None:
    """Floats and integers are copied in one launch each; rate and share of the average are filled in."""
    for report in trainings[name]["replays"]:
        assert report["faults"] == [] and set(report["devices"]) == {DEVICE}
        assert report["counts"]["launch graph"] == 1
        assert issued(report) == 4 + ("averaged" in name)
        assert count(report, "synchronize", "copy", "allocate", "load module", "capture") == 0


@pytest.mark.parametrize("name", [name for name in NAMES if "twelve" in name])
def test_nodes_of_the_graph(trainings: dict[str, Any], name: str) -> None:
    for report in trainings[name]["replays"]:
        assert executed(report) <= budget("kernels of a captured step")[name]


@pytest.fixture(scope="module")
def checkpoints(null_cuda: NullDevice, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return null_cuda.run("checkpoint.py", f"cuda:{DEVICE}", str(tmp_path_factory.mktemp("checkpoints")), devices=2)


def test_what_was_saved_is_captured_again(checkpoints: dict[str, Any]) -> None:
    """By a step that was not captured yet, and by one that was, whose optimiser's tensors are other ones then."""
    assert [report["faults"] for report in checkpoints.values()] == [[]] * 5
    assert [report["counts"].get("capture", 0) for report in checkpoints.values()] == [0, 0, 1, 0, 1]
    assert [report["counts"].get("launch graph", 0) for report in checkpoints.values()] == [0, 0, 1, 1, 1]


def test_training_does_not_wait_for_a_checkpoint(checkpoints: dict[str, Any]) -> None:
    """The copies are begun, and waited for where they are written."""
    snapshot, write = checkpoints["snapshot"], checkpoints["write"]
    assert count(snapshot, "copy device to pinned") > 100 and count(snapshot, "copy device to pageable") == 0
    assert count(snapshot, "synchronize") == 0
    assert count(write, "copy device to pinned") == 0 and count(write, "synchronize") == 2


@pytest.fixture(scope="module")
def evaluations(null_cuda: NullDevice) -> dict[str, Any]:
    return null_cuda.run("evaluation.py", f"cuda:{DEVICE}", devices=2)


def test_whole_batches_of_an_evaluation_are_captured_once(evaluations: dict[str, Any]) -> None:
    """A graph for each, and the last batch call by call."""
    for report in evaluations.values():
        assert report["faults"] == [] and set(report["devices"]) == {DEVICE}
    assert [report["counts"]["launch graph"] for report in evaluations.values()] == [2, 2, 3]
    assert [report["counts"].get("capture", 0) for report in evaluations.values()] == [1, 0, 0]


def test_an_evaluation_waits_for_its_images_and_its_logits_only(evaluations: dict[str, Any]) -> None:
    """Images, labels and two constants of the pipeline go up, logits come down; each whole batch keeps its budget."""
    for report in (evaluations["second"], evaluations["longer"]):
        assert count(report, "synchronize") <= 5 and count(report, "copy device to pageable") == 1
        assert count(report, "load module", "capture", "allocate") == 0
    whole = budget("issued by an evaluated batch")
    assert issued(evaluations["longer"]) - issued(evaluations["second"]) <= whole
