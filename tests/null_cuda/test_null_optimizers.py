"""A step of two micro-batches with an average of the weights, by AdamW and by Muon: no fault, no waiting, captured."""

from __future__ import annotations

from functools import cache

import pytest
from budgets import issued
from null_device import NullDevice, Report, count

MUON_COSTS = 112  # nodes more than AdamW alone, at any depth, but for the copies that stack the matrices

names = pytest.mark.parametrize("name", ["adamw", "muon"])


@cache
def measured(null_cuda: NullDevice, name: str) -> dict[str, Report]:
    return null_cuda.run("optimizer.py", name, "cuda:0")


@names
def test_no_fault_and_nothing_waits(null_cuda: NullDevice, name: str) -> None:
    answer = measured(null_cuda, name)
    for report in (answer["warm_up"], *answer["steps"], answer["capture"], answer["replay"]):
        assert report["faults"] == []
    for step in answer["steps"]:
        assert count(step, "synchronize", "copy pageable", "copy device to pageable", "allocate") == 0


@names
def test_the_step_can_be_captured_and_is_one_launch_then(null_cuda: NullDevice, name: str) -> None:
    answer = measured(null_cuda, name)
    assert count(answer["replay"], "launch graph") == issued(answer["replay"]) == 1


def test_muon_iterates_over_all_matrices_at_once(null_cuda: NullDevice) -> None:
    muon, adamw = (measured(null_cuda, name)["steps"][-1] for name in ("muon", "adamw"))
    assert issued(muon) - issued(adamw) <= MUON_COSTS
